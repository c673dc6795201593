"""Prompt2Model: from the prompt that one would give an LLM to a small model that does the task."""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    UnknownColumn,
    check_number,
    did_you_mean,
)
from datadreamer_like.evaluation.generated import exact_match, rouge_l
from datadreamer_like.graph.output import Column
from datadreamer_like.models import LLM, Answer, HFTransformers, Rejected
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.steps import DataSource, Prompt, Step
from datadreamer_like.steps.labelling.predict import can_classify

from .cards import HubCard, check_cards, rank_cards
from .parsed_prompt import PAIR, parse_prompt
from .parts import (
    MakeTrainer,
    accuracy,
    check_llm,
    check_pair,
    check_recipe,
    check_texts,
    check_trainer,
    check_two,
    count_rows,
    different_rows,
    make_trainer,
)

logger = logging.getLogger("datadreamer_like")

_COLUMNS = (
    TableColumn("model", "model", align="left"),
    TableColumn("rows", "rows", "", ",d"),
    TableColumn("exact_match", "exact match", "%", ".1f", 100),
    TableColumn("rouge_l", "ROUGE-L", "%", ".1f", 100),
)
_SHOWN, _SHOWN_MADE, _FEWEST = 3, 2, 4


class Prompt2Model:
    """Trains a small model from a prompt: reads it, finds data and a base model, makes rows by the LLM, and trains.

    Viswanathan et al. 2023, arXiv:2308.12261. (1) The prompt is parsed into an instruction and demonstrations. (2) A
    dataset that fits is found among the cards of `datasets`, and (3) a base model among those of `models`, by BM25 and
    popularity, with a description that the LLM made up as the query. (4) The LLM writes rows, from prompts that show
    demonstrations and rows made before, at a temperature that rises; of the outputs of an input the most frequent is
    kept, the shortest of those that are as frequent. (5) A student is trained on found and made rows, and (6) measured.
    Each part can be used alone: `parse_prompt`, `rank_cards`, `hub_cards`. The paper finds datasets by a trained
    encoder, and has a person choose; here BM25 does.

    Args:
        name: Prefix of the names of all steps and trainers, which are cached nodes.
        llm: The LLM.
        prompt: The prompt, as one would write it for an LLM.
        trainer: Makes an untrained trainer of a name, and of `model_name` if there are `models`: `TrainHFFineTune`,
            `TrainHFClassifier`, or any other that takes texts and outputs.
        datasets: Cards of datasets that may be used; None for none. Those without columns are left out.
        models: Cards of base models to choose from; None for the one that `trainer` has.
        labels: The outputs, where there are few: each prompt asks for one of them in turn, and rows with others are
            dropped.
        rows: How many rows the LLM is asked for.
        rounds: In how many rounds; each shows rows of those before, at a higher temperature.
        temperatures: Temperature of the first and the last round.
        dataset_rows: Most rows of the dataset that was found.
        max_megabytes: Largest base model.
        test_input, test_output: Columns to measure on; None for a share of the rows.
        control: Also measure the LLM with the prompt itself.
        held_out: Share of the rows for validation, and without test columns as many for the test.
        max_new_tokens: Most tokens of a made row, and of an answer.
        seed: Of all draws, and of the LLM.
        **options: Options of the trainer's `train`.

    Attributes:
        parsed: The `ParsedPrompt`.
        found_datasets, found_models: Cards with their scores, best first.
        dataset, model: The cards that were chosen, or None.
        rows: A step with the columns `input`, `output` and `source` ("made" or the dataset's name).
        left_out: How many rows were left out as their input, but for case and spaces, is "repeated" or "in the test".
        student: The trained model.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: An argument makes no sense.
        EmptyDataset, DataError: A list of cards is empty; fewer than four rows could be used.
        DataDreamerError: See the trainer's `train`.

    Example:
        >>> made = Prompt2Model(  # doctest: +SKIP
        ...     "Topics", llm, "Name the topic of a software package.", TrainHFClassifier, labels=["games", "net"],
        ...     models=[HubCard("MiniLM", "small English sentence encoder", folder, downloads=10)],
        ... )
        >>> print(made)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: the shortest of outputs that are as frequent
    papers = ("2308.12261",)

    def __init__(
        self,
        name: str,
        llm: LLM,
        prompt: str,
        trainer: MakeTrainer,
        *,
        datasets: Sequence[HubCard] | None = None,
        models: Sequence[HubCard] | None = None,
        labels: Sequence[str] | None = None,
        rows: int = 200,
        rounds: int = 2,
        temperatures: tuple[float, float] = (0.5, 1.0),
        dataset_rows: int = 1000,
        max_megabytes: float | None = 3000,
        test_input: Column | None = None,
        test_output: Column | None = None,
        control: bool = False,
        held_out: float = 0.1,
        max_new_tokens: int = 128,
        seed: int = 42,
        **options: Any,
    ) -> None:
        check_llm(self, name, llm)
        check_recipe(self, name, trainer)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ArgumentTypeError(f'"{name}": prompt must be a text, not {prompt!r:.100}.')
        check_two(temperatures, f'"{name}": temperatures')
        for number in temperatures:
            check_number(number, f'"{name}": temperatures')
        fewest = 1 if datasets else _FEWEST
        for what, number, least in (("rows", rows, fewest), ("rounds", rounds, 1), ("dataset_rows", dataset_rows, 0)):
            check_number(number, f'"{name}": {what}', least, whole=True)
        check_number(held_out, f'"{name}": held_out', 0, 0.4, over=True)
        for cards, what in ((datasets, "datasets"), (models, "models")):
            if cards is not None:
                check_cards(cards, f'"{name}": {what}')
        if labels is not None:
            check_texts(labels, f'"{name}": labels')
            if len({label.lower() for label in labels}) < max(2, len(labels)):
                raise DefinitionError(
                    f'"{name}": labels must be two or more that differ by more than case; got {list(labels)!r:.100}.'
                )
        if (test_input is None) != (test_output is None):
            raise DefinitionError(f'"{name}": pass test_input and test_output, or neither.')
        given = {"test_input": test_input, "test_output": test_output} if test_input is not None else {}
        test = check_pair(name, given) if given else {}
        self.name, self._llm, self._labels, self._seed, self._tokens = name, llm, labels, seed, max_new_tokens
        start = {"model_name": models[0].path} if models else {}
        check_trainer(self, trainer, f"{name}, student", options, ("train_input", "train_output"), **start)
        self.parsed = parse_prompt(f"{name}, parsed prompt", llm, prompt)
        self.found_datasets, self.found_models = self._retrieved(datasets, models, max_megabytes)
        self.dataset = next((card for card, _ in self.found_datasets if card.input_column and card.output_column), None)
        self.model = self.found_models[0][0] if self.found_models else None
        found = self._dataset_rows(dataset_rows)  # before the LLM is asked for rows, as it may not be readable
        made = self._made(rows, rounds, temperatures)
        usable, self.left_out = different_rows(made + found, test.get("test_input", ()))
        self.rows = self._rows(usable)
        parts = self._parts(held_out, bool(test))
        start = {"model_name": self.model.path} if self.model is not None else {}
        self.student = make_trainer(trainer, f"{name}, student", **start)
        columns = [parts[part].output[column] for part in ("train", "validation") for column in ("input", "output")]
        self.student.train(*columns, **options)
        self._test = test or {
            key: parts["test"].output[key.removeprefix("test_")] for key in ("test_input", "test_output")
        }
        self.metrics: dict[str, dict[str, float]] = {"student": self._measured()}
        if control:
            self.metrics["the LLM, prompted"] = self._of_llm(prompt)
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name, LLM and trainer, for tests and documentation; columns are lists."""
        columns = {"test_input": ["a cat", "the dog"], "test_output": ["cat", "dog"]}
        prompt = "Name the animal.\n\nInput: a small cat\nOutput: cat\n\nInput: the dog\nOutput: dog"
        return {**columns, "prompt": prompt, "labels": ["cat", "dog"], "rows": 8, "rounds": 2, "held_out": 0.25}

    # Finding

    def _retrieved(self, datasets: Any, models: Any, most: float | None) -> tuple[list[Any], list[Any]]:
        found_datasets = rank_cards(self.parsed.instruction, datasets) if datasets else []
        if not models:
            return found_datasets, []
        ask = "Describe in one or two sentences a language model that would be a good start for this task: "
        source = DataSource(f"{self.name}, question of a model", {"prompt": [ask + self.parsed.instruction]})
        args = {"llm": self._llm, "max_new_tokens": self._tokens, "temperature": 0.0}
        said = Prompt(f"{self.name}, description of a model", {"prompts": source.output["prompt"]}, args)
        query = f"{self.parsed.instruction} {said.output['generations'][0] or ''}"
        found_models = rank_cards(query, models, popularity=True, max_megabytes=most)
        if not found_models:
            fitting = [card for card in models if most is None or card.megabytes is None or card.megabytes <= most]
            found_models = [(max(fitting, key=lambda card: card.downloads), 0.0)]
            logger.warning(
                '%s: no card of a model shares a word with the task; "%s" is taken, which has the most downloads.',
                self.name, found_models[0][0].name,
            )  # fmt: skip
        return found_datasets, found_models

    def _dataset_rows(self, most: int) -> list[dict[str, str]]:
        """Rows of the dataset that was found, whose outputs are among the labels if there are any."""
        card = self.dataset
        if card is None or not most:
            return []
        loaded = card.load(f"{self.name}, {card.name}")
        known, found, columns = self._known_outputs(), list[dict[str, str]](), loaded.output.column_names
        for column in (card.input_column, card.output_column):
            if column not in columns:
                raise UnknownColumn(
                    f'"{self.name}": the card "{card.name}" names the column "{column}"; {card.path} has: '
                    f"{', '.join(columns)}.{did_you_mean(str(column), columns)}"
                )
        rows = loaded.shuffle(seed=self._seed).output
        for row in rows:
            given, output = row[card.input_column], row[card.output_column]
            if given is None or output is None or (known and str(output).lower() not in known):
                continue
            output = known.get(str(output).lower(), str(output))
            found.append({"input": str(given), "output": output, "source": card.name})
            if len(found) == most:
                break
        return found

    # Making rows

    def _made(self, rows: int, rounds: int, temperatures: tuple[float, float]) -> list[dict[str, str]]:
        first, last = temperatures
        made: list[tuple[str, str]] = []
        for number in range(1, rounds + 1):
            share = (number - 1) / (rounds - 1) if rounds > 1 else 0.0
            done, wanted = rows * (number - 1) // rounds, rows * number // rounds
            prompts = [self._prompt(place, made) for place in range(done, wanted)]
            if not prompts:
                continue
            source = DataSource(f"{self.name}, prompts {number}", {"prompt": prompts})
            asked = {prompt: self._wish(place) for place, prompt in enumerate(prompts, done)}
            args = {
                "llm": self._llm, "parse": partial(_pair, asked=asked), "max_follow_ups": 0,
                "max_new_tokens": self._tokens,
                "seed": self._seed, "top_p": 1.0, "temperature": first + share * (last - first),
            }  # fmt: skip
            said = Prompt(f"{self.name}, made {number}", {"prompts": source.output["prompt"]}, args)
            made += [(found["input"], found["output"]) for found in said.output["generations"] if found is not None]
        known, outputs = self._known_outputs(), dict[str, Counter[str]]()
        for given, output in made:
            named = known.get(output.lower().strip(" ."), None if known else output)
            if named is not None:
                outputs.setdefault(given, Counter())[named] += 1
        return [
            {"input": given, "output": min(counts, key=lambda each: (-counts[each], len(each))), "source": "made"}
            for given, counts in outputs.items()
        ]

    def _prompt(self, place: int, made: Sequence[tuple[str, str]]) -> str:
        """A prompt for a row: the instruction, demonstrations, and some of the rows made before."""
        draw = random.Random(f"{self._seed} {place}")
        demonstrations = self.parsed.demonstrations
        shown = draw.sample(demonstrations, min(_SHOWN, len(demonstrations)))
        shown += draw.sample(list(made), min(_SHOWN_MADE, len(made)))
        draw.shuffle(shown)
        label = self._wish(place)
        wish = f' Its output is "{label}".' if label else ""
        ask = f"Write one new example for this task, different from those below, with an input and its output.{wish}"
        examples = "".join(f"\n\nInput: {given}\nOutput: {output}" for given, output in shown)
        return f"{ask}\n\nTask: {self.parsed.instruction}{examples}\n\nInput:"

    def _wish(self, place: int) -> str | None:
        """The label that a prompt asks for."""
        return self._labels[place % len(self._labels)] if self._labels else None

    def _known_outputs(self) -> dict[str, str]:
        return {label.lower(): label for label in self._labels or ()}

    def _rows(self, rows: list[dict[str, str]]) -> Step:
        if len(rows) < _FEWEST:
            which = ", which is one of the labels" if self._labels else ""
            raise DataError(
                f'"{self.name}": {len(rows)} rows could be used; training needs {_FEWEST} or more. See the errors of '
                f'the step "{self.name}, made 1": an answer must have an input and an output{which}.'
            )
        return DataSource(f"{self.name}, rows", rows)

    def _parts(self, held_out: float, has_test: bool) -> dict[str, Step]:
        count = count_rows(self.rows)
        held = max(1, round(count * held_out))
        sizes: dict[str, Any] = {"validation_size": held} | ({} if has_test else {"test_size": held})
        return dict(self.rows.splits(train_size=count - held * len(sizes), **sizes))

    # Measuring

    def _measured(self) -> dict[str, float]:
        if can_classify(self.student):
            return {"exact_match": accuracy(f"{self.name}, student's answers", self.student, self._test)}
        llm = HFTransformers(self.student, device=self.student.device)
        return self._scores(
            Prompt(f"{self.name}, student's answers", {"prompts": self._test["test_input"]}, self._greedy(llm))
        )

    def _of_llm(self, prompt: str) -> dict[str, float]:
        prompts = [f"{prompt}\n\nInput: {given}\nOutput:" for given in self._test["test_input"]]
        source = DataSource(f"{self.name}, test prompts", {"prompt": prompts})
        return self._scores(
            Prompt(f"{self.name}, LLM's answers", {"prompts": source.output["prompt"]}, self._greedy(self._llm))
        )

    def _greedy(self, llm: LLM) -> dict[str, Any]:
        return {"llm": llm, "max_new_tokens": self._tokens, "temperature": 0.0}

    def _scores(self, said: Step) -> dict[str, float]:
        answers = [(text or "").split("\n\n")[0].strip(" \n.") for text in said.output["generations"]]
        if known := self._known_outputs():  # an answer is the label that it names first
            named = [
                re.search("|".join(rf"\b{re.escape(label)}\b" for label in known), each.lower()) for each in answers
            ]
            answers = [known[each[0]] if each else "" for each in named]
        right = [str(each).strip(" \n.") for each in self._test["test_output"]]
        scores = [rouge_l(answer, other) for answer, other in zip(answers, right, strict=True)]
        same = exact_match([each.lower() for each in answers], [each.lower() for each in right])
        return {"exact_match": same, "rouge_l": sum(scores) / len(scores)}

    @property
    def table(self) -> Table:
        """The student, and with `control` the LLM, on the test rows."""
        count = count_rows(self.rows)
        rows = [
            {"model": model, "rows": count if model == "student" else 0, **found}
            for model, found in self.metrics.items()
        ]
        notes = [f"{what}: {card.name}." for what, card in (("Dataset", self.dataset), ("Base", self.model)) if card]
        notes += [f"{count:,} rows left out: {why}." for why, count in self.left_out.items() if count]
        return Table(_COLUMNS, rows, self.name, notes)

    def __str__(self) -> str:
        return str(self.table)


def _pair(answer: Answer, row: dict[str, Any], asked: Mapping[str, str | None]) -> Any:
    """The input and output of an answer, which may go on after "Input:"; the output may be left out if it was given."""
    text = (answer.text or "").lstrip()
    found = PAIR.search(text) or PAIR.search(f"Input: {text}")
    first, label = text.removeprefix("Input:").strip().split("\n")[0].strip(), asked[row["prompts"]]
    if found is None and first and label is not None:
        return {"input": first, "output": label}
    if found is None or not found["input"].strip() or not found["output"].strip():
        return Rejected("There is no input with an output. Write them on lines that begin with Input: and Output:.")
    return {"input": found["input"].strip(), "output": found["output"].strip()}
