"""Self-Instruct: from a few tasks that people wrote to many tasks with inputs and outputs."""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from datadreamer_like.errors import DataError, check_number
from datadreamer_like.graph.output import Column
from datadreamer_like.models import LLM, Answer, Rejected
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.steps import (
    DataSource,
    DeduplicateByRougeL,
    LengthBetween,
    Prompt,
    Step,
    Validate,
    concat,
    step,
    zipped,
)
from datadreamer_like.steps.prompting.answer_readers import read_yes_or_no

from .parts import check_llm, check_llm_options, check_pair, check_texts, count_rows

logger = logging.getLogger("datadreamer_like")

KEYWORDS = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "video", "audio",
    "music", "plot", "flowchart", "diagram",
)  # fmt: skip
"""Words of tasks that a language model cannot do, by which Self-Instruct drops instructions."""

_COLUMNS = (
    TableColumn("round", "round"),
    TableColumn("prompts", "prompts", "", ",d"),
    TableColumn("proposed", "proposed", "", ",d"),
    TableColumn("invalid", "invalid", "", ",d"),
    TableColumn("similar", "similar", "", ",d"),
    TableColumn("kept", "kept", "", ",d"),
)
_TASK = re.compile(r"^\s*[*#]*\s*(?:Task\s*)?\d+\s*[:.)]\s*[*]*\s*(.*?)[\s*]*$", re.IGNORECASE | re.MULTILINE)
_FIELD = re.compile(r"^\s*[*#]*(Input|Output|Class label)[*]*\s*:[*]*", re.IGNORECASE | re.MULTILINE)
_NO_INPUT = re.compile(r"[<(\[]?\s*(?:no ?input|none|n/a)\.?\s*[>)\]]?", re.IGNORECASE)
_SHOWN_OF_KIND, _PER_PROMPT = 4, 8


