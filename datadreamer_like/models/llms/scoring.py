"""Scores: how likely an LLM finds given texts as the start of its answer to a prompt."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, ModelError, did_you_mean

from ..calls.calls import Calls
from ..calls.llm_calls import prompt_bytes
from ..calls.options import RunOptions
from .generation import Prompt, Request, Sampling

T = TypeVar("T")


class ScoreOptions(RunOptions, total=False):
    """Options of `LLM.score` and `LLM.scores`."""

    concurrency: int | None


class ScoreRequest(NamedTuple):
    """One prompt for an engine, and the texts to score after it."""

    prompt: Prompt
    continuations: tuple[str, ...]

    @property
    def request(self) -> Request:
        """The prompt as a request for an answer."""
        return Request(self.prompt, Sampling())


@dataclass(slots=True)
class Scored:
    """An engine's scores of the continuations of one prompt.

    Attributes:
        logprobs: For each continuation, the sum of the natural log-probabilities of its tokens, each given the prompt
            and the tokens before it.
        tokens: For each continuation, its number of tokens.
        prompt_tokens: Tokens of the prompt, as counted by the engine.
        completion_tokens: Tokens that the engine wrote beyond the continuations.
        cost: US dollars; 0 for a local model and for a cached result, None if the price is unknown.
        error: Why the row failed; it then has no scores.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    error: ModelError | None = None

    @classmethod
    def failed(cls, error: ModelError) -> Scored:
        """Returns the result of a failed row."""
        return cls((), (), error=error)


class ScoreCalls(Calls[Prompt, ScoreRequest, Scored]):
    """Scores of the same continuations after many prompts; a key is a hash of the LLM's identity, them and a prompt."""

    def __init__(self, identity: str, continuations: tuple[str, ...]) -> None:
        self._continuations = continuations
        # Those of answers have their sampling options, a JSON object, in this place.
        decided_by = f"{identity}\0scores {json.dumps(continuations)}\0"
        self._prefix = hashlib.blake2b(decided_by.encode("utf-8", "surrogatepass"), digest_size=16)

    def admit(self, prompts: Sequence[Prompt]) -> tuple[list[bytes], list[ScoreRequest]]:
        """Returns keys and requests."""
        keys = []
        for prompt in prompts:
            hasher = self._prefix.copy()
            hasher.update(prompt_bytes(prompt))
            keys.append(hasher.digest())
        return keys, [ScoreRequest(prompt, self._continuations) for prompt in prompts]

    def one(self, ask: Callable[[ScoreRequest], Awaitable[Scored]]) -> Callable[[ScoreRequest], Awaitable[Scored]]:
        """Returns an engine's `score_one` whose rows fail with a score that is not a number."""

        async def asked(request: ScoreRequest) -> Scored:
            return self._checked(await ask(request))

        return asked

    def batch(
        self, ask: Callable[[Sequence[ScoreRequest]], Sequence[Scored]]
    ) -> Callable[[Sequence[ScoreRequest]], Sequence[Scored]]:
        """Returns an engine's `score_batch` whose rows fail with a score that is not a number."""
        return lambda requests: [self._checked(scored) for scored in ask(requests)]

    def _checked(self, scored: Scored) -> Scored:
        if scored.error is not None:
            return scored
        if not len(scored.logprobs) == len(scored.tokens) == len(self._continuations):
            raise DefinitionError(
                f"The engine returned {len(scored.logprobs)} log-probabilities and {len(scored.tokens)} numbers of "
                f"tokens for {len(self._continuations)} continuations; expected one of each."
            )
        for text, logprob in zip(self._continuations, scored.logprobs, strict=True):
            if not math.isfinite(logprob):
                error = ModelError(f"The log-probability of {text[:60]!r} is {logprob}; expected a finite number.")
                return replace(scored, logprobs=(), tokens=(), error=error)
        return scored

    def size(self, request: ScoreRequest) -> int:
        """Returns the number of characters of the prompt."""
        return len(str(request.prompt))

    def encode(self, answer: Scored) -> bytes:
        """Returns the stored form of a result: a JSON list of log-probabilities, token counts and prompt tokens."""
        return json.dumps([answer.logprobs, answer.tokens, answer.prompt_tokens]).encode()

    def decode(self, value: bytes) -> Scored:
        """Restores a result of `encode`."""
        logprobs, tokens, prompt_tokens = json.loads(value)
        return Scored(tuple(logprobs), tuple(tokens), prompt_tokens)

    def failed(self, error: ModelError) -> Scored:
        """Returns the result of a failed row."""
        return Scored.failed(error)


