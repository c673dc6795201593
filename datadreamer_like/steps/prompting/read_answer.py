"""Turning an answer into the value of its row, by the step's own functions and those of the script."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datadreamer_like.errors import RejectedAnswer
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer

from .value_column import described, own_copy


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
