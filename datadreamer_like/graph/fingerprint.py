"""Fingerprints: one hash of everything that determines a result.

Values are hashed by content and type (`1`, `"1"`, `True` and `1.0` differ), functions by their compiled code with
the values of the closures, defaults and globals that they use, installed code by its name and version. An object whose
attributes do not determine its behaviour (a model, a step) has a method `__fingerprint__()` that returns what does.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import dis
import enum
import functools
import inspect
import os
import re
import struct
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datadreamer_like.errors import FingerprintError
from datadreamer_like.storage.digests import file_digest, folder_digest

from .arrays import BY_NAME, hash_parts
from .installed import installed_id, is_found_by_name, is_installed, is_own


def fingerprint(value: Any, what: str = "value") -> str:
    """Returns the fingerprint of a value as 32 hexadecimal digits.

    Args:
        value: Plain data, numpy arrays, tensors, data frames, Arrow tables, datasets, functions, classes, dataclasses,
            objects with `__fingerprint__()` (which returns any such value), or objects whose attributes can be
            fingerprinted.
        what: Name of the value, for the error message.

    Raises:
        FingerprintError: The value, or a part of it, cannot be hashed.
    """
    return _Walk(what).digest(value).hex()


class ByContent(os.PathLike[str]):
    """The path of an existing file or folder that is fingerprinted by its content."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __fingerprint__(self) -> tuple[str, str]:
        if self.path.is_dir():
            return "folder content", folder_digest(self.path)
        return "file content", file_digest(self.path)


