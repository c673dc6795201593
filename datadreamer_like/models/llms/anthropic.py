"""Anthropic's models, through Anthropic's SDK."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from datadreamer_like.errors import DefinitionError, MalformedAnswer

from ..calls.batch_api import BatchAPI
from ..calls.budget import Ask
from ..calls.shared_prefix import SharedPrefixes
from .answer_text import AnswerText, answer_of, answer_text
from .anthropic_batches import AnthropicBatches, reply_error
from .api_model import APIModel
from .endpoint import Endpoint, Quirks, shown_address
from .generation import Answer, GenerationOptions, Prompt, Request, Sampling
from .image_parts import anthropic_message
from .prices import Usage, counted, token_count
from .provider_errors import ErrorInAnswer
from .received import Received
from .schema import ANSWER_FIELD, object_schema, strict_schema
from .thoughts import ANTHROPIC
from .tool_calls import tool_call
from .tool_messages import anthropic_choice, anthropic_messages
from .tools import kind_of

if TYPE_CHECKING:
    from anthropic.types import Message

logger = logging.getLogger("datadreamer_like")

SAMPLING_MODELS = {
    "claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-opus-4-5", "claude-opus-4-5-20251101", "claude-opus-4-6",
    "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "claude-sonnet-4-6",
}  # fmt: skip
"""Models that accept `temperature` or `top_p`; newer ones refuse both."""

FORCED_TOOL_MODELS = SAMPLING_MODELS | {"claude-opus-4-7", "claude-opus-4-8", "claude-opus-5", "claude-sonnet-5"}
"""Models that accept a forced tool choice; newer ones refuse it and have structured outputs instead."""

_FINISH_REASONS = {
    "end_turn": "stop", "stop_sequence": "stop", "tool_use": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length", "refusal": "content_filter",
}  # fmt: skip
# The API requires a limit. Reasoning counts as new tokens.
_DEFAULT_NEW_TOKENS = 16_384
_TOOL = "answer"
_STANDARD = {None, "standard", "auto", "standard_only"}


class AnthropicOptions(GenerationOptions, total=False):
    """Options of Anthropic's API in addition to the common ones."""

    thinking: Mapping[str, Any]
    effort: str
    cache_control: Mapping[str, Any]
    service_tier: str
    metadata: Mapping[str, Any]
    extra_body: Mapping[str, Any]


