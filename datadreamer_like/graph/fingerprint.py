"""Fingerprints: one hash of everything that determines a result.

Values are hashed by content and type (`1`, `"1"`, `True` and `1.0` differ), functions by their compiled code with
the values of the closures, defaults and globals that they use, installed code by its name and version. An object whose
attributes do not determine its behaviour (a model, a step) has a method `__fingerprint__()` that returns what does.
"""

from __future__ import annotations

import collections
import dataclasses
import dis
import enum
import functools
import inspect
import os
import re
import struct
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from datadreamer_like.errors import FingerprintError
from datadreamer_like.storage.digests import file_digest, folder_digest

from .arrays import BY_NAME, hash_parts
from .installed import installed_id, is_found_by_name, is_installed, is_own
from .members import members_of, metaclass_of, state_of
from .own_changes import Place, before_changes, has_state
from .references import docs_of, is_dispatcher, own_attributes, own_modules, reads_docs, references


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
    before = before_changes(Place(value, is_argument=True), digest_as_is)
    return (_Walk(what).digest(value) if before is None else before).hex()


def digest_before_changes(value: Any, as_is: bool = False) -> bytes | None:
    """Returns the digest of a value by itself, `as_is` after changes by a node's functions; None if it has none."""
    try:
        return _Walk("value", as_is).digest(value)
    except FingerprintError:
        return None


digest_as_is = functools.partial(digest_before_changes, as_is=True)


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

    def __init__(self, what: str, as_is: bool = False) -> None:
        self.path = [what]
        self.as_is = as_is  # changes that a node's functions made count too
        self.inside: dict[int, int] = {}
        # The user's functions and classes found while one of them is hashed, each with its number and its path.
        self.numbers: dict[int, int] | None = None
        self.waiting: list[tuple[Any, str]] = []
        self.opened: list[int] = []  # those being hashed, which their variables may refer to
        self.in_variable = False  # whose changes are noted, with all that it holds
        self.known: dict[int, tuple[Any, bytes]] = {}  # holds the object, so that its id is not reused

    def digest(self, value: Any, step: str = "") -> bytes:
        if len(self.path) > 200:
            raise self.refuse(value, "it is nested too deeply")
        if id(value) in self.inside:
            # A cycle is hashed by its length.
            return hash_parts("cycle", str(len(self.inside) - self.inside[id(value)]).encode())
        shared = type(value) not in _SINGLE and not isinstance(
            value, types.FunctionType | type
        )  # others may be in a cycle
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
        if self.in_variable or self.as_is or not has_state(value):
            return self.of_kind(value)
        before = before_changes(Place(value), digest_as_is)
        self.in_variable = True
        try:
            return self.of_kind(value) if before is None else before
        finally:
            self.in_variable = False

    def of_kind(self, value: Any) -> bytes:
        own = getattr(type(value), "__fingerprint__", None)
        if own is not None:
            return hash_parts("own", self.digest(own(value), ".__fingerprint__()"))
        kind: Any = type(value)
        if isinstance(value, ContextVar):
            return hash_parts("context variable", value.name.encode(), self.of_context(value))
        if kind.__module__ in _TOOLS:
            return hash_parts("tool", kind.__qualname__.encode(), str(getattr(value, "name", "")).encode())
        for kinds, digest_of in _BY_TYPE:
            if isinstance(value, kinds):
                content = digest_of(self, value)
                is_derived = isinstance(value, _EXTENSIBLE) and kind not in _PLAIN and not isinstance(value, enum.Enum)
                return self.extended(value, content) if is_derived else content
        for (module, name), of_array in BY_NAME.items():
            if any(base.__module__.startswith(module) and base.__qualname__ == name for base in kind.__mro__):
                return of_array(value, self.digest)
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            return hash_parts("dataclass", self.digest(kind), *self.parts((fields | state_of(value)).items()))
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

    def parts(self, named: Iterable[tuple[str, Any]]) -> list[bytes]:
        return [hash_parts(name, self.digest(value, f".{name}")) for name, value in named]

    # Plain data

    def sequence(self, value: list[Any] | tuple[Any, ...]) -> bytes:
        kind = "list" if isinstance(value, list) else "tuple"
        if value and all(type(item) is str for item in value):  # faster for a column of texts
            return hash_parts(f"{kind} of str", *(_text(item) for item in value))
        return hash_parts(kind, *(self.digest(item, f"[{index}]") for index, item in enumerate(value)))

    def mapping(self, value: Mapping[Any, Any]) -> bytes:
        # In order: prompts are built by looping over dictionaries.
        return hash_parts("dict", *(self.digest(key) + self.digest(item, f"[{key!r}]") for key, item in value.items()))

    def extended(self, value: Any, content: bytes) -> bytes:
        """Digests a value of a class derived from a plain type: its content as such, its class and its attributes."""
        state = state_of(value)
        if isinstance(value, collections.defaultdict):
            state["default_factory"] = value.default_factory
        return hash_parts("extended", content, self.digest(type(value)), *self.parts(sorted(state.items())))

    def alone(self, value: Any, step: str = "") -> bytes:
        """Digests a value as if by itself: functions in it are numbered independently of those found before."""
        numbers, waiting = self.numbers, self.waiting
        self.numbers = None
        try:
            return self.digest(value, step)
        finally:
            self.numbers, self.waiting = numbers, waiting

    def of_context(self, value: ContextVar[Any]) -> bytes:
        """Digests the current value of a context variable; nothing if there is none that can be hashed."""
        try:
            return self.alone(value.get(), ".get()")
        except (LookupError, FingerprintError):
            return b""

    # Code

    def module(self, value: types.ModuleType) -> bytes:
        if is_installed(value.__name__):
            return self.named(value)
        if getattr(value, "__file__", None) is None:
            raise self.refuse(value, "a module without a file has no content")
        files, loaded = own_modules(value)
        parts = [f"{name}\0{file_digest(file)}".encode() for name, file in sorted(files.items())]
        for module in loaded:
            for name, item in sorted(vars(module).items()):
                if not name.startswith("__") and _is_plain(item):
                    parts.append(self.variable(f"{module.__name__}.{name}", Place(vars(module), name), item))
        return hash_parts("module", value.__name__.encode(), *parts)

    def variable(self, name: str, place: Place | None, value: Any, way: str = ".{}") -> bytes:
        """Digests a value that a function refers to; the value before the functions of a node changed it, if they did.

        `place` is the variable that holds it; None if it cannot change.
        """
        way = way.format(name)
        if isinstance(value, types.FunctionType | types.ModuleType | type):
            return hash_parts(name, self.digest(value, way))
        before = None if place is None or self.as_is else before_changes(place, digest_as_is)
        outer, self.in_variable = self.in_variable, True
        try:
            return hash_parts(name, self.alone(value, way) if before is None else before)
        finally:
            self.in_variable = outer

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
        if id(value) in self.opened:
            # By its distance, as a cycle: the index would differ where the value is fingerprinted by itself.
            return hash_parts("opened", str(len(self.opened) - self.opened.index(id(value))).encode())
        if id(value) not in self.known:
            path, parts = self.path, []
            self.numbers, self.waiting = {id(value): 0}, [(value, "".join(path))]
            try:
                for unit, way in self.waiting:  # grows while it is walked
                    self.path = [way]
                    self.opened.append(id(unit))
                    parts.append(self.own_class(unit) if isinstance(unit, type) else self.own_function(unit))
                    self.opened.pop()
                if any(reads_docs(unit) for unit, _ in self.waiting):
                    parts.append(hash_parts("docs", *(_text(docs_of(unit)) for unit, _ in self.waiting)))
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
        for name, held in (("defaults", value.__defaults__), ("kwdefaults", value.__kwdefaults__)):
            parts.append(self.variable(name, Place(held) if held else None, held, ".__{}__"))
        given = {} if self.has_new_attributes(value) else own_attributes(value)
        parts += [self.variable(name, Place(vars(value), name), item) for name, item in sorted(given.items())]
        found = references(value, only_closure=installed)
        way = f" → {value.__qualname__}'s variable {{!r}}"
        parts += [self.variable(name, place, item, way) for name, (place, item) in sorted(found.items())]
        return hash_parts("function", *parts)

    def has_new_attributes(self, value: types.FunctionType) -> bool:
        """Returns whether a node's run gave a function all its attributes, as `f.n = getattr(f, "n", 0) + 1` does."""
        if self.as_is or hasattr(value, "__wrapped__") or is_dispatcher(value):
            return False
        return before_changes(Place(vars(value)), digest_as_is) == digest_as_is({})

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

    def member(self, value: enum.Enum) -> bytes:
        state = {name: item for name, item in state_of(value).items() if name != "__objclass__"}
        return hash_parts("enum", self.class_(type(value)), *self.parts(sorted(state.items())))

    def class_(self, value: type) -> bytes:
        return self.named(value) if is_installed(value.__module__) else self.written(value)

    def own_class(self, value: type) -> bytes:
        bases = (self.digest(base, f" → base {base.__qualname__}") for base in value.__bases__)
        members = (self.variable(name, Place(value, name), member) for name, member in members_of(value))
        return hash_parts("class", value.__qualname__.encode(), *bases, *self.parts(metaclass_of(value)), *members)

    def object(self, value: Any) -> bytes:
        state = state_of(value)
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


