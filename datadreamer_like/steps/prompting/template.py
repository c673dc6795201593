"""Jinja templates of prompts, in a sandbox: rows are data, and a template reaches nothing but them."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import cache
from types import BuiltinMethodType
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, did_you_mean
from datadreamer_like.models.llms.generation import Prompt

from .cell_text import cell_text
from .template_limits import (
    CALL,
    COUNTED,
    OPERATORS,
    CountTurns,
    bounded,
    check_call,
    check_operation,
    check_parts,
    check_size,
    count_turn,
    counted_turns,
    joined,
)
from .value_column import described

TemplateText = str | Sequence[Mapping[str, Any]]
"""A template: a text, or chat messages whose contents are texts."""

# Only methods of these can be called: an image or another object of a row may have ones that write files.
_PLAIN = (str, int, float, bool, list, tuple, dict, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)
_JINJAS = (LoopContext, Cycler)
_OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_CHANCE = ("random", "lipsum")


class Missing(StrictUndefined):
    """A cell without a value: false in a condition; a template that prints it makes no prompt for its row."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return other is None or isinstance(other, Missing)

    def __ne__(self, other: object) -> bool:  # type: ignore[override]
        return not self == other

    __hash__ = None  # type: ignore[assignment]


class _List(list[Any]):
    """A list of a row, which every filter and operator of Jinja makes the text that printing it makes."""

    def __str__(self) -> str:
        return cell_text(self, _in_json)

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _List(found) if isinstance(place, slice) else found


class _Mapping(dict[str, Any]):
    """The same for a mapping."""

    def __str__(self) -> str:
        return cell_text(self, _in_json)


