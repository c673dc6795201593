"""Turning an answer into the value of its row, by the step's own functions and those of the script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from datadreamer_like.errors import RejectedAnswer
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer

from .value_column import described, own_copy

_END = 20  # characters by which the end of a text is found; one word of no more is a label, whole though cut off
_WHOLE = re.compile(r"""[.!?…。！？]["'”’)\]]*\s*$""")  # the end of a sentence


def read_answer(step: Any, answer: Answer, row: dict[str, Any]) -> Answer | Rejected:
    """Returns the answer with its value or with the error of a function that raised, or `Rejected`."""
    args = step.args

    def value_of(answer: Answer) -> Any:
        given = own_copy(answer)
        return step.parse(given, row) if args["parse"] is None else step.call("parse", given, own_copy(row))

    try:
        if step.num_answers == 1:
            value = value_of(answer)
            return value if isinstance(value, Rejected) else replace(answer, value=value)
        if args["post_process"] is None:
            values = [value_of(one) for one in answer.each()]
        else:
            made = step.call("post_process", list(answer.texts))
            if not isinstance(made, list):
                value = step.value_of(made, row, alone=True)
                return value if isinstance(value, Rejected) else replace(answer, value=value)
            values = [step.value_of(one, row) for one in made]
        if values and len(rejected := [value for value in values if isinstance(value, Rejected)]) == len(values):
            return rejected[0]
        return replace(answer, value=step.combine([None if isinstance(v, Rejected) else v for v in values]))
    except RejectedAnswer as error:
        return replace(answer, error=error)
    except Exception as error:
        return replace(answer, error=RejectedAnswer.of(answer.text, f"parse raised {described(error)}."))


def keeps_end(answer: Answer, is_read: bool) -> bool:
    """Whether a row keeps the end of a text that the limit of tokens cut off.

    Without a reader (`is_read` is False) it keeps all texts; else what was read of them, which may be a verdict, all
    parts but the last, or whole sentences.
    """
    ends = [end for one in answer.each() if one.cut_off and (end := _plain(one.text or ""))]
    ends = [end[-_END:] for end in ends if len(end) > _END or " " in end]
    kept = _texts(answer.value if is_read else list(answer.texts)) if ends else ()
    parts = [_plain(text) for text in kept if not (is_read and _WHOLE.search(text))]
    return any(part.endswith(end) for part in parts for end in ends)


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)
