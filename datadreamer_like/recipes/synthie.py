"""SynthIE: facts first, then the text that states them; a student is trained to go the other way."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, check_number
from datadreamer_like.graph.output import Column
from datadreamer_like.models import LLM, Answer, HFTransformers, Rejected
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.steps import DataSource, Prompt, Step

from .parts import MakeTrainer, check_llm, check_pair, check_recipe, check_trainer, check_two, count_rows, make_trainer

logger = logging.getLogger("datadreamer_like")

Triple: TypeAlias = tuple[str, str, str]
"""A fact: subject, relation, object."""

_COLUMNS = (
    TableColumn("direction", "direction", align="left"),
    TableColumn("calls", "calls", "", ",d"),
    TableColumn("rows", "rows", "", ",d"),
    TableColumn("precision", "precision", "%", ".1f", 100),
    TableColumn("recall", "recall", "%", ".1f", 100),
    TableColumn("f1", "F1", "%", ".1f", 100),
)
_WRITE = "Write one or two plain sentences that state these facts and nothing else."
_EXTRACT = "List the facts that the text states, one per line, as: subject | relation | object. The relations are: {}."
_TRIES = 20
_AROUND = " -*.\t"  # bullets before a fact, and the end of a sentence after it


class SynthIE:
    """Trains a student to extract facts from texts that an LLM wrote for given facts, not on facts it extracted.

    Josifoski et al. 2023, arXiv:2303.04132: writing a text that states given facts is easier for an LLM than finding
    the facts of a text, so the labels of such data are better. Sets of facts are drawn first: the next fact of a set
    shares an entity with one before, and rarer relations are drawn more often, so that all occur alike. The LLM writes
    the text of each set, and the student learns the set from the text. The paper draws from Wikidata; here `facts` are
    given. A text that leaves out a subject or an object is dropped, which the paper did not do.

    Args:
        name: Prefix of the names of all steps and trainers, which are cached nodes.
        llm: The LLM.
        facts: What is known: triples of subject, relation and object.
        trainer: Makes an untrained trainer of a name: `partial(TrainHFFineTune, model_name=...)`, causal or
            encoder-decoder.
        test_input, test_output: Columns of texts and their facts: lists of triples, or texts as the student writes.
        rows: How many texts to ask for; fewer, with a warning, where the facts give fewer different sets.
        facts_per_row: Fewest and most facts of a text.
        examples: Texts and their facts, shown in each prompt, in either direction.
        forward: Column of texts without facts. The LLM extracts the facts of the first `rows` of them, and a second
            student learns from those: the usual direction, at the same number of calls.
        validation_share: Share of the rows that choose the students' best epoch.
        max_new_tokens: Most tokens of what the LLM and a student write.
        seed: Of the facts drawn, and of the LLM.
        **options: Options of the trainer's `train`.

    Attributes:
        rows: A step with the columns `text`, `facts` and `target` (facts as the student writes them).
        student: The student of these rows.
        forward_rows, forward_student: The same of the other direction; None without it.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: An argument makes no sense.
        EmptyDataset, DataError: There are no facts, or the LLM's answers give fewer than two rows.
        DataDreamerError: See the trainer's `train`.

    Example:
        >>> made = SynthIE(  # doctest: +SKIP
        ...     "Facts", llm, [("Ada", "born in", "London"), ("London", "capital of", "England")],
        ...     partial(TrainHFFineTune, model_name=model), test.output["text"], test.output["facts"], rows=500,
        ... )
        >>> made.extract(["Ada was born in London."])  # doctest: +SKIP
        [[('Ada', 'born in', 'London')]]
    """

    result_version: ClassVar[int] = 1
    papers = ("2303.04132",)

    def __init__(
        self,
        name: str,
        llm: LLM,
        facts: Sequence[Triple],
        trainer: MakeTrainer,
        test_input: Column,
        test_output: Column,
        *,
        rows: int = 200,
        facts_per_row: tuple[int, int] = (1, 3),
        examples: Sequence[tuple[str, Sequence[Triple]]] = (),
        forward: Column | None = None,
        validation_share: float = 0.1,
        max_new_tokens: int = 96,
        seed: int = 42,
        **options: Any,
    ) -> None:
        check_llm(self, name, llm)
        check_recipe(self, name, trainer)
        known = [*dict.fromkeys(_checked(facts, f'"{name}": facts'))]
        if not known:
            raise EmptyDataset(f'"{name}": there are no facts to draw from. Pass triples of subject, relation, object.')
        check_two(facts_per_row, f'"{name}": facts_per_row')
        least, most = facts_per_row
        check_number(rows, f'"{name}": rows', 2, whole=True)
        check_number(least, f'"{name}": facts_per_row[0]', 1, whole=True)
        check_number(most, f'"{name}": facts_per_row[1]', least, whole=True)
        check_number(validation_share, f'"{name}": validation_share', 0, 1, over=True)
        check_number(seed, f'"{name}": seed', 0, whole=True)
        test = check_pair(name, {"test_input": test_input, "test_output": test_output})
        self.name, self._llm, self._trainer, self._options = name, llm, trainer, options
        self._tokens, self._share, self._seed = max_new_tokens, validation_share, seed
        self._relations = sorted({relation for _, relation, _ in known})
        self._examples = _checked_examples(examples, f'"{name}": examples')
        check_trainer(self, trainer, f"{name}, student", options, ("train_input", "train_output"))
        gold = [
            read_facts(each) if isinstance(each, str) else _checked(each, f'"{name}": test_output[{row}]')
            for row, each in enumerate(test_output)
        ]
        others = None if forward is None else [text for text in forward if isinstance(text, str) and text.strip()]
        if others == []:
            raise EmptyDataset(f'"{name}": forward has no texts. Pass a column of texts, or None.')
        self.table_rows: list[dict[str, Any]] = []
        sets = draw_facts(known, rows, (least, most), seed)
        if not sets:
            raise DataError(
                f'"{name}": the facts have no set of {least} that are connected by their subjects and objects. Pass '
                "more facts, or fewer facts_per_row."
            )
        if len(sets) < rows:
            logger.warning(
                "%s: %s different sets were drawn, fewer than the %s rows asked for. Pass more facts, or a wider "
                "facts_per_row.",
                name, f"{len(sets):,}", f"{rows:,}",
            )  # fmt: skip
        self.rows, calls = self._written(sets)
        self.student = self._trained("student", self.rows)
        self._measure("facts, then text", calls, self.rows, self.student, test["test_input"], gold)
        self.forward_rows = self.forward_student = None
        if others is not None:
            self.forward_rows, calls = self._extracted(others[: len(sets)])
            self.forward_student = self._trained("forward student", self.forward_rows)
            self._measure("text, then facts", calls, self.forward_rows, self.forward_student, test["test_input"], gold)
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name, LLM and trainer, for tests and documentation; columns are lists."""
        columns = {"test_input": ["a cat sat"], "test_output": ["a cat | sat on | a mat"]}
        facts = [("a cat", "sat on", "a mat"), ("a dog", "ran to", "a tree"), ("a mat", "is in", "a tree")]
        return {
            **columns,
            "facts": facts,
            "rows": 4,
            "validation_share": 0.5,
            "max_new_tokens": 4,
            "facts_per_row": (1, 2),
        }

    def _written(self, sets: Sequence[Sequence[Triple]]) -> tuple[Step, int]:
        """Texts that the LLM wrote for sets of facts, and the number of calls."""
        shown = "".join(f"\n\nFacts:\n{_lines(facts)}\nText: {text}" for text, facts in self._examples)
        prompts = [f"{_WRITE}{shown}\n\nFacts:\n{_lines(facts)}\nText:" for facts in sets]
        columns = {"prompt": prompts, "facts": [[*map(list, facts)] for facts in sets]}
        source = DataSource(f"{self.name}, facts", columns)
        return self._answered("texts", source, [*sets], partial(_stated, prompts=dict(zip(prompts, sets, strict=True))))

    def _extracted(self, texts: Sequence[str]) -> tuple[Step, int]:
        """Facts that the LLM extracted from texts, and the number of calls."""
        ask = _EXTRACT.format(", ".join(self._relations))
        shown = "".join(f"\n\nText: {text}\nFacts:\n{_lines(facts)}" for text, facts in self._examples)
        prompts = [f"{ask}{shown}\n\nText: {text}\nFacts:\n" for text in texts]
        source = DataSource(f"{self.name}, forward texts", {"prompt": prompts, "text": list(texts)})
        return self._answered("forward facts", source, None, _facts)

    def _answered(self, what: str, source: Step, sets: Any, parse: Any) -> tuple[Step, int]:
        """One call a row: an answer that does not fit is dropped, not asked for again."""
        args = {
            "llm": self._llm, "parse": parse, "max_follow_ups": 0, "max_new_tokens": self._tokens, "seed": self._seed
        }  # fmt: skip
        said = Prompt(f"{self.name}, {what}", {"prompts": source.output["prompt"]}, args)
        answers = list(said.output["generations"])
        kept = [row for row, answer in enumerate(answers) if answer is not None]
        if len(kept) < 2:
            raise DataError(
                f'"{self.name}": of {len(answers):,} answers of the LLM, {len(kept)} could be used; training needs two '
                f'or more. See the errors of the step "{said.name}".'
            )
        if sets is None:
            given = list(source.output["text"])
            pairs = [(given[row], [tuple(fact) for fact in answers[row]]) for row in kept]
        else:
            pairs = [(answers[row], sets[row]) for row in kept]
        columns: dict[str, list[Any]] = {
            "text": [text for text, _ in pairs],
            "facts": [[*map(list, facts)] for _, facts in pairs],
            "target": [write_facts(facts) for _, facts in pairs],
        }
        return DataSource(f"{self.name}, {what}, rows", columns), len(answers)

    def _trained(self, what: str, rows: Step) -> Any:
        count = count_rows(rows)
        held = min(count - 1, max(1, round(count * self._share)))
        parts = rows.splits(train_size=count - held, validation_size=held)
        student = make_trainer(self._trainer, f"{self.name}, {what}")
        columns = [parts[part].output[column] for part in ("train", "validation") for column in ("text", "target")]
        return student.train(*columns, **self._options)

    def _measure(
        self, direction: str, calls: int, rows: Step, student: Any, texts: Column, gold: Sequence[Sequence[Triple]]
    ) -> None:
        args = {
            "llm": HFTransformers(student, device=student.device),
            "max_new_tokens": self._tokens,
            "temperature": 0.0,
        }
        said = Prompt(f"{student.name}, test", {"prompts": texts}, args)
        found = [read_facts(text or "") for text in said.output["generations"]]
        facts = {"direction": direction, "calls": calls, "rows": count_rows(rows)}
        self.table_rows.append({**facts, **fact_scores(found, gold)})

    def extract(self, texts: Sequence[str]) -> list[list[Triple]]:
        """Returns the facts that the student finds in texts."""
        llm = HFTransformers(self.student, device=self.student.device)
        return [
            read_facts(text) for text in llm.run(list(texts), max_new_tokens=self._tokens, temperature=0.0, seed=None)
        ]

    @property
    def table(self) -> Table:
        """Precision, recall and F1 of the students' facts on the test rows, over all facts (micro)."""
        return Table(_COLUMNS, self.table_rows, title=self.name)

    def __str__(self) -> str:
        return str(self.table)


