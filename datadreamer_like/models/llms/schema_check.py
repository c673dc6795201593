"""Checks answers against their schema, since an engine may drop keywords of it or ignore it."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from ..calls.failures import Rejected
from .answer_text import json_text
from .generation import Answer
from .schema import JSONSchema

_ERRORS_SHOWN = 3

Problem = tuple[Sequence[Any], str]
"""The path of a value that does not fit, and why."""


def schema_check(schema: JSONSchema) -> Callable[[Answer], Answer | Rejected]:
    """Returns a function that rejects an answer whose texts do not fit a schema.

    Of several texts those that do not fit become None; the answer is rejected if none fits.
    """
    problems = schema_problems(schema)

    def checked(answer: Answer) -> Answer | Rejected:
        wrong = [None if text is None else _problem(text, problems) for text in answer.texts]
        if any(wrong):
            if all(reason or text is None for reason, text in zip(wrong, answer.texts, strict=True)):
                return Rejected(next(reason for reason in wrong if reason))
            texts = [None if reason else text for reason, text in zip(wrong, answer.texts, strict=True)]
            answer = replace(answer, texts=texts)
        return answer

    return checked


def schema_problems(schema: JSONSchema) -> Callable[[Any], Iterator[Problem]]:
    """Returns a function that yields the problems of a value, formats such as "date" included."""
    import jsonschema

    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator: Any = kind(schema, format_checker=_format_checker())
    return lambda value: ((error.absolute_path, error.message) for error in validator.iter_errors(value))


def json_value(text: str | None) -> Any:
    """Returns the JSON value in an answer, which may be in a Markdown fence.

    Raises:
        ValueError: It is not one JSON value, or a value that no file can hold.
    """
    try:
        value = json.loads(json_text(text or ""), parse_constant=_not_json)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair fits no column
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def misfit(problems: Sequence[Problem]) -> str:
    """Returns the reason for a rejection, for the model."""
    return f"It does not fit the schema: {shown_problems(problems)}."


def shown_problems(problems: Sequence[Problem], whole: str = "the answer") -> str:
    """Returns the first problems as a text, each after its path; that of the `whole` value has no path."""
    shown = [f"{'.'.join(map(str, path)) or whole}: {why}" for path, why in problems[:_ERRORS_SHOWN]]
    return "; ".join(shown)


def _problem(text: str, problems: Callable[[Any], Iterator[Problem]]) -> str | None:
    try:
        found = list(problems(json_value(text)))
    except ValueError as error:
        return f"It is not one JSON value: {error}."
    return misfit(found) if found else None


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


@functools.cache
def _format_checker() -> Any:
    import jsonschema

    checker: Any = jsonschema.FormatChecker(jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers.keys())
    # jsonschema checks these only if further packages are installed.
    kinds: Mapping[str, Callable[[str], Any]] = {
        "date-time": datetime.datetime.fromisoformat,
        "time": datetime.time.fromisoformat,
    }
    for name, parse in kinds.items():
        checker.checks(name, ValueError)(lambda value, parse=parse: not isinstance(value, str) or bool(parse(value)))
    return checker
