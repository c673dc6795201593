"""One call of a model as a log has it, in the same words for all formats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from datadreamer_like.errors import ModelError

from ..llms.generation import Answer, Sampling, TokenLogprob
from ..llms.schema import object_schema, strict_schema
from .logged_tools import canonical_choice, canonical_tools, turns


@dataclass(slots=True)
class LoggedCall:
    """One call in a log: what was asked, with which options, and what came back.

    Attributes:
        format: What wrote it: "OpenAI", "Anthropic", "LiteLLM", "Langfuse", "OpenTelemetry" or "distilabel".
        model: The model's name in the request; None if the log has none.
        messages: The chat messages, the system prompt first.
        options: The options that decide an answer and differ from the API's default, by the names of
            `GenerationOptions`; those of one provider by its own names. Never a key or a header.
        answer: Texts, tokens, finish reasons, cost and error. The cost is None where it is unknown.
        started_at: When it was sent: ISO 8601, UTC.
        seconds: How long it took.
    """

    format: str
    model: str | None
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    answer: Answer
    started_at: str | None = None
    seconds: float | None = None
    other_names: list[str] = field(default_factory=list)
    """Further names of the model in the log, such as without LiteLLM's prefix."""

    @property
    def prompt(self) -> str:
        """The text of the last message of the user."""
        asked = [message for message in self.messages if message["role"] == "user"] or self.messages[-1:]
        return text_of(asked[-1]["content"]) if asked else ""


def text_of(content: object) -> str:
    """Returns the content of a message as a text; other contents as JSON."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, sort_keys=True)


# Options by the names of this package. All others keep the name that the provider gives them.
_NAMES = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "max_output_tokens": "max_new_tokens",
    "stop_sequences": "stop", "choice.count": "n",
}  # fmt: skip
# What decides no answer, or is read elsewhere.
_WITHOUT_EFFECT = {
    "model", "messages", "system", "input", "instructions", "prompt", "stream", "stream_options", "user", "metadata",
    "store", "service_tier", "timeout", "safety_identifier", "cache_control", "prompt_cache_key", "background",
    "litellm_params", "max_retries", "logprobs", "extra_query", "encoding_formats", "truncation", "parallel_tool_calls",
    "prompt_cache_retention", "inference_geo",
}  # fmt: skip
# Never read: it may hold a secret.
_SECRET = re.compile(r"key|header|auth|secret|password|credential|cookie|api_base|base_url", re.IGNORECASE)
_DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "n": 1, "presence_penalty": 0, "frequency_penalty": 0}


def options_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a request that decide its answer and are not the default, by this package's names."""
    found: dict[str, Any] = {}
    given = dict(parameters)
    given |= given.pop("extra_body", None) or {}
    if given.get("logprobs") and given.get("top_logprobs") is None:
        given["top_logprobs"] = 0
    shape = _schema_in(given)
    reasoning = given.get("reasoning")
    if isinstance(reasoning, Mapping) and "effort" in reasoning:  # the Responses API
        given["reasoning_effort"] = reasoning["effort"]
        given["reasoning"] = {name: value for name, value in reasoning.items() if name != "effort"}
    if isinstance(given.get("tools"), list | tuple):
        given["tools"] = canonical_tools(given["tools"])
    given["tool_choice"] = canonical_choice(given.get("tool_choice"))
    if isinstance(given.get("prompt"), Mapping):  # stored at the provider
        given["stored_prompt"] = given["prompt"]
    for name, value in given.items():
        name = _NAMES.get(name, name)
        if value is None or name in _WITHOUT_EFFECT or _SECRET.search(name) or value in ([], {}, ()):
            continue
        found[name] = _plain(name, value)
    if shape is not None:
        found["schema"] = canonical_schema(shape)
    if found.get("temperature") == 0 or found.get("top_p") == 0:
        found["temperature"] = 0.0
        found.pop("top_p", None)
    return {name: value for name, value in found.items() if _DEFAULTS.get(name) != value}


def _plain(name: str, value: Any) -> Any:
    if name == "stop":
        return [value] if isinstance(value, str) else list(value)
    if name == "logit_bias":
        return {str(token): float(bias) for token, bias in value.items()}
    if name == "top_logprobs" or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return float(value) if name in ("temperature", "top_p") else value


def _schema_in(given: dict[str, Any]) -> Mapping[str, Any] | None:
    """Takes the JSON schema out of a request, in any of the forms in which this package sends it."""
    shape = given.pop("response_format", None)
    text = given.get("text")
    config = given.get("output_config")
    if shape is None and isinstance(text, Mapping):  # the Responses API
        shape = text.get("format")
        given |= {name: value for name, value in text.items() if name != "format"}
        del given["text"]
    if shape is None and isinstance(config, Mapping):  # Anthropic
        shape = config.get("format")
        given |= {name: value for name, value in config.items() if name != "format"}
        del given["output_config"]
    forced = given.get("tool_choice")
    tools = given.get("tools")
    if isinstance(forced, Mapping) and forced.get("name") == "answer" and isinstance(tools, list) and len(tools) == 1:
        del given["tool_choice"], given["tools"]
        return dict(tools[0].get("input_schema") or {})
    if not isinstance(shape, Mapping) or shape.get("type") == "text":
        return None
    if shape.get("type") == "json_object":
        return {"type": "object"}
    inner = shape.get("json_schema", shape)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    return schema if isinstance(schema, Mapping) else dict(shape)


