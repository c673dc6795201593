"""Latency and throughput of models, measured in turn on the same rows.

The machine's speed drifts as it warms up and other processes run. So models take turns, A B C, B C A, ..., and
disturbances hit all of them alike. Timing goes from texts to answers, tokenization included.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datadreamer_like.graph import current_usage
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded
from datadreamer_like.report import Interval

Answers = Callable[[TrainedModel, Sequence[Any], int], object]
"""Runs a model on rows with a batch size. Its result must be in CPU memory, so that the accelerator has finished."""


@dataclass
class Timing:
    """Measurements of one model, by round.

    Attributes:
        seconds: Seconds for a single row [rounds, rows].
        rates: Rows per second [rounds] in batches.
    """

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


def evenly_spaced(rows: Sequence[Any], count: int) -> list[Any]:
    """Returns up to `count` rows spread evenly over all of them, since the first ones may be of one kind."""
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def time_in_turn(
    models: Mapping[str, TrainedModel],
    answers: Answers,
    *,
    singles: Sequence[Any],
    batched: Sequence[Any],
    rounds: int,
    batch_size: int,
    threads: int,
) -> dict[str, Timing]:
    """Measures latency and throughput of models in turn, each after an unmeasured warm-up run; returns them by name.

    Args:
        models: The models by name; one that is not loaded yet is loaded for each of its turns.
        answers: The call that is timed.
        singles: Rows for latency, passed one at a time.
        batched: Rows for throughput, passed in batches.
        rounds: Number of turns of each model.
        batch_size: Rows in a batch.
        threads: Number of CPU threads.
    """

    def seconds(model: TrainedModel, rows: Sequence[Any], at_once: int) -> float:
        start = time.perf_counter()
        answers(model, rows, at_once)
        return time.perf_counter() - start

    names, timings = list(models), {name: Timing() for name in models}
    usage = current_usage()
    with fixed_threads(threads), undisturbed():
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                usage.note = f"timing {name}, round {number + 1} of {rounds}"
                with loaded(models[name]) as model:
                    # The first run refills the caches that another model used.
                    answers(model, batched[:batch_size] if number == 0 else batched[:1], batch_size)
                    timings[name].seconds.append([seconds(model, [row], 1) for row in singles])
                    timings[name].rates.append(len(batched) / seconds(model, batched, batch_size))
    return timings


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Sets the number of CPU threads of torch inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Disables Python's garbage collector inside the block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _quartiles(values: np.ndarray[Any, Any]) -> Interval:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Interval(float(median), float(low), float(high))
