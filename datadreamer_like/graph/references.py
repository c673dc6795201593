"""What a user's function or module refers to: globals, closures, attributes of modules, imports in its body.

Of a module, the attributes that the code names count, as in `helper.limit`. A module that is used in another way, such
as `getattr(helper, name)`, counts as a whole: its file, its values, and the files of the user's modules that it
imports. Modules that a function imports in its body are imported here, as the function does when it runs.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dis
import functools
import importlib
import itertools
import re
import sys
import types
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from datadreamer_like.storage.digests import file_digest

from .installed import is_installed, is_installed_file, module_id
from .own_changes import Place

_UNDEFINED = ("undefined",)
_FOLLOWED = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_STORES = ("STORE_FAST", "STORE_NAME", "STORE_DEREF", "STORE_GLOBAL")
_SKIPPED = frozenset({"EXTENDED_ARG", "CACHE", "PRECALL", "PUSH_NULL", "SWAP", "POP_TOP", "NOT_TAKEN"})
_IMPORTERS = frozenset({"import_module", "__import__"})
_BY_TEXT = frozenset({"globals", "eval", "exec"})  # read globals that a text names
_DISPATCHER = functools.singledispatch(len).__code__  # type: ignore[attr-defined]

Reference = tuple[Place | None, Any]
"""A value, and the variable that holds it; None for one that cannot change."""


def references(function: types.FunctionType, only_closure: bool = False) -> dict[str, Reference]:
    """Returns the values that a function, or a function in it, reads from outside, by name; builtins are left out."""
    if is_dispatcher(function):
        pairs = enumerate(function.registry.items())  # type: ignore[attr-defined]
        return {
            f"registry {index}{part}": (None, item)
            for index, pair in pairs
            for part, item in zip("ab", pair, strict=True)
        }
    if only_closure:
        return {name: (place, place.value()) for name, place in _closure(function)}
    found: dict[str, Reference] = {}
    codes = [function.__code__]
    for code in codes:  # grows while it is walked
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    listings = [[step for step in dis.get_instructions(code) if step.opname not in _SKIPPED] for code in codes]
    local: dict[str, Place] = dict(_closure(function))
    for steps in listings:
        local |= _imports(steps, function, found)
    for steps in listings:
        for index, step in enumerate(steps):
            name, place = _loaded(step, function, local)
            if place is not None:
                attributes = itertools.takewhile(lambda step: step.opname in _FOLLOWED, steps[index + 1 :])
                _follow(name, place, [step.argval for step in attributes], found)
    read = {name.partition(".")[0] for name in found}
    for name, place in local.items():
        if isinstance(place.holder, types.CellType) and name not in read:  # by an instruction not known here
            _follow(name, place, [], found)
    used = set(itertools.chain.from_iterable(code.co_names for code in codes))
    texts = [value for code in codes for value in code.co_consts if isinstance(value, str)]
    if used & _BY_TEXT:
        _follow_texts(texts, function, found)
    if used & _IMPORTERS:
        texts += [value for _, value in found.values() if isinstance(value, str)]
        found |= _named_modules(texts, set(itertools.chain.from_iterable(map(_arguments, listings))), function)
    return found


def is_dispatcher(function: types.FunctionType) -> bool:
    """Returns whether `functools.singledispatch` made a function: its registry is what it does, the rest is a cache."""
    return function.__code__ is _DISPATCHER


def own_attributes(function: types.FunctionType) -> dict[str, Any]:
    """Returns the attributes that a user gave a function."""
    given = {} if is_dispatcher(function) else vars(function)
    return {name: value for name, value in given.items() if name != "__wrapped__"}


def _loaded(step: dis.Instruction, function: types.FunctionType, local: dict[str, Place]) -> tuple[str, Place | None]:
    """Returns the outer variable that an instruction reads; a local one if it holds a module."""
    if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
        is_builtin = step.argval not in function.__globals__ and hasattr(builtins, step.argval)
        return step.argval, None if is_builtin else Place(function.__globals__, step.argval)
    if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")):
        name = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
        return name, local.get(name)
    return "", None


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Place]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            _ = cell.cell_contents
            yield name, Place(cell)


def _follow(name: str, place: Place, attributes: list[str], found: dict[str, Reference]) -> None:
    """Adds a value, or if it is a user's module the value of its attribute that the code names."""
    value = place.value() if place.is_set() else _UNDEFINED
    for attribute in attributes:
        if not isinstance(value, types.ModuleType) or is_installed(value.__name__):
            break
        name, place = f"{name}.{attribute}", Place(vars(value), attribute)
        value = getattr(value, attribute, _UNDEFINED)  # a module may have a __getattr__
    found[name] = place, value


def _follow_texts(texts: list[str], function: types.FunctionType, found: dict[str, Reference]) -> None:
    """Adds the globals whose names are in the texts of a function."""
    for name in itertools.chain.from_iterable(re.findall(r"[^\W\d]\w*", text) for text in texts):
        if name in function.__globals__ and name not in found:
            _follow(name, Place(function.__globals__, name), [], found)


