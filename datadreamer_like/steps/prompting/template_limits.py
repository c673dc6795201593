"""Bounds on what one filling of a template takes: the text it makes, the turns of its loops, and large numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

MOST_CHARACTERS = 10_000_000
"""Most characters of a text that a template makes, and most elements of a list: more than any LLM reads."""

MOST_TURNS = 1_000_000
"""Most turns of all loops of a template, for one row."""

CALL = 20
"""How many turns a call of a function counts for."""

OPERATORS = frozenset({"*", "**", "%", "+"})
"""The operators that are checked."""

COUNTED = "counted_turns"
"""Name of the filter that counts the turns of a loop."""

_TURNS = "turns of loops"
_CONTAINER = 10  # characters for which a list within a list counts
_MOST_BITS = 100_000
_MOST_INDENT = 100
_MOST_COPIED = 1_000_000_000
_LONG_WORD = re.compile(r"\S{1000,}|[^\S\n]{1000,}")
_PADDING = ("center", "ljust", "rjust", "zfill")
# A width in a text for `%` or `format`: a large number, or one that is an argument.
_WIDTH = re.compile(r"(?:%(?:\([^)]*\))?[-+ #.\d]*?|\{[^{}]*:[^{}]*?)(?:(?P<large>\d{7,})|\*|\{)")


class TooLarge(TemplateError):
    """A template takes more than it may."""


class CountTurns(NodeTransformer):
    """Makes the loops of a template count their turns."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Returns the loop over what is counted."""
        loop: nodes.For = self.generic_visit(node)  # type: ignore[assignment]
        where: dict[str, Any] = {"lineno": node.lineno, "environment": node.environment}
        loop.iter = nodes.Filter(loop.iter, COUNTED, [], [], None, None, **where)
        return loop


