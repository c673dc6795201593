"""The stage that measures several models on the same rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.manifest import Manifest
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained_model import TrainedModel
from datadreamer_like.report import Interval, Table, frame
from datadreamer_like.storage.tables import TableWriter, open_table
from datadreamer_like.trainers.columns import Column, check_column, check_pair

from .comparison import HTML_NAME, PNG_NAME, PREDICTED, Comparison, Measured, unique
from .quality import accuracy, macro_f1, paired_differences
from .rows import check_models, read_rows
from .sizes import Size, size_of
from .stage import Stage, loaded, origins, taken
from .timing import Timing, evenly_spaced, time_in_turn

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from datasets import Dataset

_PREDICTIONS = "predictions"
_BATCHES_AT_ONCE = 8


class Compare(Stage):
    """Measures classifiers on the same rows: what each stage cost in quality, and what it saved.

    Quality is accuracy and macro-F1, with a 95 % interval for the paired difference to the first model (see
    `stages.quality`). Size is the number of weights, and the bytes of the files that are needed to run the model:
    weights, config and tokenizer. Latency is the time of one text alone, throughput that of texts in batches, both
    from text to logits, measured with the models taking turns, in another order each round, with a fixed number of
    threads, after a warm-up that does not count. Latency is the median, with quartiles, over the texts, each at its
    fastest round; throughput the median over the rounds. Labels are compared by name, in whatever order a model has
    them.

    The figures, every prediction, a page and a picture stay in the node's folder; a rerun finds them and loads no
    model. Times belong to the machine that they were taken on: to take them anew, pass `force=True`.

    Args:
        name: The name that the script gives.
        models: Trainers, stages, `TrainedModel`s, folders or ids on the Hub; the first is what the others are
            compared with.
        inputs: Column of texts, which none of the models was trained on.
        labels: Column of their labels.
        names: What to call the models; None for the names of their nodes or folders.
        batch_size: Texts in a batch, for predictions and throughput.
        max_length: Texts are cut at this many tokens; None for what each model takes.
        repeats: Rounds of timing.
        threads: Threads of the processor while timing; None for what torch uses now.
        latency_texts: How many texts are timed alone.
        throughput_texts: How many texts are timed in batches.
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
        MethodMisfit: One of the models is no classifier of one label a text.
        LabelError: A label of the rows is outside a model's set; said before any model is run.
        DataError: A text or label is missing.
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

    def __init__(
        self,
        name: str,
        models: Sequence[object],
        inputs: Column,
        labels: Column,
        *,
        names: Sequence[str] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
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
        self.inputs = check_column(inputs, f'"{self.name}": inputs')
        self.labels = check_column(labels, f'"{self.name}": labels')
        check_pair(self.inputs, self.labels, ("inputs", "labels"))
        self.batch_size, self.max_length, self.repeats, self.threads = batch_size, max_length, repeats, threads
        self.latency_texts, self.throughput_texts = latency_texts, throughput_texts
        self.resamples, self.seed, self.keep_loaded = resamples, seed, keep_loaded
        self._check_options()
        self.parents = origins(self.models, [self.inputs, self.labels])
        self.settle(self._build)
        self._comparison = self._read()

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns what decides the result, by name, each with its fingerprint."""
        parts = self.own_part()
        for index, model in enumerate(self.models):
            parts[f"model {index + 1}"] = fingerprint(model, f"models[{index}]")
            parts[f"device of model {index + 1}"] = fingerprint(str(model.device))
        for option in (
            "batch_size", "max_length", "repeats", "threads", "latency_texts", "throughput_texts", "resamples", "seed",
        ):  # fmt: skip
            parts[f"argument {option}"] = fingerprint(getattr(self, option), option)
        return parts | {
            "input inputs": fingerprint(self.inputs, "inputs"),
            "input labels": fingerprint(self.labels, "labels"),
        }

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
        """What each model said of each row: `text`, `label`, and a column a model."""
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

    def _build(self, draft: Path) -> Manifest:
        with quiet(), ExitStack() as stack:
            texts, labels = read_rows(self.inputs, self.labels)
            check_models(self.models, self.names, labels)
            for model, name in zip(self.models, self.names, strict=True):
                self.meter.note = f"loading {name}"
                if self.keep_loaded:
                    stack.enter_context(loaded(model))
            return self._measure(draft, texts, labels)

    def _measure(self, draft: Path, texts: list[str], labels: list[str]) -> Manifest:
        import torch

        self.meter.total_rows = len(texts) * len(self.models)
        predicted, sizes = [], []
        for model, name in zip(self.models, self.names, strict=True):
            with loaded(model):
                sizes.append(size_of(model.model))
                predicted.append(list(self._predict(model, name, texts)))
        threads = torch.get_num_threads() if self.threads is None else self.threads
        timings = time_in_turn(
            self.models,
            self.names,
            evenly_spaced(texts, self.latency_texts),
            evenly_spaced(texts, self.throughput_texts),
            rounds=self.repeats,
            batch_size=self.batch_size,
            max_length=self.max_length,
            threads=threads,
        )
        self.meter.note = "drawing"
        comparison = Comparison(
            self._measured(labels, predicted, sizes, timings),
            rows=len(texts),
            classes=len(set(labels)),
            rounds=self.repeats,
            threads=threads,
            batch_size=self.batch_size,
            max_length=self.max_length,
            devices=[str(model.device or "cpu") for model in self.models],
            torch_version=torch.__version__,
            names=self.names,
        )
        comparison.write(draft, self.name)
        (draft / _PREDICTIONS).mkdir()
        table = TableWriter(draft / _PREDICTIONS, what=f'"{self.name}"')
        columns = {f"model_{index + 1}": values for index, values in enumerate(predicted)}
        table.write({**dict(zip(PREDICTED, (texts, labels), strict=True)), **columns})
        table.close(self.fingerprint)
        self.card.facts["Rows compared"] = f"{len(texts):,}"
        self.card.facts["Models compared"] = f"{len(self.models)}"
        return self.new_manifest()

    def _measured(
        self, labels: list[str], predicted: list[list[str]], sizes: list[Size], timings: list[Timing]
    ) -> list[Measured]:
        measured = []
        for index, model in enumerate(self.models):
            said = predicted[index]
            gain: dict[str, Interval] = {}
            if index:
                self.meter.note = f"comparing {self.names[index]} with {self.names[0]}"
                gain = paired_differences(labels, predicted[0], said, resamples=self.resamples, seed=self.seed)
            measured.append(
                Measured(
                    accuracy=accuracy(labels, said),
                    macro_f1=macro_f1(labels, said),
                    accuracy_difference=gain.get("accuracy"),
                    macro_f1_difference=gain.get("macro_f1"),
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

    def _predict(self, model: TrainedModel, name: str, texts: list[str]) -> Iterator[str]:
        portion = self.batch_size * _BATCHES_AT_ONCE
        for start in range(0, len(texts), portion):
            part = texts[start : start + portion]
            self.meter.note = f"asking {name}"
            yield from model.predict(part, batch_size=self.batch_size, max_length=self.max_length).labels
            self.meter.add(rows=len(part))

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

    def _check_options(self) -> None:
        for option in ("batch_size", "repeats", "threads", "latency_texts", "throughput_texts", "resamples"):
            value = getattr(self, option)
            if option == "threads" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ArgumentTypeError(f'"{self.name}": {option} must be a whole number, not {value!r}.')
            if value < 1:
                raise DefinitionError(f'"{self.name}": {option} is {value}; it must be at least 1.')
