"""The identity of installed classes, functions and modules, independent of their files.

A user's own code is identified by its content (see `fingerprint`), installed code by its name and version. A class of
this package is named by its room, the first folder below the package, so that moving a file changes no fingerprint.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

from datadreamer_like.errors import DefinitionError

PACKAGE = "datadreamer_like"

# Module and qualified name of the class, by name without version.
_classes: dict[str, tuple[str, str]] = {}


def is_installed(module_name: str) -> bool:
    """Returns whether a module belongs to an installed package or the standard library, not to the user's code."""
    top = _top(module_name)
    if top == "__main__":  # under a debugger or profiler, its file is theirs
        return False
    if top in sys.stdlib_module_names or top == PACKAGE:
        return True
    file = getattr(sys.modules.get(module_name) or sys.modules.get(top), "__file__", None)
    return file is not None and is_installed_file(file)


def is_installed_file(file: str) -> bool:
    """Returns whether a file belongs to an installed package, the standard library or this package."""
    return os.path.realpath(file).startswith(_installed_folders())


def is_own_file(file: str) -> bool:
    """Returns whether a file belongs to this package."""
    return os.path.realpath(file).startswith(str(Path(__file__).parents[1]) + os.sep)


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths, own = sysconfig.get_paths(), str(Path(__file__).parents[1])
    folders = [own, *(paths[name] for name in ("purelib", "platlib", "stdlib", "platstdlib"))]
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


def is_found_by_name(function: types.FunctionType) -> bool:
    """Returns whether a function's module has it under its name, so that the name identifies it."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    found = getattr(found, "__func__", found)
    return callable(found) and inspect.unwrap(found) is function


def is_own(module: str) -> bool:
    """Returns whether a module belongs to this package."""
    return _top(module) == PACKAGE


def installed_id(thing: Any) -> str:
    """Returns the identity of an installed class, function or module, such as `steps.Prompt@2`.

    For this package: room, public name and, if declared, `result_version`; for others: module, name and version of the
    distribution. A class of another package with a `result_version` is named by its package, that version and the class
    of this package that it extends.
    """
    if isinstance(thing, types.ModuleType):
        return _room(thing.__name__) if is_own(thing.__name__) else _versioned(thing.__name__, thing.__name__)
    module, name = thing.__module__ or "", thing.__qualname__
    if isinstance(thing, type):
        return _class_id(thing, module, name)
    return f"{_room(module)}.{name}" if is_own(module) else _versioned(module, f"{module}.{name}")


def module_id(name: str) -> tuple[str, str]:
    """Returns the identity of an installed module, by its name, without importing it; also of a missing one."""
    return "module", name if is_own(name) else _versioned(name, name)


def _class_id(cls: type, module: str, name: str) -> str:
    version = _declared_version(cls)
    found = f"{module if version is None else _top(module)}.{name}"
    if is_own(module):
        found = f"{_room(module)}.{name}"
    if "<locals>" not in name and _classes.setdefault(found, (module, name)) != (module, name):
        raise DefinitionError(
            f'Two classes have the id "{found}": one in {_classes[found][0]}, one in {module}. Their cached results '
            "would be mixed up. Rename one of them."
        )
    base = next((base for base in cls.__mro__[1:] if hasattr(base, "result_version")), None)
    if not is_own(module) and base is not None and is_installed(base.__module__):
        found = f"{installed_id(base)}/{found}"
    return f"{found}@{version}" if version is not None else _versioned(module, found)


def _declared_version(cls: type) -> int | None:
    """Returns the `result_version` declared by a class or a base class in the same package."""
    base = next((base for base in cls.__mro__ if "result_version" in vars(base)), None)
    if base is None:
        return None
    version = vars(base)["result_version"]
    if type(version) is not int:
        raise DefinitionError(
            f"{base.__module__}.{base.__qualname__}: result_version is {version!r}; it must be an integer, increased "
            "when the same arguments give a different result."
        )
    return version if _top(base.__module__) == _top(cls.__module__) else None


def _top(module: str) -> str:
    return module.partition(".")[0]


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def _versioned(module: str, name: str) -> str:
    version = _distribution_version(_top(module))
    return f"{name}@{version}" if version else name


@functools.cache
def _distribution_version(top: str) -> str:
    if top in sys.stdlib_module_names:
        # Patch releases of Python do not require a rerun.
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    if top == PACKAGE:
        return ""
    if top not in _distributions():
        _distributions.cache_clear()  # it may have been installed since
    try:
        return importlib.metadata.version(_distributions().get(top, [top])[0])
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(top), "__version__", ""))


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """The names of the distributions of each top-level module: a quarter of a second to find."""
    return dict(importlib.metadata.packages_distributions())
