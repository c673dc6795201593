"""The base of steps that reject rows and say why: `output` has the rows that are kept, `rejected` the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DefinitionError, UnknownColumn, did_you_mean
from datadreamer_like.graph.lazy_table import materialized
from datadreamer_like.graph.origin import From, Origin, Traced
from datadreamer_like.graph.rows import Rows, Table
from datadreamer_like.storage.tables import TableWriter, read_table

from ..base.columns import check_texts, whole
from ..base.lazy_rows import LazyRowBatches
from ..base.options import OperationOptions
from ..base.step import Derived, Step
from ..operations.transforms import table_of

logger = logging.getLogger("datadreamer_like")

Bools = np.ndarray[Any, np.dtype[np.bool_]]

_FOLDER = "rejected"
_POSITION = "\0position"
_SHOWN_REASONS = 10


@dataclass(frozen=True)
class Judged:
    """What a step decides about all rows.

    Attributes:
        is_rejected: Bool [rows].
        columns: The step's `verdict_columns` by name, with a value for each row.
        counts: Numbers of rejected rows by reason, for the data card; by default as the column `reason` has them.
    """

    is_rejected: Bools
    columns: Mapping[str, pa.Array]
    counts: Mapping[str, int] | None = None


class RowFilter(Step):
    """Base of steps that keep some of the rows, with all columns of the input's step, and give reasons for the others.

    A subclass writes `judge`. With `drop=False` all rows are kept, and the `verdict_columns` are further columns.
    """

    verdict_columns: ClassVar[dict[str, str]] = {"reason": "Why the row is rejected; None for a row that is not."}
    """Names of the columns that `rejected` has in addition to those of the rows, and what they hold."""

    def setup(self) -> None:
        """Registers the shared names; the outputs are the columns of the input's step."""
        self.register_input("inputs", help="The column to judge by. All columns of its step are kept.")
        what = "Drop the rows that are rejected. False keeps them, and adds the columns of `rejected`."
        self.register_arg("drop", required=False, default=True, type=bool, help=what)
        self.register_output("*", help="All columns of the step that the inputs come from.")

    def configure(self) -> None:
        """Registers the columns of the input's step as outputs."""
        columns = whole(self._inputs["inputs"]).column_names
        for name in self.verdict_columns:
            if name in columns:
                raise DefinitionError(
                    f'"{self.name}": the step of its inputs already has a column "{name}". Rename that column first: '
                    f'step.rename_column("{name}", "earlier_{name}").'
                )
        self.replace_output("*", columns)
        if not self.args["drop"]:
            for name, help in self.verdict_columns.items():
                self.register_output(name, help=help)

    def judge(self, table: Table) -> Judged:
        """Decides about each row of a table; a subclass writes this."""
        raise NotImplementedError(f"{type(self).__name__} has no judge().")

    def run(self) -> LazyRowBatches:
        """Judges all rows, and saves which are rejected and why next to the result."""
        dataset = whole(self._inputs["inputs"])
        table = table_of(dataset.rows)
        judged = self.judge(table)
        rejected = np.flatnonzero(judged.is_rejected)
        self._save_rejected(judged, rejected)
        self._describe(judged, rejected)
        kept = np.flatnonzero(~judged.is_rejected) if self.args["drop"] else np.arange(len(table))
        added = {} if self.args["drop"] else judged.columns

        def batches() -> Iterator[Traced]:
            place = 0
            for batch in table.select(kept).batches():
                for name, values in added.items():
                    batch = batch.append_column(name, values.slice(place, batch.num_rows))
                yield Traced(batch, From("inputs", kept[place : place + batch.num_rows]))
                place += batch.num_rows

        return LazyRowBatches(batches, len(kept), save=True, like=dataset.rows.schema)

    def texts(self, table: Table, column: str | None = None) -> Iterator[str | None]:
        """Yields the texts of a table: those of `column`, by default of the input column.

        Raises:
            DataError: A value is not a text.
        """
        name = column or self._inputs["inputs"].column_names[0]
        return chain.from_iterable(texts_of(table, name, f'"{self.name}"'))

    @cached_property
    def rejected(self) -> Step:
        """The rejected rows as a step: all columns of the input's step, and the reasons."""
        source = self._inputs["inputs"]
        options: OperationOptions = {"name": f"{self.name} (rejected)"}
        return Derived("rejected", [source.step, self], self._rejected_rows, {}, True, options)  # type: ignore[list-item]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "rejected"}

    def _save_rejected(self, judged: Judged, rejected: np.ndarray[Any, Any]) -> None:
        folder = Path(self.get_run_output_folder_path()) / _FOLDER
        folder.mkdir()
        taken = pa.array(rejected)
        arrays = [taken, *(values.take(taken) for values in judged.columns.values())]
        batch = pa.RecordBatch.from_arrays(arrays, names=[_POSITION, *judged.columns])
        writer = TableWriter(folder, what=f'"{self.name}"', schema=batch.schema)
        writer.write(batch)
        writer.close(self.fingerprint)

    def _rejected_rows(self, *sources: Rows) -> Rows:
        why = read_table(self.result_folder / _FOLDER)
        positions = why.column(_POSITION).to_numpy()
        rows = materialized(whole(self._inputs["inputs"]).rows)
        data = table_of(rows).select(positions).whole()
        for name in self.verdict_columns:
            data = data.append_column(why.schema.field(name), why.column(name))
        return replace(Rows.of_table(data), origin=Origin.at(rows.node, positions))

    def _describe(self, judged: Judged, rejected: np.ndarray[Any, Any]) -> None:
        total = len(judged.is_rejected)
        share = len(rejected) / max(1, total)
        text = f"{len(rejected):,} of {total:,} rows ({100 * share:.2f} %)"
        counts = judged.counts
        if counts is None:
            counts = Counter(judged.columns["reason"].take(pa.array(rejected)).to_pylist())
        shown = [f"{reason} {count:,}" for reason, count in Counter(counts).most_common(_SHOWN_REASONS)]
        self.register_data_card("Rejected", f"{text}: {', '.join(shown)}" if shown else text)


def texts_of(table: Table, column: str, what: str) -> Iterator[list[str | None]]:
    """Yields the texts of a table's column in batches; `DataError` if a value is not a text."""
    place = 0
    for batch in table.columns([column]).batches():
        values: list[Any] = batch.column(0).to_pylist()
        if not _is_text(batch.schema.field(0).type):
            check_texts(values, column, what, place)
        place += len(values)
        yield values


def _is_text(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null))


def column_of_same_step(step: Step, name: str) -> str | None:
    """Returns the column's name of a further input, which must be of the same step as the inputs; None if not given.

    Raises:
        UnknownColumn: It is a column of another step.
    """
    given = step.inputs.get(name)
    if given is None:
        return None
    dataset = whole(step.inputs["inputs"])
    column: str = given.column_names[0]
    if whole(given) is not dataset and (given.step is not dataset.step or column not in dataset.column_names):
        raise UnknownColumn(
            f'"{step.name}": input "{name}" must be a column of "{dataset.step.name}", as the inputs are; it is '
            f'"{column}" of "{given.step.name}".{did_you_mean(column, dataset.column_names)}'
        )
    return column
