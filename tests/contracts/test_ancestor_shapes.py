"""What `run` may return: DataDreamer's forms, each with the rows that it means or the error that refuses it.

Each case is the number of outputs ("a", then "b"), the value as it is in the script, and whether its rows are a
table or lazy, with the rows: the values of one output, tuples of several.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from datadreamer_like import DataDreamer
from datadreamer_like.datasets import OutputIterableDataset
from datadreamer_like.errors import StepOutputError, StepOutputTypeError
from datadreamer_like.steps import DataSource, LazyRowBatches, LazyRows, Step


def gf(*values: Any) -> Callable[[], Iterator[Any]]:
    """A generator function."""

    def generate() -> Iterator[Any]:
        yield from values

    return generate


def table(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def iterable(**columns: list[Any]) -> IterableDataset:
    return Dataset.from_dict(columns).to_iterable_dataset()


CASES: list[tuple[int, str, Any]] = [
    (1, "DatasetDict({'train': table(a=[1])})", StepOutputError),
    (1, "None", ("table", [])),
    (1, "[]", ("table", [])),
    (1, "iter([1, 2])", ("table", [1, 2])),
    (1, "(x for x in [1, 2])", ("table", [1, 2])),
    (2, "iter([(1, 2), (3, 4)])", ("table", [(1, 2), (3, 4)])),
    (1, "table(a=[1, 2])", ("table", [1, 2])),
    (2, "table(a=[1, 2])", StepOutputError),
    (2, "table(b=[3, 4], a=[1, 2])", ("table", [(1, 3), (2, 4)])),
    (2, "[table(b=[3, 4]), table(a=[1, 2])]", ("table", [(1, 3), (2, 4)])),
    (2, "[table(b=[3, 4]), [1, 2]]", StepOutputError),
    (1, "{'z': [1]}", StepOutputError),
    (1, "{'a': None}", ("table", [None])),
    (1, "{'a': 't'}", ("table", ["t"])),
    (1, "{'a': {'k': 1}}", ("table", [{"k": 1}])),
    (1, "{'a': iter([1, 2])}", ("table", [1, 2])),
    (2, "{'a': [1], 'b': [1, 2]}", StepOutputTypeError),
    (1, "{'a': gf(1)}", StepOutputTypeError),
    (2, "{'a': [1], 'b': 2}", StepOutputError),
    (2, "{'a': 1, 'b': 2}", ("table", [(1, 2)])),
    (1, "[{'a': 1}, {'a': 2}]", ("table", [1, 2])),
    (2, "[{'a': 1, 'b': 2}, {'a': 1}]", StepOutputError),
    (1, "[{'a': 1, 'z': 1}]", StepOutputError),
    (1, "[{'z': 1}]", ("table", [{"z": 1}])),
    (1, "(['p', 'q'],)", ("table", ["p", "q"])),
    (1, "([],)", ("table", [])),
    (1, "(iter([1, 2]),)", ("table", [1, 2])),
    (1, "(5,)", ("table", [5])),
    (2, "(['p', 'q'], [1, 2])", ("table", [("p", 1), ("q", 2)])),
    (2, "('p', 1)", ("table", [("p", 1)])),
    (2, "(['p'], 1)", StepOutputError),
    (2, "(1, 2, 3)", StepOutputError),
    (1, "(1, 2)", StepOutputError),
    (1, "(['p'], ['q'])", StepOutputError),
    (1, "[1, 2]", ("table", [1, 2])),
    (1, "[(1,), (2,)]", ("table", [1, 2])),
    (1, "[[1], [2]]", ("table", [[1], [2]])),
    (1, "[(1, 2), (3, 4)]", ("table", [[1, 2], [3, 4]])),
    (2, "[[1, 2], [3, 4]]", ("table", [(1, 2), (3, 4)])),
    (2, "[['p', 'q', 'r'], [1, 2, 3]]", ("table", [("p", 1), ("q", 2), ("r", 3)])),
    (2, "[iter([1, 2]), [1, 2]]", ("table", [(1, 1), (2, 2)])),
    (2, "['p', 1]", ("table", [("p", 1)])),
    (2, "[1, 2, 3]", StepOutputError),
    (1, "gf(1)", StepOutputTypeError),
    (2, "gf(1)", StepOutputError),
    (1, "5", ("table", [5])),
    (1, "{1, 2}", ("table", [[1, 2]])),
    (2, "5", StepOutputError),
    (1, "LazyRows(gf({'a': 1}, {'a': 2}))", ("lazy", [1, 2])),
    (1, "LazyRows(gf(1, 2))", ("lazy", [1, 2])),
    (1, "LazyRows(gf((1,), (2,)))", ("lazy", [1, 2])),
    (1, "LazyRows(gf(iter([1, 2])))", ("lazy", [[1, 2]])),
    (1, "LazyRows(gf({'z': 1}))", StepOutputError),
    (1, "LazyRows(gf({1, 2}))", ("lazy", [[1, 2]])),
    (2, "LazyRows(gf({'b': 2, 'a': 1}))", ("lazy", [(1, 2)])),
    (2, "LazyRows(gf([1, 2]))", ("lazy", [(1, 2)])),
    (2, "LazyRows(gf(iter([1, 2])))", ("lazy", [(1, 2)])),
    (2, "LazyRows(gf([1]))", StepOutputError),
    (2, "LazyRows(gf({'a': 1, 'b': 2}, {'a': 3}))", ("lazy", [(1, 2), (3, None)])),
    (1, "LazyRows(iterable(a=[1, 2]))", ("lazy", [1, 2])),
    (1, "LazyRows(iterable(z=[1, 2]))", StepOutputError),
    (2, "LazyRows({'a': gf(1, 2), 'b': [1, 2, 3]})", ("lazy", [(1, 1), (2, 2)])),
    (1, "LazyRows([gf(1, 2)])", ("lazy", [1, 2])),
    (1, "LazyRows((gf(1, 2),))", ("lazy", [1, 2])),
    (2, "LazyRows([gf(1, 2), [1, 2, 3]])", ("lazy", [(1, 1), (2, 2)])),
    (2, "LazyRows((gf(1, 2), gf(3, 4)))", ("lazy", [(1, 3), (2, 4)])),
    (2, "LazyRows([iterable(b=[3]), table(a=[1, 2])])", ("lazy", [(1, 3)])),
    (2, "LazyRows([iterable(b=[3]), [1]])", StepOutputError),
    (1, "LazyRowBatches(gf({'a': [1, 2]}, {'a': [3]}))", ("lazy", [1, 2, 3])),
    (1, "LazyRowBatches(gf((['p', 'q'],)))", ("lazy", ["p", "q"])),
    (1, "LazyRowBatches(gf((iter('pq'),)))", ("lazy", ["p", "q"])),
    (1, "LazyRowBatches(gf({'z': [1]}))", StepOutputError),
    (1, "LazyRowBatches(gf(([1], [2])))", StepOutputError),
    (1, "LazyRowBatches(gf([['p', 'q']]))", ("lazy", ["p", "q"])),
    (1, "LazyRowBatches(gf([iter('pq')]))", ("lazy", ["p", "q"])),
    (1, "LazyRowBatches(gf([['p'], ['q']]))", ("lazy", [["p"], ["q"]])),
    (
        2,
        "LazyRowBatches(gf([['p', 'q', 'r'], [1, 2, 3]], [['s', 't'], [4, 5]]))",
        ("lazy", [("p", 1), ("q", 2), ("r", 3), ("s", 4), ("t", 5)]),
    ),
    (2, "LazyRowBatches(gf([['s', 't'], [4, 5]]))", StepOutputTypeError),
    (1, "LazyRowBatches(gf([{'a': 1}, {'a': 2}]))", ("lazy", [1, 2])),
    (1, "LazyRowBatches(gf([{'a': 1}, {'a': 2, 'z': 1}]))", StepOutputError),
    (1, "LazyRowBatches(gf([], {'a': [1]}))", ("lazy", [1])),
    (1, "LazyRowBatches(gf(iter([1, 2])))", ("lazy", [1, 2])),
    (2, "LazyRowBatches({'a': gf([1], [2, 3]), 'b': [[1, 2], [3]]})", ("lazy", [(1, 1), (2, 2), (3, 3)])),
    (1, "LazyRowBatches([gf([1], [2])])", ("lazy", [1, 2])),
    (1, "LazyRows(gf(1, 2), save=True)", ("table", [1, 2])),
    (1, "LazyRows(gf(1, 2), save=True, save_writer_batch_size=5)", ("table", [1, 2])),
    (1, "saved['z']", ("table", [1, 2])),
    (1, "(saved['z'],)", ("table", [1, 2])),
    (1, "[saved['z']]", ("table", [1, 2])),
    (2, "(saved['z'], saved['y'])", ("table", [(1, 3), (2, 4)])),
    (1, "LazyRows(lazy['z'])", ("lazy", [1, 2])),
    (2, "LazyRows(lazy['z'])", StepOutputError),
    (2, "LazyRows({'a': lazy['z'], 'b': saved['y']})", ("lazy", [(1, 3), (2, 4)])),
    (1, "LazyRows((lazy['z'],))", ("lazy", [1, 2])),
    (1, "LazyRows(saved['z'])", ("table", [1, 2])),
    (2, "saved", StepOutputError),
    (1, "LazyRows([1, 2])", ("table", [1, 2])),
    (1, "LazyRowBatches([[1], [2]])", ("table", [1, 2])),
    (1, "LazyRows(([1, 2],))", ("table", [1, 2])),
    (1, "LazyRowBatches(([1, 2],))", ("table", [1, 2])),
    (1, "LazyRows({'a': [1, 2]})", ("table", [1, 2])),
    (1, "LazyRowBatches({'a': [1, 2]})", ("table", [1, 2])),
    (1, "LazyRows(table(a=[1, 2]))", ("table", [1, 2])),
    (1, "LazyRowBatches(table(a=[1, 2]))", ("table", [1, 2])),
    (1, "LazyRows(None)", ("table", [])),
    (1, "LazyRowBatches(None)", ("table", [])),
    (1, "LazyRows(5)", ("table", [5])),
    (1, "LazyRows(iter([1, 2]))", ("table", [1, 2])),
    (1, "LazyRowBatches(iter([[1], [2]]))", ("table", [1, 2])),
]

NAMES = {
    "gf": gf, "table": table, "iterable": iterable, "DatasetDict": DatasetDict, "LazyRows": LazyRows,
    "LazyRowBatches": LazyRowBatches,
}  # fmt: skip
"""What the values of the cases are made of, and "saved" and "lazy", the outputs of two steps."""

# Values of one column, and whether they go together.
TYPES = [
    ([1, "t"], False), (["t", 1], False), (["t", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)], False),
    ([[1], 1], False), ([[5], ["t"]], False), ([1, len], False), ([None, 1, None], True),
    ([1, 2.5], True), ([[1], [1, 2]], True),
]  # fmt: skip


@pytest.fixture(scope="module")
def columns() -> Iterator[dict[str, Any]]:
    """The outputs of a saved and of a lazy step with the columns "z" and "y"."""
    with DataDreamer(":memory:"):
        lazy = DataSource("Lazy", gf({"z": 1, "y": 3}, {"z": 2, "y": 4}))
        yield {"saved": DataSource("Saved", {"z": [1, 2], "y": [3, 4]}).output, "lazy": lazy.output}


def step_of(width: int, value: Callable[[], Any]) -> Step:
    class Returns(Step):
        def setup(self) -> None:
            for name in "ab"[:width]:
                self.register_output(name)

        def run(self) -> Any:
            return value()

    return Returns("Returns")


def read(step: Step) -> tuple[str, list[Any]]:
    rows = [tuple(row.values()) for row in step.output]
    kind = "lazy" if isinstance(step.output, OutputIterableDataset) else "table"
    return kind, [row[0] for row in rows] if step.output.num_columns == 1 else rows


@pytest.mark.parametrize(("width", "source", "expected"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_a_returned_value_means_the_ancestors_rows(
    columns: dict[str, Any], width: int, source: str, expected: Any
) -> None:
    def value() -> Any:
        return eval(source, {**NAMES, **columns})

    if isinstance(expected, tuple):
        assert read(step_of(width, value)) == expected
    else:
        with pytest.raises(expected):
            read(step_of(width, value))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("values", "fit"), TYPES, ids=repr)
def test_the_types_of_a_column_go_together_in_tables_and_while_lazy_rows_are_read(
    columns: Any, values: list[Any], fit: bool, lazy: bool
) -> None:
    def value() -> Any:
        return LazyRows(gf(*values)) if lazy else list(values)

    if fit:
        assert read(step_of(1, value))[1] == values
    else:
        with pytest.raises(StepOutputTypeError):
            read(step_of(1, value))


@pytest.mark.parametrize(("given", "expected"), [(5, 5), (0, 0), (-3, 0), (None, None)])
def test_the_number_of_rows_is_the_one_given(columns: Any, given: int | None, expected: int | None) -> None:
    for wrapper, value in ((LazyRows, gf(1, 2)), (LazyRowBatches, gf([1, 2])), (LazyRows, iterable(a=[1]))):
        output: Any = step_of(1, lambda w=wrapper, v=value: w(v, total_num_rows=given)).output  # type: ignore[misc]
        assert (output.num_rows, output.total_num_rows) == (expected, expected)


def test_a_wrong_shape_is_refused_before_a_generator_runs(columns: Any) -> None:
    def never() -> Iterator[Any]:
        raise AssertionError("the generator ran")
        yield

    for value in ({"z": never}, [never, never, never], (never, 5)):
        with pytest.raises(StepOutputError):
            step_of(2, lambda value=value: LazyRows(value))  # type: ignore[misc]
