"""What a comparison came to: figures of each model, kept as JSON, shown as a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datadreamer_like.errors import MissingExtra, NewerFormat
from datadreamer_like.report import Column, Interval, Table, figure, page, plots
from datadreamer_like.storage.folders import write_file

COMPARISON_FORMAT = 1
PREDICTED = ("text", "label")
"""Columns of the predictions beside those of the models."""

JSON_NAME, HTML_NAME, PNG_NAME = "comparison.json", "comparison.html", "comparison.png"


@dataclass(frozen=True)
class Measured:
    """Figures of one model.

    Attributes:
        accuracy: Share of the rows that it labels right.
        macro_f1: Mean of the F1 scores of the classes that occur among the labels.
        accuracy_difference: By how much its accuracy is better than the first model's on the same rows, with its
            interval; None for the first.
        macro_f1_difference: The same of macro-F1.
        parameters: Weights; those of quantized layers count as what they stand for.
        nonzero_parameters: Weights that are not zero, where the model is stored sparse.
        bytes_on_disk: Bytes of all files that are needed to run it, weights, config and tokenizer; None for a model
            that is not in a folder here.
        latency: Seconds for one text alone, from text to logits: median and quartiles over the texts.
        throughput: Texts per second in batches: median and quartiles over the rounds.
        round_seconds: Seconds [rounds, texts] behind the latency.
        round_rates: Texts per second [rounds] behind the throughput.
    """

    accuracy: float
    macro_f1: float
    accuracy_difference: Interval | None
    macro_f1_difference: Interval | None
    parameters: int
    nonzero_parameters: int | None
    bytes_on_disk: int | None
    latency: Interval
    throughput: Interval
    round_seconds: list[list[float]]
    round_rates: list[float]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measured:
        """Reads back what `asdict` gave."""
        intervals = ("accuracy_difference", "macro_f1_difference", "latency", "throughput")
        return cls(**{**data, **{key: data[key] and Interval(**data[key]) for key in intervals}})


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        models: Figures of each model, in the order in which the models were given.
        rows: Rows that they were compared on.
        classes: Different labels among them.
        rounds: How often each model was timed.
        threads: Threads of the processor that each could use.
        batch_size: Texts in a batch, for the throughput.
        max_length: Texts were cut at this many tokens; None for what each model takes.
        devices: Where each model was run.
        torch_version: The version of torch that ran them.
        names: What the models were called when the page and the picture were drawn.
        format: Version of this layout.
    """

    models: list[Measured]
    rows: int
    classes: int
    rounds: int
    threads: int
    batch_size: int
    max_length: int | None
    devices: list[str]
    torch_version: str
    names: list[str]
    format: int = COMPARISON_FORMAT

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """Reads `comparison.json`.

        Raises:
            NewerFormat: It was written by a newer version of this package.
        """
        data = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        if data["format"] > COMPARISON_FORMAT:
            raise NewerFormat(
                f"{folder / JSON_NAME} was written by a newer version of datadreamer-like (its format is "
                f"{data['format']}, this version reads up to {COMPARISON_FORMAT}). Upgrade with pip."
            )
        known = {f.name for f in fields(cls)}
        models = [Measured.from_json(model) for model in data["models"]]
        return cls(**{key: value for key, value in data.items() if key in known} | {"models": models})

    def write(self, folder: Path, title: str) -> None:
        """Writes the figures, the page and, where matplotlib is installed, the picture."""
        write_file(folder / JSON_NAME, json.dumps(asdict(self), indent=1, ensure_ascii=False))
        parts = [self.table(title).to_fragment()]
        try:
            plot = self.plot(title)
        except MissingExtra:
            parts.append('<p class="note">Install datadreamer-like[report] for the plot.</p>')
        else:
            parts.append(figure(plots.to_svg(plot), f"{title}: accuracy against size on disk and against latency"))
            draft = folder / f".{PNG_NAME}"
            plots.write_png(plot, draft)
            draft.replace(folder / PNG_NAME)
        write_file(folder / HTML_NAME, page(title, *parts))

    def records(self) -> list[dict[str, Any]]:
        """Returns the figures of each model as one flat mapping, without those of single rounds."""
        left_out = ("round_seconds", "round_rates")
        return [
            {"model": name, **{f.name: getattr(model, f.name) for f in fields(model) if f.name not in left_out}}
            for name, model in zip(self.names, self.models, strict=True)
        ]

    def table(self, title: str) -> Table:
        """Returns the comparison as a table."""
        count, times = _prefix([model.parameters for model in self.models])
        size, per_byte = _prefix([model.bytes_on_disk for model in self.models])
        columns = [
            Column("model", "model", align="left"),
            Column("accuracy", "accuracy", "%", ".1f", 100),
            Column("accuracy_difference", "difference", "points [95 %]", "+.1f", 100),
            Column("macro_f1", "macro-F1", "%", ".1f", 100),
            Column("parameters", "parameters", count, ",.2f", times),
            Column("nonzero_parameters", "non-zero", count, ",.2f", times),
            Column("bytes_on_disk", "on disk", f"{size}B", ",.1f", per_byte),
            Column("latency", "latency", "ms [quartiles]", ",.1f", 1e3),
            Column("throughput", "throughput", "texts/s", ",.0f"),
        ]
        rows: list[dict[str, Any]] = []
        for record in self.records():
            rows.append({**record, "throughput": record["throughput"].value})
        shown = [column for column in columns if any(row[column.key] is not None for row in rows)]
        return Table(shown, rows, title, self._notes())

    def plot(self, title: str) -> Any:
        """Draws quality against size and latency as a matplotlib figure.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        base = self.models[0].accuracy
        size, per_byte = _prefix([model.bytes_on_disk for model in self.models])
        marks = []
        for name, model in zip(self.names, self.models, strict=True):
            gain, latency = model.accuracy_difference, model.latency.scaled(1e3)
            marks.append(
                plots.Mark(
                    name,
                    100 * model.accuracy,
                    [None if model.bytes_on_disk is None else per_byte * model.bytes_on_disk, latency.value],
                    None if gain is None else (100 * (base + gain.low), 100 * (base + gain.high)),
                    [None, (latency.low, latency.high)],
                )
            )
        return plots.tradeoff(
            marks,
            [f"size on disk ({size}B)", "latency of one text (ms)"],
            "accuracy (%)",
            title=title,
            caption=f"{self.rows:,} rows. Upright bars: 95 % interval of the paired difference to {self.names[0]} "
            "(dashed). Level bars: quartiles.",
        )

    def _notes(self) -> list[str]:
        where = ", ".join(dict.fromkeys(self.devices))
        threads = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        return [
            f"{self.rows:,} rows of {self.classes} classes. Difference: of accuracy, to {self.names[0]} on the same "
            "rows; 95 % interval by paired bootstrap.",
            f"Timed in turn, {self.rounds} rounds, on {where} with {threads}, from text to answer; throughput in "
            f"batches of {self.batch_size}.",
        ]


def _prefix(values: Sequence[int | None]) -> tuple[str, float]:
    """The unit's prefix that suits these numbers, and what they are multiplied with to be shown in it."""
    large = max((value for value in values if value is not None), default=0) >= 1_000_000
    return ("M", 1e-6) if large else ("k", 1e-3)


def unique(names: Sequence[str]) -> list[str]:
    """Numbers names that come more than once, so that each stands for one model and for one column of predictions."""
    seen = dict.fromkeys(PREDICTED, 1)
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return result
