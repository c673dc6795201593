"""Values come back as they went in, whatever path they take."""

# ruff: noqa: DTZ001 (times without a zone are what is tested)

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datadreamer_like import DataDreamer, concat
from datadreamer_like.errors import StepOutputTypeError, StorageError
from datadreamer_like.steps import DataSource, HFDatasetDataSource, HFHubDataSource, LazyRowBatches, Step
from datadreamer_like.storage.tables import TableWriter, read_table
from datadreamer_like.storage.values import class_names, pickle_value, to_batch, to_columns

UTC = dt.UTC

COLUMNS: dict[str, list[Any]] = {
    "texts": ["a", None, "ü", ""],
    "integers": [1, None, -(2**63), 2**63 - 1],
    "floats": [0.1, None, 1e-300, 1e300],
    "truth values": [True, None, False, True],
    "bytes": [b"\x00", None, b"", b"x"],
    "dates": [dt.date(2024, 2, 29), None, dt.date(1, 1, 1), dt.date(9999, 12, 31)],
    "naive times": [dt.datetime(2024, 1, 1, 1, 2, 3, 4), None, dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1)],
    "aware times": [dt.datetime(2024, 1, 1, tzinfo=UTC), None, dt.datetime(1970, 1, 1, tzinfo=UTC), None],
    "durations": [dt.timedelta(days=1, microseconds=3), None, dt.timedelta(0), dt.timedelta(seconds=-1)],
    "decimals": [decimal.Decimal("1.10"), None, decimal.Decimal("-22.34"), decimal.Decimal("0.00")],
    "lists": [[1, 2], None, [], [None]],
    "chats": [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": None, "name": "ann"}],
        [],
        [{"role": "tool", "content": "x", "calls": [{"id": 1}, {"id": 2, "args": {"q": "?"}}]}],
    ],
    "dictionaries": [{"a": 1}, {"b": 2}, None, {}],
    "dictionaries with None": [{"a": 1, "b": None}, {"b": 2}, None, {"b": None, "c": {"d": None}}],
}


def stored(values: list[Any], folder: Path) -> list[Any]:
    writer = TableWriter(folder)
    writer.write({"x": values[:1]})
    writer.write({"x": values[1:]})
    writer.close("fingerprint")
    return to_columns(read_table(folder))["x"]


def through(operation: Callable[[Any], Any]) -> Callable[[list[Any], Path], list[Any]]:
    def path(values: list[Any], folder: Path) -> list[Any]:
        with DataDreamer(folder / "session", verbose=False):
            rows = DataSource("Rows", data={"x": values, "n": list(range(len(values)))})
            return list(operation(rows).output["x"])

    return path


PATHS: dict[str, Callable[[list[Any], Path], list[Any]]] = {
    "a batch": lambda values, folder: to_columns(to_batch({"x": values}))["x"],
    "a table in two batches": stored,
    "filter": through(lambda rows: rows.filter(lambda row: True)),
    "map": through(lambda rows: rows.map(lambda row: {"m": 1}).save()),
    "map of itself": through(lambda rows: rows.map(lambda row: {"x": row["x"]}, lazy=False)),
    "sort": through(lambda rows: rows.sort("n")),
    "select": through(lambda rows: rows.select([3, 2, 1, 0]).select([3, 2, 1, 0])),
    "concat": through(lambda rows: concat(rows.take(1), rows.skip(1), lazy=False)),
    "add_item": through(lambda rows: rows.add_item({"n": 9}).save().take(4)),
    "export": lambda values, folder: _exported(values, folder),
}


def _exported(values: list[Any], folder: Path) -> list[Any]:
    with DataDreamer(folder / "session", verbose=False):
        return DataSource("Rows", data={"x": values}).filter(lambda row: True).export_to_dict()["x"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_value_comes_back_as_it_went_in(kind: str, path: str, tmp_path: Path) -> None:
    assert PATHS[path](COLUMNS[kind], tmp_path) == COLUMNS[kind]


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "a": st.one_of(st.none(), st.integers(-9, 9)),
                "b": st.lists(st.fixed_dictionaries({}, optional={"c": st.text(), "d": st.floats(allow_nan=False)})),
            },
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None)
def test_keys_that_were_not_there_stay_away(rows: list[dict[str, Any]]) -> None:
    # A key that one row holds as None is None wherever it is null: the two cannot be told apart in one column.
    if any(row.get("a", 0) is None for row in rows):
        rows = [{"a": None, **row} for row in rows]
    assert to_columns(to_batch({"x": rows}))["x"] == rows


