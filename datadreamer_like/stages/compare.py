"""The stage that measures several models on the same rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, did_you_mean
from datadreamer_like.evaluation.columns import check_column, check_lengths
from datadreamer_like.evaluation.judge import Asking, Judge
from datadreamer_like.evaluation.judges import judge_for
from datadreamer_like.evaluation.rows import NAMES
from datadreamer_like.evaluation.sizes import Size, size_of
from datadreamer_like.evaluation.timing import Timing, evenly_spaced, time_in_turn
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.llms.chat_template import AUTO, AutoText, checked
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded
from datadreamer_like.report import Interval, Table, frame
from datadreamer_like.storage.tables import TableWriter, open_table

from .comparison import HTML_NAME, PNG_NAME, Comparison, Measured, unique
from .stage import Stage, origins, taken

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from datasets import Dataset

_PREDICTIONS = "predictions"
_BATCHES_AT_ONCE = 8


class Compare(Stage):
    """Measures models on the same rows: what each stage cost in quality, and what it saved.

    Quality of classifiers of one label a text is accuracy and macro-F1; labels are compared by name, in whatever order
    a model has them. Quality of language models, causal or encoder-decoder, is how well they foresee the answers to
    prompts: bits per byte of the answers, which can be compared whatever the tokenizers, and loss and perplexity by
    token, which cannot (see `evaluation.language_modelling`). The main figure has a 95 % interval for the paired
    difference to the baseline (see `evaluation.bootstrap`).

    Size is the number of weights, and the bytes of the files that are needed to run the model: weights, config and
    tokenizer. Latency is the time of one row alone, throughput that of rows in batches, from text to answer; for a
    language model that is from text to the loss of the answer, in one pass through the model. The models take turns,
    in another order each round, with a fixed number of threads, after a warm-up that does not count. Latency is the
    median, with quartiles, over the rows, each at its fastest round; throughput the median over the rounds.

    The figures, what each model made of each row, a page and a picture stay in the node's folder; a rerun finds them
    and loads no model. Times belong to the machine that they were taken on: to take them anew, pass `force=True`.

    Args:
        name: The name that the script gives.
        models: Trainers, stages, `TrainedModel`s, folders or ids on the Hub.
        inputs: Column of texts or prompts, which none of the models was trained on.
        labels: Column of their labels or answers. None for causal language models that are to foresee the texts of
            `inputs` as they stand.
        names: What to call the models; None for the names of their nodes or folders.
        baseline: The model that the others are compared with: one of `models`, or what it is called in the table.
            None for the first.
        batch_size: Rows in a batch, for quality and throughput.
        max_length: The most tokens of a row; None for what each model takes. A text to classify is cut there; a prompt
            with its answer that is longer for one of the models is left out for all.
        chat_prompt_template: The prompt template of language models, as `TrainHFFineTune` has it; AUTO for each
            tokenizer's own chat template, which is the one that its model was trained with.
        system_prompt: The system prompt for language models; AUTO for the template's own.
        repeats: Rounds of timing.
        threads: Threads of the processor while timing; None for what torch uses now.
        latency_texts: How many rows are timed alone.
        throughput_texts: How many rows are timed in batches.
        resamples: Resamples behind the intervals.
        seed: Seed of the resampling.
        device: Where all models are run, such as "cuda"; None for where each is used otherwise.
        keep_loaded: Whether all models stay in memory till the end. With False each is loaded when its turn comes,
            which takes longer and leaves the measured times as they are.
        force: Measure again although the result is there.
        progress_interval: Seconds between progress lines where there is no terminal; None for none.

    Raises:
        SessionError: There is no session.
        NotTrained: One of the models is a trainer that was not trained yet.
        MethodMisfit: One of the models does another task than the others, or one that cannot be compared.
        LabelError: A label of the rows is outside a model's set; said before any model is run.
        DataError: A value is missing, or no row fits all the models.
        EmptyDataset: There are no rows.
        DefinitionError: An option makes no sense, or the columns do not go together.
        ArgumentTypeError: An argument is of the wrong type.

    Example:
        >>> compared = Compare(  # doctest: +SKIP
        ...     "What each stage cost", models=[teacher, student, slim, small],
        ...     inputs=held_out.output["text"], labels=held_out.output["topic"],
        ... )
        >>> print(compared)  # doctest: +SKIP
    """

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments beside the name, for tests and documentation."""
        options = {"repeats": 1, "latency_texts": 1, "throughput_texts": 2, "resamples": 10}
        return {"models": [model, model], "inputs": ["a cat", "a dog"], "labels": ["cat", "dog"], **options}

    def __init__(
        self,
        name: str,
        models: Sequence[object],
        inputs: Column,
        labels: Column | None = None,
        *,
        names: Sequence[str] | None = None,
        baseline: object | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        chat_prompt_template: AutoText = AUTO,
        system_prompt: AutoText = AUTO,
        repeats: int = 5,
        threads: int | None = None,
        latency_texts: int = 32,
        throughput_texts: int = 128,
        resamples: int = 10_000,
        seed: int = 0,
        device: str | int | torch.device | None = None,
        keep_loaded: bool = True,
        force: bool = False,
        progress_interval: float | None = 60,
    ) -> None:
        super().__init__(name, force=force, progress_interval=progress_interval)
        if isinstance(models, str | Path) or not isinstance(models, Sequence):
            raise ArgumentTypeError(f'"{self.name}": models must be a list of models, not {type(models).__name__}.')
        if not models:
            raise DefinitionError(f'"{self.name}": models is empty. Pass at least one.')
        self.models = [taken(model, self.name, f"models[{index}]", device) for index, model in enumerate(models)]
        self.names = self._names(names)
        self.baseline = self._baseline(baseline, models)
        self.inputs = check_column(inputs, f'"{self.name}": inputs')
        self.labels = None if labels is None else check_column(labels, f'"{self.name}": labels')
        if self.labels is not None:
            check_lengths(dict(zip(NAMES, (self.inputs, self.labels), strict=True)))
        self.chat_prompt_template = checked("chat_prompt_template", chat_prompt_template)
        self.system_prompt = checked("system_prompt", system_prompt)
        self.batch_size, self.max_length, self.repeats, self.threads = batch_size, max_length, repeats, threads
        self.latency_texts, self.throughput_texts = latency_texts, throughput_texts
        self.resamples, self.seed, self.keep_loaded = resamples, seed, keep_loaded
        self._check_options()
        self.parents = origins(self.models, [self.inputs, self.labels])
        self.find_or_make()
        self._comparison = self._read()

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns what decides the result, by name, each with its fingerprint."""
        parts = class_part(type(self))
        for index, model in enumerate(self.models):
            parts[f"model {index + 1}"] = fingerprint(model, f"models[{index}]")
            parts[f"device of model {index + 1}"] = fingerprint(str(model.device))
        for option in (
            "baseline", "batch_size", "max_length", "chat_prompt_template", "system_prompt", "repeats", "threads",
            "latency_texts", "throughput_texts", "resamples", "seed",
        ):  # fmt: skip
            parts[f"argument {option}"] = fingerprint(getattr(self, option), option)
        return parts | {f"input {name}": fingerprint(getattr(self, name), name) for name in NAMES}

    # The result

    @property
    def comparison(self) -> Comparison:
        """All figures."""
        return self._comparison

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The figures, one mapping a model, in base units (seconds, bytes, shares)."""
        return self._comparison.records()

    @property
    def table(self) -> Table:
        """The figures as a table for people."""
        return self._comparison.table(self.name)

    def to_pandas(self) -> pd.DataFrame:
        """Returns the figures in base units; an interval becomes three columns."""
        return frame(self.rows)

    @property
    def predictions(self) -> Dataset:
        """What each model made of each row: `text`, `label` if there are any, and a column a model.

        A classifier's column holds labels, a language model's the loss of the answer in nats, summed over its tokens.
        """
        columns = {f"model_{index + 1}": name for index, name in enumerate(self._comparison.names)}
        return open_table(self._folder / _PREDICTIONS).rename_columns(columns)

    @property
    def html_path(self) -> Path:
        """The page with table and plot, one file that needs no other."""
        return self._folder / HTML_NAME

    @property
    def plot_path(self) -> Path | None:
        """The picture; None where matplotlib was not installed."""
        path = self._folder / PNG_NAME
        return path if path.exists() else None

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table.to_fragment()

    @property
    def _folder(self) -> Path:
        assert self.folder is not None, "a stage is made in a session"
        return self.folder

    def _read(self) -> Comparison:
        found = Comparison.read(self._folder)
        if found.names != self.names:
            # A node that was renamed is the same model: only what is shown changes.
            found = replace(found, names=self.names)
            found.write(self._folder, self.name)
        return found

    # The work

    def build(self, draft: Path) -> Kept:
        """Measures the models."""
        with quiet(), ExitStack() as stack:
            asking = Asking(self.max_length, self.chat_prompt_template, self.system_prompt)
            judge = judge_for(self.models, self.names)(self.inputs, self.labels, self.models, self.names, asking)
            for model, name in zip(self.models, self.names, strict=True):
                self.usage.note = f"loading {name}"
                if self.keep_loaded:
                    stack.enter_context(loaded(model))
            return self._measure(draft, judge)

    def _measure(self, draft: Path, judge: Judge) -> Kept:
        import torch

        self.usage.total_rows = len(judge.rows) * len(self.models)
        answers, sizes = [], []
        for model, name in zip(self.models, self.names, strict=True):
            with loaded(model):
                sizes.append(size_of(model.model))
                answers.append(list(self._ask(judge, model, name)))
        threads = torch.get_num_threads() if self.threads is None else self.threads
        timings = time_in_turn(
            self.models,
            self.names,
            judge.answers,
            singles=evenly_spaced(judge.rows, self.latency_texts),
            batched=evenly_spaced(judge.rows, self.throughput_texts),
            rounds=self.repeats,
            batch_size=self.batch_size,
            threads=threads,
        )
        self.usage.note = "drawing"
        comparison = Comparison(
            judge.kind,
            self._measured(judge, answers, sizes, timings),
            rows=len(judge.rows),
            facts=dict(judge.facts),
            rounds=self.repeats,
            threads=threads,
            batch_size=self.batch_size,
            max_length=self.max_length,
            devices=[str(model.device or "cpu") for model in self.models],
            torch_version=torch.__version__,
            names=self.names,
            baseline=self.baseline,
        )
        comparison.write(draft, self.name)
        (draft / _PREDICTIONS).mkdir()
        table = TableWriter(draft / _PREDICTIONS, what=f'"{self.name}"')
        kept = {f"model_{index + 1}": judge.kept(said) for index, said in enumerate(answers)}
        table.write({**judge.columns, **kept})
        table.close(self.fingerprint)
        self.card.facts["Rows compared"] = f"{len(judge.rows):,}"
        self.card.facts["Models compared"] = f"{len(self.models)}"
        return self.kept()

    def _measured(
        self, judge: Judge, answers: list[list[Any]], sizes: list[Size], timings: list[Timing]
    ) -> list[Measured]:
        measured, base = [], self.baseline
        for index, model in enumerate(self.models):
            said = answers[index]
            differences: dict[str, Interval] = {}
            if index != base:
                self.usage.note = f"comparing {self.names[index]} with {self.names[base]}"
                differences = judge.differences(answers[base], said, resamples=self.resamples, seed=self.seed)
            measured.append(
                Measured(
                    quality=judge.quality(said),
                    differences=differences,
                    parameters=sizes[index].parameters,
                    nonzero_parameters=sizes[index].nonzero,
                    bytes_on_disk=model.bytes_on_disk if os.path.isdir(model.path) else None,
                    latency=timings[index].latency,
                    throughput=timings[index].throughput,
                    round_seconds=timings[index].seconds,
                    round_rates=timings[index].rates,
                )
            )
        return measured

    def _ask(self, judge: Judge, model: TrainedModel, name: str) -> Iterator[Any]:
        portion = self.batch_size * _BATCHES_AT_ONCE
        for start in range(0, len(judge.rows), portion):
            part = judge.rows[start : start + portion]
            self.usage.note = f"asking {name}"
            yield from judge.answers(model, part, self.batch_size)
            self.usage.add(rows=len(part))

    def _names(self, names: Sequence[str] | None) -> list[str]:
        if names is None:
            return unique(
                [model.node.name if model.node is not None else Path(model.path).name for model in self.models]
            )
        if len(names) != len(self.models):
            raise DefinitionError(
                f'"{self.name}": there are {len(self.models)} models and {len(names)} names. Pass one name a model.'
            )
        return unique([str(name) for name in names])

    def _baseline(self, baseline: object | None, models: Sequence[object]) -> int:
        """Index of the model that the others are compared with."""
        if baseline is None:
            return 0
        for index, model in enumerate(models):
            if baseline is model or baseline is self.models[index]:
                return index
        if not isinstance(baseline, str | Path):
            raise DefinitionError(f'"{self.name}": baseline is {baseline!r}, which is not in models. Add it there.')
        for index, name in enumerate(self.names):
            if baseline == name or str(baseline) == str(models[index]):
                return index
        offered = ", ".join(f'"{name}"' for name in self.names)
        raise DefinitionError(
            f'"{self.name}": no model is called "{baseline}" (baseline); the models are {offered}.'
            + did_you_mean(str(baseline), self.names)
        )

    def _check_options(self) -> None:
        for option in ("batch_size", "repeats", "threads", "latency_texts", "throughput_texts", "resamples"):
            value = getattr(self, option)
            if option == "threads" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ArgumentTypeError(f'"{self.name}": {option} must be a whole number, not {value!r}.')
            if value < 1:
                raise DefinitionError(f'"{self.name}": {option} is {value}; it must be at least 1.')
