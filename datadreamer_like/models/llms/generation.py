"""Typed values that go into an LLM and come out of it: options, requests and answers."""

from __future__ import annotations

import json
import logging
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, did_you_mean
from datadreamer_like.graph.positions import defaults_of

from ..calls.options import LOGGING, Run, RunOptions
from .schema import json_schema_of, schema_of_response_format
from .tool_messages import with_own_ids
from .tools import Tool, ToolCall, checked_choice, tools_of

logger = logging.getLogger("datadreamer_like")

Message: TypeAlias = Mapping[str, Any]
"""One chat message: `{"role": "user", "content": "..."}`."""

Prompt: TypeAlias = str | Sequence[Message]
"""A text, or a list of chat messages."""


@dataclass(frozen=True)
class ToolPrompt:
    """A prompt with tools of its own, instead of those of the option `tools`.

    Args:
        prompt: A text or chat messages.
        tools: As for the option `tools`; an empty list for none.

    Example:
        >>> ToolPrompt("What is the weather in Rome?", [{"name": "get_weather"}]).tools[0]["name"]
        'get_weather'
    """

    prompt: Prompt
    tools: Sequence[Tool | type[Any] | Callable[..., Any]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tools_of(self.tools))


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
    tools: Sequence[Tool | type[Any] | Callable[..., Any]] | None
    tool_choice: str | None
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
        tools: Tools that the model may call: typed functions, pydantic model classes, or dictionaries with a name, a
            description and parameters. The calls are in `Answer.tool_calls`; nothing is executed.
        tool_choice: "auto" (the default), "none", "required", or the name of the tool that must be called.
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
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deterministic(self) -> bool:
        """Whether decoding is greedy, so that the same request gives the same answer."""
        return self.temperature == 0 or self.top_p == 0

    def check_tokens(self, size: int, model: str) -> None:
        """Raises `DefinitionError` if `logit_bias` names a token that a vocabulary of this size does not have."""
        for token in self.logit_bias or ():
            if token >= size:
                raise DefinitionError(f"logit_bias names the token {token}; {model} has {size} tokens.")

    def key_material(self) -> str:
        """Returns a text that differs if two samplings may give different answers.

        Options at their default are left out, so that an option added in a later version keeps old keys valid.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        default = Sampling()
        changed = {name: value for name, value in values.items() if value != getattr(default, name)}
        if self.schema is not None:
            changed["schema"] = json.dumps(self.schema)  # unsorted: some engines generate properties in this order
        if self.tools:
            changed["tools"] = json.dumps(self.tools)
        return json.dumps(changed, sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class Generation(Run):
    """All options of one run: those of `Run`, and its own.

    Attributes:
        concurrency: Concurrent requests; by default `batch_size` if that is given, else the model's default.
        total_num_prompts: Number of prompts, if `len(prompts)` is not available.
    """

    sampling: Sampling = field(default_factory=Sampling)
    concurrency: int | None = None
    total_num_prompts: int | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any], extra: Iterable[str] = ()) -> Generation:
        """Checks and converts the options of a call; `extra` are the names of provider-specific ones.

        Raises:
            ArgumentTypeError: A name is unknown, or a value has the wrong type.
            DefinitionError: A value is outside its range.
        """
        extra = set(extra)
        known = GenerationOptions.__annotations__.keys() | extra
        for name in options:
            if name not in known:
                raise ArgumentTypeError(
                    f'There is no generation option "{name}".{did_you_mean(name, known)} '
                    f"The options are: {', '.join(sorted(known))}."
                )
        if "top_p" not in options:
            # The answers of a beam search differ.
            for name in ("temperature",) if options.get("num_beams") else ("temperature", "n"):
                _warn_of_greedy(name, options.get(name))
        given: dict[str, Any] = dict(options)
        for name in _NUMBERS.keys() & given.keys():
            given[name] = _number(name, given[name])
        given["stop"] = _stop(given.get("stop"))
        given["logit_bias"] = _logit_bias(given.get("logit_bias"))
        given["schema"] = _schema(given)
        if given.get("tools") is not None or given.get("tool_choice") is not None:
            given["tools"] = tools_of(given.get("tools"))
            given["tool_choice"] = checked_choice(given.get("tool_choice"), given["tools"])
        if given.get("concurrency") is None:
            given["concurrency"] = min(given["batch_size"], MOST_CONCURRENT) if "batch_size" in given else None
        if given.get("on_error", "keep") not in ("keep", "raise"):
            raise _out_of_range("on_error", given["on_error"], '"keep" or "raise"')
        if given.get("tools") is None:
            given.pop("tools", None)
        extras = {name: given.pop(name) for name in options if name in extra and name in given}
        sampling = {f.name: given.pop(f.name) for f in fields(Sampling) if f.name in given}
        return cls(sampling=Sampling(**sampling, extra=extras), **given)


_ORDER = (
    "max_new_tokens", "temperature", "top_p", "n", "stop", "repetition_penalty", "logit_bias", "batch_size",
    "batch_scheduler_buffer_size", "adaptive_batch_size", "seed", *LOGGING, "total_num_prompts", "return_generator",
)  # fmt: skip

GENERATION_DEFAULTS = defaults_of(_ORDER, Sampling, Generation) | {"stop": None}
"""The options of `LLM.run` in DataDreamer's order, for calls by position."""


