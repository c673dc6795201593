"""Trainings that are killed at a step of the optimizer, in processes that start warm."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook
from warm import CONTEXT


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def counting_steps(dies_at: int, by: Callable[[], object] | None = None) -> Iterator[Callable[[], int]]:
    """Counts the steps of optimizers inside the block, and kills this process, or calls `by`, at one of them."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            (by or kill)()

    hook = register_optimizer_step_post_hook(count)
    try:
        yield lambda: steps
    finally:
        hook.remove()


def run(target: Callable[..., object], *args: Any, dies_at: int = -1, ends_with: int = -signal.SIGKILL) -> None:
    """Calls a function in a process of its own, with `dies_at` as its last argument, and expects that it ends then."""
    process = CONTEXT.Process(target=target, args=(*args, dies_at))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == (0 if dies_at < 0 else ends_with)