class _NoPrompt(TemplateError):
    """A missing value was to be printed."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which only macros, Jinja's own functions and methods of plain values can be called."""

    intercepted_binops = OPERATORS

    def __init__(self) -> None:
        # Blocks take no line of their own, so that conditions can be written over several lines.
        super().__init__(undefined=StrictUndefined, finalize=_printed, trim_blocks=True, lstrip_blocks=True)
        self.tests["none"] = lambda value: value is None or isinstance(value, Missing)
        self.filters["tojson"] = _as_json  # Jinja's own escapes what has a meaning in HTML
        self.filters["string"] = _as_text
        self.filters[COUNTED] = counted_turns
        self.filters |= {name: bounded(name, filter) for name, filter in self.filters.items()}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Returns the result of an operator, unless it is too large."""
        check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what an object returns, unless it is too large."""
        count_turn(__context, CALL)
        check_call(__obj, (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def is_safe_callable(self, obj: Any) -> bool:
        """Returns whether a template may call an object."""
        known = isinstance(obj, Macro | Joiner) or any(obj is each for each in self.globals.values())
        if isinstance(getattr(obj, "__wrapped__", None), BuiltinMethodType):  # Jinja's own `str.format`, in its sandbox
            obj = obj.__wrapped__
        return (known or isinstance(getattr(obj, "__self__", None), (*_PLAIN, *_JINJAS))) and super().is_safe_callable(
            obj
        )


class _KeysFirst(NodeTransformer):
    """Makes `order.items` the value of a mapping's key where it has one; `order.items()` stays a method."""

    def __init__(self, tree: nodes.Template) -> None:
        self._called = {id(call.node) for call in tree.find_all(nodes.Call)}

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        """Returns what reads the attribute."""
        read = self.generic_visit(node)
        if id(node) in self._called:
            return read
        key = nodes.Const(node.attr, lineno=node.lineno)
        return nodes.Getitem(node.node, key, node.ctx, lineno=node.lineno, environment=node.environment)


class PromptTemplate:
    """A compiled template.

    Args:
        template: A text or chat messages, checked here.
        columns: Names of the columns that it may use.
        where: The step, for messages.

    Raises:
        ArgumentTypeError: It is neither a text nor chat messages.
        DefinitionError: It is blank, its syntax is wrong, it uses an unknown variable or chance, or it tries to leave
            the sandbox.
    """

    def __init__(self, template: TemplateText, columns: Iterable[str], where: str) -> None:
        self._where = where
        columns = list(columns)
        if isinstance(template, str):
            texts: list[tuple[Mapping[str, Any], str]] = [({}, template)]
        else:
            texts = [(message, _content(message, where)) for message in template]
        if not texts:
            raise DefinitionError(f"{where}: template has no messages. Give a text or at least one message.")
        if not any(text.strip() for _, text in texts):
            raise DefinitionError(f"{where}: template is blank, so no row would have a prompt. Write what to send.")
        self._parts = [(message, self._compiled(text, columns)) for message, text in texts]
        self._is_text = isinstance(template, str)

    def prompt(self, row: Mapping[str, Any]) -> Prompt | ModelError | None:
        """Returns the prompt of a row; None if it is blank or prints a missing value, an error if it cannot be made.

        Raises:
            DefinitionError: The template tries to leave the sandbox.
        """
        values = {name: Missing(name=name) if value is None else _in_row(value) for name, value in row.items()}
        messages: list[dict[str, Any]] = []
        for message, template in self._parts:
            try:
                text = joined(template.generate(values))
            except SecurityError as error:
                raise self._unsafe(str(error)) from error
            except _NoPrompt:
                return None
            except TemplateError as error:
                is_undefined = isinstance(error, UndefinedError)
                if is_undefined and any(
                    isinstance(value, Missing) and f"'{name}'" in str(error) for name, value in values.items()
                ):
                    return None
                said = str(error).replace(_name(_Mapping), "mapping").replace(_name(_List), "list")
                return ModelError(f"The template cannot be filled: {said.rstrip('.')}.")
            except Exception as error:
                return ModelError(f"The template cannot be filled: {described(error).rstrip('.')}.")
            if text.strip():
                messages.append({**message, "content": text})
        if not messages:
            return None
        return messages[0]["content"] if self._is_text else messages

    def _compiled(self, text: str, columns: list[str]) -> Template:
        environment = _sandbox()
        try:
            tree = environment.parse(text)
            used = meta.find_undeclared_variables(tree)  # names an unknown filter too
        except TemplateSyntaxError as error:
            raise DefinitionError(f"{self._where}: line {error.lineno} of the template: {error.message}") from error
        except RecursionError:
            raise self._too_deep() from None
        for node in tree.find_all((nodes.Getattr, nodes.Getitem, *_OTHER_FILES)):
            name = node.attr if isinstance(node, nodes.Getattr) else _constant(getattr(node, "arg", None))
            if isinstance(node, _OTHER_FILES):
                raise self._unsafe(f"line {node.lineno} loads another template")
            if isinstance(name, str) and name.startswith("_"):
                raise self._unsafe(f"line {node.lineno} uses the attribute {name!r}")
        for node in tree.find_all((nodes.Filter, nodes.Name)):
            name = getattr(node, "name", None)
            if name in _CHANCE and (isinstance(node, nodes.Filter) or name not in columns):
                raise DefinitionError(
                    f"{self._where}: line {node.lineno} of the template uses {name}, so each run would send other "
                    "prompts. Draw a column with the step Sample, or by map, and use its values."
                )
        for name in sorted(used - environment.globals.keys() - set(columns) - _set_names(tree)):
            raise DefinitionError(
                f'{self._where}: the template uses "{name}", but there is no such input; the inputs are: '
                f'{", ".join(columns) or "none"}.{did_you_mean(name, columns)} Give inputs={{"{name}": ...}}.'
            )
        tree = CountTurns().visit(_KeysFirst(tree).visit(tree))
        for node in tree.find_all(nodes.Concat):  # also of lists that the template makes itself
            node.nodes = [
                nodes.Filter(each, "string", [], [], None, None, lineno=each.lineno, environment=environment)
                for each in node.nodes
            ]
        try:
            return environment.from_string(tree)
        except (SyntaxError, RecursionError):  # of the Python code that Jinja makes of it
            raise self._too_deep() from None

    def _too_deep(self) -> DefinitionError:
        return DefinitionError(f"{self._where}: the template is nested too deeply. Use fewer blocks within blocks.")

    def _unsafe(self, what: str) -> DefinitionError:
        return DefinitionError(
            f"{self._where}: the template tries to leave its sandbox: {what.rstrip('.')}. A template may use the row's "
            "values, their keys and plain methods, and Jinja's own filters."
        )


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses names of inputs that a template cannot use."""
    for name in names:
        if not name.isidentifier() or name in ("true", "false", "none", "self", "loop"):
            raise DefinitionError(
                f'{where}: the input "{name}" has a name that no template can use. Name it by letters, digits and "_".'
            )


def _set_names(tree: nodes.Template) -> set[str]:
    """Returns what a template sets or defines somewhere; Jinja takes that within a condition for unknown."""
    sets = tree.find_all((nodes.Assign, nodes.AssignBlock))
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    return macros | {name.name for each in sets for name in each.find_all(nodes.Name) if name.ctx == "store"}


def _content(message: Any, where: str) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise ArgumentTypeError(
            f"{where}: template has the message {message!r:.100}; expected a dictionary with the texts "
            '"role" and "content".'
        )
    return content


def _printed(value: Any) -> Any:
    if value is None:
        raise _NoPrompt("a missing value")
    return _as_text(value)


def _as_text(value: Any) -> str:
    if callable(value) and not isinstance(value, Undefined):
        name = getattr(value, "__name__", None) or getattr(value, "name", "a function")
        raise TemplateError(f"it prints the function {name} itself, not its result: write {name}(...)")
    if isinstance(value, Iterator | KeysView | ValuesView | ItemsView | range):
        value = list(value)
    if isinstance(value, list | tuple | dict):
        check_parts(value)
    text = cell_text(value, _in_json)
    check_size(len(text))
    return text


def _in_row(value: Any) -> Any:
    if isinstance(value, dict):
        return _Mapping({name: _in_row(part) for name, part in value.items()})
    return _List(map(_in_row, value)) if isinstance(value, list | tuple) else value


def _as_json(value: Any, indent: int | None = None) -> str:
    if isinstance(value, list | tuple | dict):
        check_parts(value)
    return json.dumps(value, ensure_ascii=False, default=_in_json, indent=indent)


def _in_json(value: Any) -> str | None:
    return None if isinstance(value, Missing) else str(value)


def _name(kind: type) -> str:
    """Returns the name of a type of values as Jinja's messages have it."""
    return f"{kind.__module__}.{kind.__name__} object"


def _constant(node: Any) -> Any:
    return node.value if isinstance(node, nodes.Const) else None


@cache
def _sandbox() -> _Sandbox:
    return _Sandbox()
