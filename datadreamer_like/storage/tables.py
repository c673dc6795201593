"""Tables on disk: Arrow files in the layout that `datasets.load_from_disk` opens, memory-mapped.

A table is written once, in batches, as its rows come. A column's type is that of all its rows, not of the first: when
a later batch needs a wider type (a null column gets values, integers meet floats, a struct gets a field), writing goes
on in a new file and the earlier ones are cast at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datadreamer_like.errors import StepOutputTypeError, StorageError

if TYPE_CHECKING:
    from datasets import Dataset, Features


class TableWriter:
    """Writes batches of rows into a folder that `open_table` opens.

    Args:
        folder: An existing, empty folder.
        columns: Names of the columns, in order; None takes those of the first batch.
        what: Whose rows these are, for error messages.
        features: What `datasets` knows of the columns beyond their Arrow types: names of classes, images.
    """

    def __init__(
        self,
        folder: Path,
        columns: list[str] | None = None,
        what: str = "table",
        features: Features | None = None,
    ) -> None:
        self.folder = folder
        self.features = features
        self.columns = columns
        self.what = what
        self.num_rows = 0
        self._schema: pa.Schema | None = None
        self._parts: list[tuple[Path, pa.Schema]] = []
        self._sink: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None

    def write(self, batch: Mapping[str, Any] | pa.Table) -> None:
        """Appends rows.

        Args:
            batch: Columns as lists or arrays of equal length, or an Arrow table.

        Raises:
            StepOutputTypeError: A column holds values of types that do not go together.
        """
        table = batch if isinstance(batch, pa.Table) else to_table(batch, self.what)
        if self._schema is None:
            self._schema = table.schema.remove_metadata()
        elif table.schema.remove_metadata() != self._schema:
            self._schema = _widened_schema(self._schema, table.schema, self.what)
            table = _cast(table, self._schema)
        if self._stream is None or self._parts[-1][1] != self._schema:
            self._next_part()
        assert self._stream is not None
        self._stream.write_table(table)
        self.num_rows += table.num_rows

    def close(self, fingerprint: str) -> pa.Schema:
        """Ends the files and writes what describes them.

        Args:
            fingerprint: Becomes the dataset's fingerprint, so that caches of `datasets` stay right.

        Returns:
            The schema of all rows.
        """
        from datasets import Features

        if self._schema is None:
            self._schema = pa.schema([(name, pa.null()) for name in self.columns or []])
            self._next_part()
        self._end_part()
        names = []
        for index, (part, schema) in enumerate(self._parts):
            name = f"data-{index:05d}-of-{len(self._parts):05d}.arrow"
            if schema == self._schema:
                part.rename(self.folder / name)
            else:
                _rewrite(part, self.folder / name, self._schema)
            names.append(name)
        features = Features.from_arrow_schema(self._schema)
        if self.features is not None and self.features.arrow_schema.remove_metadata() == self._schema:
            features = self.features
        info = {"citation": "", "description": "", "features": features.to_dict(), "homepage": "", "license": ""}
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": fingerprint,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
        (self.folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        return self._schema

    def abort(self) -> None:
        """Closes the files without describing them; the folder is to be thrown away."""
        self._end_part()

    def _next_part(self) -> None:
        self._end_part()
        assert self._schema is not None
        path = self.folder / f"part-{len(self._parts):05d}.arrow"
        self._sink = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._sink, self._schema)
        self._parts.append((path, self._schema))

    def _end_part(self) -> None:
        if self._stream is not None and self._sink is not None:
            self._stream.close()
            self._sink.close()
            self._stream = self._sink = None


def open_table(folder: Path) -> Dataset:
    """Opens a written table without reading its rows into memory.

    Raises:
        StorageError: The table is gone or damaged.
    """
    from datasets import Dataset

    try:
        return Dataset.load_from_disk(str(folder), keep_in_memory=False)
    except FileNotFoundError as error:
        raise StorageError(f"The rows in {folder} are gone. Run the script again: it makes them anew.") from error
    except (pa.ArrowInvalid, ValueError) as error:
        raise StorageError(
            f"The rows in {folder} are damaged ({error}). Remove the folder {folder.parent} and run the script again: "
            "it makes them anew."
        ) from error


def table_batches(dataset: Dataset, batch_size: int = 1000) -> Iterator[pa.Table]:
    """Yields a dataset's rows as Arrow tables, `batch_size` rows each but the last."""
    if dataset._indices is None and dataset._data.num_rows:
        table = dataset._data.table
        for start in range(0, table.num_rows, batch_size):
            yield table.slice(start, batch_size)
    elif len(dataset):
        yield from dataset.with_format("arrow").iter(batch_size=batch_size)


