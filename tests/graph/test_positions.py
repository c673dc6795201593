"""Options by position reach the same place as by name, and a call that says one twice or too many is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.graph.positions import by_position

OPTIONS = {"name": None, "lazy": True, "force": False}


@by_position(OPTIONS, further=False)
def operation(n: int, *, lazy: bool = True, **options: Any) -> Any:
    return n, {"lazy": lazy, **options}


@by_position(OPTIONS)
def joined(*steps: Any, **options: Any) -> Any:
    return steps, options


@pytest.mark.parametrize(
    ("by_place", "by_name"),
    [
        ((3,), {}),
        ((3, "Three"), {"name": "Three"}),
        ((3, "Three", False), {"name": "Three", "lazy": False}),
        ((3, None, True, True), {"name": None, "lazy": True, "force": True}),
    ],
)
def test_positions_and_names_are_the_same_call(by_place: tuple[Any, ...], by_name: dict[str, Any]) -> None:
    assert operation(*by_place) == operation(3, **by_name)


def test_a_function_of_any_number_of_values_takes_its_options_by_name() -> None:
    assert joined(1, 2, 3, 4, name="four") == ((1, 2, 3, 4), {"name": "four"})
    assert inspect.signature(joined).parameters["name"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("arguments", "named", "match"),
    [
        ((3, "Three", True, False, 1), {}, "takes 4 arguments, not 5"),
        ((3, "Three"), {"name": "Two"}, "got name twice"),
        ((3, "Three", False), {"lazy": True}, "got lazy twice"),
    ],
)
def test_what_does_not_fit_is_a_type_error(arguments: Any, named: Any, match: str) -> None:
    with pytest.raises(ArgumentTypeError, match=match) as caught:
        operation(*arguments, **named)
    assert isinstance(caught.value, TypeError)


def test_the_signature_shows_every_option_with_its_default() -> None:
    shown = inspect.signature(operation).parameters
    assert {name: shown[name].default for name in OPTIONS} == OPTIONS
    assert list(shown) == ["n", "name", "lazy", "force"]
    assert "options" in inspect.signature(joined).parameters