class SelfInstruct:
    """Grows a few tasks that people wrote into many, each an instruction with an input and an output.

    Wang et al. 2022, arXiv:2212.10560. In each round the LLM continues lists of eight tasks: six of the seed, two of
    those it made before. New instructions are kept if they pass the filters by keyword and length, and if their ROUGE-L
    with every instruction of the pool is below `threshold`. Then the LLM says of each whether it is a classification
    task, and writes an instance: input first, or for classification the label first, so that not all inputs get the
    same label. An instance without an output, or whose output is its input, is dropped.

    The paper asked a base model; the prompts here suit models that follow instructions too. One instance is written for
    each instruction, where the paper wrote several.

    Args:
        name: Prefix of the names of all steps, which are cached nodes.
        llm: The LLM.
        instructions, inputs, outputs: Columns of the seed; an input may be empty or None.
        is_classification: Column of the seed, which of its tasks are classification: their instances are then shown for
            those alone. Without it, all instances are shown for both kinds.
        rounds: Number of rounds. It ends earlier if a round keeps nothing.
        prompts_per_round: How often the LLM is asked for new tasks in a round, eight at a time.
        from_seed, from_generated: How many tasks of each kind a prompt shows.
        threshold: ROUGE-L from which an instruction is too similar.
        keywords: Words that an instruction may not have, in any case.
        seed: Of the tasks in prompts, and of the LLM.
        **options: Options of the LLM, such as `max_new_tokens`. `temperature` is 0.7 and `top_p` 0.5 by default,
            as in the paper.

    Attributes:
        rows: A step with the columns `instruction`, `input`, `output` and `is_classification`, without the seed.
        rounds: For each round a dict: `prompts`, `proposed`, `invalid`, `similar` and `kept` instructions.
        rejected: Dicts of all that was dropped: `instruction`, `round` (None after the rounds) and `reason`.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: An argument makes no sense.
        EmptyDataset, DataError: The seed is empty or has a missing value; the LLM proposed no task, or none was kept.

    Example:
        >>> grown = SelfInstruct(  # doctest: +SKIP
        ...     "Tasks", llm, seed.output["instruction"], seed.output["input"], seed.output["output"], rounds=3
        ... )
        >>> print(grown, grown.rows.head())  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 1
    papers = ("2212.10560",)

    def __init__(
        self,
        name: str,
        llm: LLM,
        instructions: Column,
        inputs: Column,
        outputs: Column,
        *,
        is_classification: Column | None = None,
        rounds: int = 5,
        prompts_per_round: int = 10,
        from_seed: int = 6,
        from_generated: int = 2,
        threshold: float = 0.7,
        keywords: Collection[str] = KEYWORDS,
        seed: int = 42,
        **options: Any,
    ) -> None:
        check_llm(self, name, llm)
        check_llm_options(self, name, llm, options)
        columns = {"instructions": instructions, "inputs": inputs, "outputs": outputs}
        if is_classification is not None:
            columns["is_classification"] = is_classification
        values = {what: list(column) for what, column in check_pair(name, columns).items()}
        numbers = {"rounds": (rounds, 1), "prompts_per_round": (prompts_per_round, 1), "from_seed": (from_seed, 1)}
        for what, (number, least) in (numbers | {"from_generated": (from_generated, 0), "seed": (seed, 0)}).items():
            check_number(number, f'"{name}": {what}', least, whole=True)
        check_number(threshold, f'"{name}": threshold', 0, 1, over=True)
        if keywords:
            check_texts(keywords if isinstance(keywords, str) else list(keywords), f'"{name}": keywords')
        self.name, self._llm, self._options = name, llm, {"temperature": 0.7, "top_p": 0.5, "seed": seed, **options}
        self.rounds: list[dict[str, int]] = []
        self.rejected: list[dict[str, Any]] = []
        self._seed = _checked_seed(name, values)
        validators = [
            LengthBetween(4, 150, "words"),
            partial(_without, keywords=tuple(map(str.lower, keywords))),
            _form,
        ]
        pool = DataSource(f"{name}, seed", {"instruction": [task["instruction"] for task in self._seed]})
        made: list[Step] = []
        for number in range(1, rounds + 1):
            known = [task for each in made for task in each.output["instruction"]]
            prompts = [
                self._continuation(known, from_seed, from_generated, random.Random(f"{seed} {number} {place}"))
                for place in range(prompts_per_round)
            ]
            proposed, sent = self._proposed(number, prompts)
            valid = Validate(f"{name}, valid {number}", {"inputs": proposed}, {"validators": validators})
            texts = {"inputs": valid.output["instruction"], "pool": concat(pool, *made).output["instruction"]}
            novel = DeduplicateByRougeL(f"{name}, novel {number}", texts, {"threshold": float(threshold)})
            kept = self._count(number, sent, valid, novel)
            if not kept:
                break
            made.append(novel)
        if not made:
            raise DataError(f'"{name}": no instruction passed the filters. The reasons: {self._reasons()}.')
        self.rows = self._with_instances(concat(*made).save(name=f"{name}, tasks"))
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name and LLM, for tests and documentation; columns are lists."""
        return {
            "instructions": ["Say if a review is kind or angry.", "Name three birds that swim."],
            "inputs": ["What a day!", ""],
            "outputs": ["kind", "Ducks, geese and swans."],
            "is_classification": [1, 0],
            "rounds": 1,
            "prompts_per_round": 1,
        }

    # Instructions

    def _continuation(self, known: Sequence[str], from_seed: int, from_generated: int, draw: random.Random) -> str:
        """A prompt with tasks of the seed and of those made before, to continue."""
        own = draw.sample(list(known), min(from_generated, len(known)))
        wanted = min(from_seed + from_generated - len(own), len(self._seed))
        shown = [task["instruction"] for task in draw.sample(self._seed, wanted)] + own
        draw.shuffle(shown)
        first, last = len(shown) + 1, len(shown) + _PER_PROMPT
        tasks = "\n".join(f"Task {place}: {' '.join(task.split())}" for place, task in enumerate(shown, 1))
        ask = f"Below is a list of different tasks. Continue it with tasks {first} to {last}, one per line."
        return f"{ask}\n\n{tasks}\nTask {first}:"

    def _proposed(self, number: int, prompts: Sequence[str]) -> tuple[Column, int]:
        """The tasks of the answers, and the number of prompts sent, which a preview cuts."""
        source = DataSource(f"{self.name}, prompts {number}", {"prompt": list(prompts)})
        args = {"llm": self._llm, "parse": _tasks, **self._options}
        said = Prompt(f"{self.name}, continued {number}", {"prompts": source.output["prompt"]}, args)
        if not any(said.output["generations"]):
            raise DataError(
                f'"{self.name}": the LLM proposed no task in round {number}; expected lines such as "Task 9: ...". See '
                f'the errors of the step "{said.name}".'
            )
        found: Step = each_task(f"{self.name}, proposed {number}", inputs={"tasks": said.output["generations"]})
        return found.output["instruction"], count_rows(said)

    def _count(self, number: int, prompts: int, valid: Validate, novel: DeduplicateByRougeL) -> int:
        dropped = [list(each.rejected.output) for each in (valid, novel)]
        for row in (row for rows in dropped for row in rows):
            self.rejected.append({"instruction": row["instruction"], "round": number, "reason": row["reason"]})
        invalid, similar = map(len, dropped)
        kept = count_rows(novel)
        counts = {"proposed": kept + invalid + similar, "invalid": invalid, "similar": similar, "kept": kept}
        self.rounds.append({"round": number, "prompts": prompts, **counts})
        return kept

    # Instances

    def _with_instances(self, tasks: Step) -> Step:
        """The tasks with whether they are classification, an input and an output."""
        args = {"llm": self._llm, "parse": _yes_or_no, **self._options, "temperature": 0.0}
        asked = tasks.map(_kind_prompt, name=f"{self.name}, questions of kind", lazy=False)
        kinds = Prompt(f"{self.name}, kinds", {"prompts": asked.output["prompt"]}, args)
        shown = {kind: self._shown(kind) for kind in (False, True)}
        joined = zipped(tasks, kinds.select_columns(["generations"]).rename_column("generations", "is_classification"))
        kinds_known = [*zip(joined.output["instruction"], joined.output["is_classification"], strict=True)]
        self._drop("no answer whether it is classification", [task for task, kind in kinds_known if kind is None])
        if all(kind is None for _, kind in kinds_known):
            raise DataError(
                f'"{self.name}": the LLM said of no instruction whether it is classification. The reasons: '
                f'{self._reasons()}. See the errors of the step "{kinds.name}".'
            )
        known = joined.filter(lambda row: row["is_classification"] is not None)
        prompted = known.map(
            lambda row: {**row, "prompt": shown[row["is_classification"]].format(task=row["instruction"])},
            name=f"{self.name}, questions of instances", lazy=False,
        )  # fmt: skip
        said = Prompt(
            f"{self.name}, instances", {"prompts": prompted.output["prompt"]},
            {"llm": self._llm, "parse": _instance, **self._options},
        )  # fmt: skip
        names = {"generations": "instance"}
        full = zipped(prompted.remove_columns(["prompt"]), said.select_columns([*names]).rename_columns(names))
        rows = [*zip(full.output["instruction"], full.output["instance"], strict=True)]
        self._drop("no instance", [task for task, found in rows if found is None])
        if all(found is None for _, found in rows):
            raise DataError(f'"{self.name}": the LLM wrote no instance. The reasons: {self._reasons()}.')
        return full.filter(lambda row: row["instance"] is not None).map(
            _flat, name=f"{self.name}, rows", lazy=False, remove_columns=["instance"]
        )

    def _shown(self, is_classification: bool) -> str:
        """The prompt for an instance, with instances of the seed and the placeholder `{task}`."""
        kinds = [task for task in self._seed if task.get("is_classification") in (None, is_classification)]
        if is_classification:
            ask = "Write an example for the last task: one of its class labels, then an input with that label."
        else:
            ask = "Write an example for the last task: an input if it needs one, else '(none)', and the output."
        parts = []
        for task in (kinds or self._seed)[:_SHOWN_OF_KIND]:
            given, answer = f"Input: {task['input'] or '(none)'}", task["output"]
            lines = (f"Class label: {answer}", given) if is_classification else (given, f"Output: {answer}")
            parts.append("\n".join((f"Task: {task['instruction']}", *lines)))
        text = "\n\n".join((ask, *parts)).replace("{", "{{").replace("}", "}}")
        return f"{text}\n\nTask: {{task}}\n"

    # The report

    def _drop(self, reason: str, tasks: Sequence[str]) -> None:
        self.rejected += [{"instruction": task, "round": None, "reason": reason} for task in tasks]

    def _reasons(self) -> str:
        counts = Counter(each["reason"] for each in self.rejected).most_common(10)
        return ", ".join(f"{reason} {count:,}" for reason, count in counts) or "none"

    @property
    def table(self) -> Table:
        """What each round kept and rejected."""
        notes = [f"Rows with an instance: {count_rows(self.rows):,}. Rejected: {self._reasons()}."]
        return Table(_COLUMNS, self.rounds, self.name, notes)

    def __str__(self) -> str:
        return str(self.table)


