"""The step: a node whose result is a dataset. Subclass it, register inputs, arguments and outputs, and write `run`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datadreamer_like.errors import DefinitionError, SessionError
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.node import Node, reading_engine, working, working_node
from datadreamer_like.graph.output import Column, OutputDataset, OutputIterableDataset
from datadreamer_like.graph.results import Kept, OnDemand, Outcome, Unmade
from datadreamer_like.graph.rows import Batch, Rows
from datadreamer_like.graph.threads import Task
from datadreamer_like.graph.tracebacks import noting_errors
from datadreamer_like.graph.usage import Usage
from datadreamer_like.storage.values import pickle_value, unpickle

from ..operations.operations import Operations
from .columns import columns_together, num_rows_of, placed_parts, processed
from .export import Exports
from .lazy_rows import LazyRowBatches
from .options import NodeOptions, OperationOptions, check_known, taken_options
from .overrides import check_overrides
from .preview import cut_inputs, previewed
from .registration import Registration
from .returned import Expected, normalized

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("datadreamer_like")


class Step(Registration, Operations["Derived"], Exports):
    """A node whose result is a dataset.

    Inside a session a step runs when it is constructed, or loads the rows of an earlier run. Outside a session its
    arguments are checked and nothing runs.

    Args:
        name: What the step does, in a few words; its folder is named after it.
        inputs: The step's input names and the columns to take them from.
        args: The step's argument names and their values.
        outputs: New names for the step's output columns.
        progress_interval: Seconds between progress lines where there is no terminal; None for none.
        force: Run even if the result exists, and dependent steps if the new one differs. Answers stay cached.
        verbose, log_level: False shows only warnings of this step; a level of `logging` overrides it.
        save_num_proc: Accepted for DataDreamer scripts, as `save_num_shards`; tables are written as rows arrive.
        background: Run in a thread; use `wait` or ask for the output to wait for it.

    Raises:
        DefinitionError, UnknownColumn: A name is unknown, missing, or registered twice; an input's column is missing.
        ArgumentTypeError: An input is not a column, or an argument has the wrong type.
        FingerprintError: An argument cannot be hashed.
        StepOutputError: `run` returned something that does not match the outputs.

    Example:
        >>> class Shout(Step):
        ...     def setup(self):
        ...         self.register_input("texts")
        ...         self.register_output("shouts")
        ...     def run(self):
        ...         return [text.upper() for text in self.inputs["texts"]]
    """

    result_version: ClassVar[int] = 1
    """Increased when the same inputs and arguments give different rows."""

    # Arguments that change how a result is computed, not the result.
    neutral_args: ClassVar[frozenset[str]] = frozenset({"lazy"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_overrides(cls, Step.run)

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
        called = f'"{name}" called'
        with noting_errors(called):
            self.run_setup()
        self.accept(cut_inputs(self, inputs or {}), args or {}, outputs or {})
        outer = working_node()
        if outer is not None and not isinstance(outer, SuperStep):
            raise SessionError(f'"{name}" is created inside "{outer.name}", which is not a SuperStep. Make it one.')
        super().__init__(name, force=force, progress_interval=progress_interval)
        self.parents = list(dict.fromkeys(column.step for column in self._inputs.values()))
        held = (parent for value in self._args.values() for parent in getattr(value, "parents", ()))
        self.parents += dict.fromkeys(filter(lambda parent: isinstance(parent, Node), held))  # a path has others
        self._log_level = log_level or (logging.WARNING if verbose is False else None)
        self._draft: Path | None = None
        self._progress: float | None = None
        self.verbose, self.log_level = verbose, log_level
        self.save_num_proc, self.save_num_shards = save_num_proc, save_num_shards
        self.background = background
        if self.session is None:
            return
        with noting_errors(called):
            _ = self.fingerprint  # raises here, not in a thread
        if background:
            self._background = Task(self.make_output, self.name)
            self.session.wait_at_end(self._background, self.end_background)
        else:
            self._output = self.make_output()

    # The protocol of a step's author

    def run(self) -> Any:
        """Makes the rows; a subclass writes this or `process`.

        Returns:
            None, one value, a list or iterator of values or rows, a dictionary of columns, a list of dictionaries, a
            `Dataset`, an output dataset or column, a list of datasets whose columns are joined, `LazyRows` or
            `LazyRowBatches`; any of these wrapped in `Traced`, which gives the origin of the rows.
        """
        if type(self).process is Step.process:
            raise NotImplementedError(f"{type(self).__name__} has neither run() nor process().")
        save = not self._args.get("lazy")
        return LazyRowBatches(self._process_inputs, num_rows_of(self._inputs), save=save, row_by_row=True)

    def _process_inputs(self) -> Iterator[Mapping[str, Any]]:
        what = f'"{self.name}"'
        if not self._inputs:
            raise DefinitionError(f"{what}: process() needs an input. Write run() to make rows without one.")
        engine = reading_engine()
        batches = placed_parts(columns_together(self._inputs, what), engine.batch_size)
        work = partial(processed, self.worker(engine).process, what, list(self._output_specs))
        return engine.batches(work, batches, what, self.sent_parts())

    def process(self, batch: Batch) -> Mapping[str, Any]:
        """Makes one output row per input row; a subclass writes this or `run`.

        It must not keep state between batches: they may be processed in any order and in other processes. `batch` holds
        columns as lists of equal length, by the names of the inputs; the result holds columns of the same length, by
        the names of the outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} has no process().")

    @property
    def version(self) -> float:
        """Version of the results; override it where the result changes for a reason that the code does not show."""
        return float(self.result_version)

    @property
    def keeps_failed_rows(self) -> bool:
        """Whether rows that failed in an earlier run are left as they are: with `on_error="keep"`."""
        return self._args.get("on_error") == "keep"

    @property
    def inputs(self) -> dict[str, Any]:
        """The input columns by name; None for an optional one that was given as None."""
        return dict.fromkeys(self._given_as_none) | self._inputs

    @property
    def args(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        return dict(self._args)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the output columns, as renamed."""
        return tuple(self.output_name_mapping.values())

    @property
    def output_name_mapping(self) -> dict[str, str]:
        """The registered name of each output column, and the name that it has now."""
        return {name: self._renamed.get(name, name) for name in self._output_specs}

    @property
    def progress(self) -> float | None:
        """Share of the work that is done, from 0 to 1; None before the step runs. It never falls; `run` may set it.

        Lazy rows are done as far as they have been read, 0 until the end where their number is unknown.
        """
        rows, total = self.usage.rows, self.usage.total_rows
        shares = [self._progress, min(1.0, rows / total) if rows and total else None]
        return max((share for share in shares if share is not None), default=None)

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = max(self.progress or 0.0, min(1.0, float(value)))
        self.usage.note = f"{100 * self._progress:.0f} %"

    @property
    def logger(self) -> logging.Logger:
        """The logger for use in `run`."""
        return logger

    def get_run_output_folder_path(self) -> str:
        """Returns the folder of the step's result, for further files of `run`; their paths stay valid.

        Raises:
            SessionError: The step was made outside a session, or its result is not saved.
        """
        return str(self._draft or self.result_folder)

    def pickle(self, value: Any, *args: Any, **kwargs: Any) -> bytes:
        """Turns any Python object into a value that can be stored; it is restored when the output is read."""
        return pickle_value(value, *args, **kwargs)

    def unpickle(self, value: bytes) -> Any:
        """Restores a value stored by `pickle`."""
        return unpickle(value)

    def __getstate__(self) -> dict[str, Any]:
        self.wait()
        return {**self.__dict__, "session": None, "_background": None, "inside": None, "usage": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "usage": Usage()})

    # How a step runs

    def worker(self, engine: Engine) -> Self:
        """Returns the step itself, or a copy that holds only its arguments, to send to an engine's workers."""
        if engine.batch_size is None:
            return self
        copy = object.__new__(type(self))
        left_out = dict.fromkeys(("session", "inside", "manifest", "_background", "_output"))
        copy.__dict__.update(
            {**self.__dict__, **left_out, "_inputs": {}, "_kept_in": None, "_place": None, "parents": []}
        )
        for known in ("card", "parts", "fingerprint"):
            copy.__dict__.pop(known, None)
        return copy

    def sent_parts(self) -> dict[str, Any]:
        """Returns the objects of the script that are sent with a `worker`, by their names in messages."""
        return {**{f'argument "{name}"': value for name, value in self._args.items()}, "its class": type(self)}

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprint of each part that determines the result, by name."""
        parts = class_part(type(self))
        if type(self).version is not Step.version:
            parts["version"] = fingerprint(self.version)
        for name, value in self._args.items():
            if name not in self.neutral_args:
                parts[f"argument {name}"] = fingerprint(value, f'"{self.name}": argument "{name}"')
        for name, column in self._inputs.items():
            parts[f"input {name}"] = fingerprint(column, f'"{self.name}": input "{name}"')
        if self._renamed:
            parts["names of outputs"] = fingerprint(dict(sorted(self._renamed.items())))
        return parts

    def make_output(self) -> OutputDataset | OutputIterableDataset:
        """Loads the step's rows, or makes them."""
        outcome = self.find_or_make()
        if isinstance(outcome, Unmade):
            return self.planned_output
        if isinstance(outcome, OnDemand):
            return self._lazy_output(outcome.value)
        self._progress = 1.0
        manifest = outcome.manifest
        rows = self.open_rows() if self.session is not None and self.session.in_memory else self.open_rows
        return OutputDataset(self, rows, manifest.pickled, columns=manifest.columns, num_rows=manifest.rows)

    def _lazy_output(self, rows: Rows) -> OutputIterableDataset:
        self._progress = 0.0

        def read() -> Iterator[pa.RecordBatch]:
            with noting_errors(f'"{self.name}" called'):
                yield from rows.read()
            self._progress = 1.0

        return OutputIterableDataset(self, replace(rows, read=read))

    def note_read(self, share: float) -> None:
        """Records the share of the lazy rows that was read."""
        self._progress = max(self._progress or 0.0, min(1.0, share))

    def run_rows(self) -> tuple[Rows, bool]:
        """Runs the step, and returns its rows and whether they stay lazy."""
        returned = self.run()  # a source learns its columns by running
        inputs = {name: column.step for name, column in self._inputs.items()}
        rows, stays_lazy = normalized(returned, Expected(list(self._output_specs), f'"{self.name}"', inputs))
        return previewed(self, rows.renamed(self._renamed)), stays_lazy

    def build(self, draft: Path) -> Outcome:
        """Runs the step, and saves its rows unless they are lazy."""
        self._draft = draft
        try:
            rows, stays_lazy = self.run_rows()
            for kind, fact in self._card_facts:
                self.card.register(kind, fact)
            return OnDemand(replace(rows, node=self)) if stays_lazy else self.write_rows(rows, draft)
        finally:
            self._draft = None

    def derive(
        self, operation: str, lazy: bool, options: OperationOptions, transform: Callable[..., Rows], **args: Any
    ) -> Derived:
        """Makes the result step of an operation; see `Operations.derive`."""
        return Derived(operation, [self], transform, args, lazy, options)


class SuperStep(Step):
    """A step that may make other steps inside its `run`."""

    makes_steps: ClassVar[bool] = True


class Derived(Step):
    """A step made by an operation on other steps; see `Operations`, `concat` and `zipped`."""

    def __init__(
        self,
        operation: str,
        sources: list[Step],
        transform: Callable[..., Rows],
        args: dict[str, Any],
        lazy: bool,
        options: OperationOptions,
    ) -> None:
        check_known(options, OperationOptions.__annotations__, operation)
        self.operation = operation
        self.sources = sources
        self.operation_args = args
        self._transform = transform
        self._lazy = lazy
        super().__init__(
            options.get("name") or _name(operation, sources), **taken_options({**options}, NodeOptions.__annotations__)
        )

    @property
    def moves_rows(self) -> bool:
        """Whether the operation selects or reorders rows without changing them."""
        return self.operation not in ("map", "rename_column", "rename_columns", "zipped")

    def setup(self) -> None:
        """Registers a placeholder: the columns are known when the operation runs."""
        self.register_output("*")

    def run(self) -> Rows:
        """Applies the operation."""
        return self._transform(*(source.output.rows for source in self.sources), **self.operation_args)

    planned_rows = run  # costs nothing

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of the operation, its arguments and its sources."""
        parts = class_part(type(self)) | {"operation": fingerprint(self.operation)}
        for name, value in self.operation_args.items():
            parts[f"argument {name}"] = fingerprint(value, f'"{self.name}": argument "{name}"')
        for index, source in enumerate(self.sources):
            source.wait()  # a background step's result is part of what is seen of it
            parts["input" if len(self.sources) == 1 else f"input {index + 1}"] = source.result_fingerprint
        return parts

    def make_output(self) -> OutputDataset | OutputIterableDataset:
        """Applies the operation, or loads its rows; lazy rows are not saved."""
        self.parents = list(dict.fromkeys(self.sources))
        if self._lazy and self.leave_out_of_plan():
            return self.planned_output
        if self._lazy:
            with working(self), self.noting_changes():
                rows = replace(self.run(), node=self)
            if rows.table is None:
                return self._lazy_output(rows)
            self._progress = 1.0
            return OutputDataset(self, rows)
        return super().make_output()

    def build(self, draft: Path) -> Kept:
        """Applies the operation and saves its rows."""
        return self.write_rows(self.run(), draft)


def _name(operation: str, sources: list[Step]) -> str:
    own_names = [source.name.rpartition(" / ")[2] for source in sources]
    if operation in ("concat", "zipped"):
        return f"{operation}({', '.join(own_names)})"
    first, session = own_names[0], sources[0].session
    if session is None:
        return f"{first} ({operation})"
    return session.results.free_name(f"{first} ({operation})", lambda count: f"{first} ({operation} #{count})")
