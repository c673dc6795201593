"""What goes in comes out the same, for each kind of value on each path; the table says what a path gives if it cannot.

`JSON` and `CSV` are the values after an export and a source that reads it; an exception's text is what the export says.
"""

# ruff: noqa: DTZ001, DTZ901 (times without a zone are what is tested)

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from datadreamer_like import DataDreamer, concat, zipped
from datadreamer_like.errors import DefinitionError
from datadreamer_like.steps import CSVDataSource, DataSource, HFDatasetDataSource, JSONDataSource

SAME: Any = object()
INDIA = dt.timezone(dt.timedelta(hours=5, minutes=30))


@dataclass
class Kind:
    """Three values; what they are in Python after any path; and after an export to JSON or CSV and a source."""

    values: Any
    python: Any = SAME
    json: Any = SAME
    csv: Any = SAME
    files: Any = SAME

    def expected(self, path: str) -> Any:
        own = list(self.values) if self.python is SAME else self.python
        given = {"JSON": self.json, "CSV": self.csv}.get(path, SAME)
        given = self.files if given is SAME and path in ("JSON", "CSV") else given
        return own if given is SAME else given


NO_JSON, NO_CSV = "holds what JSON cannot", "holds what CSV cannot"

KINDS: dict[str, Kind] = {
    "texts": Kind(["a", None, "ü\U0001f600"]),
    "empty texts": Kind(["a", "", "b"], csv=["a", None, "b"]),
    "texts like numbers": Kind(["1", "2", "30"], csv=[1, 2, 30]),
    "codes": Kind(["1", "2", "003"]),
    "texts like missing values": Kind(["NA", "null", "x"]),
    "texts with line ends": Kind(["a\rb", "c\nd", "e\r\nf"]),
    "texts with NUL": Kind(["a\0b", "c", None]),
    "texts with quotes and separators": Kind(['"', 'a,"b"', "c;\td"]),
    "texts of pandas": Kind(pd.Series(["a", None, "c"]), ["a", None, "c"]),
    "texts with NaN": Kind(["a", float("nan"), pd.NA], ["a", None, None]),
    "texts of numpy": Kind(np.array(["a", "b", "c"]), ["a", "b", "c"]),
    "categories of pandas": Kind(pd.Series(["a", "b", None], dtype="category"), ["a", "b", None]),
    "dictionary of Arrow": Kind(pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "large and view texts of Arrow": Kind(pa.array(["a", None, "b"], pa.string_view()), ["a", None, "b"]),
    "integers": Kind([1, None, -(2**63)]),
    "small integers of numpy": Kind(np.array([1, 2, 255], np.uint8), [1, 2, 255]),
    "nullable integers of pandas": Kind(pd.array([1, pd.NA, 3], dtype="Int64"), [1, None, 3]),
    "sparse numbers of pandas": Kind(pd.arrays.SparseArray([0, 0, 7]), [0, 0, 7]),
    "floats": Kind([0.1, 1e-300, 1.7976931348623157e308]),
    "floats and NaN": Kind([0.5, float("nan"), 1.0], json=NO_JSON, csv=[0.5, None, 1.0]),
    "infinite floats": Kind([math.inf, -math.inf, 0.5], json=NO_JSON),
    "floats of numpy": Kind(np.array([0.5, 0.25, 2], np.float32), [0.5, 0.25, 2.0]),
    "truth values": Kind([True, None, False]),
    "truth values of numpy": Kind([np.True_, False, None], [True, False, None]),
    "bytes": Kind([b"\x00\xff", None, b""], json=NO_JSON, csv=NO_CSV),
    "dates": Kind([dt.date(2024, 2, 29), None, dt.date(1, 1, 1)], files=["2024-02-29", None, "0001-01-01"]),
    "dates of numpy": Kind(
        np.array(["2024-01-01", "NaT", "1900-01-01"], "M8[D]"),
        [dt.date(2024, 1, 1), None, dt.date(1900, 1, 1)], files=["2024-01-01", None, "1900-01-01"],
    ),
    "times": Kind(
        [dt.datetime(2024, 1, 1, 1, 2, 3, 4), None, dt.datetime.max],
        json=["2024-01-01T01:02:03.000004", None, "9999-12-31T23:59:59.999999"],
        csv=["2024-01-01 01:02:03.000004", None, "9999-12-31 23:59:59.999999"],
    ),
    "times of pandas": Kind(
        pd.to_datetime(pd.Series(["2024-01-01 05:00", None, "2024-01-02 00:00"])),
        [dt.datetime(2024, 1, 1, 5), None, dt.datetime(2024, 1, 2)],
        json=["2024-01-01T05:00:00", None, "2024-01-02T00:00:00"],
        csv=["2024-01-01 05:00:00", None, "2024-01-02 00:00:00"],
    ),
    "nanoseconds": Kind(
        [pd.Timestamp(1), None, dt.datetime(2024, 1, 1)], [pd.Timestamp(1), None, pd.Timestamp("2024-01-01")],
        json=["1970-01-01T00:00:00.000000001", None, "2024-01-01T00:00:00"],
        csv=["1970-01-01 00:00:00.000000001", None, "2024-01-01 00:00:00"],
    ),
    "times with a zone": Kind(
        [dt.datetime(2024, 7, 1, 12, tzinfo=INDIA), None, dt.datetime(2024, 1, 1, tzinfo=INDIA)],
        json=["2024-07-01T12:00:00+05:30", None, "2024-01-01T00:00:00+05:30"],
        csv=["2024-07-01 12:00:00+05:30", None, "2024-01-01 00:00:00+05:30"],
    ),
    "times with several zones": Kind(  # the same instants
        [dt.datetime(2024, 7, 1, 5, 30, tzinfo=INDIA), None, dt.datetime(2024, 1, 1, tzinfo=dt.UTC)],
        json=["2024-07-01T00:00:00+00:00", None, "2024-01-01T00:00:00+00:00"],
        csv=["2024-07-01 00:00:00+00:00", None, "2024-01-01 00:00:00+00:00"],
    ),
    "times of day": Kind([dt.time(1, 2, 3, 4), None, dt.time(0)], files=["01:02:03.000004", None, "00:00:00"]),
    "time differences": Kind(
        [dt.timedelta(days=1, microseconds=3), None, np.timedelta64(90, "s")],
        [dt.timedelta(days=1, microseconds=3), None, dt.timedelta(seconds=90)],
        files=["1 day, 0:00:00.000003", None, "0:01:30"],
    ),
    "decimals": Kind([Decimal("1.10"), None, Decimal("-22.345")], json=["1.100", None, "-22.345"],
                     csv=[1.1, None, -22.345]),
    "long decimals": Kind([Decimal("9" * 60), None, Decimal(1)], files=["9" * 60, None, "1"]),
    "lists": Kind([[1, 2], None, [None]], csv=["[1, 2]", None, "[null]"]),
    "empty lists": Kind([[], [], [[]]][:2] + [[]], csv=["[]", "[]", "[]"]),
    "arrays": Kind(list(np.eye(3)), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
                   csv=["[1.0, 0.0, 0.0]", "[0.0, 1.0, 0.0]", "[0.0, 0.0, 1.0]"]),
    "masked arrays": Kind([np.ma.array([1, 2], mask=[0, 1]), None, np.ma.array([3])], [[1, None], None, [3]],
                          csv=["[1, null]", None, "[3]"]),
    "sets and tuples": Kind([{2, 1}, (3,), []], [[1, 2], [3], []], csv=["[1, 2]", "[3]", "[]"]),
    "dictionaries with optional keys": Kind(
        [{"a": 1}, {"b": {"c": [{"d": None}, {}]}}, {}],
        python=[{"a": 1}, {"b": {"c": [{"d": None}, {"d": None}]}}, {}],
        csv=['{"a": 1}', '{"b": {"c": [{"d": null}, {"d": null}]}}', "{}"],
    ),
    "chats": Kind(
        [
            [{"role": "user", "content": "a"}],
            [{"role": "tool", "content": None, "calls": [{"id": 1, "args": {"q": "?"}}, {"id": 2}]}],
            [],
        ],
        csv=[
            '[{"role": "user", "content": "a"}]',
            '[{"role": "tool", "content": null, "calls": [{"id": 1, "args": {"q": "?"}}, {"id": 2}]}]',
            "[]",
        ],
    ),
    "empty dictionaries": Kind([{}, None, {}], csv=["{}", None, "{}"]),
    "dates in dictionaries": Kind([{"t": dt.date(2024, 1, 1)}, None, {}], json=[{"t": "2024-01-01"}, None, {}],
                                  csv=['{"t": "2024-01-01"}', None, "{}"]),
    "nothing": Kind([None, None, None]),
}  # fmt: skip


def read(step: Any) -> list[Any]:
    return list(step.output["x"])


def re_read(step: Any, folder: Path) -> list[Any]:
    step.export_to_hf_dataset(folder / "saved")
    return read(HFDatasetDataSource("Again", folder / "saved"))


PATHS: dict[str, Callable[[Any, Path], list[Any]]] = {
    "itself": lambda rows, folder: read(rows),
    "map": lambda rows, folder: read(rows.map(lambda row: {"x": row["x"]})),
    "map in batches": lambda rows, folder: read(rows.map(lambda batch: batch, batched=True, batch_size=2, lazy=False)),
    "filter": lambda rows, folder: read(rows.filter(lambda row: True).save()),
    "sort": lambda rows, folder: read(rows.sort("n", reverse=True).reverse()),
    "splits": lambda rows, folder: read(
        concat(*rows.splits(train_size=0.4, test_size=0.6).values()).sort("n").map(lambda row: row)
    ),
    "concat": lambda rows, folder: read(concat(rows.take(1), rows.skip(1).filter(lambda row: True), lazy=False)),
    "zipped": lambda rows, folder: read(zipped(rows.select_columns("x"), rows.select_columns("n"))),
    "add_item": lambda rows, folder: read(rows.take(2).add_item({"x": rows.output[2]["x"], "n": 2}).save()),
    "a list": lambda rows, folder: [row["x"] for row in rows.export_to_list()],
    "a dictionary": lambda rows, folder: rows.filter(lambda row: True).export_to_dict()["x"],
    "a generator": lambda rows, folder: read(DataSource("Lazy", data=lambda: iter(rows.output)).save()),
    "a dataset": lambda rows, folder: re_read(rows, folder),
    "a dataset of lazy rows": lambda rows, folder: re_read(rows.filter(lambda row: True), folder),
    "a step's folder": lambda rows, folder: read(HFDatasetDataSource("Again", rows.dataset_path)),
    "JSON": lambda rows, folder: read(JSONDataSource("Again", data_files=rows.export_to_json(folder / "x.jsonl"))),
    "CSV": lambda rows, folder: read(CSVDataSource("Again", data_files=rows.export_to_csv(folder / "x.csv"))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_back_from_every_path(kind: str, tmp_path: Path) -> None:
    wrong = {}
    with DataDreamer(tmp_path / "session", verbose=False):
        rows = DataSource("Rows", data={"x": KINDS[kind].values, "n": [0, 1, 2]})
        for name, path in PATHS.items():
            expected = KINDS[kind].expected(name)
            try:
                found: Any = path(rows, tmp_path)
            except DefinitionError as error:
                found = expected if isinstance(expected, str) and expected in str(error) else error
            # repr: NaN is not equal to itself, and 1 is equal to True and 1.0.
            if repr(found) != repr(expected) and (found != expected or kind in ("truth values", "integers")):
                wrong[name] = found, expected
    assert not wrong
    with DataDreamer(tmp_path / "session", verbose=False):
        assert repr(read(DataSource("Rows", data={"x": KINDS[kind].values, "n": [0, 1, 2]}))) == repr(
            read(rows)
        )  # found again


def test_publishing_names_a_column_that_parquet_cannot_store(tmp_path: Path) -> None:
    with DataDreamer(":memory:", verbose=False):
        for values in ([{}], [[{}]], [{"a": {}}]):
            with pytest.raises(DefinitionError, match='column "meta" holds dictionaries without any key'):
                DataSource("Rows", data={"meta": values}).publish_to_hf_hub("me/rows")


def test_lazy_rows_are_an_iterable_dataset(tmp_path: Path) -> None:
    features = datasets.Features({"y": datasets.ClassLabel(names=["no", "yes"])})
    with DataDreamer(tmp_path, verbose=False):
        made = DataSource("Made", data=lambda: iter([{"a": 1, "b": {"k": 1}}, {"a": 2, "b": {}}]))
        for _ in range(2):
            assert list(made.output.dataset) == [{"a": 1, "b": {"k": 1}}, {"a": 2, "b": {}}]
        assert list(made.map(lambda row: {"c": [row["a"]]}).output["c"].dataset) == [{"c": [1]}, {"c": [2]}]
        labels = DataSource("Labels", data=datasets.Dataset.from_dict({"y": [1, 0]}, features=features))
        lazy = labels.filter(lambda row: True).output.dataset
        assert lazy.features == features
        again = DataSource("Again", data=lazy)
        assert again.save().output.info.features == features
        assert list(again.output["y"]) == [1, 0]
