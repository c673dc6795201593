"""Parquet and Arrow files: types that survive, columns that must agree, and files that are damaged."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, UnknownColumn
from datadreamer_like.graph import DataDreamer
from datadreamer_like.steps import ArrowDataSource, ParquetDataSource

ROWS = [
    {"n": 1, "day": datetime.date(2020, 1, 2), "price": Decimal("1.10"), "tags": ["a"], "name": "x"},
    {"n": None, "day": None, "price": Decimal("2.25"), "tags": [], "name": "y"},
    {"n": 3, "day": datetime.date(1999, 12, 31), "price": None, "tags": None, "name": "x"},
]


def stream(table: pa.Table, file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


KINDS: list[tuple[Any, str, Callable[[pa.Table, Path], Any]]] = [
    (ParquetDataSource, "rows.parquet", pq.write_table),
    (ArrowDataSource, "rows.feather", lambda table, file: pa.feather.write_feather(table, str(file))),
    (ArrowDataSource, "rows.arrow", stream),
]


@pytest.mark.parametrize(("kind", "name", "write"), KINDS)
class TestColumnar:
    def test_types_are_kept(self, session: DataDreamer, tmp_path: Path, kind: Any, name: str, write: Any) -> None:
        table = pa.Table.from_pylist(ROWS)
        table = table.set_column(4, "name", table["name"].dictionary_encode())
        write(table, tmp_path / name)
        assert list(kind("Rows", data_files=tmp_path / name).output) == ROWS
        some = kind("Some", data_files=tmp_path / name, columns=["price", "n"])
        assert list(some.output) == [{"price": row["price"], "n": row["n"]} for row in ROWS]

    def test_files_of_a_folder_are_read_in_order_and_must_have_the_same_columns(
        self, session: DataDreamer, tmp_path: Path, kind: Any, name: str, write: Any
    ) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        write(pa.table({"a": [1], "b": ["x"]}), folder / f"1-{name}")
        write(pa.table({"b": ["y"], "a": [2]}), folder / f"2-{name}")
        assert list(kind("Rows", data_folder=folder).output) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
        write(pa.table({"a": [1], "c": ["x"]}), folder / f"3-{name}")
        with pytest.raises(DataError, match=rf"3-{name} has the columns a, c; .*1-{name} has a, b"):
            kind("Other", data_folder=folder)

    def test_the_content_decides_and_not_the_path(self, tmp_path: Path, kind: Any, name: str, write: Any) -> None:
        write(pa.table({"a": [1]}), tmp_path / name)
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / name).write_bytes((tmp_path / name).read_bytes())
        with DataDreamer(":memory:"):
            one, copy = (kind("Rows", data_files=file) for file in (tmp_path / name, tmp_path / "copy" / name))
            assert one.fingerprint == copy.fingerprint
            write(pa.table({"a": [2]}), tmp_path / name)
            assert kind("Rows", data_files=tmp_path / name).fingerprint != one.fingerprint

    def test_bad_files_and_options_are_named(
        self, session: DataDreamer, tmp_path: Path, kind: Any, name: str, write: Any
    ) -> None:
        for content in (b"", b"no such format", b"PAR1 cut"):
            (tmp_path / f"bad-{name}").write_bytes(content)
            with pytest.raises(DataError, match=f"bad-{name} cannot be read as (Parquet|Arrow)"):
                kind("Bad", data_files=tmp_path / f"bad-{name}")
        write(pa.table({"text": pa.array([], pa.string())}), tmp_path / f"empty-{name}")
        with pytest.raises(EmptyDataset, match=f"empty-{name} is empty"):
            kind("Empty", data_files=tmp_path / f"empty-{name}")
        write(pa.table({"text": ["a"]}), tmp_path / name)
        options: list[tuple[Any, type[Exception], str]] = [
            (["txt"], UnknownColumn, 'Did you mean "text"'), ("text", ArgumentTypeError, "a list of names"),
            ([], DefinitionError, "empty list"), (["text", "text"], DefinitionError, "twice"),
        ]  # fmt: skip
        for columns, error, says in options:
            with pytest.raises(error, match=says):
                kind("Rows", data_files=tmp_path / name, columns=columns)

    def test_a_mark_of_pickles_in_a_file_is_ignored(
        self, session: DataDreamer, tmp_path: Path, kind: Any, name: str, write: Any
    ) -> None:
        data = pickle.dumps({"never": "loaded"})
        marked = pa.field("value", pa.binary(), metadata={b"pickled": b"1"})
        write(pa.table([pa.array([data])], schema=pa.schema([marked])), tmp_path / name)
        assert list(kind("Rows", data_files=tmp_path / name).output["value"]) == [data]


def test_class_names_of_datasets_are_kept(session: DataDreamer, tmp_path: Path) -> None:
    features = Features({"label": ClassLabel(names=["no", "yes"])})
    dataset = Dataset.from_dict({"label": [1, 0]}, features=features)
    dataset.to_parquet(str(tmp_path / "rows.parquet"))
    dataset.save_to_disk(tmp_path / "saved")
    for step in (
        ParquetDataSource("Parquet", data_files=tmp_path / "rows.parquet"),
        ArrowDataSource("Arrow", data_folder=tmp_path / "saved"),
    ):
        assert step.output.info.features == features
        assert list(step.output["label"]) == [1, 0]


def test_maps_are_lists_of_their_entries_at_any_depth(session: DataDreamer, tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.int64())
    data = pa.table({"map": pa.array([[("k", 1), ("l", None)], [], None], kind)})
    nested = pa.array([{"inside": [[("k", 2)]]}, {"inside": []}, None], pa.struct([("inside", pa.list_(kind))]))
    pq.write_table(data.append_column("nested", nested), tmp_path / "rows.parquet")
    rows = list(ParquetDataSource("Rows", data_files=tmp_path / "rows.parquet").output)
    assert rows[0] == {
        "map": [{"key": "k", "value": 1}, {"key": "l", "value": None}],
        "nested": {"inside": [[{"key": "k", "value": 2}]]},
    }
    assert [row["map"] for row in rows[1:]] == [[], None]