def draw_facts(facts: Sequence[Triple], rows: int, size: tuple[int, int], seed: int = 42) -> list[list[Triple]]:
    """Returns up to `rows` different sets of connected facts, whose relations occur alike.

    The first fact is of a relation drawn with a weight of 1 / (1 + how often it was drawn); the next ones share an
    entity with one of the set, and are weighed in the same way. A set is smaller where no such fact is left.
    """
    draw, used, seen, found = random.Random(seed), Counter[str](), set[frozenset[Triple]](), []
    by_entity: dict[str, list[Triple]] = defaultdict(list)
    relations: dict[str, list[Triple]] = defaultdict(list)
    for fact in facts:
        relations[fact[1]].append(fact)
        for entity in {fact[0], fact[2]}:
            by_entity[entity].append(fact)
    for _ in range(rows):
        for _try in range(_TRIES):
            names = list(relations)
            relation = draw.choices(names, [1 / (1 + used[name]) for name in names])[0]
            chosen = [draw.choice(relations[relation])]
            for _more in range(draw.randint(*size) - 1):
                near = dict.fromkeys(fact for each in chosen for end in (each[0], each[2]) for fact in by_entity[end])
                left = [fact for fact in near if fact not in chosen]
                if not left:
                    break
                chosen.append(draw.choices(left, [1 / (1 + used[fact[1]]) for fact in left])[0])
            if len(chosen) >= size[0] and frozenset(chosen) not in seen:
                seen.add(frozenset(chosen))
                used.update(fact[1] for fact in chosen)
                found.append(chosen)
                break
    return found


