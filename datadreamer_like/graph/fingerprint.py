"""Fingerprints: one hash of all that decides a result.

Values are hashed by content and type (`1`, `"1"`, `True` and `1.0` differ), functions by their compiled code with
the values of the closures, defaults and globals that they use, installed code by its name and version. Whatever knows
better what decides it (a model, a step, an objective) says so in `__fingerprint__()`.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib.metadata
import inspect
import os
import re
import struct
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datadreamer_like.errors import FingerprintError
from datadreamer_like.storage.digests import file_digest, folder_digest

_SIZE = 16
_MAX_DEPTH = 200


def fingerprint(value: Any, what: str = "value") -> str:
    """Returns the fingerprint of a value as 32 hexadecimal digits.

    Args:
        value: Plain data, numpy arrays, tensors, data frames, Arrow tables, datasets, functions, classes, dataclasses,
            objects with `__fingerprint__()` (which returns any value that can be fingerprinted), or objects whose
            attributes can be.
        what: What the value is called, for the error message.

    Raises:
        FingerprintError: The value, or something in it, has no content that could be hashed.
    """
    return _Walk(what).digest(value).hex()


class ByContent(os.PathLike[str]):
    """A path that is fingerprinted by the content of the file or folder there.

    Args:
        path: An existing file or folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __fingerprint__(self) -> tuple[str, str]:
        if self.path.is_dir():
            return "folder content", folder_digest(self.path)
        return "file content", file_digest(self.path)


def is_installed(module_name: str) -> bool:
    """Tells whether a module belongs to an installed package or the standard library, not to the user's own code."""
    top = module_name.partition(".")[0]
    if top == "__main__":  # under a debugger or profiler that module is theirs, the script's functions are not
        return False
    if top in sys.stdlib_module_names or top == "datadreamer_like":
        return True
    module = sys.modules.get(module_name) or sys.modules.get(top)
    file = getattr(module, "__file__", None)
    return file is not None and any(_is_below(file, folder) for folder in _library_folders())


@functools.cache
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({os.path.realpath(paths[key]) for key in ("purelib", "platlib", "stdlib", "platstdlib")})


def _is_below(file: str, folder: str) -> bool:
    return os.path.realpath(file).startswith(folder + os.sep)


@functools.cache
def _version_of(module_name: str) -> str:
    top = module_name.partition(".")[0]
    if top in sys.stdlib_module_names:
        # A patch release of Python changes no result worth a rerun.
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    if top == "datadreamer_like":
        # Our own classes carry a version that says when their results change.
        return ""
    try:
        distributions = importlib.metadata.packages_distributions().get(top)
        return importlib.metadata.version(distributions[0] if distributions else top)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(top), "__version__", ""))


