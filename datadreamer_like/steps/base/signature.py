"""Reading a decorated function's signature: the inputs, arguments and outputs of its step."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import typing_extensions

from datadreamer_like.errors import ArgumentTypeError, DefinitionError

from .options import NodeOptions

CALL_PARAMETERS = frozenset({"name", "inputs", "args", "outputs", "lazy", *NodeOptions.__annotations__})
"""Names that every call of a step takes, so no parameter may have them."""


@dataclasses.dataclass(frozen=True)
class Definition:
    """The step that a decorated function defines.

    Attributes:
        function: The function.
        inputs: Its positional parameters.
        arguments: Its keyword-only parameters.
        types: Classes that an argument must be an instance of, by its annotation.
        outputs: Names of the output columns.
        one_value: Whether it returns the value of its single output, not a row.
        many: Whether it yields any number of rows, or batches, per call.
        batched: Whether it gets many rows at once, as lists.
        batch_size: The most rows of a call.
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


def defined(function: Callable[..., Any], outputs: Sequence[str] | None, batched: bool, batch_size: int) -> Definition:
    """Reads a function's signature and annotations; the other parameters are those of `step`.

    Raises:
        DefinitionError: They do not define the inputs, arguments and outputs.
    """
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
        if name in CALL_PARAMETERS:
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
    if annotation is None:
        return None
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