def write_facts(facts: Sequence[Triple]) -> str:
    """Returns facts as a student writes them: "subject | relation | object; ..."."""
    return "; ".join(" | ".join(fact) for fact in facts)


def read_facts(text: str) -> list[Triple]:
    """Returns the facts that a text lists, separated by semicolons or lines, each once; other parts are left out."""
    found: dict[Triple, None] = {}
    for part in text.replace("\n", ";").split(";"):
        ends = [each.strip(_AROUND) for each in part.split("|")]
        if len(ends) == 3 and all(ends):
            found[(ends[0], ends[1], ends[2])] = None
    return list(found)


def fact_scores(found: Sequence[Sequence[Triple]], gold: Sequence[Sequence[Triple]]) -> dict[str, float]:
    """Returns `precision`, `recall` and `f1` over all facts; they count as equal without regard to case."""
    pairs = [({*map(_key, some)}, {*map(_key, right)}) for some, right in zip(found, gold, strict=True)]
    hits = sum(len(some & right) for some, right in pairs)
    precision, recall = (hits / max(1, sum(len(pair[side]) for pair in pairs)) for side in (0, 1))
    total = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / total if total else 0.0}


def _key(fact: Triple) -> Triple:
    # `read_facts` leaves out a full stop at the end, as that of a sentence, also where a name ends with one.
    subject, relation, target = (" ".join(each.lower().strip(_AROUND).split()) for each in fact)
    return subject, relation, target


