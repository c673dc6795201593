"""Waiting for background steps, and running functions that make steps concurrently."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.graph.threads import Task, interrupt_all
from datadreamer_like.graph.tracebacks import noting_errors

from .dataset_node import DatasetNode


def wait(*steps: DatasetNode, poll_interval: float = 1.0) -> None:
    """Waits for background steps, and raises the error of a failed one; `poll_interval` changes nothing."""
    for step in steps:
        if not isinstance(step, DatasetNode):
            raise ArgumentTypeError(f"wait takes steps; got {type(step).__name__}.")
    for step in steps:
        step.wait()


def concurrent(*funcs: Callable[[], Any]) -> list[Any]:
    """Runs functions without arguments concurrently, each in a thread that shares the open session.

    They may make steps. Returns their results, in order; if one raises, the others finish first, then its error is
    raised. Ctrl-C interrupts all of them.
    """
    for function in funcs:
        if not callable(function):
            raise ArgumentTypeError(f"concurrent takes functions without arguments; got {type(function).__name__}.")
    tasks: list[Task[Any]] = []
    try:
        for number, function in enumerate(funcs, 1):
            tasks.append(Task(partial(_noted, function, f"concurrent called, number {number}"), "datadreamer_like"))
        for task in tasks:
            with suppress(Exception):
                task.result()
        return [task.result() for task in tasks]
    except KeyboardInterrupt:
        interrupt_all(tasks)
        raise


def _noted(function: Callable[[], Any], call: str) -> Any:
    with noting_errors(call):
        return function()