def test_a_key_that_one_row_gives_as_none_is_none_where_it_is_missing() -> None:
    assert to_columns(to_batch({"x": [{"a": 1}, {"b": None}]}))["x"] == [{"a": 1, "b": None}, {"b": None}]


@pytest.mark.parametrize("kind", ["chats", "dictionaries"])
def test_an_exported_folder_keeps_missing_keys_and_a_dataset_has_them_as_none(kind: str, tmp_path: Path) -> None:
    values = COLUMNS[kind]
    with DataDreamer(":memory:", verbose=False):
        dataset = DataSource("Rows", data={"x": values}).export_to_hf_dataset(tmp_path / "out")
        assert list(HFDatasetDataSource("Folder", tmp_path / "out").output["x"]) == values
        assert list(DataSource("Dataset", data=dataset).output["x"]) == list(dataset["x"]) != values


def test_values_of_other_libraries_become_pythons_own() -> None:
    given_values: dict[str, list[Any]] = {
        "numpy": [np.float32(1.5), np.float64(2.5), 3.0],
        "numpy and python truth": [np.True_, False],
        "pandas": ["a", pd.NA, float("nan")],
        "no time": [dt.datetime(2024, 1, 1), pd.NaT],
        "arrays": [np.array([1, 2]), np.eye(1), None][:1],
        "tensors": [torch.tensor([1.0]), torch.ones(1, dtype=torch.bfloat16)],
        "days": [np.datetime64("2024-01-01"), None],
        "keys": [uuid.UUID(int=1), None],
        "sets": [{1}, [2]],
        "tuples": [(1, 2), [3]],
    }
    read = {name: to_columns(to_batch({name: values}))[name] for name, values in given_values.items()}
    assert read == {
        "numpy": [1.5, 2.5, 3.0],
        "numpy and python truth": [True, False],
        "pandas": ["a", None, None],
        "no time": [dt.datetime(2024, 1, 1), None],
        "arrays": [[1, 2]],
        "tensors": [[1.0], [1.0]],
        "days": [dt.date(2024, 1, 1), None],
        "keys": ["00000000-0000-0000-0000-000000000001", None],
        "sets": [[1], [2]],
        "tuples": [[1, 2], [3]],
    }


@pytest.mark.parametrize(
    ("early", "late", "expected"),
    [
        ([decimal.Decimal("1.1")], [decimal.Decimal("22.345")], [decimal.Decimal("1.1"), decimal.Decimal("22.345")]),
        ([1], [0.5], [1.0, 0.5]),
        ([[]], [[{"a": 1}]], [[], [{"a": 1}]]),
        ([None], [{"a": None}], [None, {"a": None}]),
        ([{"a": 1}], [{"b": "x"}], [{"a": 1}, {"b": "x"}]),
    ],
)
def test_types_widen_between_batches_as_within_one(
    early: list[Any], late: list[Any], expected: list[Any], tmp_path: Path
) -> None:
    assert stored(early + late, tmp_path) == expected
    assert to_columns(to_batch({"x": early + late}))["x"] == expected


@pytest.mark.parametrize(
    "values",
    [
        [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=UTC)],
        [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 5)],
        [dt.datetime(2024, 1, 1, 5), dt.date(2024, 1, 1)],
        [1, "a"],
        ["a", b"b"],
        [True, 1],
        [1, True],
        [decimal.Decimal(1), 1],
        [dt.timedelta(1), 1],
        [dt.time(1), dt.timedelta(1)],
        [pickle_value({1}), "a"],
        [pickle_value({1}), b"a"],
        [b"a", pickle_value({1})],
        [pickle_value({1}), 1],
        [pickle_value({1}), {1}],
        [[1], {"a": 1}],
        [[1], 1],
    ],
)
@pytest.mark.parametrize("nested", [None, "list", "key", "list in a key"])
def test_types_that_do_not_go_together_are_refused_within_and_between_batches(
    values: list[Any], nested: str | None, tmp_path: Path
) -> None:
    if nested == "list":
        values = [[value] for value in values]
    elif nested is not None:
        values = [{"at": value if nested == "key" else [{"b": value}]} for value in values]
    with pytest.raises(StepOutputTypeError, match='column "x"'):
        to_batch({"x": values})
    with pytest.raises(StepOutputTypeError, match='column "x"'):
        stored(values, tmp_path)


