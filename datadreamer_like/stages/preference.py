"""Who finds which of two answers better: a function, an LLM that is asked in both orders, or a reward model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.evaluation.judge import Prefer
from datadreamer_like.models import LLM
from datadreamer_like.steps.prompting.answer_readers import read_winner

logger = logging.getLogger("datadreamer_like")

_POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}
_LABELS = ("Response A:", "Response B:")
_QUESTION = "Which response is better? Respond with 'Response A' or 'Response B'."


def preference(judge: Any, what: str) -> Prefer:
    """Returns a function of prompts, answers and other answers that gives each answer 1, 0.5 or 0 points.

    A reward model has `score(prompts, answers)`: the higher reward wins. An LLM is asked twice, with either answer
    first; what wins only in one order, or cannot be read, is a tie. A function takes a prompt and two answers and
    returns "a", "b" or "tie". `what` is the argument's name, for messages.

    Raises:
        ArgumentTypeError: It is none of these; or, when called, a function returned something else.
    """
    if isinstance(judge, LLM):
        return lambda *columns: _by_llm(judge, *columns)
    if callable(getattr(type(judge), "score", None)):
        return lambda *columns: _by_rewards(judge, *columns)
    if not callable(judge) or isinstance(judge, type):
        raise ArgumentTypeError(
            f"{what} is {judge!r:.100}; it must be an LLM, a trained TrainHFRewardModel, or a function of a prompt and "
            'two answers that returns "a", "b" or "tie".'
        )

    def by_function(prompts: Sequence[str], answers: Sequence[str], others: Sequence[str]) -> list[float]:
        points = []
        for prompt, answer, other in zip(prompts, answers, others, strict=True):
            verdict = judge(prompt, answer, other)
            if not isinstance(verdict, str) or verdict not in _POINTS:
                raise ArgumentTypeError(f'{what} returned {verdict!r:.100}; it must return "a", "b" or "tie".')
            points.append(_POINTS[verdict])
        return points

    return by_function


def _by_rewards(judge: Any, prompts: Sequence[str], answers: Sequence[str], others: Sequence[str]) -> list[float]:
    pairs = zip(judge.score(prompts, answers), judge.score(prompts, others), strict=True)
    return [(first > second) + 0.5 * (first == second) for first, second in pairs]


def _by_llm(judge: LLM, prompts: Sequence[str], answers: Sequence[str], others: Sequence[str]) -> list[float]:
    asked = [
        f"Prompt: {prompt}\n\n{_LABELS[0]} {first}\n\n{_LABELS[1]} {second}\n\n{_QUESTION}"
        for prompt, *pair in zip(prompts, answers, others, strict=True)
        for first, second in (pair, pair[::-1])
    ]
    said = [read_winner(text, *_LABELS) for text in judge.run(asked, temperature=0.0, max_new_tokens=64)]
    lost = said.count(None)
    if lost:
        logger.warning(
            "%s of the %s answers of the judge name no winner, and count as ties. See them by "
            "JudgeGenerationPairsWithPrompt.", f"{lost:,}", f"{len(said):,}",
        )  # fmt: skip
    points = []
    for straight, swapped in zip(said[::2], said[1::2], strict=True):
        wins = (straight == "a") + (swapped == "b"), (straight == "b") + (swapped == "a")
        points.append(1.0 if wins == (2, 0) else 0.0 if wins == (0, 2) else 0.5)
    return points
