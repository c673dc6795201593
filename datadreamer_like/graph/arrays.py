"""Digests of arrays, tensors, tables and datasets by content; types are matched by name to avoid heavy imports."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .installed import is_installed

SIZE = 16

Digest = Callable[[Any, str], bytes]
"""A function that digests a part of a value, given with its path in the value for messages."""


def hash_parts(kind: str, *parts: bytes) -> bytes:
    """Hashes byte strings together; each is prefixed with its length, so that concatenations differ."""
    hasher = hashlib.blake2b(digest_size=SIZE)
    for part in (kind.encode(), *parts):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def _array(value: Any, digest: Digest) -> bytes:
    """Digests a NumPy array by dtype, shape and content, independent of its memory layout."""
    shape = str(value.shape).encode()
    own = _own_class(value, "numpy", digest)
    if value.dtype.hasobject:
        return hash_parts("object array", shape, digest(value.ravel().tolist(), ""), *own)
    content = hashlib.blake2b(value.tobytes(), digest_size=SIZE).digest()
    return hash_parts("array", str(value.dtype).encode(), shape, content, *own)


def _own_class(value: Any, library: str, digest: Digest) -> list[bytes]:
    """Digests the class of a value and its attributes, if the class is derived from one of a library."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == library and kind.__name__ in ("ndarray", "DataFrame", "Series"):
        return []
    attributes = getattr(value, "__dict__", {}) if library == "numpy" else {}
    attributes = {name: getattr(value, name, None) for name in getattr(kind, "_metadata", ())} | attributes
    return [digest(kind, ""), digest(attributes, "")]


def _tensor(value: Any, digest: Digest) -> bytes:
    torch = sys.modules["torch"]
    plain = value.detach().cpu()
    if plain.layout is torch.sparse_coo:
        plain = plain.coalesce()
        parts = [_tensor(part, digest) for part in (plain.indices(), plain.values())]
        return hash_parts("sparse tensor", str(tuple(value.shape)).encode(), *parts)
    plain = plain.resolve_conj().resolve_neg().contiguous().flatten()
    if plain.numel() and plain.stride(0) != 1:  # one element of a larger tensor
        plain = plain.clone(memory_format=torch.contiguous_format)
    content = _array(plain.view(torch.uint8).numpy(), digest) if plain.numel() else b""
    return hash_parts("tensor", str(value.dtype).encode(), str(tuple(value.shape)).encode(), content)


def _torch_module(value: Any, digest: Digest) -> bytes:
    """Digests a module by its tensors, its modes, its hooks, and what the user's own classes in it hold."""
    tensors = dict(value.named_buffers()) | value.state_dict()  # buffers that are not saved too
    found = [(name, item) for name, item in sorted(tensors.items()) if hasattr(item, "dtype")]
    parts = [hash_parts(name, digest(item, f".{name}")) for name, item in found]
    usual = vars(sys.modules["torch"].nn.Module())
    for name, module in value.named_modules():
        parts.append(hash_parts("train" if module.training else "eval", name.encode()))
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        own = {} if is_installed(type(module).__module__) else vars(module)
        own = {key: item for key, item in own.items() if key not in usual}
        parts += [hash_parts(name, digest(held, f".{name}")) for held in (hooks, own) if held]
        if module is not value:
            parts.append(digest(type(module), f".{name}"))
    return hash_parts("torch module", digest(type(value), ""), repr(value).encode(), *parts)


