"""References of code: the globals that a function reads, and the files of a module and the modules it uses."""

from __future__ import annotations

import builtins
import dis
import sys
import types
from collections.abc import Iterator
from typing import Any

from .installed import is_installed


def own_files(module: types.ModuleType) -> dict[str, str]:
    """Returns the files of a user's module and of the user's modules that it uses, by module name."""
    files: dict[str, str] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        file = getattr(current, "__file__", None)
        if current.__name__ in files or current.__name__ == "__main__" or file is None:
            continue
        files[current.__name__] = file
        for used in list(vars(current).values()):
            of = used if isinstance(used, types.FunctionType | type) else type(used)
            name = used.__name__ if isinstance(used, types.ModuleType) else of.__module__
            if name in sys.modules and not is_installed(name):
                waiting.append(sys.modules[name])
    return files


def globals_used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields name and value of each global read by a function or a nested one; builtins are skipped."""
    seen: set[str] = set()

    def walk(code: types.CodeType) -> Iterator[tuple[str, Any]]:
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname not in ("LOAD_GLOBAL", "LOAD_NAME") or name in seen:
                continue
            seen.add(name)
            if name in function.__globals__:
                yield name, function.__globals__[name]
            elif not hasattr(builtins, name):
                yield name, ("undefined",)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from walk(constant)

    return walk(function.__code__)
