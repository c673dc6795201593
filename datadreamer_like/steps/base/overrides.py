"""What a subclass of `Step` must not override, or not together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from datadreamer_like.errors import ForbiddenOverride
from datadreamer_like.graph.installed import is_installed


def check_overrides(cls: type, general_run: Callable[..., Any]) -> None:
    """Raises `ForbiddenOverride` for a user's `__init__`, and a `process` that the class's `run` would never call.

    `general_run` is the `run` that calls `process`.
    """
    if is_installed(cls.__module__):
        return
    if "__init__" in vars(cls):
        raise ForbiddenOverride(
            f"{cls.__name__} overrides __init__. Register inputs, arguments and outputs in setup(self) instead."
        )
    if "process" not in vars(cls) or cls.run is general_run:  # type: ignore[attr-defined]
        return
    owner = next(each for each in cls.__mro__ if "run" in vars(each))
    methods = {**vars(owner), **vars(cls)}
    code = {name: set(_names(inspect.unwrap(method))) for name, method in methods.items() if callable(method)}
    calls = set().union(*(names for name, names in code.items() if name != "process"))
    if "process" not in calls and "super" not in code.get("run", ()):
        where = "it defines both" if owner is cls else f"its run() is that of {owner.__name__}"
        raise ForbiddenOverride(
            f"{cls.__name__}: process() would never be called, since {where}. Keep run() or process(); a run() may end "
            "with `return super().run()`, which calls process()."
        )


def _names(function: Any) -> Iterator[str]:
    """Yields the names that a function's code refers to, with those of the functions inside it."""
    code = function if isinstance(function, CodeType) else getattr(function, "__code__", None)
    if code is not None:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from _names(constant)