def canonical_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the form of a schema that is the same before and after a provider's translation of it."""
    whole = object_schema(schema)[0]
    return strict_schema(whole) or whole


def sampling_options(
    sampling: Sampling, seed: int | None, default_new_tokens: int | None, tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the options of a request of this package in the form of `options_of`."""
    return options_of(
        {
            "max_tokens": sampling.max_new_tokens or default_new_tokens,
            "temperature": 0.0 if sampling.deterministic else sampling.temperature,
            "top_p": None if sampling.deterministic else sampling.top_p,
            "n": sampling.n,
            "seed": seed,
            "stop": list(sampling.stop) or None,
            "logit_bias": sampling.logit_bias or None,
            "top_logprobs": sampling.top_logprobs,
            "repetition_penalty": sampling.repetition_penalty,
            "tools": list(tools) or None,
            "tool_choice": sampling.tool_choice if tools else None,
            "response_format": None if sampling.schema is None else {"type": "json_schema", "schema": sampling.schema},
            **sampling.extra,
        }
    )


def plain_messages(messages: object, system: object = None) -> list[dict[str, Any]]:
    """Returns chat messages in one form: a text where there is one text part, and only what decides an answer.

    Raises:
        ValueError: They are no messages.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) and "messages" in messages:
        messages = messages["messages"]
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError("the messages are not a list of objects")
    found = [] if not system else [{"role": "system", "content": _content(system)}]
    for message in turns(messages):
        role = str(message.get("role", "user"))
        plain = {"role": "system" if role == "developer" else role}
        plain["content"] = _content(message["parts"] if "parts" in message else message.get("content"))
        more = ("tool_calls", "tool_call_id", *(("name",) if role != "tool" else ()))
        found.append(plain | {name: message[name] for name in more if message.get(name)})
    return found


def _content(content: Any) -> Any:
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return content
    # OpenTelemetry has the text of a part as its content.
    parts = [
        {"type": "text", "text": part.get("text", part.get("content"))}
        if isinstance(part, Mapping) and part.get("type", "text") in ("text", "input_text", "output_text")
        else {name: value for name, value in part.items() if name != "cache_control"}
        if isinstance(part, Mapping)
        else part
        for part in content
    ]
    if len(parts) == 1 and isinstance(parts[0], dict) and isinstance(parts[0].get("text"), str):
        return parts[0]["text"]
    return parts


def logprobs_of(choices: Sequence[Mapping[str, Any]]) -> list[list[TokenLogprob]] | None:
    """Returns the log-probabilities in OpenAI's choices; None where one has none."""
    found = [(choice.get("logprobs") or {}).get("content") for choice in choices]
    if any(tokens is None for tokens in found):
        return None
    return [
        [
            TokenLogprob(
                each["token"],
                each["logprob"],
                tuple((top["token"], top["logprob"]) for top in each.get("top_logprobs") or ()),
            )
            for each in tokens
        ]
        for tokens in found
        if tokens is not None
    ]


_KEY_IN_TEXT = re.compile(r"(?i)\b(bearer\s+\S+|(?:sk|pk|rk|xai|gsk|key|hf)[-_][\w*.-]{6,}|AIza[\w-]{10,})")


def failed(error: object, what: str = "the call failed") -> Answer:
    """Returns the answer of a logged call that failed, with what the log says, without keys in it."""
    while isinstance(error, Mapping):
        error = error.get("message") or error.get("error") or error.get("type") or json.dumps(error)
    said = _KEY_IN_TEXT.sub("***", str(error or what))
    return Answer((), error=ModelError(f"The log says: {said[:2000]}"))


def time_of(value: object) -> str | None:
    """Returns a time as ISO 8601 in UTC: from seconds since 1970, or a text in ISO 8601."""
    seconds = seconds_of(value)
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def seconds_of(value: object) -> float | None:
    """Returns a time as seconds since 1970: from seconds, milli- or nanoseconds, or a text in ISO 8601."""
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    while number > 1e11:  # beyond the year 5000: a smaller unit
        number /= 1_000
    return number if number > 0 else None


def between(start: object, end: object) -> float | None:
    """Returns the seconds between two times; None where one is missing."""
    first, last = seconds_of(start), seconds_of(end)
    return None if first is None or last is None else round(max(0.0, last - first), 6)


def count_of(*values: object) -> int:
    """Returns the first of several numbers of tokens that is one."""
    counts: Iterator[int] = (int(value) for value in values if isinstance(value, int | float) and value >= 0)
    return next(counts, 0)
