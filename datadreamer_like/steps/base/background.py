"""Waiting for steps that run in the background, and running functions that make steps side by side."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .step import Step


def wait(*steps: Step, poll_interval: float = 1.0) -> None:
    """Waits until background steps are done, and raises what one of them raised.

    Args:
        *steps: The steps.
        poll_interval: Accepted for DataDreamer scripts; there is nothing to poll.
    """
    for step in steps:
        step.wait()


def concurrent(*funcs: Callable[[], Any]) -> list[Any]:
    """Runs functions side by side in threads of the open session.

    Args:
        *funcs: Functions without arguments; they may make steps.

    Returns:
        What they returned, in their order. If one raises, the others end first, then that is raised.
    """
    if not funcs:
        return []
    with ThreadPoolExecutor(len(funcs), thread_name_prefix="datadreamer_like") as pool:
        futures = [pool.submit(contextvars.copy_context().run, function) for function in funcs]
    return [future.result() for future in futures]
