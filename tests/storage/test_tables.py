"""Tables: written once in batches, typed by all their rows, opened by `datasets` without being read."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from datadreamer_like.errors import StepOutputTypeError, StorageError
from datadreamer_like.graph.rows import Rows
from datadreamer_like.storage import tables
from datadreamer_like.storage.tables import TableWriter, as_dataset, open_table, read_table


def written(folder, *batches, schema=None):
    writer = TableWriter(folder, '"Load"', schema)
    for batch in batches:
        writer.write(batch)
    writer.close("fingerprint")
    return open_table(folder)


def test_rows_come_back_and_datasets_opens_the_folder(tmp_path):
    values = {
        "text": ["a", None, "ü"],
        "number": [1, 2, None],
        "nested": [{"k": [1.5]}, {"k": []}, None],
        "flag": [True, None, False],
        "raw": [b"\x00", b"", None],
    }
    assert written(tmp_path, values).to_dict() == values
    assert datasets.load_from_disk(str(tmp_path)).to_dict() == values
    # Two loads are one dataset to the caches of `datasets`.
    assert open_table(tmp_path)._fingerprint == open_table(tmp_path)._fingerprint


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ([None, None], ["text", "more"]),
        ([1, 2], [0.5, None]),
        ([[], []], [["a"], []]),
        ([{"a": 1}, {"a": 2}], [{"a": 1, "b": "x"}, {"a": None, "b": None}]),
        ([{"a": None}, {"a": None}], [{"a": [1]}, {"a": None}]),
        ([[1], [2]], [[1.5], None]),
    ],
)
def test_a_columns_type_is_that_of_all_its_rows(tmp_path, early, late):
    dataset = written(tmp_path, {"x": early}, {"x": late}, {"x": early})
    expected = [{"a": None, "b": None, **v} if isinstance(v, dict) and "b" in str(late) else v for v in early]
    assert dataset["x"][:] == [*expected, *late, *expected]
    assert len(dataset) == 6


@pytest.mark.parametrize(
    "values", [[1, "a"], ["a", 1], [True, 1], [1, True], ["a", b"a"], [{"a": 1}, {"a": "x"}], [[1], ["a"]], [[1], 1]]
)
def test_mixed_types_in_one_column_are_refused(tmp_path, values):
    with pytest.raises(StepOutputTypeError, match=r'"Load": column "x"'):
        written(tmp_path, {"x": values})
    (tmp_path / "later").mkdir()
    with pytest.raises(StepOutputTypeError, match=r'"Load": column "x"'):
        written(tmp_path / "later", {"x": values[:1]}, {"x": values[1:]})


def test_an_integer_beyond_64_bits_is_refused_in_words(tmp_path):
    with pytest.raises(StepOutputTypeError, match="64 bits"):
        written(tmp_path, {"x": [2**70]})


@pytest.mark.parametrize(
    "column",
    [
        [[None, None], None, [None, None]],
        [[None], [], [None, None]],
        [{"found": [None, None]}, {"found": [None, None]}, None],
    ],
)
def test_lists_that_hold_more_missing_values_than_there_are_rows_come_back(tmp_path, column):
    dataset = written(tmp_path, {"column": column})
    assert dataset["column"][:] == column
    table = read_table(tmp_path)
    table.validate(full=True)
    assert table.column("column").to_pylist() == column
    assert as_dataset(table, None, "fingerprint")["column"][:] == column
    assert [row["column"] for row in Rows.of_dataset(dataset).table.data.to_pylist()] == column


def test_arrays_and_tensors_become_lists(tmp_path):
    values = {
        "np": [np.array([1.0, 2.0], np.float32), np.array([3.0], np.float32)],
        "torch": [torch.tensor([1, 2]), torch.tensor([3])],
        "scalar": [np.float64(1.5), np.float64(2.5)],
        "matrix": [np.eye(2), np.zeros((1, 2))],
        "bf16": [torch.ones(1, dtype=torch.bfloat16), None],
    }
    assert written(tmp_path, values).to_dict() == {
        "np": [[1.0, 2.0], [3.0]],
        "torch": [[1, 2], [3]],
        "scalar": [1.5, 2.5],
        "matrix": [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]]],
        "bf16": [[1.0], None],
    }


def test_no_rows_keep_their_columns(tmp_path):
    dataset = written(tmp_path, schema=pa.schema([("a", pa.null()), ("b", pa.null())]))
    assert dataset.column_names == ["a", "b"]
    assert len(dataset) == 0
    assert read_table(tmp_path).num_rows == 0


def test_a_column_that_comes_late_is_none_before(tmp_path):
    dataset = written(tmp_path, {"x": [1]}, {"x": [2], "y": ["late"]}, {"x": [3]})
    assert dataset.to_dict() == {"x": [1, 2, 3], "y": [None, "late", None]}
    assert read_table(tmp_path).to_pydict() == dataset.to_dict()


def test_half_a_surrogate_pair_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(StepOutputTypeError, match="half a surrogate pair"):
        written(tmp_path, {"x": ["fine", "broken \ud83d"]})


def test_a_column_name_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(StepOutputTypeError, match="Use '1'"):
        written(tmp_path, {1: ["x"]})


def test_a_damaged_or_removed_table_says_what_to_do(tmp_path):
    written(tmp_path, {"x": list(range(100))})
    (folder,) = {path.parent for path in tmp_path.rglob("*.arrow")}
    (arrow,) = folder.glob("*.arrow")
    with open(arrow, "r+b") as stream:
        stream.truncate(20)
    with pytest.raises(StorageError, match=r"damaged .*Remove the folder"):
        open_table(folder)
    with pytest.raises(StorageError, match="were removed"):
        open_table(tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r"damaged .*Remove the folder"):
        read_table(folder)
    with pytest.raises(StorageError, match="were removed"):
        read_table(tmp_path / "nowhere")


@pytest.mark.parametrize("copied", [0, 1 << 27])
def test_rows_are_taken_from_any_chunks_in_any_order(copied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_COPIED_BYTES", copied)
    texts, random = pa.array([f"text {row}" for row in range(500)]), np.random.default_rng(0)
    chunks = [texts.slice(0, 3), texts.slice(3, 0), texts.slice(3, 200), texts.slice(203)]
    other = pa.chunked_array([pa.array([[row] for row in range(250)]), pa.array([[row] for row in range(250, 500)])])
    table = pa.table({"text": pa.chunked_array(chunks), "number": other})
    for count in (0, 1, 32, 33, 500, 1_200):
        positions = random.integers(0, 500, count)
        taken = tables.taken_rows(table, positions)
        assert taken.schema == table.schema
        assert taken.to_pylist() == [{"text": f"text {row}", "number": [row]} for row in positions.tolist()]


def test_rows_of_a_table_of_more_than_two_gigabytes_are_taken_from_their_chunks_alone() -> None:
    chunk = pa.array([f"{row:04} " + "x" * 3_000 for row in range(1_000)])
    table = pa.table({"text": pa.chunked_array([chunk] * 1_000)})  # one chunk, 1,000 times: 3 GB that take 3 MB
    positions = np.random.default_rng(0).integers(0, len(table), 100)
    before = pa.default_memory_pool().max_memory()
    taken = tables.taken_rows(table, positions)
    assert [text[:4] for text in taken["text"].to_pylist()] == [f"{row % 1_000:04}" for row in positions.tolist()]
    assert pa.default_memory_pool().max_memory() - before < 2**24
