"""Typed values that go into an LLM and come out of it: options, requests and answers."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, did_you_mean

from ..calls.options import Run, RunOptions
from .schema import json_schema_of, schema_of_response_format

Message: TypeAlias = Mapping[str, Any]
"""One chat message: `{"role": "user", "content": "..."}`."""

Prompt: TypeAlias = str | Sequence[Message]
"""A text, or a list of chat messages."""


class GenerationOptions(RunOptions, total=False):
    """Options of `LLM.run` and `LLM.answers`; the defaults are those of `Sampling` and `Generation`."""

    max_new_tokens: int | None
    temperature: float
    top_p: float
    n: int
    stop: str | Sequence[str] | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    top_logprobs: int | None
    schema: Mapping[str, Any] | type[Any] | None
    concurrency: int | None
    total_num_prompts: int | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """The options that decide an answer; they are part of its cache key.

    Attributes:
        max_new_tokens: Maximum number of tokens in an answer; None leaves it to the model.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Probability mass of nucleus sampling; 0 is greedy at any temperature.
        n: Number of answers per prompt.
        stop: Texts that end an answer.
        repetition_penalty: Values above 1 make repeated tokens less likely.
        logit_bias: Added to the logits of these token ids.
        seed: Makes sampling repeatable if the engine supports it.
        top_logprobs: Return log-probabilities of this many most likely tokens at each position; 0 returns only those of
            the chosen tokens, None returns none.
        schema: JSON schema for the answer; a pydantic model class is converted to its schema.
        extra: Provider-specific options.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 0.0
    n: int = 1
    stop: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    top_logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deterministic(self) -> bool:
        """Whether decoding is greedy, so that the same request gives the same answer."""
        return self.temperature == 0 or self.top_p == 0

    def key_material(self) -> str:
        """Returns a text that differs if two samplings may give different answers.

        Options at their default are left out, so that an option added in a later version keeps old keys valid.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        default = Sampling()
        changed = {name: value for name, value in values.items() if value != getattr(default, name)}
        if self.schema is not None:
            changed["schema"] = json.dumps(self.schema)  # unsorted: some engines generate properties in this order
        return json.dumps(changed, sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class Generation(Run):
    """All options of one run: those of `Run`, and its own.

    Attributes:
        sampling: The options that decide an answer.
        concurrency: Concurrent requests; by default `batch_size` if that is given, else the model's default.
        total_num_prompts: Number of prompts, if `len(prompts)` is not available.
    """

    sampling: Sampling = field(default_factory=Sampling)
    concurrency: int | None = None
    total_num_prompts: int | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any], extra: Iterable[str] = ()) -> Generation:
        """Checks and converts the options of a call.

        Args:
            options: The caller's options.
            extra: Names of provider-specific options.

        Raises:
            ArgumentTypeError: A name is unknown.
            DefinitionError: A value is outside its range.
        """
        extra = frozenset(extra)
        known = set(GenerationOptions.__annotations__) | extra
        for name in options:
            if name not in known:
                raise ArgumentTypeError(
                    f'There is no generation option "{name}".{did_you_mean(name, known)} '
                    f"The options are: {', '.join(sorted(known))}."
                )
        given = {name: value for name, value in options.items() if name not in extra}
        given = {name: _number(name, value) for name, value in given.items()}
        given["stop"] = _stop(given.get("stop"))
        given["logit_bias"] = _logit_bias(given.get("logit_bias"))
        given["schema"] = _schema(given.get("schema"), options.get("response_format"))
        own = {f.name for f in fields(Sampling)}
        sampling = Sampling(
            **{name: value for name, value in given.items() if name in own},
            extra={name: value for name, value in options.items() if name in extra and name != "response_format"},
        )
        rest = {name: value for name, value in given.items() if name not in own}
        if rest.get("concurrency") is None and "batch_size" in rest:
            rest["concurrency"] = rest["batch_size"]
        generation = cls(sampling=sampling, **rest)
        _check(generation)
        return generation


class Request(NamedTuple):
    """One prompt for an engine.

    Attributes:
        prompt: The text or the chat messages.
        sampling: Sampling options, shared by all requests of a run.
        seed: Seed of this request, derived from `sampling.seed`; it differs if a prompt is repeated within a run.
    """

    prompt: Prompt
    sampling: Sampling
    seed: int | None = None

    def messages(self, system_prompt: str | None = None) -> list[dict[str, Any]]:
        """Returns the prompt as chat messages, with `system_prompt` first unless the prompt has its own."""
        if isinstance(self.prompt, str):
            messages: list[dict[str, Any]] = [{"role": "user", "content": self.prompt}]
        else:
            messages = [dict(message) for message in self.prompt]
        if system_prompt is not None and not any(message.get("role") == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": system_prompt})
        return messages


class TokenLogprob(NamedTuple):
    """One token of an answer.

    Attributes:
        token: Its text.
        logprob: Its natural log-probability.
        top: The likeliest tokens at its position with their log-probabilities, likeliest first.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(slots=True)