def _frame(value: Any, digest: Digest) -> bytes:
    """Digests a data frame or series: labels as they are, since Arrow makes texts of them and drops counted indices."""
    import pandas as pd
    import pyarrow as pa

    index = value.index
    counted = str(index).encode() if isinstance(index, pd.RangeIndex) else b""
    labels = [list(index.names), [value.name] if value.ndim == 1 else [list(value.columns.names), list(value.columns)]]
    columns = [value] if value.ndim == 1 else [value.iloc[:, place] for place in range(value.shape[1])]
    if not counted:
        columns += [pd.Series(index.get_level_values(level)) for level in range(index.nlevels)]
    arrow, others = {}, []
    for place, column in enumerate(columns):
        array = _arrow_column(column)
        if array is None:
            others.append(digest(column.tolist(), f"[{place}]"))
        else:
            arrow[str(place)] = array
    table = pa.table(arrow)
    dtypes = [str(column.dtype) for column in columns]
    parts = [digest([labels, dtypes, value.attrs, list(arrow)], ""), _rows(table.schema, table.to_batches()), *others]
    return hash_parts("frame" if value.ndim == 2 else "series", counted, *parts, *_own_class(value, "pandas", digest))


def _arrow_column(column: Any) -> Any:
    """Returns a column of a frame as an Arrow array, None if Arrow cannot hold it as it is."""
    import pyarrow as pa

    try:
        array = pa.array(column, from_pandas=column.dtype != object)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    is_exact = column.dtype != object or pa.types.is_string(array.type)
    return array if is_exact else None


def _hf_dataset(value: Any, digest: Digest) -> bytes:
    """Digests a dataset by its rows, its features (names of classes too) and the format that reading gives."""
    batches = value.with_format("arrow").iter(batch_size=10_000)
    rows = _rows(value.features.arrow_schema, (batch for table in batches for batch in table.to_batches()))
    return hash_parts("dataset", rows, digest(value.features.to_dict(), ".features"), digest(value.format, ".format"))


def _table(value: Any, digest: Digest) -> bytes:
    # What pandas notes of its index and versions serves pandas alone.
    metadata = {name: note for name, note in (value.schema.metadata or {}).items() if name != b"pandas"}
    fields = [dict(field.metadata or {}) for field in value.schema]
    return hash_parts("table", _rows(value.schema, value.to_batches()), digest([metadata, fields], ""))


def _image(value: Any, digest: Digest) -> bytes:
    return hash_parts("image", value.mode.encode(), str((value.size, value.getpalette())).encode(), value.tobytes())


def _rows(schema: Any, batches: Iterable[Any]) -> bytes:
    """Hashes rows, independent of batch boundaries."""
    import pyarrow as pa

    from datadreamer_like.storage.tables import portions

    plain = schema.remove_metadata()
    hasher = hashlib.blake2b(str(plain).encode(), digest_size=SIZE)
    for held in portions((pa.RecordBatch.from_arrays(batch.columns, schema=plain) for batch in batches), 10_000):
        table = pa.Table.from_batches(held).combine_chunks()
        # `take` copies the rows into new buffers, without offsets, padding and remains of slicing.
        for batch in table.take(pa.array(range(table.num_rows))).to_batches():
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, plain) as stream:
                stream.write_batch(batch)
            hasher.update(sink.getvalue())
    return hasher.digest()


BY_NAME: dict[tuple[str, str], Callable[[Any, Digest], bytes]] = {
    ("datasets", "Dataset"): _hf_dataset,
    ("PIL", "Image"): _image,
    ("numpy", "ndarray"): _array,
    ("numpy", "generic"): lambda value, digest: hash_parts("scalar", str(value.dtype).encode(), value.tobytes()),
    ("torch", "Tensor"): _tensor,
    ("torch", "Module"): _torch_module,
    ("torch", "dtype"): lambda value, digest: digest(str(value), ""),
    ("torch", "device"): lambda value, digest: digest(str(value), ""),
    ("pandas", "DataFrame"): _frame,
    ("pandas", "Series"): _frame,
    ("pyarrow", "Table"): _table,
    ("itertools", "count"): lambda value, digest: hash_parts("count", repr(value).encode()),
    # Its `cls_ref` holds an address in memory.
    ("pydantic", "Decorator"): lambda value, digest: digest((value.cls_var_name, value.func, value.info), ""),
}
"""Digest functions by the start of the module's name and the class name."""
