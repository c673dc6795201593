"""The result of a comparison: figures of each model, saved as JSON, shown as a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from datadreamer_like.errors import MissingExtra, NewerFormat
from datadreamer_like.evaluation.judge import Judge
from datadreamer_like.evaluation.judges.choice import JUDGES
from datadreamer_like.report import Interval, Mark, Table, TableColumn, figure, page, to_svg, tradeoff, write_png
from datadreamer_like.storage.folders import write_file

T = TypeVar("T")

COMPARISON_FORMAT = 1
PREDICTED = ("text", "label")
"""Columns of the predictions that are not a model's."""

JSON_NAME, HTML_NAME, PNG_NAME = "comparison.json", "comparison.html", "comparison.png"


@dataclass(frozen=True)
class Measured:
    """Figures of one model.

    Attributes:
        quality: Scores by name: "accuracy" and "macro_f1" of a classifier, "bits_per_byte", "loss" and "perplexity" of
            a language model.
        differences: Paired differences of the scores to the baseline; empty for the baseline.
        parameters: Number of weights; quantized layers count their dequantized weights.
        nonzero_parameters: Non-zero weights, if the model is stored sparse.
        bytes_on_disk: Bytes of weights, config and tokenizer; None for a model that is not in a local folder.
        latency: Seconds for a single row: median and quartiles over the rows.
        throughput: Rows per second in batches: median and quartiles over the rounds.
        round_seconds: Raw latencies in seconds [rounds, rows].
        round_rates: Raw throughputs in rows per second [rounds].
        preferred: Share of a language model's answers that a judge prefers to the baseline's; None without a judge.
    """

    quality: dict[str, float]
    differences: dict[str, Interval]
    parameters: int
    nonzero_parameters: int | None
    bytes_on_disk: int | None
    latency: Interval
    throughput: Interval
    round_seconds: list[list[float]]
    round_rates: list[float]
    preferred: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        kind: Kind of task: a key of `evaluation.judges.choice.JUDGES`.
        models: Figures of each model, in the order of the stage's arguments.
        rows: Number of rows compared.
        facts: The judge's facts about the rows, for the notes.
        rounds: Rounds of timing.
        names: Display names of the models when the page and the plot were drawn.
        baseline: Index of the model that the others are compared with.
    """

    kind: str
    models: list[Measured]
    rows: int
    facts: dict[str, Any]
    rounds: int
    threads: int
    batch_size: int
    max_length: int | None
    devices: list[str]
    torch_version: str
    names: list[str]
    baseline: int = 0
    format: int = COMPARISON_FORMAT

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """Reads `comparison.json`; raises `NewerFormat` if a newer version of this package wrote it."""
        data = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        NewerFormat.check(folder / JSON_NAME, data["format"], COMPARISON_FORMAT)
        models = []
        for model in data["models"]:
            differences = {key: Interval(**value) for key, value in model["differences"].items()}
            timed = {key: Interval(**model[key]) for key in ("latency", "throughput")}
            if model.get("preferred") is not None:
                timed["preferred"] = Interval(**model["preferred"])
            models.append(_known(Measured, {**model, **timed, "differences": differences}))
        return _known(cls, {**data, "models": models})

    def write(self, folder: Path, title: str) -> None:
        """Writes the figures, the HTML page and, if matplotlib is installed, the plot."""
        write_file(folder / JSON_NAME, json.dumps(asdict(self), indent=1, ensure_ascii=False))
        parts = [self.table(title).to_fragment()]
        try:
            plot = self.plot(title)
        except MissingExtra:
            parts.append('<p class="note">Install datadreamer-like[report] for the plot.</p>')
        else:
            parts.append(figure(to_svg(plot), f"{title}: {self._judge.axis} against size on disk and latency"))
            draft = folder / f".{PNG_NAME}"
            write_png(plot, draft)
            draft.replace(folder / PNG_NAME)
        write_file(folder / HTML_NAME, page(title, *parts))

    def records(self) -> list[dict[str, Any]]:
        """Returns the figures of each model as a flat dict, without the raw timings."""
        judged = any(model.preferred is not None for model in self.models)
        apart = ("quality", "differences", "round_seconds", "round_rates", *(() if judged else ("preferred",)))
        compared = list(dict.fromkeys(key for model in self.models for key in model.differences))
        records = []
        for name, model in zip(self.names, self.models, strict=True):
            gains = {f"{key}_difference": model.differences.get(key) for key in compared}
            rest = {f.name: getattr(model, f.name) for f in fields(model) if f.name not in apart}
            records.append({"model": name, **model.quality, **gains, **rest})
        return records

    def table(self, title: str) -> Table:
        """Returns the comparison as a table."""
        count, times = _prefix([model.parameters for model in self.models])
        size, per_byte = _prefix([model.bytes_on_disk for model in self.models])
        columns = [
            TableColumn("model", "model", align="left"),
            *self._judge.figures,
            TableColumn("parameters", "parameters", count, ",.2f", times),
            TableColumn("nonzero_parameters", "non-zero", count, ",.2f", times),
            TableColumn("bytes_on_disk", "on disk", f"{size}B", ",.1f", per_byte),
            TableColumn("latency", "latency", "ms [quartiles]", ",.1f", 1e3),
            TableColumn("throughput", "throughput", "rows/s", ",.0f"),
        ]
        rows = [{**record, "throughput": record["throughput"].value} for record in self.records()]
        shown = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
        return Table(shown, rows, title, self._notes())

    def plot(self, title: str) -> Any:
        """Draws quality against size and latency with matplotlib; raises `MissingExtra` if it is not installed."""
        main = self._judge.figures[0]
        base = self.models[self.baseline].quality[main.key]
        size, per_byte = _prefix([model.bytes_on_disk for model in self.models])
        marks = []
        for name, model in zip(self.names, self.models, strict=True):
            gain, latency = model.differences.get(main.key), model.latency.scaled(1e3)
            marks.append(
                Mark(
                    name,
                    main.factor * model.quality[main.key],
                    [None if model.bytes_on_disk is None else per_byte * model.bytes_on_disk, latency.value],
                    None if gain is None else (main.factor * (base + gain.low), main.factor * (base + gain.high)),
                    [None, (latency.low, latency.high)],
                )
            )
        marks.insert(0, marks.pop(self.baseline))  # the line to read the others against runs through the first mark
        return tradeoff(
            marks,
            [f"size on disk ({size}B)", "latency of one row (ms)"],
            self._judge.axis,
            title=title,
            caption=f"{self.rows:,} rows. Upright bars: 95 % interval of the paired difference to "
            f"{self.names[self.baseline]} (dashed). Level bars: quartiles.",
        )

    @property
    def _judge(self) -> type[Judge]:
        return JUDGES[self.kind]

    def _notes(self) -> list[str]:
        where = ", ".join(dict.fromkeys(self.devices))
        threads = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        rounds = f"{self.rounds} round" + ("s" if self.rounds != 1 else "")
        return [
            self._judge.note(self.rows, self.facts, self.names[self.baseline]),
            f"Timed in turn, {rounds}, on {where} with {threads}, {self._judge.timed}: latency of one row alone, "
            f"throughput in batches of {self.batch_size}.",
        ]


def _known(kind: type[T], data: dict[str, Any]) -> T:
    # A later version may add keys to the same format.
    return kind(**{f.name: data[f.name] for f in fields(kind) if f.name in data})  # type: ignore[arg-type]


def _prefix(values: Sequence[int | None]) -> tuple[str, float]:
    """Returns the unit prefix for these numbers, and the factor that converts them to it."""
    large = max((value for value in values if value is not None), default=0) >= 1_000_000
    return ("M", 1e-6) if large else ("k", 1e-3)


def unique(names: Sequence[str]) -> list[str]:
    """Numbers repeated names, so that each names one model and one column of predictions."""
    seen = dict.fromkeys(PREDICTED, 1)
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return result