class _Walk:
    """The traversal of a value for one fingerprint, with the current path for messages and ancestors for cycles."""

    def __init__(self, what: str) -> None:
        self.path = [what]
        self.inside: dict[int, int] = {}
        # The user's functions and classes found while one of them is hashed, each with its number and its path.
        self.numbers: dict[int, int] | None = None
        self.waiting: list[tuple[Any, str]] = []
        self.known: dict[int, tuple[Any, bytes]] = {}  # holds the object, so that its id is not reused

    def digest(self, value: Any, step: str = "") -> bytes:
        if len(self.path) > 200:
            raise self.refuse(value, "it is nested too deeply")
        if id(value) in self.inside:
            # A cycle is hashed by its length.
            return hash_parts("cycle", str(len(self.inside) - self.inside[id(value)]).encode())
        shared = not isinstance(value, str | bytes | int | float | bool | None | types.FunctionType | type)
        if shared:
            self.inside[id(value)] = len(self.inside)
        self.path.append(step)
        try:
            return self.content(value)
        finally:
            self.path.pop()
            if shared:
                del self.inside[id(value)]

    def content(self, value: Any) -> bytes:
        own = getattr(type(value), "__fingerprint__", None)
        if own is not None:
            return hash_parts("own", self.digest(own(value), "__fingerprint__()"))
        kind: Any = type(value)
        if kind.__module__ in _TOOLS:
            return hash_parts("tool", kind.__qualname__.encode(), str(getattr(value, "name", "")).encode())
        for kinds, digest_of in _BY_TYPE:
            if isinstance(value, kinds):
                return digest_of(self, value)
        for (module, name), of_array in BY_NAME.items():
            if any(base.__module__.startswith(module) and base.__qualname__ == name for base in kind.__mro__):
                return of_array(value, self.digest)
        if dataclasses.is_dataclass(value):
            fields = ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
            return hash_parts("dataclass", self.digest(kind), *self.parts(fields))
        if isinstance(value, Iterator | types.AsyncGeneratorType | types.CoroutineType):
            raise self.refuse(value, "hashing would exhaust an iterator")
        if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
            return self.reduced(value)
        return self.object(value)

    def refuse(self, value: Any, reason: str) -> FingerprintError:
        where = "".join(self.path)
        return FingerprintError(
            f"{where} cannot be fingerprinted: {reason} ({type(value).__module__}.{type(value).__qualname__}), so the "
            "cache could not detect changes. Pass plain data or a function that makes it, or add a method "
            "`__fingerprint__(self)` to its class that returns the values which determine its behaviour."
        )

    def parts(self, named: Iterable[tuple[str, Any]], way: str = ".{}") -> list[bytes]:
        return [hash_parts(name, self.digest(value, way.format(name))) for name, value in named]

    # Plain data

    def sequence(self, value: list[Any] | tuple[Any, ...]) -> bytes:
        kind = "list" if isinstance(value, list) else "tuple"
        if value and all(type(item) is str for item in value):  # faster for a column of texts
            return hash_parts(f"{kind} of str", *(_text(item) for item in value))
        return hash_parts(kind, *(self.digest(item, f"[{index}]") for index, item in enumerate(value)))

    def mapping(self, value: Mapping[Any, Any]) -> bytes:
        # Order does not matter to steps, except that of columns, which steps hash themselves.
        items = sorted(((self.alone(key), key, item) for key, item in value.items()), key=lambda entry: entry[0])
        return hash_parts("dict", *(digest + self.digest(item, f"[{key!r}]") for digest, key, item in items))

    def alone(self, value: Any) -> bytes:
        """Digests an element of an unordered collection; functions in it are numbered independently of the order."""
        numbers, waiting = self.numbers, self.waiting
        self.numbers = None
        try:
            return self.digest(value)
        finally:
            self.numbers, self.waiting = numbers, waiting

    # Code

    def module(self, value: types.ModuleType) -> bytes:
        if is_installed(value.__name__):
            return self.named(value)
        if getattr(value, "__file__", None) is None:
            raise self.refuse(value, "a module without a file has no content")
        files = (f"{name}\0{file_digest(file)}".encode() for name, file in sorted(_own_files(value).items()))
        return hash_parts("module", value.__name__.encode(), *files)

    def function(self, value: types.FunctionType) -> bytes:
        has_name = is_installed(value.__module__ or "") and is_found_by_name(value)
        return self.named(value) if has_name else self.written(value)

    def written(self, value: types.FunctionType | type) -> bytes:
        """Digests a user's function or class with all those that it refers to, each once.

        References may be cyclic, and following every path could take exponential time. So each function or class is
        numbered when first found, in an order that depends only on content, and later references hash the number.
        """
        if self.numbers is not None:
            if id(value) not in self.numbers:
                self.numbers[id(value)] = len(self.numbers)
                self.waiting.append((value, "".join(self.path)))
            return hash_parts("number", str(self.numbers[id(value)]).encode())
        if id(value) not in self.known:
            path, parts = self.path, []
            self.numbers, self.waiting = {id(value): 0}, [(value, "".join(path))]
            try:
                for unit, way in self.waiting:  # grows while it is walked
                    self.path = [way]
                    parts.append(self.own_class(unit) if isinstance(unit, type) else self.own_function(unit))
            finally:
                self.numbers, self.path = None, path
            self.known[id(value)] = value, hash_parts("written", *parts)
        return self.known[id(value)][1]

    def own_function(self, value: types.FunctionType) -> bytes:
        installed = is_installed(value.__module__ or "")
        # A function made by a library's function holds its arguments in the closure.
        parts = [self.named(value)] if installed else []
        if not (installed and is_own(value.__module__)):
            parts.append(self.code(value.__code__))
        parts.append(self.digest(value.__defaults__, ".__defaults__"))
        parts.append(self.digest(value.__kwdefaults__, ".__kwdefaults__"))
        parts += self.parts(_variables(value), f" → {value.__qualname__}'s variable {{!r}}")
        if not installed:
            parts += self.parts(sorted(_globals_used(value).items()), f" → {value.__qualname__}'s global {{!r}}")
        return hash_parts("function", *parts)

    def named(self, value: Any) -> bytes:
        return hash_parts("installed", installed_id(value).encode())

    def code(self, value: types.CodeType) -> bytes:
        # Instructions with their operands, without docstrings and unused constants.
        steps = [
            (instruction.opname, None if isinstance(instruction.argval, types.CodeType) else instruction.argval)
            for instruction in dis.get_instructions(value)
        ]
        nested = [self.code(item) for item in value.co_consts if isinstance(item, types.CodeType)]
        names = (value.co_varnames, value.co_freevars, value.co_cellvars, value.co_exceptiontable)
        arguments = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        flags = value.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR)
        return hash_parts("code", *(self.digest(part) for part in (steps, names, arguments, flags)), *nested)

    def builtin(self, value: types.BuiltinFunctionType) -> bytes:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            return hash_parts("builtin", (value.__module__ or "").encode(), value.__qualname__.encode())
        return hash_parts("builtin method", value.__name__.encode(), self.digest(owner, ".__self__"))

    def class_(self, value: type) -> bytes:
        return self.named(value) if is_installed(value.__module__) else self.written(value)

    def own_class(self, value: type) -> bytes:
        bases = (self.digest(base, f" → base {base.__qualname__}") for base in value.__bases__)
        return hash_parts("class", value.__qualname__.encode(), *bases, *self.parts(_members(value)))

    def object(self, value: Any) -> bytes:
        state = dict(getattr(value, "__dict__", {}))
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                    state[slot] = getattr(value, slot)
        if not state and not hasattr(value, "__dict__") and "__slots__" not in vars(type(value)):
            raise self.refuse(value, "its content is not accessible from Python")
        return hash_parts("object", self.digest(type(value)), *self.parts(sorted(state.items())))

    def reduced(self, value: Any) -> bytes:
        try:
            reduced = value.__reduce_ex__(4)
        except TypeError as error:
            raise self.refuse(value, "its content is not accessible from Python") from error
        if isinstance(reduced, str):
            return hash_parts("global", self.digest(type(value)), reduced.encode())
        parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        return hash_parts("reduced", self.digest(parts))


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yields name and content of what a class itself defines."""
    for name, member in sorted(vars(cls).items()):
        if name in _NO_CONTENT or isinstance(member, types.GetSetDescriptorType | types.MemberDescriptorType):
            continue
        if isinstance(member, staticmethod | classmethod):
            yield name, member.__func__
        else:
            yield name, (member.fget, member.fset, member.fdel) if isinstance(member, property) else member


def _own_files(module: types.ModuleType) -> dict[str, str]:
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


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields name and value of each variable of an enclosing function that is assigned yet."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):
            yield name, cell.cell_contents


def _globals_used(function: types.FunctionType) -> dict[str, Any]:
    """Returns the globals read by a function or a function in it, by name; builtins are skipped."""
    used: dict[str, Any] = {}
    waiting = [function.__code__]
    for code in waiting:  # grows while it is walked
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
                continue
            if name in function.__globals__:
                used[name] = function.__globals__[name]
            elif not hasattr(builtins, name):
                used[name] = ("undefined",)
    return used


_NO_CONTENT = {
    "__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__",
    "__annotations__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__match_args__",
    "__dataclass_params__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__hash__",
    "__dataclass_fields__", "__slotnames__",
    # Made by pydantic from a model's other members; they hold addresses in memory.
    "__pydantic_core_schema__", "__pydantic_serializer__", "__pydantic_validator__",
}  # fmt: skip

# Modules whose objects do not affect results: locks, events, loggers.
_TOOLS = frozenset({"_thread", "threading", "logging", "_contextvars", "asyncio.locks"})


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _attributes(kind: str, *names: str) -> Callable[[_Walk, Any], bytes]:
    return lambda walk, value: hash_parts(kind, *(walk.digest(getattr(value, name), f".{name}") for name in names))


# The first that fits counts.
_BY_TYPE: list[tuple[Any, Callable[[_Walk, Any], bytes]]] = [
    (types.NoneType, lambda walk, value: hash_parts("none")),
    (enum.Enum, lambda walk, value: hash_parts("enum", walk.class_(type(value)), value.name.encode())),
    (bool, lambda walk, value: hash_parts("bool", b"1" if value else b"0")),
    (int, lambda walk, value: hash_parts("int", str(value).encode())),
    (float, lambda walk, value: hash_parts("float", struct.pack("<d", value))),
    (complex, lambda walk, value: hash_parts("complex", struct.pack("<dd", value.real, value.imag))),
    (str, lambda walk, value: hash_parts("str", _text(value))),
    (bytes | bytearray | memoryview, lambda walk, value: hash_parts("bytes", bytes(value))),
    (list | tuple, _Walk.sequence),
    (set | frozenset, lambda walk, value: hash_parts("set", *sorted(map(walk.alone, value)))),
    (range, lambda walk, value: hash_parts("range", f"{value.start},{value.stop},{value.step}".encode())),
    (slice, _attributes("slice", "start", "stop", "step")),
    (Path, lambda walk, value: hash_parts("path", _text(str(value)))),
    (re.Pattern, lambda walk, value: hash_parts("pattern", walk.digest(value.pattern), str(value.flags).encode())),
    (types.ModuleType, _Walk.module),
    (types.FunctionType, _Walk.function),
    (type(functools.cache(len)), _attributes("cached", "__wrapped__")),
    (types.MethodType, _attributes("method", "__func__", "__self__")),
    (types.BuiltinFunctionType, _Walk.builtin),
    (functools.partial, _attributes("partial", "func", "args", "keywords")),
    (type, _Walk.class_),
    (types.UnionType, _attributes("union", "__args__")),
    (types.CodeType, _Walk.code),
    (Mapping, _Walk.mapping),
]