def checked_continuations(continuations: Sequence[str]) -> tuple[str, ...]:
    """Returns texts to score.

    Raises:
        ArgumentTypeError: They are one text, or not texts.
        DefinitionError: There is none, one is empty, or two are equal.
    """
    if isinstance(continuations, str) or not all(isinstance(each, str) for each in continuations):
        raise ArgumentTypeError(f'continuations must be a list of texts, such as ["yes", "no"], not {continuations!r}.')
    found = tuple(continuations)
    if not found or not all(found) or len(set(found)) < len(found):
        raise DefinitionError(
            f"continuations are {list(found)}; they must be different texts, none of them empty, and at least one."
        )
    return found


def check_score_options(options: Mapping[str, object]) -> None:
    """Raises `ArgumentTypeError` for an option that scoring does not have."""
    known = ScoreOptions.__annotations__
    for name in options:
        if name not in known:
            raise ArgumentTypeError(
                f'There is no option "{name}" of score.{did_you_mean(name, known)} The options are: '
                f"{', '.join(sorted(known))}."
            )


def score_tree(
    prefix: tuple[T, ...],
    continuations: Mapping[int, tuple[T, ...]],
    forced: Callable[[tuple[T, ...], tuple[T, ...]], Sequence[float]],
    relative: Callable[[tuple[T, ...], Sequence[T]], Mapping[T, float]],
) -> dict[int, float]:
    """Returns the log-probability of each continuation, a sequence of tokens, after a prefix.

    Continuations with the same first tokens share their computation, as the paths of a tree.

    Args:
        prefix: The tokens of the prompt.
        continuations: The tokens of each continuation, none of them empty, by any number.
        forced: Returns the log-probability of each of some tokens that follow a prefix.
        relative: Returns log-probabilities of several tokens after a prefix, up to a constant; it may leave some out.
    """
    found: dict[int, float] = {}

    def walk(path: tuple[T, ...], members: Mapping[int, tuple[T, ...]], sum_so_far: float) -> None:
        branches: dict[T, dict[int, tuple[T, ...]]] = {}
        for number, tokens in members.items():
            if tokens:
                branches.setdefault(tokens[0], {})[number] = tokens
            else:
                found[number] = sum_so_far
        if not branches:
            return
        known = dict(relative(path, list(branches))) if len(branches) > 1 else {}
        best = max(branches, key=lambda token: known.get(token, -math.inf))
        chain = _shared_start(list(branches[best].values()))
        logprobs = list(forced(path, chain))
        constant = logprobs[0] - known.get(best, 0.0)
        for token, own in branches.items():
            if token == best:
                walk(path + chain, {n: tokens[len(chain) :] for n, tokens in own.items()}, sum_so_far + sum(logprobs))
                continue
            logprob = constant + known[token] if token in known else forced(path, (token,))[0]
            walk((*path, token), {n: tokens[1:] for n, tokens in own.items()}, sum_so_far + logprob)

    walk(prefix, continuations, 0.0)
    return found


def _shared_start(sequences: Sequence[tuple[T, ...]]) -> tuple[T, ...]:
    shortest = min(sequences, key=len)
    length = 0
    while length < len(shortest) and all(each[length] == shortest[length] for each in sequences):
        length += 1
    return shortest[:length]


def echoed_scores(choice: Any, prompt: str, text: str) -> tuple[float, int] | None:
    """Returns log-probability and number of tokens of `text` after `prompt`, its start, in an echoed completion.

    Returns None if the completion has no log-probabilities of its prompt. Raises ValueError, TypeError or IndexError if
    they cannot be read, and `BadRequest` if a token holds the end
    of the prompt and the start of what follows: there is no probability of the second part alone.
    """
    found = getattr(choice, "logprobs", None)
    values, tokens = getattr(found, "token_logprobs", None), getattr(found, "tokens", None)
    starts = getattr(found, "text_offset", None)
    if not values or not tokens or not starts or not str(getattr(choice, "text", "")).startswith(text):
        return None
    own = [place for place, start in enumerate(starts) if len(prompt) <= start < len(text)]
    if not own or any(values[place] is None for place in own):
        return None
    if starts[own[0]] != len(prompt):
        raise BadRequest(
            f"{tokens[own[0] - 1]!r} is one token of the server, with the end of the prompt and the start of "
            f"{text[len(prompt) :]!r} in it. End the prompt without a blank, and start each continuation with one."
        )
    total = sum(values[place] for place in own)
    if not math.isfinite(total):
        raise ValueError(f"the one of {text[len(prompt) :][:60]!r} is {total}")
    return total, len(own)