class Request(NamedTuple):
    """One prompt for an engine; `sampling` is shared by all requests of a run.

    `seed` is derived from `sampling.seed`; it differs if a prompt is repeated within a run. `tools` are the prompt's
    own, or those of `sampling`.
    """

    prompt: Prompt
    sampling: Sampling
    seed: int | None = None
    tools: tuple[Tool, ...] = ()

    def messages(self, system_prompt: str | None = None) -> list[dict[str, Any]]:
        """Returns the prompt as chat messages, with `system_prompt` first unless the prompt has its own."""
        if isinstance(self.prompt, str):
            messages: list[dict[str, Any]] = [{"role": "user", "content": self.prompt}]
        else:
            messages = with_own_ids([dict(message) for message in self.prompt])
        if system_prompt is not None and not any(message.get("role") == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": system_prompt})
        return messages


def start_of(system_prompt: str | None, request: object) -> str | None:
    """Returns the text that a prompt begins with, the system prompt first; None for requests without a prompt."""
    if not isinstance(request, Request):
        return None
    if isinstance(request.prompt, str):
        return f"{system_prompt or ''}\0{request.prompt}"
    return "\0".join(str(message.get("content")) for message in request.messages(system_prompt))


# Reasons for the end of a text at the limit of tokens, as servers with OpenAI's protocol write them.
CUT_OFF = {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded"}


class TokenLogprob(NamedTuple):
    """One token of an answer, its natural log-probability, and the likeliest tokens at its place, likeliest first."""

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
        tool_calls: The calls next to each text, if there are any: `{"id", "name", "arguments"}`, with `thought` where
            the provider wants it back in a conversation. An answer may consist of calls alone; its text is then None.
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
    tool_calls: Sequence[Sequence[ToolCall]] | None = None

    @property
    def text(self) -> str | None:
        """The first text, or None."""
        return self.texts[0] if self.texts else None

    @property
    def cut_off(self) -> bool:
        """Whether the limit of tokens ended one of the texts."""
        return any(str(reason).lower() in CUT_OFF for reason in self.finish_reasons)

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
                tool_calls=None if self.tool_calls is None else self.tool_calls[index : index + 1],
            )
            for index, text in enumerate(self.texts)
        ]


# Options that a warning was given of.
_warned: set[str] = set()
# OpenAI's and llama.cpp's names for `schema`
_SCHEMA_NAMES = ("response_format", "json_schema")
# Each takes a task in the event loop.
MOST_CONCURRENT = 10_000

