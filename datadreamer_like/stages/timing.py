"""How long models take, measured in turn on the same texts.

The machine's speed drifts: it warms up, others want its cores. So models take turns, A B C, B C A, ..., and whatever
happens hits all of them alike. Everything is measured as a user meets it: from texts to logits, tokenizing included.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datadreamer_like.graph import current_meter
from datadreamer_like.models.trained_model import TrainedModel
from datadreamer_like.report import Interval

from .stage import loaded


@dataclass
class Timing:
    """What was measured of one model, round by round.

    Attributes:
        seconds: Seconds [rounds, texts] that one text alone took.
        rates: Texts per second [rounds] in batches.
    """

    seconds: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def latency(self) -> Interval:
        """Seconds for one text: median and quartiles over the texts, each at its fastest round.

        What else runs on the machine only ever makes a text slower, so the fastest round is the least disturbed one.
        """
        return _quartiles(np.min(np.asarray(self.seconds), axis=0))

    @property
    def throughput(self) -> Interval:
        """Texts per second in batches: median and quartiles over the rounds."""
        return _quartiles(np.asarray(self.rates))


def evenly_spaced(texts: Sequence[str], count: int) -> list[str]:
    """Returns up to `count` texts spread over all of them: those at the start may be of one kind."""
    count = min(count, len(texts))
    return [texts[index * len(texts) // count] for index in range(count)]


def time_in_turn(
    models: Sequence[TrainedModel],
    names: Sequence[str],
    singles: Sequence[str],
    texts: Sequence[str],
    *,
    rounds: int,
    batch_size: int,
    max_length: int | None,
    threads: int,
) -> list[Timing]:
    """Measures latency and throughput of models in turn; a first, unmeasured run warms each of them up.

    Args:
        models: Classifiers; one that is not loaded yet is loaded for each of its turns.
        names: What to call them in the progress.
        singles: Texts that are run one at a time.
        texts: Texts that are run in batches, sorted by length.
        rounds: How often each model's turn comes.
        batch_size: Texts in a batch.
        max_length: Texts are cut at this many tokens; None for what the model takes.
        threads: Threads of the processor that a model may use.
    """
    timings = [Timing() for _ in models]
    meter = current_meter()
    with fixed_threads(threads), undisturbed():
        for number in range(rounds):
            for turn in range(len(models)):
                index = (number + turn) % len(models)
                meter.note = f"timing {names[index]}, round {number + 1} of {rounds}"
                with loaded(models[index]) as model:
                    # Another model had the caches; the first run after it says nothing.
                    model.logits(texts[:batch_size] if number == 0 else texts[:1], max_length=max_length)
                    timings[index].seconds.append([_seconds(model, [text], 1, max_length) for text in singles])
                    timings[index].rates.append(len(texts) / _seconds(model, texts, batch_size, max_length))
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


def _seconds(model: TrainedModel, texts: Sequence[str], batch_size: int, max_length: int | None) -> float:
    # Logits come back as numpy arrays, so an accelerator has finished when the call returns.
    start = time.perf_counter()
    model.logits(texts, batch_size=batch_size, max_length=max_length)
    return time.perf_counter() - start


def _quartiles(values: np.ndarray[Any, Any]) -> Interval:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Interval(float(median), float(low), float(high))
