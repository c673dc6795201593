"""How long models take, measured in turn on the same rows.

The machine's speed drifts: it warms up, others want its cores. So models take turns, A B C, B C A, ..., and whatever
happens hits all of them alike. Everything is measured as a user meets it: from texts to answers, tokenizing included.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datadreamer_like.graph import current_usage
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded
from datadreamer_like.report import Interval

Answers = Callable[[TrainedModel, Sequence[Any], int], object]
"""Puts rows to a model, so many at once. What it returns is in the processor's memory, so an accelerator is done."""


@dataclass
class Timing:
    """What was measured of one model, round by round.

    Attributes:
        seconds: Seconds [rounds, rows] that one row alone took.
        rates: Rows per second [rounds] in batches.
    """

    seconds: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def latency(self) -> Interval:
        """Seconds for one row: median and quartiles over the rows, each at its fastest round.

        What else runs on the machine only ever makes a row slower, so the fastest round is the least disturbed one.
        """
        return _quartiles(np.min(np.asarray(self.seconds), axis=0))

    @property
    def throughput(self) -> Interval:
        """Rows per second in batches: median and quartiles over the rounds."""
        return _quartiles(np.asarray(self.rates))


def evenly_spaced(rows: Sequence[Any], count: int) -> list[Any]:
    """Returns up to `count` rows spread over all of them: those at the start may be of one kind."""
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def time_in_turn(
    models: Sequence[TrainedModel],
    names: Sequence[str],
    answers: Answers,
    *,
    singles: Sequence[Any],
    batched: Sequence[Any],
    rounds: int,
    batch_size: int,
    threads: int,
) -> list[Timing]:
    """Measures latency and throughput of models in turn; a first, unmeasured run warms each of them up.

    Args:
        models: The models; one that is not loaded yet is loaded for each of its turns.
        names: What to call them in the progress.
        answers: What is timed: puts rows to a model in batches, and returns when all answers are there.
        singles: Rows that are put one at a time.
        batched: Rows that are put in batches.
        rounds: How often each model's turn comes.
        batch_size: Rows in a batch.
        threads: Threads of the processor that a model may use.
    """

    def seconds(model: TrainedModel, rows: Sequence[Any], at_once: int) -> float:
        start = time.perf_counter()
        answers(model, rows, at_once)
        return time.perf_counter() - start

    timings = [Timing() for _ in models]
    usage = current_usage()
    with fixed_threads(threads), undisturbed():
        for number in range(rounds):
            for turn in range(len(models)):
                index = (number + turn) % len(models)
                usage.note = f"timing {names[index]}, round {number + 1} of {rounds}"
                with loaded(models[index]) as model:
                    # Another model had the caches; the first run after it says nothing.
                    answers(model, batched[:batch_size] if number == 0 else batched[:1], batch_size)
                    timings[index].seconds.append([seconds(model, [row], 1) for row in singles])
                    timings[index].rates.append(len(batched) / seconds(model, batched, batch_size))
    return timings


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Lets torch use this many threads of the processor inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps Python's garbage collector out of the block."""
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