class _Walk:
    """One fingerprint's walk through a value; knows where it is, for messages, and what it is inside of, for cycles."""

    def __init__(self, what: str) -> None:
        self.path = [what]
        self.inside: dict[int, int] = {}
        # The user's functions and classes met while one of them is hashed, each with its number and the way to it.
        self.numbers: dict[int, int] | None = None
        self.waiting: list[tuple[Any, str]] = []
        self.known: dict[int, tuple[Any, bytes]] = {}  # with the object, so that no other one gets its id

    def digest(self, value: Any, step: str = "") -> bytes:
        if len(self.path) > _MAX_DEPTH:
            raise self.refuse(value, "it is nested too deeply")
        if step:
            self.path.append(step)
        if id(value) in self.inside:
            # A cycle is told by how far back it goes.
            result = _hash("cycle", str(len(self.inside) - self.inside[id(value)]).encode())
        else:
            shared = not isinstance(value, str | bytes | int | float | bool | None | types.FunctionType | type)
            if shared:
                self.inside[id(value)] = len(self.inside)
            try:
                result = self.content(value)
            finally:
                if shared:
                    self.inside.pop(id(value), None)
        if step:
            self.path.pop()
        return result

    def content(self, value: Any) -> bytes:
        own = getattr(type(value), "__fingerprint__", None)
        if own is not None:
            return _hash("own", self.digest(own(value), "__fingerprint__()"))
        for kinds, method in _BY_TYPE:
            if isinstance(value, kinds):
                return method(self, value)
        if type(value).__module__ in _TOOLS:
            return _hash("tool", type(value).__qualname__.encode(), str(getattr(value, "name", "")).encode())
        for (module, name), method in _BY_NAME.items():
            if any(base.__module__.startswith(module) and base.__qualname__ == name for base in type(value).__mro__):
                return method(self, value)
        return self.object(value)

    def refuse(self, value: Any, reason: str) -> FingerprintError:
        where = "".join(self.path)
        return FingerprintError(
            f"{where} cannot be fingerprinted: {reason} ({type(value).__module__}.{type(value).__qualname__}), so a "
            "cached result could not be told from a stale one. Pass plain data or a function that makes it, or give "
            "its class a method `__fingerprint__(self)` that returns what decides its behaviour."
        )

    # Plain data

    def none(self, value: None) -> bytes:
        return _hash("none")

    def boolean(self, value: bool) -> bytes:
        return _hash("bool", b"1" if value else b"0")

    def integer(self, value: int) -> bytes:
        return _hash("int", str(value).encode())

    def floating(self, value: float) -> bytes:
        return _hash("float", struct.pack("<d", value))

    def complex(self, value: complex) -> bytes:
        return _hash("complex", struct.pack("<dd", value.real, value.imag))

    def string(self, value: str) -> bytes:
        return _hash("str", value.encode("utf-8", "surrogatepass"))

    def binary(self, value: bytes | bytearray | memoryview) -> bytes:
        return _hash("bytes", bytes(value))

    def enumeration(self, value: enum.Enum) -> bytes:
        return _hash("enum", self.class_(type(value)), value.name.encode())

    def sequence(self, value: list[Any] | tuple[Any, ...]) -> bytes:
        kind = "list" if isinstance(value, list) else "tuple"
        if value and all(type(item) is str for item in value):  # a quicker way for a column of texts
            return _hash(f"{kind} of str", *(item.encode("utf-8", "surrogatepass") for item in value))
        return _hash(kind, *(self.digest(item, f"[{index}]") for index, item in enumerate(value)))

    def mapping(self, value: Mapping[Any, Any]) -> bytes:
        # Order decides nothing that a step may rely on, except the order of columns, which steps hash themselves.
        items = sorted(((self.alone(key), key, item) for key, item in value.items()), key=lambda entry: entry[0])
        return _hash("dict", *(digest + self.digest(item, f"[{key!r}]") for digest, key, item in items))

    def set(self, value: set[Any] | frozenset[Any]) -> bytes:
        return _hash("set", *sorted(self.alone(item) for item in value))

    def alone(self, value: Any) -> bytes:
        """Digests what stands in no order, so that no number of a function hangs on when it was met."""
        numbers, waiting = self.numbers, self.waiting
        self.numbers = None
        try:
            return self.digest(value)
        finally:
            self.numbers, self.waiting = numbers, waiting

    def range(self, value: range) -> bytes:
        return _hash("range", f"{value.start},{value.stop},{value.step}".encode())

    def slice(self, value: slice) -> bytes:
        return _hash("slice", *(self.digest(part) for part in (value.start, value.stop, value.step)))

    def path_(self, value: Path) -> bytes:
        return _hash("path", str(value).encode("utf-8", "surrogatepass"))

    def pattern(self, value: re.Pattern[Any]) -> bytes:
        return _hash("pattern", self.digest(value.pattern), str(value.flags).encode())

    # Code

    def module(self, value: types.ModuleType) -> bytes:
        if is_installed(value.__name__):
            return _hash("module", value.__name__.encode(), _version_of(value.__name__).encode())
        if getattr(value, "__file__", None) is None:
            raise self.refuse(value, "a module without a file has no content")
        files = {name: file_digest(file) for name, file in _own_files(value).items()}
        return _hash("module", value.__name__.encode(), *(f"{name}\0{files[name]}".encode() for name in sorted(files)))

    def function(self, value: types.FunctionType) -> bytes:
        if is_installed(value.__module__ or "") and _is_found_by_name(value):
            return self.named(value)
        return self.written(value)

    def written(self, value: types.FunctionType | type) -> bytes:
        """Digests a function or class of the user's with all those that it leads to, each once.

        They may refer to each other in any way: to follow every way would take for ever, so each gets a number when
        it is first met, in an order that their content alone decides, and stands for itself from then on.
        """
        if self.numbers is not None:
            if id(value) not in self.numbers:
                self.numbers[id(value)] = len(self.numbers)
                self.waiting.append((value, "".join(self.path)))
            return _hash("number", str(self.numbers[id(value)]).encode())
        if id(value) not in self.known:
            path, parts = self.path, []
            self.numbers, self.waiting = {id(value): 0}, [(value, "".join(path))]
            try:
                for unit, way in self.waiting:  # grows while it is walked
                    self.path = [way]
                    parts.append(self.own_class(unit) if isinstance(unit, type) else self.own_function(unit))
            finally:
                self.numbers, self.path = None, path
            self.known[id(value)] = value, _hash("written", *parts)
        return self.known[id(value)][1]

    def own_function(self, value: types.FunctionType) -> bytes:
        installed = is_installed(value.__module__ or "")
        # What a function of a library has made holds in its closure what it was made with.
        parts = [self.named(value)] if installed else []
        parts += [self.code(value.__code__), self.digest(value.__defaults__, ".__defaults__")]
        parts.append(self.digest(value.__kwdefaults__, ".__kwdefaults__"))
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            parts.append(_hash(name, self.digest(content, f" → {value.__qualname__}'s variable {name!r}")))
        for name, used in [] if installed else sorted(_globals_used(value)):
            parts.append(_hash(name, self.digest(used, f" → {value.__qualname__}'s global {name!r}")))
        return _hash("function", *parts)

    def cached(self, value: Any) -> bytes:
        return _hash("cached", self.digest(value.__wrapped__))

    def named(self, value: Any) -> bytes:
        module = value.__module__ or ""
        return _hash("named", module.encode(), value.__qualname__.encode(), _version_of(module).encode())

    def code(self, value: types.CodeType) -> bytes:
        # Instructions with what they refer to, so that docstrings and unused constants do not count.
        steps = [
            (instruction.opname, None if isinstance(instruction.argval, types.CodeType) else instruction.argval)
            for instruction in dis.get_instructions(value)
        ]
        nested = [self.code(item) for item in value.co_consts if isinstance(item, types.CodeType)]
        names = (value.co_varnames, value.co_freevars, value.co_cellvars, value.co_exceptiontable)
        arguments = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        flags = value.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR)
        return _hash("code", *(self.digest(part) for part in (steps, names, arguments, flags)), *nested)

    def method(self, value: types.MethodType) -> bytes:
        return _hash("method", self.digest(value.__func__), self.digest(value.__self__, ".__self__"))

    def builtin(self, value: types.BuiltinFunctionType) -> bytes:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            return _hash("builtin", (value.__module__ or "").encode(), value.__qualname__.encode())
        return _hash("builtin method", value.__name__.encode(), self.digest(owner, ".__self__"))

    def partial(self, value: functools.partial[Any]) -> bytes:
        return _hash("partial", *(self.digest(part) for part in (value.func, value.args, value.keywords)))

    def class_(self, value: type) -> bytes:
        return self.named(value) if is_installed(value.__module__) else self.written(value)

    def own_class(self, value: type) -> bytes:
        parts = [value.__qualname__.encode()]
        parts.extend(self.digest(base, f" → base {base.__qualname__}") for base in value.__bases__)
        for name, member in sorted(vars(value).items()):
            if name in _NO_CONTENT or isinstance(member, types.GetSetDescriptorType | types.MemberDescriptorType):
                continue
            parts.append(_hash(name, self.digest(_unwrapped(member), f".{name}")))
        return _hash("class", *parts)

    # Objects

    def dataclass(self, value: Any) -> bytes:
        fields = [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
        return _hash(
            "dataclass",
            self.digest(type(value)),
            *(_hash(name, self.digest(item, f".{name}")) for name, item in fields),
        )

    def object(self, value: Any) -> bytes:
        if dataclasses.is_dataclass(value):
            return self.dataclass(value)
        if isinstance(value, Iterator | types.AsyncGeneratorType | types.CoroutineType):
            raise self.refuse(value, "an iterator is used up by looking at it")
        kind: Any = type(value)
        if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
            return self.reduced(value)
        state = dict(getattr(value, "__dict__", {}))
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                    state[slot] = getattr(value, slot)
        if not state and not hasattr(value, "__dict__") and "__slots__" not in vars(type(value)):
            raise self.refuse(value, "it has no content that Python can see")
        parts = [_hash(name, self.digest(item, f".{name}")) for name, item in sorted(state.items())]
        return _hash("object", self.digest(type(value)), *parts)

    def reduced(self, value: Any) -> bytes:
        try:
            reduced = value.__reduce_ex__(4)
        except TypeError as error:
            raise self.refuse(value, "it has no content that Python can see") from error
        if isinstance(reduced, str):
            return _hash("global", type(value).__module__.encode(), reduced.encode())
        parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        return _hash("reduced", self.digest(parts))

    # Arrays, tables and datasets, known by name so that nothing heavy is imported to look

    def array(self, value: Any) -> bytes:
        if value.dtype.hasobject:
            return _hash("object array", str(value.shape).encode(), self.digest(value.ravel().tolist()))
        content = hashlib.blake2b(digest_size=_SIZE)
        content.update(memoryview(value.copy(order="C")).cast("B") if value.size else b"")
        return _hash("array", str(value.dtype).encode(), str(value.shape).encode(), content.digest())

    def scalar(self, value: Any) -> bytes:
        return _hash("scalar", str(value.dtype).encode(), value.tobytes())

    def tensor(self, value: Any) -> bytes:
        torch = sys.modules["torch"]
        plain = value.detach().cpu().contiguous().flatten()
        content = self.array(plain.view(torch.uint8).numpy()) if plain.numel() else b""
        return _hash("tensor", str(value.dtype).encode(), str(tuple(value.shape)).encode(), content)

    def torch_module(self, value: Any) -> bytes:
        state = sorted(value.state_dict().items())
        parts = [_hash(name, self.digest(tensor, f".{name}")) for name, tensor in state if hasattr(tensor, "dtype")]
        return _hash("torch module", self.digest(type(value)), repr(value).encode(), *parts)

    def frame(self, value: Any) -> bytes:
        import pyarrow as pa

        return _hash("frame", self.table(pa.Table.from_pandas(value if value.ndim == 2 else value.to_frame())))

    def table(self, value: Any) -> bytes:
        return _table_digest(value.schema, value.to_batches())

    def hf_dataset(self, value: Any) -> bytes:
        batches = value.with_format("arrow").iter(batch_size=10_000)
        return _table_digest(value.features.arrow_schema, (b for table in batches for b in table.to_batches()))

    def hf_dataset_dict(self, value: Any) -> bytes:
        return self.mapping(value)


def _hash(kind: str, *parts: bytes) -> bytes:
    hasher = hashlib.blake2b(digest_size=_SIZE)
    for part in (kind.encode(), *parts):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def _table_digest(schema: Any, batches: Iterable[Any]) -> bytes:
    """Hashes rows, however they are cut into batches."""
    import pyarrow as pa

    plain = schema.remove_metadata()
    hasher = hashlib.blake2b(digest_size=_SIZE)
    hasher.update(str(plain).encode())
    held: list[Any] = []
    rows = 0

    def flush() -> None:
        table = pa.Table.from_batches(held, schema=plain).combine_chunks()
        # Taking copies the rows into fresh buffers: offsets, padding and leftovers of slicing are gone.
        for batch in table.take(pa.array(range(table.num_rows))).to_batches():
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, plain) as stream:
                stream.write_batch(batch)
            hasher.update(sink.getvalue())

    for batch in batches:
        rest = pa.RecordBatch.from_arrays(batch.columns, schema=plain) if batch.schema != plain else batch
        while rest.num_rows:
            part = rest.slice(0, 10_000 - rows)
            held.append(part)
            rows += part.num_rows
            rest = rest.slice(part.num_rows)
            if rows == 10_000:
                flush()
                held.clear()
                rows = 0
    if held:
        flush()
    return hasher.digest()