PICKLE = pickle_value({1})


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (dt.time(1, tzinfo=UTC), "time zone"),
        (decimal.Decimal("NaN"), "NaN"),
        (decimal.Decimal("Infinity"), "Infinity"),
        (decimal.Decimal("1" * 90), "do not fit"),
        (np.datetime64("12024-01-01"), "outside of what datetime holds"),
        (np.datetime64(1, "ps"), "finer than nanoseconds"),
        (pd.Timestamp(1, tz="UTC"), "nanoseconds"),
        (pd.Period("2024"), "Period"),
        (pd.DataFrame({"a": [1]}), "DataFrame"),
        (1j, "complex"),
        (np.complex64(1), "complex"),
        (Color.RED, "member.value"),
        (Path("a"), "Path"),
        (object(), "object"),
        (len, "builtin"),
        (2**64, "64 bits"),
        ("\ud800", "surrogate"),
        (dt.timedelta.max, "do not fit"),
        ({1: "a"}, "key 1"),
        ({None: 1}, "key None"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("nested", [False, True])
def test_values_that_cannot_be_kept_are_refused_by_name(value: Any, says: str, nested: bool) -> None:
    values = [{"a": [{"b": value}]}] if nested else [value, None]
    with pytest.raises(StepOutputTypeError, match=f'column "x".*{says}'):
        to_batch({"x": values}, "map")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float16(0.5), 0.5),
        (np.longdouble(0.25), 0.25),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.array(5), 5),
        (np.array([1, 2], ">i4"), [1, 2]),
        (np.array([0.5], "f2"), [0.5]),
        (np.array(["a", None], object), ["a", None]),
        (np.array([[True], [False]]), [[True], [False]]),
        (np.array(["2024-01-01"], "M8[ns]"), [dt.datetime(2024, 1, 1)]),
        (np.ma.array([1.5, 2], mask=[0, 1]), [1.5, None]),
        (np.zeros(1, [("a", "i4"), ("b", "f4")])[0], {"a": 0, "b": 0.0}),
        (np.timedelta64(2, "h"), dt.timedelta(hours=2)),
        (np.datetime64("2024-03"), dt.date(2024, 3, 1)),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor(True), True),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (enum.IntEnum("Level", "LOW").LOW, 1),
        (enum.StrEnum("Word", "ONE").ONE, "one"),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.deque([1]), [1]),
        (frozenset("ba"), ["a", "b"]),
        (range(2), [0, 1]),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (pd.Series([1, 2]), [1, 2]),
        (pd.Categorical(["a"]), ["a"]),
        (pa.array([1, None]), [1, None]),
        (pa.scalar("a"), "a"),
        (pd.NA, None),
        (pd.NaT, None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("nested", [False, True])
def test_values_of_libraries_are_kept_at_every_level(value: Any, expected: Any, nested: bool) -> None:
    values = [{"a": [{"b": value}]}] if nested else [value]
    read = to_columns(to_batch({"x": values}))["x"]
    assert repr(read) == repr([{"a": [{"b": expected}]}] if nested else [expected])


@pytest.mark.parametrize(
    "value", [True, "a", b"a", dt.date(2024, 1, 1), dt.timedelta(1), decimal.Decimal(1), [1], {"a": 1}]
)
def test_nan_among_other_values_is_a_missing_value(value: Any) -> None:
    values = [value, float("nan"), np.nan, None]
    assert to_columns(to_batch({"x": values, "y": [values, [], [], []]})) == {
        "x": [value, None, None, None], "y": [[value, None, None, None], [], [], []],
    }  # fmt: skip


FEATURES = datasets.Features(
    {
        "y": datasets.ClassLabel(names=["neg", "pos"]),
        "image": datasets.Image(),
        "several": datasets.List(datasets.ClassLabel(names=["a", "b"])),
    }
)
DATA = {
    "y": [0, 1, None],
    "image": [Image.new("RGB", (2, 2), color) for color in ("red", "blue", "green")],
    "several": [[0], [1, 0], []],
}


@pytest.mark.parametrize(
    "operation",
    [
        lambda rows: rows.filter(lambda row: row["y"] != 5),
        lambda rows: rows.filter(lambda row: row["image"].size == (2, 2), lazy=False),
        lambda rows: rows.map(lambda row: {"extra": 1}).save(),
        lambda rows: rows.map(lambda row: dict(row)).save(),
        lambda rows: rows.sort("y"),
        lambda rows: concat(rows, rows),
        lambda rows: concat(rows, rows.filter(lambda row: True)).save(),
        lambda rows: rows.add_item({"y": 1}),
        lambda rows: rows.filter(lambda row: True).add_item({"y": 1}).save(),
        lambda rows: rows.shuffle(seed=1).rename_column("y", "z").rename_column("z", "y"),
    ],
)
def test_class_names_and_images_survive_operations(operation: Callable[[Any], Any], tmp_path: Path) -> None:
    with DataDreamer(tmp_path / "session", verbose=False):
        made = operation(DataSource("Rows", data=datasets.Dataset.from_dict(DATA, features=FEATURES)))
        assert class_names(made.output.rows.schema.field("y")) == ["neg", "pos"]
        assert list(made.output["image"])[0].size == (2, 2)
        exported = made.export_to_hf_dataset(tmp_path / "hf")
    assert {name: exported.features[name] for name in FEATURES} == FEATURES
    assert exported[0]["image"].size == (2, 2)


def test_class_numbers_are_aligned_by_name_or_refused(tmp_path: Path) -> None:
    def labelled(names: list[str] | None) -> datasets.Dataset:
        kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        return datasets.Dataset.from_dict({"y": [0, 1, -1]}, features=datasets.Features({"y": kind}))

    with DataDreamer(tmp_path, verbose=False):
        one, other = (
            DataSource("One", data=labelled(["neg", "pos"])),
            DataSource("Other", data=labelled(["pos", "new"])),
        )
        for lazy in (True, False):
            for second in (other, other.filter(lambda row: True)):
                both = concat(one, second, lazy=lazy)
                assert list(both.output["y"]) == [0, 1, -1, 1, 2, -1]
                assert class_names(both.output.rows.schema.field("y")) == ["neg", "pos", "new"]
        with pytest.raises(StepOutputTypeError, match="the classes neg, pos and of no named classes"):
            concat(one, DataSource("Plain", data=labelled(None)))


@pytest.mark.parametrize("place", ["list", "key"])
def test_nested_class_numbers_of_other_names_are_refused(place: str, tmp_path: Path) -> None:
    def labelled(names: list[str]) -> datasets.Dataset:
        label = datasets.ClassLabel(names=names)
        kind, value = (datasets.List(label), [0]) if place == "list" else ({"k": label}, {"k": 0})
        return datasets.Dataset.from_dict({"y": [value]}, features=datasets.Features({"y": kind}))

    with DataDreamer(tmp_path, verbose=False):
        one, same, other = (
            DataSource("Rows", data=labelled(names)) for names in (["neg", "pos"], ["neg", "pos"], ["pos", "neg"])
        )
        assert concat(one, same).output.info.features == one.output.info.features
        with pytest.raises(StepOutputTypeError, match="the classes neg, pos and of the classes pos, neg"):
            list(concat(one, other.filter(lambda row: True)).output)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_bytes_of_others_are_never_unpickled(tmp_path: Path) -> None:
    given_pickle = bytes(pickle_value(Trap(tmp_path / "trap")))
    data = {"blob": [given_pickle, b"x"], "nested": [[given_pickle], []], "n": [0, 1]}
    marked = pa.field("blob", pa.binary(), metadata={b"pickled": b"1"})

    class FromArrow(Step):  # rows of a file whose schema says that they are pickled
        def setup(self) -> None:
            self.register_output("blob")

        def run(self) -> Any:
            batch = pa.RecordBatch.from_arrays([pa.array(data["blob"])], schema=pa.schema([marked]))
            return LazyRowBatches(lambda: iter([batch]))

    saved = datasets.Dataset.from_dict(data)
    saved.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "columns.schema").write_bytes(pa.schema([marked]).serialize())
    saved.to_parquet(tmp_path / "parquet" / "train.parquet")
    with DataDreamer(tmp_path / "session", verbose=False):
        own = DataSource("Own", data={"n": [0]}).map(lambda row: {"blob": pickle_value({1})})
        sources = [
            DataSource("Columns", data=data),
            DataSource("Rows", data=[dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]),
            DataSource("Function", data=lambda: iter(saved)),
            DataSource("Dataset", data=saved),
            DataSource("Iterable", data=saved.to_iterable_dataset()),
            HFDatasetDataSource("Folder", tmp_path / "saved"),
            HFHubDataSource("Streamed", str(tmp_path / "parquet"), split="train", streaming=True),
            FromArrow("Arrow"),
        ]
        for source in sources:
            for step in (
                source,
                source.map(lambda row: dict(row)),
                source.filter(lambda row: True, lazy=False),
                source.sort("blob"),
                concat(source, source),
            ):
                assert list(step.output["blob"])[0] in data["blob"]
                step.export_to_hf_dataset(tmp_path / "out")["blob"]
            with pytest.raises(StepOutputTypeError, match="mixes .* and"):
                list(concat(source.select_columns("blob"), own.select_columns("blob"), lazy=False).output)
    assert not (tmp_path / "trap").exists()