def _is_plain(value: Any) -> bool:
    """Returns whether a value is data without functions, so that a module's value of that kind can be hashed."""
    if isinstance(value, Mapping):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, str | bytes | int | float | complex | types.NoneType | enum.Enum)


# Modules whose objects do not affect results: locks, events, loggers.
_TOOLS = frozenset({"_thread", "threading", "logging", "_contextvars", "asyncio.locks"})


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _digits(value: int) -> str:
    # Python converts no more than 4,300 digits to a text.
    return str(int(value)) if value.bit_length() < 10_000 else hex(value)


def _attributes(kind: str, *names: str) -> Callable[[_Walk, Any], bytes]:
    return lambda walk, value: hash_parts(kind, *(walk.digest(getattr(value, name), f".{name}") for name in names))


_SINGLE = frozenset({bool, int, float, complex, str, bytes, types.NoneType})
_PLAIN = _SINGLE | {list, tuple, set, dict, types.MappingProxyType}
# Types from which classes with attributes may be derived.
_EXTENSIBLE = (int, float, complex, str, bytes, bytearray, memoryview, list, tuple, set, frozenset, Mapping)

# The first that fits counts.
_BY_TYPE: list[tuple[Any, Callable[[_Walk, Any], bytes]]] = [
    (types.NoneType, lambda walk, value: hash_parts("none")),
    (enum.Enum, _Walk.member),
    (bool, lambda walk, value: hash_parts("bool", b"1" if value else b"0")),
    (int, lambda walk, value: hash_parts("int", _digits(value).encode())),
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
    (staticmethod | classmethod, _attributes("descriptor", "__func__")),
    (types.BuiltinFunctionType, _Walk.builtin),
    (functools.partial, _attributes("partial", "func", "args", "keywords")),
    (type, _Walk.class_),
    (types.UnionType, _attributes("union", "__args__")),
    (types.CodeType, _Walk.code),
    (Mapping, _Walk.mapping),
]
