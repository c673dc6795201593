"""Waiting for background steps, and running functions that make steps concurrently."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .step import Step


def wait(*steps: Step, poll_interval: float = 1.0) -> None:
    """Waits for background steps, and raises the error of a failed one.

    Args:
        *steps: The steps.
        poll_interval: Accepted for DataDreamer scripts; there is nothing to poll.
    """
    for step in steps:
        step.wait()


def concurrent(*funcs: Callable[[], Any]) -> list[Any]:
    """Runs functions concurrently, each in a thread that shares the open session.

    Args:
        *funcs: Functions without arguments; they may make steps.

    Returns:
        Their results, in order. If one raises, the others finish first, then its error is raised.
    """
    if not funcs:
        return []
    with ThreadPoolExecutor(len(funcs), thread_name_prefix="datadreamer_like") as pool:
        futures = [pool.submit(contextvars.copy_context().run, function) for function in funcs]
    return [future.result() for future in futures]