def test_pickles_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        with DataDreamer(tmp_path, verbose=False):
            made = DataSource("Rows", data={"x": [pickle_value({1})], "n": [0]})
            return made.output[0], made.dataset_path

    assert rows()[0] == {"x": {1}, "n": 0}
    if os.getuid() == 0:
        os.chown(Path(rows()[1]) / "columns.schema", 12345, -1)
        with pytest.raises(StorageError, match="another user"):
            rows()


def test_pickled_objects_pass_through_every_operation(tmp_path: Path) -> None:
    values = [{1, 2}, frozenset([3]), complex(1, 2)]
    with DataDreamer(tmp_path, verbose=False):
        rows = DataSource("Rows", data={"x": [pickle_value(value) for value in values], "n": [0, 1, 2]})
        assert list(rows.output["x"]) == values
        assert list(rows.filter(lambda row: isinstance(row["x"], set)).output["x"]) == values[:1]
        assert list(rows.map(lambda row: {"x": row["x"]}).save().sort("n", reverse=True).output["x"]) == values[::-1]
        assert rows.map(lambda row: {"n": 2 * row["n"]}).export_to_dict() == {"x": values, "n": [0, 2, 4]}


@pytest.mark.parametrize(
    "value",
    [[PICKLE], {"k": PICKLE}, [{"k": [None, PICKLE]}], (PICKLE,), {PICKLE}, np.array([PICKLE], object),
     pd.Series([PICKLE]), [b"", PICKLE]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_pickled_object_inside_a_value_is_refused(value: Any) -> None:
    with pytest.raises(StepOutputTypeError, match='map: column "x".* holds a pickled object inside'):
        to_batch({"x": [None, value]}, "map")
    if isinstance(value, list | tuple | dict | set):  # in the place of a pickled object
        like = to_batch({"x": [PICKLE]}).schema
        with pytest.raises(StepOutputTypeError, match='map: column "x" holds a pickled object inside'):
            to_batch({"x": [None, value, {1}]}, "map", like)


@pytest.mark.parametrize("other", [b"bytes", "text", 1, frozenset([1])])
@pytest.mark.parametrize("count", [1, 3_000])
def test_pickled_objects_among_others_are_refused_in_any_batch(tmp_path: Path, other: Any, count: int) -> None:
    for name, values in {"Before": [PICKLE] * count + [other], "After": [other] * count + [PICKLE]}.items():
        with DataDreamer(tmp_path, verbose=False), pytest.raises(StepOutputTypeError, match=f'"{name}": column "x"'):
            DataSource(name, data={"x": values})


def test_a_late_column_is_none_in_earlier_rows(tmp_path: Path) -> None:
    with DataDreamer(tmp_path, verbose=False):
        rows = DataSource("Rows", data={"n": list(range(2500))})
        made = rows.map(lambda row: {"late": "x"} if row["n"] == 2400 else {}, lazy=False)
        assert made.output.column_names == ["n", "late"]
        assert (made.output[0]["late"], made.output[2400]["late"]) == (None, "x")
