"""Rows: passes of Arrow batches, taken by position where there is a table, with an origin that passes learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DefinitionError, NoSuchRow
from datadreamer_like.graph import (
    OutputDataset,
    OutputDatasetColumn,
    OutputIterableDataset,
    OutputIterableDatasetColumn,
)
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.origin import Every, Origin, Recorder, Several
from datadreamer_like.graph.rows import Rows, Table, rebatched, untyped
from datadreamer_like.steps import DataSource


class Given(Node):
    """A node of a name."""

    kind = "step"

    def fingerprint_parts(self) -> dict[str, str]:
        return {"name": self.name}


PARENT = Given("parent")

PIECES = st.one_of(
    st.none(),
    st.lists(st.integers(-1, 70_000), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 300), max_size=3), min_size=1, max_size=4),
    st.tuples(st.lists(st.integers(0, 9), max_size=3), st.integers(1, 4)),
    st.tuples(st.just("range"), st.integers(0, 99), st.integers(1, 5)),
)


@given(st.lists(PIECES, max_size=6))
@settings(deadline=None)
def test_an_origin_is_the_same_after_it_is_stored(tmp_path_factory: pytest.TempPathFactory, pieces: list[Any]) -> None:
    origin = Origin.learned()
    recorder = Recorder(origin)
    expected: list[list[int]] = []
    for piece in pieces:
        if piece is None:
            size, stated = 2, None
            expected += [[len(expected)], [len(expected) + 1]]
        elif isinstance(piece, tuple) and piece[0] == "range":
            size, stated = piece[2], range(piece[1], piece[1] + piece[2])
            expected += [[row] for row in stated]
        elif isinstance(piece, tuple):
            size, stated = piece[1], Every(np.array(piece[0], dtype=np.int64))
            expected += [piece[0]] * size
        elif isinstance(piece[0], list):
            size, stated = len(piece), Several.of(piece)
            expected += piece
        else:
            size, stated = len(piece), np.array(piece, dtype=np.int64)
            expected += [[row] if row >= 0 else [] for row in piece]
        recorder.add(size, {(PARENT, "input"): stated})
    if not expected:
        return
    folder = tmp_path_factory.mktemp("origin")
    again = Origin.load(folder, origin.save(folder), [PARENT])
    for known in (origin, again):
        assert known.links is not None
        assert [known.links[0].of(row) for row in range(len(expected))] == expected
        assert known.links[0].parent is PARENT


def test_rows_of_the_same_positions_keep_nothing(tmp_path: Path) -> None:
    origin = Origin.learned()
    recorder = Recorder(origin)
    for start in range(0, 5000, 1000):
        recorder.add(1000, {(PARENT, "input"): range(start, start + 1000)})
    assert origin.links is not None
    assert origin.links[0].rows is None
    origin.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_parent_that_is_stated_late_has_no_rows_before() -> None:
    origin = Origin.learned()
    recorder = Recorder(origin)
    recorder.add(2, {(PARENT, "input"): None})
    recorder.add(1, {(PARENT, "input"): None, (PARENT, "example"): np.array([7])})
    recorder.add(1, {(PARENT, "input"): None})
    links = {link.role: link for link in origin.links or ()}
    assert [links["input"].of(row) for row in range(4)] == [[0], [1], [2], [3]]
    assert [links["example"].of(row) for row in range(4)] == [[], [], [7], []]


def test_one_batch_of_unknown_origin_makes_all_unknown() -> None:
    origin = Origin.learned()
    recorder = Recorder(origin)
    recorder.add(2, {(PARENT, "input"): None})
    recorder.add(2, None)
    assert origin.links is None
    assert origin.rows == 4


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(1, 9))
def test_rebatched_rows_are_the_same_rows(sizes: list[int], size: int) -> None:
    numbers = list(range(sum(sizes)))
    starts = np.cumsum([0, *sizes])
    batches = [pa.record_batch({"n": numbers[a:b]}) for a, b in zip(starts, starts[1:], strict=False)]
    made = list(rebatched(batches, size))
    assert [n for batch in made for n in batch.column(0).to_pylist()] == numbers
    assert {batch.num_rows for batch in made[:-1]} <= {size}


@given(st.data())
def test_a_selection_of_a_selection(data: st.DataObject) -> None:
    table = Table(pa.table({"n": list(range(12))}))
    expected = list(range(12))
    for _ in range(3):
        if not expected:
            return
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, len(expected)))
            chosen: Any = range(start, data.draw(st.integers(start, len(expected))))
        else:
            chosen = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=9)), dtype=np.int64)
        table = table.select(chosen)
        expected = [expected[index] for index in chosen]
        assert table.whole().column("n").to_pylist() == expected
        assert [n for batch in table.batches(4) for n in batch.column(0).to_pylist()] == expected


def test_a_pass_over_lazy_rows_learns_their_origin_and_a_row_is_read_only_so_far() -> None:
    read = []

    def batches() -> Iterator[Any]:
        for start in (0, 2, 4):
            read.append(start)
            yield pa.record_batch({"n": [start, start + 1]}), {(PARENT, "input"): range(10 + start, 12 + start)}

    rows = Rows.recorded(untyped(["n"]), None, batches)
    assert rows.values_at(3) == {"n": [3]}
    assert read == [0, 2]
    assert rows.origin.covers(3)
    assert not rows.origin.covers(4)
    assert rows.origin.links is not None
    assert rows.origin.links[0].of(3) == [13]
    with pytest.raises(IndexError):
        rows.values_at(6)


def test_datasets_views_show_their_rows_and_columns(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"a": list(range(5)), "b": list("vwxyz")}).select([4, 3, 2, 1, 0])
    with DataDreamer(tmp_path, verbose=False):
        step = DataSource("Rows", data={"k": [0]})
    output = OutputDataset(step, data)
    assert output["b"][1:3] == ["y", "x"]
    assert output[-1] == {"a": 0, "b": "v"}
    assert output[[0, -1]] == {"a": [4, 0], "b": ["z", "v"]}
    assert output.dataset is data
    assert output["a"].dataset.to_dict() == {"a": [4, 3, 2, 1, 0]}
    assert list(output["b"]["b"]) == list("zyxwv")
    with pytest.raises(NoSuchRow, match="has no row 5"):
        output[5]
    lazy = OutputIterableDataset(step, data.to_iterable_dataset(), total_num_rows=5)
    assert (lazy.num_rows, lazy.total_num_rows, list(lazy["a"])) == (5, 5, [4, 3, 2, 1, 0])
    assert list(lazy.dataset)[0] == {"a": 4, "b": "z"}


def test_datasets_made_by_hand_are_checked() -> None:
    data = datasets.Dataset.from_dict({"a": [1], "b": [2]})
    step = PARENT
    with pytest.raises(DefinitionError, match="needs the step"):
        OutputDataset("step", data)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match=r"takes a datasets\.Dataset, got IterableDataset"):
        OutputDataset(step, data.to_iterable_dataset())
    with pytest.raises(DefinitionError, match=r"takes a datasets\.IterableDataset, got Dataset"):
        OutputIterableDataset(step, data)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="takes one column, got a, b"):
        OutputDatasetColumn(step, data)
    unknown = datasets.IterableDataset.from_generator(lambda: iter([{"a": 1, "b": 2}]))
    with pytest.raises(DefinitionError, match="takes one column, got a, b"):
        OutputIterableDatasetColumn(step, unknown)