def to_table(batch: Mapping[str, Any], what: str = "table") -> pa.Table:
    """Turns columns of Python values into an Arrow table, refusing columns of mixed types.

    Raises:
        StepOutputTypeError: A column holds values of types that do not go together, or its name is no text.
    """
    for name in batch:
        if not isinstance(name, str):
            raise StepOutputTypeError(f"{what}: the column {name!r} has a name that is no text. Call it {str(name)!r}.")
    return pa.table({name: _to_array(values, name, what) for name, values in batch.items()})


def _to_array(values: Any, name: str, what: str) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    values = values if isinstance(values, list) else list(values)
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) > 1 and not _go_together(kinds):
        raise _mixed(name, what, sorted(kind.__name__ for kind in kinds))
    if any(kind.__module__.partition(".")[0] in ("numpy", "torch") for kind in kinds):
        values = [_plain(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds values that do not fit one type ({error}). Make them of one type, or keep '
            "Python objects with self.pickle(value)."
        ) from error
    except OverflowError as error:
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds an integer beyond 64 bits. Store it as text or as a float.'
        ) from error
    except UnicodeEncodeError as error:
        raise StepOutputTypeError(
            f'{what}: column "{name}" holds a text with half a surrogate pair ({error.object[error.start]!r}), '
            'which is no valid Unicode. Repair it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from error


def _go_together(kinds: set[type]) -> bool:
    if bool in kinds:
        return False
    numbers = all(issubclass(kind, int | float) or kind.__module__ == "numpy" for kind in kinds)
    sequences = all(issubclass(kind, list | tuple) or kind.__name__ in ("ndarray", "Tensor") for kind in kinds)
    texts = all(issubclass(kind, str) for kind in kinds)
    mappings = all(issubclass(kind, dict) for kind in kinds)
    return numbers or sequences or texts or mappings


def _plain(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    if getattr(value, "ndim", None) == 1 and value.dtype.kind in "biuf":
        return value
    return value.tolist() if hasattr(value, "tolist") else value


def _widened_schema(old: pa.Schema, new: pa.Schema, what: str) -> pa.Schema:
    if set(old.names) != set(new.names):
        raise StepOutputTypeError(f"{what}: a later row has the columns {new.names}, earlier ones have {old.names}.")
    fields = []
    for field in old:
        other = new.field(field.name).type
        wide = _widened(field.type, other)
        if wide is None:
            raise _mixed(field.name, what, [str(field.type), str(other)])
        fields.append((field.name, wide))
    return pa.schema(fields)


def _widened(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_integer(a) and pa.types.is_integer(b):
        return pa.int64()
    if all(pa.types.is_integer(t) or pa.types.is_floating(t) for t in (a, b)):
        return pa.float64()
    if _is_text(a) and _is_text(b):
        return pa.large_string()
    if _is_list(a) and _is_list(b):
        inner = _widened(a.value_type, b.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _widened_struct(a, b)
    return None


def _widened_struct(a: pa.StructType, b: pa.StructType) -> pa.DataType | None:
    fields = {field.name: field.type for field in a}
    for field in b:
        wide = _widened(fields[field.name], field.type) if field.name in fields else field.type
        if wide is None:
            return None
        fields[field.name] = wide
    return pa.struct(list(fields.items()))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        column = table.column(field.name)
        try:
            arrays.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            # Older Arrow versions do not add fields to structs by casting.
            arrays.append(pa.chunked_array([pa.array(column.to_pylist(), field.type)]))
    return pa.Table.from_arrays(arrays, schema=schema)


def _rewrite(part: Path, target: Path, schema: pa.Schema) -> None:
    with (
        pa.memory_map(str(part)) as source,
        pa.OSFile(str(target), "wb") as sink,
        pa.ipc.open_stream(source) as reader,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for batch in reader:
            writer.write_table(_cast(pa.Table.from_batches([batch]), schema))
    part.unlink()


def _mixed(name: str, what: str, kinds: list[str]) -> StepOutputTypeError:
    return StepOutputTypeError(
        f'{what}: column "{name}" mixes {" and ".join(kinds)}. A column has one type; convert the values, or keep '
        "Python objects with self.pickle(value)."
    )