@pass_context
def counted_turns(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    """Yields the values of a loop, and counts them over all loops of the template."""
    for value in values:
        count_turn(context)
        yield value


def count_turn(context: Context, weight: int = 1) -> None:
    """Counts one turn of a loop, or a call of a function, which takes as long as some turns."""
    turns = context.vars[_TURNS] = context.vars.get(_TURNS, 0) + weight  # made anew for each row
    if turns > MOST_TURNS:
        raise TooLarge(f"its loops and calls take more than {MOST_TURNS:,} turns")


def joined(pieces: Iterable[str]) -> str:
    """Returns the text that a template yields in pieces."""
    kept, size = list[str](), 0
    for piece in pieces:
        size += len(piece)
        check_size(size)
        kept.append(piece)
    return "".join(kept)


def check_size(size: int) -> None:
    """Refuses a text or list of so many characters or elements."""
    if size > MOST_CHARACTERS:
        raise TooLarge(f"it makes a text of more than {MOST_CHARACTERS:,} characters")


def check_parts(value: Any) -> None:
    """Refuses a list or mapping with too many elements, those of lists within it included as often as they occur."""
    waiting, size = [value], 0
    while waiting:
        parts = waiting.pop()
        size += len(parts) + _CONTAINER
        check_size(size)
        found = parts.values() if isinstance(parts, dict) else parts
        waiting += [part for part in found if isinstance(part, list | tuple | dict)]


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses a product, power, sum or formatted text that would be too large, before it is made."""
    if operator == "%" and isinstance(left, str):
        check_format(left, right if isinstance(right, tuple) else (right,))
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif operator == "*":
        text, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int) and isinstance(text, Sequence):
            check_size(len(text) * max(0, times))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(0, right) if abs(left) > 1 else 0)
    elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
        check_size(len(left) + len(right))


def check_call(called: Any, arguments: Iterable[Any]) -> None:
    """Refuses a call of a text's or number's method that would make a text that is too large."""
    method = getattr(called, "__wrapped__", called)
    if isinstance(method, BuiltinMethodType) and method.__name__ == "to_bytes":
        _check_widths(arguments)
    if isinstance(method, BuiltinMethodType) and isinstance(text := method.__self__, str):
        if method.__name__ in ("format", "format_map"):
            check_format(text, arguments)
        elif method.__name__ in _PADDING:
            _check_widths(arguments)
        elif method.__name__ == "expandtabs":
            check_size(text.count("\t") * max((each for each in arguments if isinstance(each, int)), default=8))
        elif method.__name__ in ("join", "replace"):
            _check_repeated(text, method.__name__, *arguments)


def check_format(text: str, arguments: Iterable[Any]) -> None:
    """Refuses a width that makes a formatted text too large."""
    for found in _WIDTH.finditer(text):
        if found["large"]:
            check_size(int(found["large"]))
        else:
            _check_widths(arguments)


def bounded(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that refuses what would make a text that is too large, before it is made."""
    check = _FILTERS.get(name)
    if check is None:
        return filter

    before = 1 if hasattr(filter, "jinja_pass_arg") else 0  # a context

    @wraps(filter)
    def checked(*arguments: Any, **options: Any) -> Any:
        context, value, more = arguments[:before], arguments[before], arguments[before + 1 :]
        if name == "join" and not isinstance(value, Sequence):
            value = list(value)
        check(value, *more, **options)
        return filter(*context, value, *more, **options)

    return checked


def _check_width_of_filter(value: Any, *arguments: Any, **options: Any) -> None:
    _check_widths((*arguments, *options.values()))


def _check_indent(value: Any, width: Any = 4, *_: Any, **options: Any) -> None:
    size = len(width) if isinstance(width, str) else width
    if isinstance(value, str) and isinstance(size, int):
        check_size((value.count("\n") + 1) * size)


def _check_format_filter(value: Any, *arguments: Any, **options: Any) -> None:
    check_format(str(value), (*arguments, *options.values()))


def _check_join(value: Sequence[Any], d: Any = "", *_: Any, **options: Any) -> None:
    check_size(len(str(d)) * len(value) + sum(len(each) for each in value if isinstance(each, str)))


def _check_replace(value: Any, old: Any, new: Any, *_: Any, **options: Any) -> None:
    _check_repeated(str(value), "replace", str(old), str(new))


def _check_wordwrap(
    value: Any, width: Any = 79, break_long_words: Any = True, wrapstring: Any = None, *_: Any, **options: Any
) -> None:
    if not isinstance(value, str) or not isinstance(width, int):
        return
    if wrapstring is not None:
        lines = value.count("\n") + 2 * len(value) // max(1, width) + 1
        check_size(lines * len(str(wrapstring)))
    if not break_long_words:
        return
    # Python copies the rest of a word or of blanks for each line that it cuts off.
    copied = sum(len(found[0]) ** 2 for found in _LONG_WORD.finditer(value)) // max(1, width)
    if copied > _MOST_COPIED:
        raise TooLarge("it wraps words or blanks that are too long for it; use a larger width, or cut them first")


def _check_json(value: Any, indent: Any = None) -> None:
    if isinstance(indent, int) and indent > _MOST_INDENT:
        raise TooLarge(f"it indents JSON by more than {_MOST_INDENT} characters")


_FILTERS: dict[str, Callable[..., None]] = {
    "batch": _check_width_of_filter, "center": _check_width_of_filter, "slice": _check_width_of_filter,
    "indent": _check_indent, "format": _check_format_filter, "join": _check_join, "replace": _check_replace,
    "wordwrap": _check_wordwrap, "tojson": _check_json,
}  # fmt: skip


def _check_repeated(text: str, name: str, first: Any = None, new: Any = None, *_: Any) -> None:
    if name == "join" and isinstance(first, Sequence):
        check_size(len(text) * len(first))
    elif isinstance(first, str) and isinstance(new, str):
        check_size(text.count(first) * len(new))


def _check_widths(arguments: Iterable[Any]) -> None:
    check_size(max((each for each in arguments if isinstance(each, int)), default=0))


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TooLarge(f"it makes a number of more than {_MOST_BITS // 4:,} digits")