def _unwrapped(member: Any) -> Any:
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    if isinstance(member, property):
        return (member.fget, member.fset, member.fdel)
    return member


def _is_found_by_name(function: types.FunctionType) -> bool:
    """Tells whether a function is what its module has under its name, so that the name says all."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    found = getattr(found, "__func__", found)
    return callable(found) and inspect.unwrap(found) is function


def _own_files(module: types.ModuleType) -> dict[str, str]:
    """Returns the files of a module of the user's and of those that it uses, by module."""
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


def _globals_used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
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


_NO_CONTENT = frozenset(
    {
        "__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__",
        "__annotations__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__match_args__",
        "__dataclass_params__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__hash__",
        "__dataclass_fields__", "__slotnames__",
    }
)  # fmt: skip

# Modules whose objects code uses to work, not to decide: locks, events, loggers.
_TOOLS = frozenset({"_thread", "threading", "logging", "_contextvars", "asyncio.locks"})

_BY_TYPE: list[tuple[Any, Callable[[_Walk, Any], bytes]]] = [
    (types.NoneType, _Walk.none),
    (enum.Enum, _Walk.enumeration),
    (bool, _Walk.boolean),
    (int, _Walk.integer),
    (float, _Walk.floating),
    (complex, _Walk.complex),
    (str, _Walk.string),
    (bytes | bytearray | memoryview, _Walk.binary),
    (list | tuple, _Walk.sequence),
    (set | frozenset, _Walk.set),
    (range, _Walk.range),
    (slice, _Walk.slice),
    (Path, _Walk.path_),
    (re.Pattern, _Walk.pattern),
    (types.ModuleType, _Walk.module),
    (types.FunctionType, _Walk.function),
    (type(functools.cache(len)), _Walk.cached),
    (types.MethodType, _Walk.method),
    (types.BuiltinFunctionType, _Walk.builtin),
    (functools.partial, _Walk.partial),
    (type, _Walk.class_),
    (types.CodeType, _Walk.code),
]

_BY_NAME: dict[tuple[str, str], Callable[[_Walk, Any], bytes]] = {
    ("datasets", "DatasetDict"): _Walk.hf_dataset_dict,
    ("datasets", "Dataset"): _Walk.hf_dataset,
    ("numpy", "ndarray"): _Walk.array,
    ("numpy", "generic"): _Walk.scalar,
    ("torch", "Tensor"): _Walk.tensor,
    ("torch", "Module"): _Walk.torch_module,
    ("torch", "dtype"): lambda walk, value: walk.string(str(value)),
    ("torch", "device"): lambda walk, value: walk.string(str(value)),
    ("pandas", "DataFrame"): _Walk.frame,
    ("pandas", "Series"): _Walk.frame,
    ("pyarrow", "Table"): _Walk.table,
    ("collections.abc", "Mapping"): _Walk.mapping,
    ("builtins", "dict"): _Walk.mapping,
    ("builtins", "mappingproxy"): _Walk.mapping,
}