def _imports(
    steps: list[dis.Instruction], function: types.FunctionType, found: dict[str, Reference]
) -> dict[str, Place]:
    """Adds what a body's imports name; returns the local variables that they bind to modules."""
    bound: dict[str, Place] = {}
    for index, step in enumerate(steps):
        if step.opname != "IMPORT_NAME":
            continue
        level, names = (before.argval for before in steps[index - 2 : index])
        name = "." * (level if isinstance(level, int) else 0) + step.argval
        module = _imported(name, function)
        if not isinstance(module, types.ModuleType):
            found[f"import {name}"] = None, module
            continue
        after = list(itertools.takewhile(lambda s: s.opname in (*_STORES, "IMPORT_FROM"), steps[index + 1 :]))
        if "*" in (names or ()):
            found[f"import {name}"] = None, module
        elif names:
            for attribute in names:
                if not hasattr(module, attribute):
                    _imported(f"{module.__name__}.{attribute}", function)
                target = getattr(module, attribute, _UNDEFINED)
                variable = next((s.argval for f, s in itertools.pairwise(after) if f.argval == attribute), attribute)
                if isinstance(target, types.ModuleType) and not is_installed(target.__name__):
                    bound[variable] = Place(vars(module), attribute)
                else:
                    found[f"import {name}.{attribute}"] = Place(vars(module), attribute), target
        elif after:
            renamed = any(s.opname == "IMPORT_FROM" for s in after) or "." not in step.argval
            bound[after[-1].argval] = Place(module if renamed else sys.modules[module.__name__.partition(".")[0]])
    return bound


def _arguments(steps: list[dis.Instruction]) -> Iterator[Any]:
    """Yields the texts that a function's code passes to `import_module` and `__import__`."""
    for step, after in itertools.pairwise(steps):
        if step.argval in _IMPORTERS and after.opname == "LOAD_CONST":
            yield after.argval


def _named_modules(texts: list[str], imported: set[Any], function: types.FunctionType) -> dict[str, Reference]:
    """Returns the user's modules with the given names: those that are `imported`, and of others the files.

    Other texts may be no names of modules, so nothing is imported by them: a script's file would run.
    """
    found: dict[str, Reference] = {}
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    for text in texts:
        if text in imported:
            found[f"import {text}"] = None, _imported(text, function)
        elif text.replace(".", "").isidentifier() and (file := own_file(text)) is not None and file != main:
            found[f"import {text}"] = (
                None,
                {name: file_digest(path) for name, path in _own_files([(text, file)]).items()},
            )
    return found


def _imported(name: str, function: types.FunctionType) -> Any:
    """Returns a user's module after importing it; for an installed one, and one that fails, what identifies it."""
    package = function.__globals__.get("__package__") or function.__globals__.get("__name__", "").rpartition(".")[0]
    try:
        full = importlib.util.resolve_name(name, package)
    except ImportError:
        return _UNDEFINED
    if full not in sys.modules and own_file(full) is None:
        return module_id(full)
    if is_installed(full):
        return module_id(full)
    try:
        return importlib.import_module(full)
    except Exception:  # the function fails in the same way, or has another way
        return _UNDEFINED


def own_modules(module: types.ModuleType) -> tuple[dict[str, str], list[types.ModuleType]]:
    """Returns the files of a user's module and of the user's modules that it imports anywhere, by name.

    Also returns those that are certain to be loaded with it.
    """
    loaded: dict[str, types.ModuleType] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current.__name__ in loaded or current.__name__ == "__main__" or getattr(current, "__file__", None) is None:
            continue
        loaded[current.__name__] = current
        for used in list(vars(current).values()):
            of = used if isinstance(used, types.FunctionType | type) else type(used)
            name = used.__name__ if isinstance(used, types.ModuleType) else of.__module__
            if name in sys.modules and not is_installed(name):
                waiting.append(sys.modules[name])
    files = _own_files([(name, str(of.__file__)) for name, of in loaded.items()])
    return files, [loaded[name] for name in sorted(loaded)]


def _own_files(names: list[tuple[str, str]]) -> dict[str, str]:
    """Returns the files of modules, and of the user's modules that they import anywhere, by name."""
    files: dict[str, str] = {}
    while names:
        name, file = names.pop()
        if name not in files:
            files[name] = file
            names += [(other, path) for other in _named_imports(name, Path(file)) if (path := own_file(other))]
    return files


def own_file(name: str) -> str | None:
    """Returns the file of a user's module, without importing it; None for installed and missing ones."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules:
        locations = None
        for part in itertools.accumulate(name.split("."), "{}.{}".format):
            spec = PathFinder.find_spec(part, locations)
            if spec is None or part.partition(".")[0] in sys.builtin_module_names:
                return None
            file, locations = spec.origin, spec.submodule_search_locations
    return None if file is None or is_installed(name) or is_installed_file(file) else file


def _named_imports(name: str, file: Path) -> Iterator[str]:
    """Yields the names of modules that a file may import, also in functions."""
    try:
        content = file.read_bytes()
        tree = ast.parse(content)
    except (OSError, SyntaxError, ValueError):  # a compiled module
        return
    imports_by_text = any(importer.encode() in content for importer in _IMPORTERS)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif imports_by_text and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [node.value] if node.value.replace(".", "").isidentifier() else []
        for module in found:
            yield from itertools.accumulate(module.split("."), "{}.{}".format)


_DOC_READERS = {"__doc__", "getdoc", "__annotations__", "get_annotations", "get_type_hints"}


def reads_docs(unit: types.FunctionType | type) -> bool:
    """Returns whether a function's code reads docstrings or annotations, which decide nothing otherwise."""
    codes = [unit.__code__] if isinstance(unit, types.FunctionType) else []
    for code in codes:  # grows while it is walked
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        if not _DOC_READERS.isdisjoint(code.co_names) and any(
            step.argval in _DOC_READERS and step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL")
            for step in dis.get_instructions(code)
        ):
            return True
    return False


def docs_of(unit: types.FunctionType | type) -> str:
    """Returns the docstring and annotations of a function or class, without addresses in memory."""
    names = vars(unit).get("__annotations__", {}) if isinstance(unit, type) else unit.__annotations__
    shown = {name: item.__qualname__ if isinstance(item, type) else str(item) for name, item in names.items()}
    return re.sub(r" at 0x[0-9a-f]+", "", repr((unit.__doc__, shown)))