@step(outputs=["instruction"])
def each_task(tasks: list[str] | None) -> Iterator[dict[str, str]]:
    """The tasks of each answer, one row per task."""
    for task in tasks or ():
        yield {"instruction": task}


def _tasks(answer: Answer, row: dict[str, Any]) -> Any:
    """The tasks of a continued list; the first one may have no number, and a last one that was cut is left out."""
    said = answer.text or ""
    text = said if _TASK.match(said) else f"Task 0: {said.lstrip()}"
    found = [task for task in _TASK.findall(text) if task]
    if answer.cut_off:
        found = found[:-1]
    return found or Rejected('There is no task. Write one per line, such as "Task 9: ...".')


def _kind_prompt(row: Mapping[str, Any]) -> dict[str, str]:
    ask = "Is this a classification task, with a small fixed set of possible outputs? Answer Yes or No."
    return {"prompt": f"{ask}\n\nTask: {row['instruction']}\nAnswer:"}


def _yes_or_no(answer: Answer, row: dict[str, Any]) -> Any:
    found = read_yes_or_no(answer.text or "")
    return Rejected("Answer Yes or No.") if found is None else found


def _instance(answer: Answer, row: dict[str, Any]) -> Any:
    """The input and output that an answer has under their names."""
    parts = _FIELD.split(answer.text or "")
    fields: dict[str, str] = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        fields.setdefault(name.lower(), text.split("\nTask:")[0].strip().strip('"'))
    output = fields.get("output") or fields.get("class label") or ""
    given = fields.get("input", "")
    given = "" if _NO_INPUT.fullmatch(given) else given
    if not output:
        return Rejected("There is no output, or no class label. Write both parts on lines with their names.")
    if output == given:
        return Rejected("The output is the input.")
    return {"input": given, "output": output}


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if name != "instance"}, **row["instance"]}


def _without(text: str, keywords: Sequence[str]) -> str | None:
    words = set(re.findall(r"\w+", text.lower()))
    found = next((word for word in keywords if word in words), None)
    return found and f"has the word {found}"


def _form(text: str) -> str | None:
    if text.lower().startswith("write a program"):
        return "asks for a program"
    return None if text[0].isalnum() or text[0] in "\"'" else "begins with punctuation"


def _checked_seed(name: str, values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    for what in ("instructions", "outputs"):
        for row, value in enumerate(values[what]):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f'"{name}": {what} is {value!r:.100} in row {row}; each task of the seed has a text.')
    keys = {"instructions": "instruction", "inputs": "input", "outputs": "output"}
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return [{keys.get(what, what): value for what, value in row.items()} for row in rows]