class Answer:
    """An engine's answer to one prompt.

    Attributes:
        texts: `n` texts, without reasoning; None where the model returned no text.
        prompt_tokens: Tokens of the prompt, as counted by the engine.
        completion_tokens: Tokens of all texts together.
        finish_reasons: Why each text ended: "stop", "length", "content_filter", ...
        logprobs: The tokens of each text, if `top_logprobs` was given.
        reasoning: The model's reasoning for each text, if it returns any; it is not part of the text.
        cached_tokens: Tokens of the prompt that the provider read from its own prompt cache.
        cost: US dollars; 0 for a local model and for a cached answer, None if the price is unknown.
        error: Why the row failed; `texts` is then empty or contains a rejected answer.
        value: The result of a step's `parse`; never stored.
    """

    texts: Sequence[str | None]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: Sequence[str | None] = ()
    logprobs: Sequence[Sequence[TokenLogprob]] | None = None
    reasoning: Sequence[str | None] | None = None
    cached_tokens: int = 0
    cost: float | None = None
    error: ModelError | None = None
    value: Any = None

    @property
    def text(self) -> str | None:
        """The first text, or None."""
        return self.texts[0] if self.texts else None

    @classmethod
    def failed(cls, error: ModelError) -> Answer:
        """Returns the answer of a failed row."""
        return cls((), cost=0.0, error=error)

    def each(self) -> list[Answer]:
        """Returns one answer per text, without token counts and cost."""
        return [
            Answer(
                [text],
                finish_reasons=self.finish_reasons[index : index + 1],
                logprobs=None if self.logprobs is None else self.logprobs[index : index + 1],
                reasoning=None if self.reasoning is None else self.reasoning[index : index + 1],
            )
            for index, text in enumerate(self.texts)
        ]

    def with_error(self, error: ModelError) -> Answer:
        """Returns a copy with an error; the texts are kept."""
        return replace(self, error=error)

    def with_value(self, value: Any) -> Answer:
        """Returns a copy with the result of `parse`."""
        return replace(self, value=value)


_WHOLE = {"max_new_tokens", "n", "seed", "top_logprobs", "batch_size", "batch_scheduler_buffer_size", "concurrency"}
_REAL = {"temperature", "top_p", "repetition_penalty"}


def _number(name: str, value: Any) -> Any:
    if value is None or name not in _WHOLE | _REAL:
        return value
    number: Any = value
    if not isinstance(value, numbers.Real) or (
        name in _WHOLE and not (math.isfinite(number) and number == int(number))
    ):
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ArgumentTypeError(f'Generation option "{name}" must be {kind}, not {value!r}.')
    # Normalised types, so that `temperature=0` and `temperature=0.0` have the same key.
    return int(number) if name in _WHOLE else float(number)


def _stop(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str):
        stop = (stop,)
    if isinstance(stop, Sequence) and all(isinstance(text, str) for text in stop):
        # Every answer contains the empty text, which would end it before its first token.
        return tuple(text for text in stop if text)
    raise ArgumentTypeError(f'"stop" must be a text or a list of texts, not {stop!r}.')


def _logit_bias(bias: object) -> dict[int, float] | None:
    if bias is None:
        return None
    try:
        numbers_of = {int(token): float(value) for token, value in bias.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        numbers_of = {-1: math.nan}
    if any(token < 0 or math.isnan(value) for token, value in numbers_of.items()):
        raise ArgumentTypeError(f'"logit_bias" must be a dict from token ids to numbers, not {bias!r}.')
    return numbers_of or None


def _schema(schema: object, response_format: object) -> Mapping[str, Any] | None:
    if response_format is not None:
        if schema is not None:
            raise DefinitionError('Give "schema" or "response_format", not both: they say the same.')
        schema = schema_of_response_format(response_format)
    return None if schema is None else json_schema_of(schema)


def _check(generation: Generation) -> None:
    sampling = generation.sampling
    wrong = {
        "n": sampling.n < 1,
        "max_new_tokens": sampling.max_new_tokens is not None and sampling.max_new_tokens < 1,
        "temperature": not 0 <= sampling.temperature < math.inf,
        "top_p": not 0 <= sampling.top_p <= 1,
        "top_logprobs": sampling.top_logprobs is not None and sampling.top_logprobs < 0,
        "repetition_penalty": sampling.repetition_penalty is not None
        and not 0 < sampling.repetition_penalty < math.inf,
        "batch_size": generation.batch_size < 1,
        "concurrency": generation.concurrency is not None and generation.concurrency < 1,
        "on_error": generation.on_error not in ("keep", "raise"),
    }
    for name, bad in wrong.items():
        if bad:
            value = getattr(sampling, name, None) if hasattr(sampling, name) else getattr(generation, name)
            raise DefinitionError(f'Generation option "{name}" cannot be {value!r}; expected {_EXPECTED[name]}.')
    for name, (least, most) in _EXTRA_RANGES.items():
        extra = sampling.extra.get(name)
        if extra is not None and not (isinstance(extra, numbers.Real) and least <= float(extra) <= most):
            raise DefinitionError(
                f'Generation option "{name}" cannot be {extra!r}; expected a number from {least} to {most}.'
            )


_EXTRA_RANGES = {
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}

_EXPECTED = {
    "n": "at least 1",
    "max_new_tokens": "at least 1, or None",
    "temperature": "0 or more",
    "top_p": "a number from 0 to 1",
    "top_logprobs": "0 or more, or None",
    "repetition_penalty": "a number above 0, or None",
    "batch_size": "at least 1",
    "concurrency": "at least 1, or None",
    "on_error": '"keep" or "raise"',
}
