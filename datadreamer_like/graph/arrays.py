"""Digests of arrays, tensors, tables and datasets by content; types are matched by name to avoid heavy imports."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

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
    if value.dtype.hasobject:
        return hash_parts("object array", shape, digest(value.ravel().tolist(), ""))
    content = hashlib.blake2b(value.tobytes(), digest_size=SIZE).digest()
    return hash_parts("array", str(value.dtype).encode(), shape, content)


def _tensor(value: Any, digest: Digest) -> bytes:
    plain = value.detach().cpu().contiguous().flatten()
    content = _array(plain.view(sys.modules["torch"].uint8).numpy(), digest) if plain.numel() else b""
    return hash_parts("tensor", str(value.dtype).encode(), str(tuple(value.shape)).encode(), content)


def _torch_module(value: Any, digest: Digest) -> bytes:
    state = sorted(value.state_dict().items())
    parts = [hash_parts(name, digest(tensor, f".{name}")) for name, tensor in state if hasattr(tensor, "dtype")]
    return hash_parts("torch module", digest(type(value), ""), repr(value).encode(), *parts)


def _frame(value: Any, digest: Digest) -> bytes:
    import pyarrow as pa

    table = pa.Table.from_pandas(value if value.ndim == 2 else value.to_frame())
    return hash_parts("frame", _rows(table.schema, table.to_batches()))


def _hf_dataset(value: Any, digest: Digest) -> bytes:
    batches = value.with_format("arrow").iter(batch_size=10_000)
    return _rows(value.features.arrow_schema, (batch for table in batches for batch in table.to_batches()))


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
    ("pyarrow", "Table"): lambda value, digest: _rows(value.schema, value.to_batches()),
    ("itertools", "count"): lambda value, digest: hash_parts("count", repr(value).encode()),
    # Its `cls_ref` holds an address in memory.
    ("pydantic", "Decorator"): lambda value, digest: digest((value.cls_var_name, value.func, value.info), ""),
}
"""Digest functions by the start of the module's name and the class name."""
