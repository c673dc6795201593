"""Faults of providers, on request, at chosen prompts or at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    PromptTooLong,
    RateLimited,
    Unavailable,
    check_number,
    did_you_mean,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.calls.llm_calls import prompt_bytes
from datadreamer_like.models.llms.answer_text import answer_of, answer_text
from datadreamer_like.models.llms.generation import Answer, Request
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.models.llms.scoring import Scored, ScoreRequest

from .fake_llm import FakeLLM
from .wrapped import WrappedLLM, ask_llm, checked_llm, score_llm

_WORDS = "(a fault on request)"

_RAISED: dict[str, Callable[[float], ModelError]] = {
    "rate_limited": lambda after: RateLimited(f"429: too many requests {_WORDS}.", after),
    "timeout": lambda after: Unavailable(f"There was no whole answer in time {_WORDS}.", after),
    "unavailable": lambda after: Unavailable(f"503: the server is overloaded {_WORDS}.", after),
    "malformed": lambda after: MalformedAnswer(f"The response is not JSON {_WORDS}.", after),
    "too_long": lambda after: PromptTooLong(f"The prompt does not fit the context {_WORDS}."),
    "wrong_key": lambda after: AuthenticationFailed(f"401: the key is wrong {_WORDS}."),
}
_ANSWERED = {
    "empty": answer_text(None, "stop"),
    "refused": answer_text(None, "stop", refusal=f"I can't help with that {_WORDS}."),
    "filtered": answer_text(None, "content_filter"),
}
KINDS = (*_RAISED, *_ANSWERED, "cut_off")


@dataclass(frozen=True)
class Fault:
    """A fault of a provider, for `WithFaults`.

    Args:
        kind: "rate_limited" (429), "timeout", "unavailable" (503) and "malformed" are retried; "empty" is an answer
            without a text, "refused", "filtered" and "too_long" fail the row, "cut_off" is half of the answer, with the
            finish reason "length", and "wrong_key" ends the run.
        at: Positions of the prompts that meet it, among the different prompts in the order in which they are first
            asked, from 0.
        rate: Share of the other prompts that meet it, chosen by the seed and the prompt alone.
        times: How many tries at a prompt meet it; None for all.
        retry_after: Seconds that the provider asks to wait, if it is one that is retried.

    Raises:
        DefinitionError: The kind is unknown, or a number is out of range.
    """

    kind: str
    at: Sequence[int] = ()
    rate: float = 0.0
    times: int | None = 1
    retry_after: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DefinitionError(
                f'There is no fault "{self.kind}".{did_you_mean(self.kind, KINDS)} They are: {", ".join(KINDS)}.'
            )
        places: object = self.at
        if not isinstance(places, Sequence):
            raise ArgumentTypeError(f"at must be a list of positions, as in at=[0], not {places!r:.100}.")
        for place in self.at:
            check_number(place, "at", whole=True)
        check_number(self.rate, "rate", most=1)
        check_number(self.times, "times", least=1, whole=True, optional=True)
        check_number(self.retry_after, "retry_after")
        if not self.at and not self.rate:
            raise DefinitionError(f'The fault "{self.kind}" happens nowhere: give at=[0] or rate=0.1.')


class WithFaults(WrappedLLM):
    """An LLM that meets faults on request; what it is asked otherwise is answered by another one.

    Faults go through the real pipeline: requests are retried, rows fail, a run ends, as with a provider.

    Args:
        llm: The LLM that answers.
        *faults: The faults; of several at one prompt, the first counts until its `times` are over.
        seed: Decides which prompts meet a fault with a `rate`.
        max_tries: Tries of a request before its row fails.

    Example:
        >>> llm = WithFaults(FakeLLM(), Fault("rate_limited", at=[0]), Fault("refused", at=[1]))
        >>> llm.run(["Red?", "Blue?"])
        ['Answer to: Red?', None]
    """

    def __init__(self, llm: LLM, *faults: Fault, seed: int = 0, max_tries: int = 3) -> None:
        super().__init__(checked_llm(llm, "WithFaults"))
        if not faults or not all(isinstance(fault, Fault) for fault in faults):
            raise DefinitionError('WithFaults needs faults: WithFaults(llm, Fault("timeout", at=[0])).')
        check_number(max_tries, "max_tries", least=1, whole=True)
        self.faults = faults
        self.seed = seed
        self.max_tries = max_tries
        self._places: dict[bytes, int] = {}
        self._met: dict[tuple[bytes, int], int] = {}

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns a fake LLM with a fault, for tests and documentation."""
        return cls(FakeLLM(), Fault("rate_limited", at=[0]))

    def identity(self) -> dict[str, Any]:
        """Returns the fingerprint of the LLM, and the faults."""
        faults = [[fault.kind, list(fault.at), fault.rate, fault.times] for fault in self.faults]
        return {"llm": fingerprint(self.llm), "faults": faults, "seed": self.seed}

    async def answer(self, request: Request) -> Answer:
        """Answers one request, or fails as the next fault says."""
        fault = self._next_fault(prompt_bytes(request.prompt))
        if fault is None:
            return await ask_llm(self.llm, request)
        if fault.kind in _RAISED:
            raise _RAISED[fault.kind](fault.retry_after)
        if fault.kind in _ANSWERED:
            return answer_of([_ANSWERED[fault.kind]] * request.sampling.n, cost=0.0)
        whole = await ask_llm(self.llm, request)
        texts = [None if text is None else text[: (len(text) + 1) // 2] for text in whole.texts]
        return replace(whole, texts=texts, finish_reasons=["length"] * len(texts), logprobs=None)

    async def score_one(self, request: ScoreRequest) -> Scored:
        """Scores the continuations of one prompt, or fails as the next fault says; "cut_off" cuts no score."""
        fault = self._next_fault(prompt_bytes(request.prompt))
        if fault is not None and fault.kind in _RAISED:
            raise _RAISED[fault.kind](fault.retry_after)
        if fault is not None and fault.kind in _ANSWERED:
            return Scored.failed(_ANSWERED[fault.kind].error or MalformedAnswer(f"There are no scores {_WORDS}."))
        return await score_llm(self.llm, request)

    def _next_fault(self, prompt: bytes) -> Fault | None:
        place = self._places.setdefault(prompt, len(self._places))
        for index, fault in enumerate(self.faults):
            drawn = random.Random(json.dumps([self.seed, index, prompt.decode("utf-8", "replace")])).random()
            if place not in fault.at and drawn >= fault.rate:
                continue
            met = self._met.get((prompt, index), 0)
            if fault.times is None or met < fault.times:
                self._met[prompt, index] = met + 1
                return fault
        return None
