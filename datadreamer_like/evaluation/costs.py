"""Sizes of models, and their latency and throughput, measured in turn on the same rows.

The machine's speed drifts as it warms up and other processes run. So models take turns, A B C, B C A, ..., and
disturbances hit all of them alike. Timing goes from texts to answers, tokenization included.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from datadreamer_like.formats import count_zeros, layouts
from datadreamer_like.graph import current_usage
from datadreamer_like.models.trained.model_facts import count_parameters
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded
from datadreamer_like.report import Interval

from .judge import Judge

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Size:
    """Counts of weights, shared ones once; quantized layers count their dequantized weights.

    `nonzero` counts those of a model that is stored sparse; it is None for others, whose zeros save nothing.
    """

    parameters: int
    nonzero: int | None

    def facts(self, after: Size) -> dict[str, str]:
        """Returns the change from this size to `after`, for a model card."""
        facts = {"Parameters": f"{self.parameters:,} → {after.parameters:,}"}
        if after.nonzero is not None:
            before = self.parameters if self.nonzero is None else self.nonzero
            facts["Non-zero parameters"] = f"{before:,} → {after.nonzero:,}"
        return facts


def size_of(model: nn.Module) -> Size:
    """Counts a model's weights."""
    parameters = count_parameters(model)
    sparse = any(entry["kind"] == "sparse" for entry in layouts(model))
    return Size(parameters, parameters - count_zeros(model) if sparse else None)


@dataclass
class Timing:
    """Measurements of one model: seconds for a single row [rounds, rows], and rows per second in batches [rounds]."""

    seconds: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def latency(self) -> Interval:
        """Seconds for one row: median and quartiles over the rows, each in its fastest, least disturbed round."""
        return _quartiles(np.min(np.asarray(self.seconds), axis=0))

    @property
    def throughput(self) -> Interval:
        """Rows per second in batches: median and quartiles over the rounds."""
        return _quartiles(np.asarray(self.rates))


def time_in_turn(
    judge: Judge, *, latency_rows: int, throughput_rows: int, rounds: int, batch_size: int, threads: int
) -> dict[str, Timing]:
    """Measures latency and throughput of a judge's models in turn; returns them by name.

    Each turn begins with an unmeasured warm-up run. Models that are not loaded yet are loaded for each of their turns.
    Rows are spread evenly over all of the judge's, since the first ones may be of one kind: `latency_rows` are passed
    one at a time, `throughput_rows` in batches. Each model gets `rounds` turns.
    """

    def seconds(model: TrainedModel, rows: Sequence[Any], at_once: int) -> float:
        start = time.perf_counter()
        judge.answers(model, rows, at_once)
        return time.perf_counter() - start

    every = judge.rows
    counts = min(latency_rows, len(every)), min(throughput_rows, len(every))
    singles, batched = ([every[index * len(every) // count] for index in range(count)] for count in counts)
    names, timings = list(judge.models), {name: Timing() for name in judge.models}
    with undisturbed(threads):
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                current_usage().note = f"timing {name}, round {number + 1} of {rounds}"
                with loaded(judge.models[name]) as model:
                    # The first run refills the caches that another model used.
                    judge.answers(model, batched[:batch_size] if number == 0 else batched[:1], batch_size)
                    timings[name].seconds.append([seconds(model, [row], 1) for row in singles])
                    timings[name].rates.append(len(batched) / seconds(model, batched, batch_size))
    return timings


@contextmanager
def undisturbed(threads: int) -> Iterator[None]:
    """Sets the number of CPU threads of torch, and disables Python's garbage collector, inside the block."""
    import torch

    before, was_enabled = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    try:
        torch.set_num_threads(threads)
        gc.disable()
        yield
    finally:
        torch.set_num_threads(before)
        if was_enabled:
            gc.enable()


def _quartiles(values: np.ndarray[Any, Any]) -> Interval:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Interval(float(median), float(low), float(high))
