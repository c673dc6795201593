"""The step: a node whose result is a dataset. Subclass it, register inputs, arguments and outputs, and write `run`."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datadreamer_like.errors import (
    DefinitionError,
    SessionError,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.installed import is_installed
from datadreamer_like.graph.manifest import Manifest
from datadreamer_like.graph.node import Node, working_node
from datadreamer_like.graph.output import (
    Batch,
    Column,
    OutputDataset,
    OutputIterableDataset,
    RowSource,
    unpickled,
)
from datadreamer_like.graph.pickles import is_pickled, pickle_value, repickled, unpickle
from datadreamer_like.graph.results import Kept, OnDemand, Outcome
from datadreamer_like.graph.usage import Usage
from datadreamer_like.storage.tables import TableWriter, open_table, table_batches

from ..operations.operations import Operations
from .export import Exports
from .registration import Registration
from .returned import Result, normalized

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

logger = logging.getLogger("datadreamer_like")

TABLE_FOLDER = "dataset"


class StepMeta(type):
    """Gives a step's class its `help`."""

    @property
    def help(cls) -> str:
        """Inputs, arguments and outputs of the step, as text."""
        kind: Any = cls
        probe = kind.__new__(kind)
        probe.name = cls.__name__
        probe._registered()
        return str(probe.help)


class Step(Node, Registration, Operations, Exports, metaclass=StepMeta):
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
        save_num_shards: Accepted for DataDreamer scripts, likewise.
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
        self._registered()
        self._inputs = self._checked_inputs(inputs or {})
        self._args = self._checked_args(args or {})
        self._configured()
        self._renamed = self._checked_outputs(outputs or {})
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
            self._execute()

    # The protocol of a step's author

    def run(self) -> Any:
        """Makes the rows; to be written by a subclass.

        Returns:
            By its shape and the number of outputs: None, one value, a list or iterator of values or rows, a dictionary
            of columns, a list of dictionaries, a `Dataset`, an output dataset or column, a list of datasets side by
            side, `LazyRows` or `LazyRowBatches`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run().")

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
            SessionError: The rows are made when they are asked for, so they are not on disk.
        """
        if self.manifest is None or self.folder is None:
            raise SessionError(f'The rows of "{self.name}" are not on disk. Save them first: step.save().')
        return str(self.result_folder / TABLE_FOLDER)

    def head(self, n: int = 5, shuffle: bool = False, seed: int | None = None, buffer_size: int = 1000) -> pd.DataFrame:
        """Returns some rows as a pandas frame; the arguments are those of the output's `head`."""
        return self.output.head(n, shuffle=shuffle, seed=seed, buffer_size=buffer_size)

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
            self._execute()
        except BaseException as error:
            self._failure = error  # raised when the output is asked for, and at the session's end

    def _end_in_background(self) -> None:
        assert self._thread is not None
        self._thread.join()
        if self._failure is not None and not self._failure_told:
            self.wait()

    def _execute(self) -> None:
        outcome = self.find_or_make()
        if isinstance(outcome, OnDemand):
            self._output = self._lazy_output(outcome.value)
            return
        manifest = outcome.manifest
        in_memory = self.session is not None and self.session.in_memory
        self._output = OutputDataset(
            self,
            self._open_table() if in_memory else self._open_table,
            manifest.pickled,
            columns=manifest.columns,
            num_rows=manifest.rows,
        )

    def _open_table(self) -> Dataset:
        return open_table(self.result_folder / TABLE_FOLDER)

    def build(self, draft: Path) -> Outcome:
        """Runs the step."""
        self._draft = draft
        try:
            what = f'"{self.name}"'
            result, stays_lazy = normalized(self.run(), list(self._output_specs), what)
            for kind, fact in self._card_facts:
                self.card.register(kind, fact)
            if stays_lazy:
                return OnDemand(result)
            return Kept(self._write(result, draft))
        finally:
            self._draft = None

    def _write(self, result: Result, draft: Path) -> Manifest:
        folder = draft / TABLE_FOLDER
        folder.mkdir()
        writer = TableWriter(folder, self.output_names, f'"{self.name}"')
        self.usage.total_rows = result.num_rows
        pickled = False
        try:
            if isinstance(result, OutputDataset) and not result.pickled:
                features = result.dataset.features
                writer.features = type(features)(zip(self.output_names, features.values(), strict=True))
                for table in table_batches(result.dataset):
                    writer.write(table.rename_columns(self.output_names))
                    self.usage.add(rows=table.num_rows)
            else:
                for batch in self._named(result.batches()):
                    if result.pickled:
                        batch = {name: repickled(values) for name, values in batch.items()}
                    pickled = pickled or _holds_pickles(batch)
                    writer.write(batch)
                    self.usage.add(rows=len(next(iter(batch.values()), ())))
            schema = writer.close(self.fingerprint)
        except BaseException:
            writer.abort()
            raise
        return self.kept(columns=list(schema.names), rows=writer.num_rows, pickled=pickled).manifest

    def _named(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        names = dict(zip(self._output_specs, self.output_names, strict=True))
        for batch in batches:
            yield {names.get(name, name): values for name, values in batch.items()}

    def _lazy_output(self, result: Result) -> OutputIterableDataset:
        source = result
        if isinstance(source, OutputDataset | OutputIterableDataset):
            source = RowSource(source.column_names, source.batches, source.num_rows)

        def batches() -> Iterator[Batch]:
            return map(unpickled, self._named(source.batches()))

        return OutputIterableDataset(self, replace(source, columns=self.output_names, batches=batches))


class SuperStep(Step):
    """A step that may make other steps inside its `run`."""


def _holds_pickles(batch: Batch) -> bool:
    return any(any(is_pickled(value) for value in values) for values in batch.values())


def _distinct(nodes: Iterator[Node]) -> list[Node]:
    return list({id(node): node for node in nodes}.values())
