"""Prompts numbered by repetition over all rows, for workers that see only some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datadreamer_like.models.calls.llm_calls import Repetitions

from ..base.row_answers import Questions, is_sent


def numbered(questions: Iterable[Questions]) -> Iterator[Questions]:
    """Yields questions with their prompts numbered by repetition."""
    repetitions = Repetitions()
    for each in questions:
        numbers = iter(repetitions.number([value for value in each.values if is_sent(value)]))
        yield each._replace(values=[next(numbers) if is_sent(value) else value for value in each.values])