class Anthropic(APIModel):
    """A Claude model on Anthropic's API; see `APIModel` for the arguments.

    Messages with the role "system" become the system prompt. `n` answers take `n` requests. Schemas use a forced tool
    call, or structured outputs for models that refuse one. A long system prompt that prompts share is cached by the
    provider, and sent with two of them before the rest. Reasoning is in `Answer.reasoning`. When the response
    headers report an exhausted rate limit, requests wait until it is renewed.

    Newer models support neither `temperature` nor `top_p`, which are left out with a warning; older ones accept only
    one of the two. Log-probabilities, `logit_bias` and `repetition_penalty` are not supported; `seed` has no effect.

    `ANTHROPIC_API_KEY` is sent to Anthropic's servers and to the address in `ANTHROPIC_BASE_URL`.

    Example:
        >>> llm = Anthropic("claude-haiku-5-5", system_prompt="Answer in one word.")    # doctest: +SKIP
        >>> llm.run(["The capital of France?"])                                        # doctest: +SKIP
        ['Paris']
    """

    endpoint = Endpoint(
        "Anthropic",
        base_url="https://api.anthropic.com",
        key_variable="ANTHROPIC_API_KEY",
        url_variable="ANTHROPIC_BASE_URL",
        quirks=Quirks(
            seed_name=None,
            takes_n=False,
            cached_prefix=4_096,  # of some models 1,024
            refuses=dict.fromkeys(("logit_bias", "top_logprobs", "repetition_penalty"), "Leave it out."),
        ),
        # The smallest among the models that are still served.
        context_length=200_000,
        model_card="https://platform.claude.com/docs/en/about-claude/models/overview",
        license="https://www.anthropic.com/legal/commercial-terms",
    )
    sdk = "Anthropic"
    default_new_tokens = _DEFAULT_NEW_TOKENS
    extra_options = frozenset(AnthropicOptions.__annotations__) - frozenset(GenerationOptions.__annotations__)

    _warned = False

    if TYPE_CHECKING:

        def run(self, prompts: Iterable[Prompt], **options: Unpack[AnthropicOptions]) -> Any:
            """See `LLM.run`."""

    @cached_property
    def _received(self) -> Received:
        return Received()

    @cached_property
    def _refused(self) -> set[str]:
        return set() if self.model_name in SAMPLING_MODELS else {"temperature", "top_p"}

    @property
    def unsupported_options(self) -> frozenset[str]:
        """Options that the model does not support, so that no request has them."""
        return frozenset(self._refused)

    @cached_property
    def _forces_tools(self) -> bool:
        return self.model_name in FORCED_TOOL_MODELS

    def find_key(self) -> str | None:
        """Returns the key to send, or None if the SDK's client has other credentials."""
        others = {"auth_token", "credentials", "config", "profile"} & self.kwargs.keys()
        return None if others else super().find_key()

    def check(self, sampling: Sampling) -> None:
        """Refuses options that the API or this model does not support."""
        super().check(sampling)
        if any(not text.strip() for text in sampling.stop):
            raise DefinitionError("Anthropic's API does not accept stop texts that are only white space.")
        if self._refused >= {"temperature", "top_p"} and not self._warned:
            self._warned = True
            logger.warning("%s supports neither temperature nor top_p: they are left out.", self.display_name)
        elif not sampling.deterministic and sampling.temperature > 1 and "temperature" not in self._refused:
            raise DefinitionError(f"temperature cannot be {sampling.temperature} here; Anthropic's API takes 0 to 1.")
        elif not sampling.deterministic and sampling.top_p < 1 and sampling.temperature != 1 and not self._refused:
            raise DefinitionError(
                f"{self.display_name} takes temperature or top_p, not both. Set top_p=1.0 or temperature=1.0."
            )
        forced = kind_of(sampling.tool_choice) in ("required", "name")
        if forced and (not self._forces_tools or "thinking" in sampling.extra):
            raise DefinitionError(
                f'{self.display_name} does not let a tool be forced, nor does any model with "thinking": tool_choice '
                'may be "auto" or "none". Ask for the call in the prompt.'
            )
        if sampling.schema is not None and not (self._forces_tools and "thinking" not in sampling.extra):
            self._output_format(sampling.schema)

    def sharing_prefixes(self, ask: Ask) -> Ask:
        """Holds requests back until the second one with their long system prompt is answered.

        From that one on, the system prompt is marked to be cached: writing it costs a quarter more than sending it,
        reading it a tenth.
        """

        def system(request: Any) -> str | None:
            if not isinstance(request, Request) or request.sampling.extra.get("cache_control") is not None:
                return None
            found = _split(request.messages(self.system_prompt))[0]
            return found if isinstance(found, str) else None

        least = self.quirks.cached_prefix
        return ask if least is None else SharedPrefixes(ask, system, least, 2, self._cached_systems.add)

    @cached_property
    def _cached_systems(self) -> set[str]:
        return set()

    def batch_api(self) -> BatchAPI:
        """Returns Anthropic's message batches."""
        return AnthropicBatches(self)

    async def answer(self, request: Request) -> Answer:
        """Sends `n` requests one after the other, so that the later ones use the provider's prompt cache."""
        messages: list[Message] = self._received.of(request)
        while len(messages) < request.sampling.n:
            messages.append(await self.request(lambda: self.parameters(request)))
        self._received.done(request)
        return self.answer_from(messages, request.sampling)

    def answer_from(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """Returns the answer whose texts are in messages."""
        try:
            texts = [self._text(message, sampling.schema) for message in messages]
            usages = [message.usage for message in messages]
            tiers = [sampling.extra.get("service_tier"), *(getattr(usage, "service_tier", None) for usage in usages)]
            standard = _STANDARD | {"batch"} if self.batch else _STANDARD
            usual = standard.issuperset([*tiers, *(getattr(usage, "speed", None) for usage in usages)])
            tokens = counted([_usage(usage) for usage in usages], self.prices if usual else None)
            reasons = [_finish_reason(message) for message in messages]
            return self.without_secrets(answer_of(texts, finish_reasons=reasons, **tokens))
        except (AttributeError, TypeError) as error:
            address = shown_address(self.base_url)
            raise MalformedAnswer(f"{address} sent an answer that cannot be read: {error}.") from error

    async def send(self, client: Any, parameters: dict[str, Any]) -> tuple[Message, Mapping[str, str]]:
        """Sends one request; what has no content is an error, although its status is that of a success."""
        response = await client.messages.with_raw_response.create(**parameters)
        message = await response.parse()
        if getattr(message, "content", None) is None:
            said = _said(message)
            raise reply_error(said) or ErrorInAnswer(said, "it has no content")
        return message, response.headers

    def leave_out(self, name: str, unsupported: bool, sent: Mapping[str, Any]) -> bool:
        """Drops the temperature or `top_p`, or asks for structured outputs instead of a tool call."""
        if unsupported and name == "tool_choice":
            self._forces_tools = False
        elif unsupported and name in ("temperature", "top_p"):
            if name not in self._refused:
                logger.warning("%s does not support %s; it is left out.", self.display_name, name)
            self._refused.add(name)
        else:
            return False
        return True

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the maximum number of prompt tokens that leaves room for `max_new_tokens`."""
        return (self.max_context_length or self.endpoint.context_length or 0) - (max_new_tokens or 0)

    def parameters(self, request: Request) -> dict[str, Any]:
        """Returns the parameters of a request for one answer."""
        sampling = request.sampling
        extra = dict(sampling.extra)
        body: dict[str, Any] = {**self._sampling(sampling), **extra.pop("extra_body", {})}
        output: dict[str, Any] = {"effort": extra.pop("effort")} if "effort" in extra else {}
        system, messages = _split(request.messages(self.system_prompt))
        if isinstance(system, str) and system in self._cached_systems:
            system = [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]
        parameters: dict[str, Any] = {
            "model": self.model_name,
            "max_tokens": sampling.max_new_tokens or self.default_new_tokens,
            "messages": messages,
            **({"system": system} if system else {}),
            **({"stop_sequences": list(sampling.stop)} if sampling.stop else {}),
            **extra,
        }
        # Forced tool calls are not allowed with extended thinking.
        if sampling.schema is not None and self._forces_tools and "thinking" not in extra:
            wanted, _ = object_schema(sampling.schema)
            parameters["tools"] = [{"name": _TOOL, "description": "Give the answer.", "input_schema": wanted}]
            parameters["tool_choice"] = {"type": "tool", "name": _TOOL}
        elif sampling.schema is not None:
            output["format"] = self._output_format(sampling.schema)
        elif request.tools:
            parameters["tools"] = [
                {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
                for tool in request.tools
            ]
            if (chosen := anthropic_choice(sampling.tool_choice)) is not None:
                parameters["tool_choice"] = chosen
        if output:
            parameters["output_config"] = output
        if body:
            parameters["extra_body"] = body
        return parameters

    def _sampling(self, sampling: Sampling) -> dict[str, float]:
        # The SDK has no parameters for these any more, and extended thinking allows none.
        if "thinking" in sampling.extra:
            return {}
        if sampling.deterministic:
            chosen = {"temperature": 0.0}
        elif sampling.top_p < 1:
            chosen = {"top_p": sampling.top_p}
        else:
            chosen = {"temperature": sampling.temperature}
        return {name: value for name, value in chosen.items() if name not in self._refused}

    def _output_format(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        strict = strict_schema(object_schema(schema)[0])
        if strict is None:
            raise DefinitionError(
                f"{self.display_name} cannot be constrained to this schema: structured outputs do not support some of "
                "its keywords, or objects with arbitrary properties."
            )
        return {"type": "json_schema", "schema": strict}

    def _text(self, message: Message, schema: Mapping[str, Any] | None) -> AnswerText:
        if message.stop_reason == "refusal":
            why = getattr(message.stop_details, "explanation", None) or "a safety classifier stopped it"
            return answer_text(None, "stop", refusal=why)
        from anthropic.types import TextBlock

        content: Any = message.content
        sent: list[Any] = [content] if isinstance(content, str) else list(content)
        parts: list[Any] = [TextBlock(type="text", text=part) if isinstance(part, str) else part for part in sent]
        calls = []
        if schema is None and any(part.type == "tool_use" for part in parts):
            thoughts = ANTHROPIC.thoughts(
                [part.to_dict(warnings=False) for part in parts], lambda part: part["type"] == "tool_use"
            )
            uses = [part for part in parts if part.type == "tool_use"]
            calls = [
                tool_call(use.id, use.name, use.input, thought=thought)
                for use, thought in zip(uses, thoughts, strict=True)
            ]
        if schema is not None:
            # The tool's input is the answer; text next to it is not.
            kind = "tool_use" if any(part.type == "tool_use" for part in parts) else "text"
            wrapped = object_schema(schema)[1]
            thinking = [part for part in parts if part.type == "thinking"]
            parts = thinking + [_json_part(part, wrapped) for part in parts if part.type == kind]
        return answer_text(parts or "", _finish_reason(message), shaped=schema is not None, calls=calls)


def _said(reply: Any) -> object:
    """Returns the error that a reply holds: an object of the API, an event of a stream, or a page."""
    if isinstance(reply, str):
        data = [line.removeprefix("data:") for line in reply.splitlines() if line.startswith("data:")]
        with suppress(ValueError):
            reply = json.loads(data[0] if data else reply)
    fields = reply.to_dict() if hasattr(reply, "to_dict") else reply
    return fields.get("error") if isinstance(fields, Mapping) else fields


def _finish_reason(message: Message) -> str | None:
    return _FINISH_REASONS.get(str(message.stop_reason), message.stop_reason)


def _split(messages: list[dict[str, Any]]) -> tuple[str | list[Any], list[dict[str, Any]]]:
    """Returns the system prompt and the other messages."""
    system = [message["content"] for message in messages if message.get("role") in ("system", "developer")]
    others = [each for each in messages if each.get("role") not in ("system", "developer")]
    rest = [anthropic_message(each) for each in anthropic_messages(others)]
    if all(isinstance(content, str) for content in system):
        return "\n\n".join(system), rest
    blocks = [[{"type": "text", "text": content}] if isinstance(content, str) else content for content in system]
    return list(itertools.chain(*blocks)), rest


def _json_part(part: Any, wrapped: bool) -> Any:
    """Returns a tool's input, or a structured output whose answer is `wrapped` in an object, as a text part."""
    if part.type == "text" and not wrapped:
        return part
    try:
        value = part.input if part.type == "tool_use" else json.loads(part.text)
    except ValueError:
        return part
    if wrapped and isinstance(value, dict):
        value = value.get(ANSWER_FIELD, value)
    return {"type": "text", "text": json.dumps(value, ensure_ascii=False)}


def _usage(usage: Any) -> Usage:
    read = token_count(usage, "cache_read_input_tokens") or 0
    written = token_count(usage, "cache_creation_input_tokens") or 0
    hour = min(written, token_count(getattr(usage, "cache_creation", None), "ephemeral_1h_input_tokens") or 0)
    prompt, completion = token_count(usage, "input_tokens"), token_count(usage, "output_tokens")
    return Usage(None if prompt is None else prompt + read + written, completion, read, written - hour, hour)
