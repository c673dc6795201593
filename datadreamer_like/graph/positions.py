"""How calls take options: typed once for many calls, by position too, and none of an unknown name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from datadreamer_like.errors import ArgumentTypeError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


def by_position(options: Mapping[str, Any], *, further: bool = True) -> Callable[[F], F]:
    """Lets a function take options by position, after its own parameters, and shows them in its signature.

    The function takes them in `**options`, or as keyword-only parameters. `options` are their names in order, with
    their defaults. Without `further` ones the signature shows that it takes no others.

    Example:
        >>> @by_position({"name": None, "lazy": True}, further=False)
        ... def take(n, **options):
        ...     return n, options
        >>> take(3, "Three")
        (3, {'name': 'Three'})
        >>> inspect.signature(take)
        <Signature (n, name=None, lazy=True)>
    """

    def decorated(function: F) -> F:
        signature = inspect.signature(function)
        kinds = inspect.Parameter
        own: list[inspect.Parameter] = []
        rest: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            before = parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
            (own if before else rest).append(parameter)
        several = any(parameter.kind is kinds.VAR_POSITIONAL for parameter in own)
        kind = kinds.KEYWORD_ONLY if several else kinds.POSITIONAL_OR_KEYWORD
        names = [name for name in options if name not in {parameter.name for parameter in own}]
        shown = [kinds(name, kind, default=options[name]) for name in names]
        rest = [p for p in rest if p.name not in names and (further or p.kind is not kinds.VAR_KEYWORD)]

        @functools.wraps(function)
        def called(*given: Any, **named: Any) -> Any:
            if several or len(given) <= len(own):
                return function(*given, **named)
            taken = dict(zip(names, given[len(own) :], strict=False))
            if len(taken) < len(given) - len(own):
                most = len(own) + len(names)
                raise ArgumentTypeError(f"{function.__qualname__} takes {most} arguments, not {len(given)}.")
            if twice := [name for name in taken if name in named]:
                raise ArgumentTypeError(f"{function.__qualname__} got {twice[0]} twice: by position and by name.")
            return function(*given[: len(own)], **taken, **named)

        called.__signature__ = signature.replace(parameters=[*own, *shown, *rest])  # type: ignore[attr-defined]
        return cast("F", called)

    return decorated


def only_known(function: F) -> F:
    """Makes a function refuse arguments of unknown names with an error that says which one may be meant.

    Raises:
        ArgumentTypeError: From the function; it is a `TypeError` too, like Python's own.

    Example:
        >>> @only_known
        ... def take(n, lazy=True):
        ...     return n
        >>> take(3, lasy=True)
        Traceback (most recent call last):
        ...
        datadreamer_like.errors.ArgumentTypeError: take has no option "lasy". Did you mean "lazy"? It takes: n, lazy.
    """
    own = inspect.signature(function).parameters

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        if unknown := [name for name in named if name not in own]:
            made = function.__name__ == "__init__"
            # A subclass passes its own names on.
            shown = [*inspect.signature(type(given[0]).__init__).parameters.values()] if made else []
            names = {each.name: None for each in (*shown, *own.values()) if each.kind is not each.VAR_KEYWORD}
            known = [name for name in names if name != "self"]
            what = type(given[0]).__name__ if made else function.__qualname__
            hint = did_you_mean(unknown[0], known)
            raise ArgumentTypeError(f'{what} has no option "{unknown[0]}".{hint} It takes: {", ".join(known)}.')
        return function(*given, **named)

    return cast("F", called)


def defaults_of(names: Iterable[str], *kinds: Any) -> dict[str, Any]:
    """Returns the defaults of some fields of dataclasses, in the order of `names`."""
    found = {field.name: field.default for kind in kinds for field in fields(kind)}
    return {name: found[name] for name in names}