def _lines(facts: Sequence[Triple]) -> str:
    return "\n".join(" | ".join(fact) for fact in facts)


def _stated(answer: Answer, row: dict[str, Any], prompts: Mapping[str, Sequence[Triple]]) -> Any:
    """The text, if it has every subject and object."""
    text = " ".join((answer.text or "").split("\n\n")[0].split())
    ends = {end for fact in prompts[row["prompts"]] for end in (fact[0], fact[2])}
    missing = sorted(end for end in ends if end.lower() not in text.lower())
    return Rejected(f"It leaves out {', '.join(missing)}.") if missing else text


def _facts(answer: Answer, row: dict[str, Any]) -> Any:
    found = read_facts((answer.text or "").split("\n\n")[0])
    return [list(fact) for fact in found] or Rejected("It has no line such as: subject | relation | object.")


def _checked(facts: Any, what: str) -> list[Triple]:
    if isinstance(facts, str) or not isinstance(facts, Sequence):
        raise ArgumentTypeError(f"{what} must be a list of triples, not {facts!r:.100}.")
    found: list[Triple] = []
    for place, fact in enumerate(facts):
        is_triple = isinstance(fact, Sequence) and not isinstance(fact, str) and len(fact) == 3
        if not is_triple or not all(isinstance(each, str) and each.strip() for each in fact):
            raise DefinitionError(f"{what}[{place}] is {fact!r:.100}; expected three texts: subject, relation, object.")
        if any(mark in each for each in fact for mark in "|;\n"):
            raise DefinitionError(f"{what}[{place}] is {fact!r:.100}; a part must not contain '|', ';' or a new line.")
        found.append((fact[0], fact[1], fact[2]))
    return found


def _checked_examples(examples: Any, what: str) -> list[tuple[str, list[Triple]]]:
    found: list[tuple[str, list[Triple]]] = []
    for place, pair in enumerate(examples):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str):
            raise DefinitionError(f"{what}[{place}] is {pair!r:.100}; expected a text and its facts.")
        found.append((pair[0], _checked(pair[1], f"{what}[{place}][1]")))
    return found