# Each number's type, range, and the range in words
_NUMBERS: dict[str, tuple[type[int | float], float, float, str]] = {
    "max_new_tokens": (int, 1, 2**31 - 1, "at least 1 and below 2**31, or None"),
    "n": (int, 1, math.inf, "at least 1"),
    "seed": (int, -(2**63), 2**63 - 1, "an integer of 64 bits, or None"),
    "top_logprobs": (int, 0, math.inf, "0 or more, or None"),
    "batch_size": (int, 1, math.inf, "at least 1"),
    "batch_scheduler_buffer_size": (int, -math.inf, math.inf, ""),
    "concurrency": (int, 1, MOST_CONCURRENT, f"1 to {MOST_CONCURRENT}, or None"),
    "temperature": (float, 0, sys.float_info.max, "0 or more"),
    "top_p": (float, 0, 1, "a number from 0 to 1"),
    "repetition_penalty": (float, sys.float_info.min, sys.float_info.max, "a number above 0, or None"),
    "num_beams": (int, 1, 2**31 - 1, "at least 1"),
    "top_k": (int, 0, math.inf, "0 or more"),
    "min_p": (float, 0, 1, "a number from 0 to 1"),
    "typical_p": (float, 0, 1, "a number from 0 to 1"),
    "presence_penalty": (float, -2, 2, "a number from -2 to 2"),
    "frequency_penalty": (float, -2, 2, "a number from -2 to 2"),
}


def _warn_of_greedy(name: str, value: Any) -> None:
    """Warns, once a process, of an option for random answers next to the default of `top_p`, which is greedy."""
    without_effect = 0 if name == "temperature" else 1
    if name in _warned or not isinstance(value, numbers.Real) or float(value) <= without_effect:
        return
    _warned.add(name)
    what = "all n answers are the same" if name == "n" else "it has no effect"
    logger.warning("%s=%s, but top_p is 0.0 by default, which is greedy: %s. Pass top_p=1.0.", name, value, what)


def _number(name: str, value: Any) -> int | float | None:
    """Returns a number of the option's type, so that `temperature=0` and `temperature=0.0` have the same key."""
    kind, least, most, expected = _NUMBERS[name]
    if value is None and name not in ("n", "batch_size", "temperature", "top_p"):
        return None
    number: Any = value
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or (kind is int and not (math.isfinite(number) and number == int(number)))
    ):
        what = "a whole number" if kind is int else "a number"
        raise ArgumentTypeError(f'Generation option "{name}" must be {what}, not {value!r}.')
    if not least <= number <= most:
        raise _out_of_range(name, value, expected)
    return kind(number)


def _out_of_range(name: str, value: object, expected: str) -> DefinitionError:
    return DefinitionError(f'Generation option "{name}" cannot be {value!r}; expected {expected}.')


def _stop(stop: object) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts):
        for text in texts:
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                raise _out_of_range("stop", text, "valid text, without unpaired surrogates")
        # Every answer contains the empty text, which would end it before its first token.
        return tuple(text for text in texts if text)
    raise ArgumentTypeError(f'"stop" must be a text or a list of texts, not {stop!r}.')


def _logit_bias(bias: Any) -> dict[int, float] | None:
    if bias is None:
        return None
    of_ids: dict[int, float] = {-1: 0.0}
    with suppress(AttributeError, TypeError, ValueError, OverflowError):
        of_ids = {int(token): float(value) for token, value in bias.items()}
    for token, value in of_ids.items():
        if not math.isfinite(value):
            raise _out_of_range("logit_bias", {token: value}, "finite numbers; -100 forbids a token")
    if min(of_ids, default=0) >= 0:
        return of_ids or None
    raise ArgumentTypeError(f'"logit_bias" must be a dict from token ids to numbers, not {bias!r}.')


def _schema(given: dict[str, Any]) -> Mapping[str, Any] | None:
    """Returns the JSON schema that is given as `schema` or by a provider's own name for it."""
    names = [name for name in ("schema", *_SCHEMA_NAMES) if given.get(name) is not None]
    if len(names) > 1:
        raise DefinitionError(f'Give "{names[0]}" or "{names[1]}", not both: they say the same.')
    schemas = {name: given.pop(name) for name in _SCHEMA_NAMES if name in given}
    schema = given.get("schema") if not names or names[0] == "schema" else schemas[names[0]]
    if names == ["response_format"]:
        schema = schema_of_response_format(schema)
    return None if schema is None else json_schema_of(schema)
