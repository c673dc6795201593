"""A node whose result is a dataset: its output, rows on disk, errors, traces and data card."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from datadreamer_like.errors import NoOutput, NotMade, SessionError, StorageError, check_number
from datadreamer_like.graph.node import Node, working_node
from datadreamer_like.graph.origin import Origin
from datadreamer_like.graph.output import OutputDataset, OutputDatasetColumn, OutputIterableDataset
from datadreamer_like.graph.plan import Forecast
from datadreamer_like.graph.results import Kept
from datadreamer_like.graph.rows import Rows
from datadreamer_like.graph.threads import Task
from datadreamer_like.storage.tables import TableWriter, is_own, read_table
from datadreamer_like.storage.values import pickled_columns

from .trace import Trace, followed, lazy_origins, traced

if TYPE_CHECKING:
    import pandas as pd

_TABLE_FOLDER = "dataset"


class UnmadeDataset(OutputDataset):
    """The output of a step that is only planned: its columns can be passed on, and its rows not be read."""

    def __init__(self, step: DatasetNode, why: str = "") -> None:
        super().__init__(step, self._unmade, columns=step.planned_columns)
        self.why = why

    @property
    def num_rows(self) -> int:
        """Number of rows that the plan expects; raises `NotMade` if it is unknown."""
        return self._unmade().num_rows or 0 if self._step.expected_rows is None else self._step.expected_rows

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self._unmade()
        if self._columns is not None:
            self._check_column(key)
        column = OutputDatasetColumn(self._step, self._unmade, columns=[key], num_rows=self._step.expected_rows)
        column.whole = self
        return column

    def _unmade(self) -> Rows:
        raise NotMade(f'it needs the rows of "{self._step.name}", which has not run.')

    def __fingerprint__(self) -> tuple[Any, ...]:
        return "OutputDataset", self._step, tuple(self.column_names)


class DatasetNode(Node):
    """A node with an output."""

    kind = "step"

    _output: OutputDataset | OutputIterableDataset | None = None
    _background: Task[OutputDataset | OutputIterableDataset] | None = None
    _is_waited_for = False

    @cached_property
    def parts(self) -> dict[str, str]:
        """The fingerprint of each part that determines the result, by name; of a preview, also its number of rows."""
        return super().parts | ({} if self.preview_rows is None else {"preview": str(self.preview_rows)})

    @classmethod
    def preview(cls, n: int, *arguments: Any, **options: Any) -> Self:
        """Makes the step for the first `n` rows only, from its inputs to its output.

        The other arguments are those of the step, whose full run finds the answers that the preview paid for. The
        result has a name of its own, in `.preview`. Examples that prompts are drawn from are not cut, so that they are
        those of the full run. In a source, `n` is the number of rows read; a step of several rounds gives the rows of
        all of them. To try a whole script on few rows, use `DataDreamer(folder, preview=n)`.

        Raises:
            ArgumentTypeError, DefinitionError: `n` is not a number of rows.

        Example:
            >>> from datadreamer_like import DataDreamer
            >>> from datadreamer_like.steps import DataSource
            >>> with DataDreamer(":memory:"):
            ...     len(DataSource.preview(2, "Pets", data={"pet": ["cat", "dog", "fish"]}).output)
            2
        """
        check_number(n, f"{cls.__name__}.preview: n", 1, whole=True)
        step = cls.__new__(cls)
        step.preview_rows = n
        cls.__init__(step, *arguments, **options)
        return step

    @property
    def output(self) -> OutputDataset | OutputIterableDataset:
        """The step's dataset. Waits for a step that runs in the background.

        Raises:
            NoOutput: The step was made outside a session, so it did not run; or it is read while it runs.
        """
        self.wait()
        if self._output is None and self.session is not None:
            raise NoOutput(f'"{self.name}" has no output yet: it is still running.')
        if self._output is None:
            raise NoOutput(
                f'"{self.name}" has no output: it was made outside a session, so it did not run. '
                "Make it inside `with DataDreamer(folder):`."
            )
        return self._output

    def wait(self) -> None:
        """Waits for a step that runs in the background, and raises its error."""
        running = working_node()
        while running is not None and running is not self:
            running = running.inside
        if self._background is not None and running is None:  # else it would wait for itself
            try:
                self._output = self._background.result()
            finally:
                self._is_waited_for = self._background.done()

    def end_background(self) -> None:
        """Waits for a step that runs in the background, and raises its error unless `wait` has raised it."""
        if not self._is_waited_for:
            self.wait()

    @cached_property
    def planned_output(self) -> OutputDataset:
        """The output of a step that is only planned: the rows of `planned_rows`, else nothing but names."""
        try:
            rows = self.planned_rows()
        except NotMade as error:
            return UnmadeDataset(self, f"unknown: {error}")
        if rows is None:
            return UnmadeDataset(self)
        return OutputDataset(self, partial(_in_memory, rows), columns=rows.columns, num_rows=rows.num_rows)

    def forecast(self) -> Forecast:
        """Returns what running the step takes: its rows, where they can be computed locally."""
        output, known = self.planned_output, super().forecast()
        if isinstance(output, UnmadeDataset):
            return replace(known, unknown=output.why)
        return replace(known, rows=output.num_rows)

    def planned_rows(self) -> Rows | None:
        """Returns the rows of a step that computes them locally, without a model; they are not saved. None for others.

        Raises:
            NotMade: They depend on rows that do not exist yet.
        """
        return None

    @property
    def planned_columns(self) -> list[str] | None:
        """Names of the output columns of a step that has not run; None if they are not known before it runs."""
        return None

    def write_rows(self, rows: Rows, draft: Path) -> Kept:
        """Writes the node's rows, and the origin of each, into the folder of its result."""
        folder = draft / _TABLE_FOLDER
        folder.mkdir()
        writer = TableWriter(folder, what=f'"{self.name}"', schema=rows.schema)
        self.usage.total_rows = rows.num_rows
        try:
            for batch in rows.read():
                writer.write(batch)
                self.usage.add(rows=batch.num_rows)
            schema = writer.close(self.fingerprint)
        except BaseException:
            writer.abort()
            raise
        origins = {
            node.fingerprint: origin.save(draft, f"lazy-origin-{index}")
            for index, (node, origin) in enumerate(lazy_origins(self.parents))
        }
        origin = followed(self, rows.origin, writer.num_rows)
        result = {"origin": origin.save(draft), "origins of lazy rows": origins}
        columns, pickled = list(schema.names), bool(pickled_columns(schema))
        return self.kept(columns=columns, rows=writer.num_rows, pickled=pickled, result=result)

    def open_rows(self) -> Rows:
        """Returns the rows that `write_rows` wrote."""
        assert self.manifest is not None
        folder, pickles = self.result_folder, self.manifest.pickled
        if pickles and not is_own(folder / _TABLE_FOLDER):
            raise StorageError(
                f'"{self.name}": {folder} holds pickled Python objects and belongs to another user. Reading them can '
                "run that user's code. If you trust them, make the files yours: copy the folder, or use chown."
            )
        origin = Origin.load(folder, self.manifest.result.get("origin"), [self, *self.parents])
        return Rows.of_table(read_table(folder / _TABLE_FOLDER, pickles), origin, self)

    @property
    def errors(self) -> dict[int, str]:
        """Error messages of the first thousand failed rows by index; by that of the input if the step drops them."""
        failures = self.manifest.failures if self.manifest is not None else self.usage.failures
        return {int(index): message for index, message in failures.items()}

    @property
    def cut_off(self) -> list[int]:
        """Indices of the rows whose answer the limit of tokens cut off, in order; they keep it.

        One word of at most 20 characters, as labels are, counts as whole.
        """
        return self.manifest.cut_off if self.manifest is not None else sorted(set(self.usage.cut_off))

    @property
    def dataset_path(self) -> str:
        """Folder of the dataset on disk, for `datasets.load_from_disk`.

        Raises:
            SessionError: The rows are generated lazily, so they are not on disk.
        """
        if self.manifest is None or self.folder is None:
            raise SessionError(f'The rows of "{self.name}" are not on disk. Save them first: step.save().')
        return str(self.result_folder / _TABLE_FOLDER)

    def head(self, n: int = 5, shuffle: bool = False, seed: int | None = None, buffer_size: int = 1000) -> pd.DataFrame:
        """Returns some rows as a pandas DataFrame; the arguments are those of the output's `head`."""
        return self.output.head(n, shuffle=shuffle, seed=seed, buffer_size=buffer_size)

    def trace(self, index: int) -> Trace:
        """Returns the origin of a row: the prompts, inputs, examples and documents it came from, back to the sources.

        Lazy rows on that path are generated again as needed; answers of models come from the cache. A negative `index`
        counts from the end, where the number of rows is known.

        Raises:
            NoSuchRow: There is no such row.
            SessionError: The step was made outside a session, so it has no rows.
        """
        return traced(self, index)

    def data_card(self) -> None:
        """Prints what is known of the nodes that the rows came from, oldest first: for each the facts by heading.

        Scripts read them from `card`.
        """
        sys.stdout.write(self.card.text() + "\n")


def _in_memory(rows: Rows) -> Rows:
    if rows.table is not None:
        return rows
    parts = [pa.Table.from_batches([batch]) for batch in rows.read()]
    # Without saving, the types of all batches are widened as far as Arrow does it.
    table = pa.concat_tables(parts, promote_options="permissive") if parts else rows.schema.empty_table()
    return replace(Rows.of_table(table), origin=rows.origin, node=rows.node)
