"""The step: a node whose result is a dataset. Subclass it, register inputs, arguments and outputs, and write `run`."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datadreamer_like.errors import DefinitionError, SessionError, StepOutputError
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.installed import is_installed
from datadreamer_like.graph.node import Node, reading_engine, working_node
from datadreamer_like.graph.origin import Origin
from datadreamer_like.graph.output import Column, OutputDataset, OutputIterableDataset
from datadreamer_like.graph.results import Kept, OnDemand, Outcome
from datadreamer_like.graph.rows import Batch, Rows
from datadreamer_like.graph.usage import Usage
from datadreamer_like.storage.pickles import pickle_value, unpickle
from datadreamer_like.storage.tables import TableWriter, read_table
from datadreamer_like.storage.values import holds_pickles

from ..operations.operations import Operations
from .columns import columns_together, num_rows_of
from .export import Exports
from .lazy_rows import LazyRowBatches
from .registration import Registration, run_setup
from .returned import Expected, normalized
from .trace import Trace, lazy_origins, traced

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("datadreamer_like")

TABLE_FOLDER = "dataset"


class Step(Node, Registration, Operations, Exports):
    """A node whose result is a dataset.

    Made inside a session it runs at once, or finds what an earlier run made. Made outside one it only checks itself.

    Args:
        name: What the step does, in a few words; its folder is named after it.
        inputs: The step's input names and the columns to take them from.
        args: The step's argument names and their values.
        outputs: New names for the step's output columns.
        progress_interval: Seconds between progress lines where there is no terminal; None for none.
        force: Run although the result is there. Answers of models still come from the cache.
        verbose: False shows only warnings of this step.
        log_level: A level of `logging` that overrides `verbose`.
        save_num_proc: Accepted for DataDreamer scripts; tables are written in one pass as their rows come.
        save_num_shards: Accepted for DataDreamer scripts, as `save_num_proc`.
        background: Run in a thread; use `wait` or ask for the output to wait for it.

    Raises:
        DefinitionError: A name is unknown, missing, or registered twice.
        UnknownColumn: An input names a column that its step does not have.
        ArgumentTypeError: An input is no column, or an argument has the wrong type.
        FingerprintError: An argument cannot be told apart from another one.
        StepOutputError: `run` returned what the outputs do not allow.

    Example:
        >>> class Shout(Step):
        ...     def setup(self):
        ...         self.register_input("texts")
        ...         self.register_output("shouts")
        ...     def run(self):
        ...         return [text.upper() for text in self.inputs["texts"]]
    """

    kind = "step"

    result_version: ClassVar[int] = 1
    """Raised when the same inputs and arguments give other rows."""

    # Arguments that change how a result is made, never what it is.
    neutral_args: ClassVar[frozenset[str]] = frozenset({"lazy"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls) and not is_installed(cls.__module__):
            raise DefinitionError(
                f"{cls.__name__} overrides __init__. Register inputs, arguments and outputs in setup(self) instead."
            )

    def __init__(
        self,
        name: str,
        inputs: dict[str, Column] | None = None,
        args: dict[str, Any] | None = None,
        outputs: dict[str, str] | None = None,
        progress_interval: float | None = 60,
        force: bool = False,
        verbose: bool | None = None,
        log_level: int | None = None,
        save_num_proc: int | None = None,
        save_num_shards: int | None = None,
        background: bool = False,
    ) -> None:
        self.name = name
        run_setup(self)
        self.accept(inputs or {}, args or {}, outputs or {})
        around = working_node()
        if around is not None and not isinstance(around, SuperStep):
            raise SessionError(
                f'"{name}" is made inside "{around.name}", which is no SuperStep. Derive its class from SuperStep.'
            )
        super().__init__(name, force=force, progress_interval=progress_interval)
        self.parents = _distinct(column.step for column in self._inputs.values())
        self.parents += _distinct(parent for value in self._args.values() for parent in getattr(value, "parents", ()))
        self._log_level = log_level or (logging.WARNING if verbose is False else None)
        self._output: OutputDataset | OutputIterableDataset | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._failure_told = False
        self._draft: Path | None = None
        if self.session is None:
            return
        _ = self.fingerprint  # what cannot be fingerprinted says so now, not in a thread
        if background:
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=lambda: context.run(self._run_in_background), name=self.name)
            self._thread.start()
            self.session.wait_at_end(self._end_in_background)
        else:
            self._output = self.make_output()

    # The protocol of a step's author

    def run(self) -> Any:
        """Makes the rows; a subclass writes this or `process`.

        Returns:
            By its shape and the number of outputs: None, one value, a list or iterator of values or rows, a dictionary
            of columns, a list of dictionaries, a `Dataset`, an output dataset or column, a list of datasets side by
            side, `LazyRows` or `LazyRowBatches`; any of these within `Traced`, which says where the rows came from.
        """
        if type(self).process is Step.process:
            raise NotImplementedError(f"{type(self).__name__} has neither run() nor process().")
        return LazyRowBatches(
            self._processed,
            total_num_rows=num_rows_of(self._inputs),
            save=not self._args.get("lazy"),
            row_by_row=True,
        )

    def process(self, batch: Batch) -> Mapping[str, Any]:
        """Makes one output row of each input row; a subclass writes this or `run`.

        It keeps no state between batches, so batches may be processed in any order and in other processes.

        Args:
            batch: Columns as lists of equal length, by the names of the inputs.

        Returns:
            Columns of the same length, by the names of the outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} has no process().")

    def _processed(self) -> Iterator[Mapping[str, Any]]:
        if not self._inputs:
            raise DefinitionError(f'"{self.name}": process() needs an input. Write run() to make rows from nothing.')
        engine = reading_engine()
        batches = _placed(columns_together(self._inputs, f'"{self.name}"'), engine.batch_size)
        return engine.batches(self.worker(engine).processed, batches, f'"{self.name}"', self.sent_parts())

    def processed(self, batches: Iterator[tuple[int, Batch]]) -> Iterator[Mapping[str, Any]]:
        """Calls `process` on batches, each with the position of its first row, and checks what it returns."""
        for start, batch in batches:
            size = len(next(iter(batch.values())))
            made = self.process(batch)
            rows = f"rows {start} to {start + size - 1}"
            if not isinstance(made, Mapping) or set(made) != set(self._output_specs):
                found = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
                raise StepOutputError(
                    f'"{self.name}": process() returned {found} for {rows}; expected the columns '
                    f"{', '.join(self._output_specs)}."
                )
            made = {name: values if hasattr(values, "__len__") else list(values) for name, values in made.items()}
            for name, values in made.items():
                if len(values) != size:
                    raise StepOutputError(
                        f'"{self.name}": process() returned {len(values)} values of "{name}" for the {size} rows of '
                        f"its batch ({rows}). It must return one for each row; write run() to change their number."
                    )
            yield made

    @property
    def version(self) -> float:
        """Version of the results; a script's own step may raise it for a reason that its code does not show."""
        return float(self.result_version)

    @property
    def inputs(self) -> dict[str, Column]:
        """The input columns by name."""
        return dict(self._inputs)

    @property
    def args(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        return dict(self._args)

    @property
    def output_names(self) -> list[str]:
        """Names of the output columns, as renamed."""
        return [self._renamed.get(name, name) for name in self._output_specs]

    @property
    def progress(self) -> float | None:
        """Share of the work that is done, from 0 to 1; a `run` that knows it may set it."""
        total = self.usage.total_rows
        return min(1.0, self.usage.rows / total) if total else None

    @progress.setter
    def progress(self, value: float) -> None:
        self.usage.note = f"{max(0.0, min(1.0, value)):.0%}"

    @property
    def logger(self) -> logging.Logger:
        """Where a `run` may log."""
        return logger

    def get_run_output_folder_path(self) -> str:
        """Returns a folder for files that `run` wants to keep beside its rows; they stay in the step's folder.

        Raises:
            SessionError: The step is not at work and has no folder.
        """
        folder = self._draft or self.folder
        if folder is None:
            raise SessionError(f'"{self.name}" was made outside a session, so it has no folder.')
        return str(folder)

    def pickle(self, value: Any, *args: Any, **kwargs: Any) -> bytes:
        """Turns any Python object into a value that can be stored; it is restored when the output is read."""
        return pickle_value(value, *args, **kwargs)

    def unpickle(self, value: bytes) -> Any:
        """Restores what `pickle` made."""
        return unpickle(value)

    # The result

    @property
    def output(self) -> OutputDataset | OutputIterableDataset:
        """The dataset that the step made. Waits for a step that runs in the background.

        Raises:
            SessionError: The step was made outside a session, so it did not run.
        """
        self.wait()
        if self._output is None:
            raise SessionError(
                f'"{self.name}" has no output: it was made outside a session, so it only checked itself. '
                "Make it inside `with DataDreamer(folder):`."
            )
        return self._output

    def wait(self) -> None:
        """Waits for a step that runs in the background, and raises what it raised."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._failure is not None:
            self._failure_told = True
            raise self._failure

    @property
    def errors(self) -> dict[int, str]:
        """Row index to message, for rows that failed and hold None (the first thousand)."""
        failures = self.manifest.failures if self.manifest is not None else self.usage.failures
        return {int(index): message for index, message in failures.items()}

    @property
    def dataset_path(self) -> str:
        """Folder of the dataset on disk, for `datasets.load_from_disk`.

        Raises:
            SessionError: The rows are generated lazily, so they are not on disk.
        """
        if self.manifest is None or self.folder is None:
            raise SessionError(f'The rows of "{self.name}" are not on disk. Save them first: step.save().')
        return str(self.result_folder / TABLE_FOLDER)

    def head(self, n: int = 5, shuffle: bool = False, seed: int | None = None, buffer_size: int = 1000) -> pd.DataFrame:
        """Returns some rows as a pandas frame; the arguments are those of the output's `head`."""
        return self.output.head(n, shuffle=shuffle, seed=seed, buffer_size=buffer_size)

    def trace(self, index: int) -> Trace:
        """Shows what made a row: the prompts, inputs, examples and documents that it came from, back to the sources.

        Lazy rows on the way are generated again as far as they are needed; answers of models come from the cache.

        Args:
            index: Position of the row; negative ones count from the end, where that is known.

        Raises:
            NoSuchRow: There is no such row.
            SessionError: The step was made outside a session, so it has no rows.
        """
        return traced(self, index)

    def data_card(self) -> dict[str, Any]:
        """Returns what is known of the origin of the rows, node by node, oldest first."""
        return {card.name: card.without_parents() for card in self.card.lineage()}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __getstate__(self) -> dict[str, Any]:
        self.wait()
        return {**self.__dict__, "session": None, "_thread": None, "inside": None, "usage": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "usage": Usage()})

    # How a step runs

    def worker(self, engine: Engine) -> Self:
        """Returns what works for the step in an engine: itself, or a copy with its arguments and nothing else of it."""
        if engine.batch_size is None:
            return self
        copy = object.__new__(type(self))
        left_out: dict[str, Any] = {
            "session": None,
            "inside": None,
            "manifest": None,
            "_thread": None,
            "_output": None,
            "_inputs": {},
        }
        copy.__dict__.update({**self.__dict__, **left_out, "_kept_in": None, "parents": []})
        for known in ("card", "parts", "fingerprint"):
            copy.__dict__.pop(known, None)
        return copy

    def sent_parts(self) -> dict[str, Any]:
        """Returns what a `worker` holds of the script's, by what it is called in messages."""
        return {**{f'argument "{name}"': value for name, value in self._args.items()}, "its class": type(self)}

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns what decides the result, by name, each with its fingerprint."""
        parts = class_part(type(self))
        if type(self).version is not Step.version:
            parts["version"] = fingerprint(self.version)
        for name, value in self._args.items():
            if name not in self.neutral_args:
                parts[f"argument {name}"] = fingerprint(value, f'"{self.name}": argument "{name}"')
        for name, column in self._inputs.items():
            parts[f"input {name}"] = fingerprint(column, f'"{self.name}": input "{name}"')
        if self._renamed:
            parts["names of outputs"] = fingerprint(self._renamed)
        return parts

    def _run_in_background(self) -> None:
        try:
            self._output = self.make_output()
        except BaseException as error:
            self._failure = error  # raised when the output is asked for, and at the session's end

    def _end_in_background(self) -> None:
        assert self._thread is not None
        self._thread.join()
        if self._failure is not None and not self._failure_told:
            self.wait()

    def make_output(self) -> OutputDataset | OutputIterableDataset:
        """Finds the step's rows, or makes them."""
        outcome = self.find_or_make()
        if isinstance(outcome, OnDemand):
            return OutputIterableDataset(self, outcome.value)
        manifest = outcome.manifest
        in_memory = self.session is not None and self.session.in_memory
        return OutputDataset(
            self,
            self._open_rows() if in_memory else self._open_rows,
            manifest.pickled,
            columns=manifest.columns,
            num_rows=manifest.rows,
        )

    def _open_rows(self) -> Rows:
        assert self.manifest is not None
        folder = self.result_folder
        origin = Origin.load(folder, self.manifest.result.get("origin"), [self, *self.parents])
        return Rows.of_table(read_table(folder / TABLE_FOLDER), origin, self)

    def build(self, draft: Path) -> Outcome:
        """Runs the step, and keeps its rows unless they are lazy."""
        self._draft = draft
        try:
            returned = self.run()  # a source learns its columns by running
            inputs = {name: column.step for name, column in self._inputs.items()}
            expected = Expected(list(self._output_specs), f'"{self.name}"', inputs)
            rows, stays_lazy = normalized(returned, expected)
            for kind, fact in self._card_facts:
                self.card.register(kind, fact)
            rows = rows.renamed(self._renamed)
            if stays_lazy:
                return OnDemand(replace(rows, node=self))
            return self.write_rows(rows, draft)
        finally:
            self._draft = None

    def write_rows(self, rows: Rows, draft: Path) -> Kept:
        """Writes the step's rows into the folder of its result."""
        folder = draft / TABLE_FOLDER
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
        return self.kept(
            columns=list(schema.names),
            rows=writer.num_rows,
            pickled=holds_pickles(schema),
            result={"origin": rows.origin.save(draft), "origins of lazy rows": origins},
        )


class SuperStep(Step):
    """A step that may make other steps inside its `run`."""


def _placed(batches: Iterator[Batch], most: int | None) -> Iterator[tuple[int, Batch]]:
    """Yields batches of at most `most` rows, each with the position of its first row."""
    position = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        for start in range(0, size, most or max(1, size)):
            part = batch if most is None else {name: values[start : start + most] for name, values in batch.items()}
            yield position + start, part
        position += size


def _distinct(nodes: Iterator[Node]) -> list[Node]:
    return list({id(node): node for node in nodes}.values())
