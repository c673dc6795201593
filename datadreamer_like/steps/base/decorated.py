"""Functions as steps: parameters are the step's inputs and arguments, return values its rows."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, overload

import numpy as np
import typing_extensions

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, StepOutputError, did_you_mean
from datadreamer_like.graph.origin import Every, From, Traced
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.rows import BATCH_SIZE, Batch

from .columns import batched, columns_together, num_rows_of, placed_parts
from .lazy_rows import LazyRowBatches
from .options import NodeOptions, taken_options
from .shapes import RowReader, Shapes
from .step import Step

P = ParamSpec("P")
R = TypeVar("R")

_CALL_PARAMETERS = frozenset({"name", "inputs", "args", "outputs", "lazy", *NodeOptions.__annotations__})
"""Names that every call of a step takes, so no parameter may have them."""


@dataclasses.dataclass(frozen=True)
class Definition:
    """The step that a decorated function defines.

    Attributes:
        inputs: The function's positional parameters.
        arguments: Its keyword-only parameters.
        types: Classes that an argument must be an instance of, by its annotation.
        outputs: Names of the output columns.
        one_value: Whether it returns the value of its single output, not a row.
        many: Whether it yields any number of rows, or batches, per call.
    """

    function: Callable[..., Any]
    inputs: dict[str, inspect.Parameter]
    arguments: dict[str, inspect.Parameter]
    types: dict[str, tuple[type, ...]]
    outputs: list[str]
    one_value: bool
    many: bool
    batched: bool
    batch_size: int


class FunctionStep(Step):
    """The step of a decorated function; see `step`."""

    definition: ClassVar[Definition]

    def setup(self) -> None:
        """Registers the names in the function's signature."""
        definition = self.definition
        for name, parameter in definition.inputs.items():
            self.register_input(name, required=parameter.default is parameter.empty)
        for name, parameter in definition.arguments.items():
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            self.register_arg(name, required=required, default=default, type=definition.types.get(name))
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate rows lazily.")
        for name in definition.outputs:
            self.register_output(name)

    def run(self) -> LazyRowBatches:
        """Calls the function."""
        definition = self.definition
        total = None if definition.many or definition.batched else num_rows_of(self._inputs) or 1
        return LazyRowBatches(self._rows, total_num_rows=total, save=not self.args["lazy"])

    def _rows(self) -> Iterator[Traced]:
        results = ((result, taken) for given, taken in self._calls() for result in self._called(given, taken))
        if self.definition.batched:
            for result, taken in results:
                batch = self._batch(result)
                same = len(next(iter(batch.values()), ())) == len(taken) and not self.definition.many
                yield self._traced(batch, taken if same else Every(taken))
            return
        reader = RowReader(Shapes(self.definition.outputs, f'"{self.name}"'))
        for portion in batched(results):
            batch = reader.columns(self._row(result) for result, _ in portion)
            yield self._traced(batch, np.array([taken.start for _, taken in portion]))

    def _traced(self, batch: Batch, rows: Any) -> Traced:
        return Traced(batch, *(From(name, rows) for name in self._inputs))

    def _calls(self) -> Iterator[tuple[dict[str, Any], range]]:
        """Yields the inputs of each call by name, and the positions of their rows."""
        if not self._inputs:
            yield {}, range(1)
            return
        in_batches = self.definition.batched
        for place, columns in placed_parts(columns_together(self._inputs, f'"{self.name}"'), None):
            size = len(next(iter(columns.values())))
            for start in range(0, size, self.definition.batch_size if in_batches else 1):
                stop = min(start + self.definition.batch_size, size) if in_batches else start + 1
                given = {name: values[start:stop] if in_batches else values[start] for name, values in columns.items()}
                yield given, range(place + start, place + stop)

    def _called(self, given: dict[str, Any], taken: range) -> Iterator[Any]:
        definition = self.definition
        inputs = [given.get(name, parameter.default) for name, parameter in definition.inputs.items()]
        try:
            result = definition.function(*inputs, **{name: self._args[name] for name in definition.arguments})
            yield from result if definition.many else (result,)
        except Exception as error:
            where = f"row {taken.start}" if given else "no inputs"
            error.add_note(f'In step "{self.name}", called with {where}.')
            raise

    def _row(self, row: Any) -> Any:
        names = self.definition.outputs
        if dataclasses.is_dataclass(row) and not isinstance(row, type) and not self.definition.one_value:
            return {name: getattr(row, name) for name in names}
        return (row,) if self.definition.one_value or (len(names) == 1 and not isinstance(row, Mapping)) else row

    def _batch(self, result: Any) -> Batch:
        names = self.definition.outputs
        if isinstance(result, Mapping) and set(result) == set(names):
            return {name: list(result[name]) for name in names}
        if len(names) == 1 and isinstance(result, Iterable) and not isinstance(result, str | Mapping):
            return {names[0]: list(result)}
        if isinstance(result, tuple) and len(result) == len(names):
            return {name: list(column) for name, column in zip(names, result, strict=True)}
        found = ", ".join(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
        raise StepOutputError(
            f'"{self.name}": {self.definition.function.__name__} returned {found}; a batched function must return a '
            f"list for each of its outputs: {', '.join(names)}."
        )


class StepFunction(Generic[P, R]):
    """A function decorated with `@step`: call it with columns to make a step.

    Attributes:
        function: The undecorated function, for example for tests.
        step_class: The class of its steps.
    """

    def __init__(self, function: Callable[P, R], definition: Definition) -> None:
        self.function = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        members = {"definition": definition, "__module__": function.__module__, "__doc__": function.__doc__}
        self.step_class: type[FunctionStep] = type(function.__name__, (FunctionStep,), members)

    def __call__(
        self,
        *given: str | Column,
        name: str | None = None,
        inputs: dict[str, Column] | None = None,
        args: dict[str, Any] | None = None,
        outputs: dict[str, str] | None = None,
        **others: Any,
    ) -> FunctionStep:
        """Makes a step, as `shout("Shout", inputs=..., args=...)` or in short form, as `shout(column, mark="?")`.

        Positional are the name, if it is not the function's name with spaces, and columns for the function's positional
        parameters. Further keywords are columns and arguments by parameter, and options of `Step`.

        Raises:
            DefinitionError: A parameter is unknown, missing, or given twice.
        """
        return self._made(self.step_class, given, name, inputs, args, outputs, others)

    def preview(self, n: int, *given: str | Column, **options: Any) -> FunctionStep:
        """Makes the step for the first `n` rows of its inputs; see `Step.preview`."""
        name, inputs, args, outputs = (options.pop(key, None) for key in ("name", "inputs", "args", "outputs"))
        return self._made(partial(self.step_class.preview, n), given, name, inputs, args, outputs, options)

    def _made(
        self,
        make: Callable[..., FunctionStep],
        given: tuple[str | Column, ...],
        name: str | None,
        inputs: dict[str, Column] | None,
        args: dict[str, Any] | None,
        outputs: dict[str, str] | None,
        others: dict[str, Any],
    ) -> FunctionStep:
        definition = self.step_class.definition
        if given and isinstance(given[0], str):
            if name is not None:
                raise DefinitionError(f'The step has two names, "{given[0]}" and "{name}". Give one.')
            name, given = given[0], given[1:]
        name = name or self.__name__.replace("_", " ")
        if len(given) > len(definition.inputs):
            raise DefinitionError(
                f'"{name}" was given {len(given)} columns; it takes {len(definition.inputs)} '
                f"({', '.join(definition.inputs) or 'none'}). Arguments are given by name."
            )
        options = taken_options(others, NodeOptions.__annotations__)
        all_inputs: dict[str, Any] = dict(zip(definition.inputs, given, strict=False))
        all_args = {**(args or {}), **taken_options(others, {*definition.arguments, "lazy"})}
        for key, value in [*(inputs or {}).items(), *others.items()]:
            if key in others and key not in definition.inputs:
                known = [*definition.inputs, *definition.arguments, *sorted(_CALL_PARAMETERS)]
                raise DefinitionError(
                    f'"{name}" has no parameter "{key}"; it takes: {", ".join(known)}.{did_you_mean(key, known)}'
                )
            if key in all_inputs:
                raise DefinitionError(f'"{name}": the input "{key}" is given twice.')
            all_inputs[key] = value
        return make(name, all_inputs, all_args, outputs, **options)

    @property
    def help(self) -> str:
        """Inputs, arguments and outputs of the step, as text."""
        return str(self.step_class.help)

    def __repr__(self) -> str:
        return f"<step {self.__name__}>"


@overload
def step(function: Callable[P, R], /) -> StepFunction[P, R]: ...
@overload
def step(
    *, outputs: Sequence[str] | None = None, batched: bool = False, batch_size: int = BATCH_SIZE
) -> Callable[[Callable[P, R]], StepFunction[P, R]]: ...
def step(function: Any = None, /, *, outputs: Any = None, batched: bool = False, batch_size: int = BATCH_SIZE) -> Any:
    """Makes a step from a function.

    Positional parameters are input columns: the function gets the values of one row. Keyword-only parameters are
    arguments, checked against their annotations. The function returns either the value of a single output, which is
    named after the function, or a row (dictionary, tuple or dataclass) with the columns given by `outputs` or by the
    return annotation (`TypedDict`, `NamedTuple`, dataclass). A generator function yields any number of rows per input
    row. The step runs again when the function's code changes.

    Args:
        function: The function.
        outputs: Names of the output columns.
        batched: Pass many rows at once, each parameter a list; the function returns a list for each output.
        batch_size: The most rows to pass at once.

    Raises:
        DefinitionError: The signature does not define the inputs, arguments and outputs.

    Example:
        >>> from datadreamer_like import DataDreamer
        >>> from datadreamer_like.steps import DataSource
        >>> from datadreamer_like.steps.base.decorated import step
        >>> @step
        ... def shout(text: str, *, mark: str = "!") -> str:
        ...     return text.upper() + mark
        >>> with DataDreamer(":memory:"):
        ...     words = DataSource("Words", {"text": ["hello"]})
        ...     shout(words.output["text"], mark="?").output["shout"][0]
        'HELLO?'
    """
    if function is None:
        return lambda decorated: StepFunction(decorated, _defined(decorated, outputs, batched, batch_size))
    return StepFunction(function, _defined(function, outputs, batched, batch_size))


def _defined(function: Callable[..., Any], outputs: Sequence[str] | None, batched: bool, batch_size: int) -> Definition:
    """Reads a function's signature and annotations; the other parameters are those of `step`."""
    if not isinstance(function, types.FunctionType):
        raise ArgumentTypeError(f"@step decorates functions; got {function!r}.")
    what = function.__name__
    if batch_size < 1:
        raise DefinitionError(f"{what}: batch_size is {batch_size}; expected at least 1.")
    inputs: dict[str, inspect.Parameter] = {}
    arguments: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DefinitionError(f"{what}: a step has a fixed number of parameters; name them, not {parameter}.")
        if name in _CALL_PARAMETERS:
            raise DefinitionError(f'{what}: the parameter "{name}" is an option of every step. Rename it.')
        (arguments if parameter.kind is parameter.KEYWORD_ONLY else inputs)[name] = parameter
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # a name imported for type checkers only
        hints = {}
    kinds = {name: kinds for name in arguments if (kinds := _classes(hints.get(name)))}
    many = inspect.isgeneratorfunction(function)
    names, one_value = _outputs(what, outputs, hints.get("return"), many)
    return Definition(function, inputs, arguments, kinds, names, one_value, many, batched, batch_size)


def _outputs(what: str, outputs: Sequence[str] | None, returned: Any, many: bool) -> tuple[list[str], bool]:
    """Returns the names of the outputs, and whether the function returns a single output's value, not a row."""
    if outputs is not None:
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        if not names or len(set(names)) < len(names):
            raise DefinitionError(f"{what}: outputs is {outputs!r}; expected different names, at least one.")
        return names, False
    if many and typing.get_origin(returned) in (Iterator, Iterable, Generator):
        returned = typing.get_args(returned)[0]
    if typing_extensions.is_typeddict(returned):
        return list(typing.get_type_hints(returned)), False
    if dataclasses.is_dataclass(returned):
        return [field.name for field in dataclasses.fields(returned)], False
    if isinstance(returned, type) and issubclass(returned, tuple) and hasattr(returned, "_fields"):
        return list(returned._fields), False
    if returned is dict or typing.get_origin(returned) is dict:
        raise DefinitionError(
            f'{what}: it returns a dictionary of unknown columns. Name them: @step(outputs=["a", "b"]), or '
            "annotate a TypedDict."
        )
    return [what], True


def _classes(annotation: Any) -> tuple[type, ...] | None:
    """Returns the classes that an annotation allows, or None where they cannot be checked."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [_classes(member) for member in typing.get_args(annotation)]
        return None if None in members else tuple(kind for member in members for kind in member or ())
    if origin is typing.Literal:
        return tuple({type(value) for value in typing.get_args(annotation)})
    kind = origin if isinstance(origin, type) else annotation
    if not isinstance(kind, type) or typing_extensions.is_typeddict(kind):
        return None
    try:
        isinstance(None, kind)
    except TypeError:  # a protocol that cannot be checked
        return None
    return (kind,)
