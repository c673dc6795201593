"""Models of OpenAI through its Responses API, and what is left of assistants on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datadreamer_like.errors import DefinitionError, MalformedAnswer

from ..calls.batch_api import BatchAPI
from .answer_text import AnswerText, answer_of, answer_text
from .endpoint import Quirks, shown_address
from .generation import Answer, Request, Sampling, TokenLogprob
from .openai import OpenAI
from .openai_batches import ResponsesBatches
from .prices import Usage, counted, token_count
from .provider_errors import ErrorInAnswer
from .schema import openai_response_format
from .thoughts import RESPONSES
from .tool_calls import tool_call
from .tool_messages import responses_items, responses_tools
from .tools import kind_of

_REFUSES = {
    "logit_bias": "Use OpenAI, which calls chat completions.",
    "repetition_penalty": "Leave it out.",
    "stop": "Use OpenAI, or cut the answers in parse=...",
}
_INCOMPLETE = {"max_output_tokens": "length"}
# Names of parts of a user's message in this API, by those of chat completions.
_PARTS = {"text": "input_text", "image_url": "input_image", "file": "input_file"}


class OpenAIResponses(OpenAI):
    """A model on OpenAI's Responses API, with its built-in tools and the summaries of its reasoning.

    Nothing is stored at OpenAI. Reasoning is in `Answer.reasoning`, apart from the text, if
    `reasoning={"effort": "low", "summary": "auto"}` asks for its summary. `n` answers take `n` requests; there are no
    stop texts, seeds, `repetition_penalty` or `logit_bias`.

    Args:
        tools: Built-in tools that OpenAI runs, such as `[{"type": "web_search"}]`. Functions that the model may call
            are an option of `run`, as for all models.
        model_name, system_prompt, organization, api_key, base_url, api_version, **kwargs: See `OpenAI`.

    Example:
        >>> llm = OpenAIResponses("gpt-5-mini", tools=[{"type": "web_search"}])                  # doctest: +SKIP
        >>> llm.run(["Who won?"], reasoning={"effort": "low"})                                  # doctest: +SKIP
        ['...']
    """

    endpoint = dataclasses.replace(
        OpenAI.endpoint,
        quirks=Quirks(
            limit_name="max_output_tokens", seed_name=None, takes_n=False, cached_prefix=1_024, refuses=_REFUSES
        ),
    )
    extra_options = OpenAI.extra_options - {"response_format", "presence_penalty", "frequency_penalty"} | {
        "reasoning", "prompt", "max_tool_calls", "include",
    }  # fmt: skip

    tools: Sequence[Mapping[str, Any]] = ()

    def __init__(
        self,
        model_name: Any,
        system_prompt: str | None = None,
        organization: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name,
            system_prompt,
            organization,
            api_key,
            base_url,
            api_version,
            retry_on_fail,
            cache_folder_path,
            **kwargs,
        )
        functions = [tool for tool in tools or () if tool.get("type") in ("function", "custom")]
        if functions:
            raise DefinitionError(
                f"{type(self).__name__}(tools=...) takes tools that OpenAI runs, not {functions[0]['type']!r}. "
                "Give functions to each call, as in llm.answers(prompts, tools=[...])."
            )
        self.tools = tuple(tools or ())

    @property
    def quirks(self) -> Quirks:
        """The API's own, at any address."""
        return self.endpoint.quirks

    def identity(self) -> dict[str, Any]:
        """Returns what `OpenAI` does, and the tools."""
        return {**super().identity(), "tools": [dict(tool) for tool in self.tools]}

    async def answer(self, request: Request) -> Answer:
        """Sends `n` requests, one after the other."""
        found = self._received.of(request)
        while len(found) < request.sampling.n:
            found.append(await self.request(lambda: self.parameters(request, 1, None)))
        self._received.done(request)
        return self.answer_from(found, request.sampling)

    def batch_api(self) -> BatchAPI | None:
        """Returns OpenAI's batches of responses."""
        return None if self.is_azure else ResponsesBatches(self)

    def answer_from(self, found: Sequence[Any], sampling: Sampling) -> Answer:
        """Returns the answer whose texts are in responses."""
        shaped = sampling.schema is not None
        try:
            texts = [_text(response, shaped) for response in found]
            logprobs = [_logprobs(response) for response in found] if sampling.top_logprobs is not None else None
            tiers = {sampling.extra.get("service_tier"), *(getattr(each, "service_tier", None) for each in found)}
            prices = self.prices if tiers <= {None, "auto", "default"} and not self.tools else None
            tokens = counted([_usage(response.usage) for response in found], prices)
        except (AttributeError, TypeError, ValueError) as error:
            raise MalformedAnswer(
                f"{shown_address(self.base_url)} sent an answer that cannot be read: {error}."
            ) from error
        reasons = [_finish_reason(response) for response in found]
        return self.without_secrets(answer_of(texts, finish_reasons=reasons, logprobs=logprobs, **tokens))

    async def send(self, client: Any, parameters: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Sends one request; a response that failed is an error."""
        reply = await client.responses.with_raw_response.create(**parameters)
        response = reply.parse()
        said = getattr(response, "error", None)
        if said is not None or getattr(response, "output", None) is None:
            fields = getattr(said, "to_dict", None)
            lacks = f"it has no output: {response!r:.100}"
            raise ErrorInAnswer(said if fields is None else fields(), lacks)
        return response, reply.headers

    def parameters(self, request: Request, n: int, seed: int | None) -> dict[str, Any]:
        """Returns the parameters of a request for one answer; there are no seeds."""
        sampling, extra = request.sampling, dict(request.sampling.extra)
        text: dict[str, Any] = {}
        if sampling.schema is not None:
            shape = openai_response_format(sampling.schema)
            text["format"] = {"type": shape["type"], **shape.get("json_schema", {})}
        if "verbosity" in extra:
            text["verbosity"] = extra.pop("verbosity")
        if "reasoning_effort" in extra:
            extra["reasoning"] = {"effort": extra.pop("reasoning_effort"), **extra.get("reasoning", {})}
        if sampling.top_logprobs is not None:
            extra["include"] = [*extra.get("include", ()), "message.output_text.logprobs"]
        parameters = {
            "model": self.model_name,
            "input": [item for message in request.messages(self.system_prompt) for item in _items(message)],
            "store": False,
            "temperature": 0.0 if sampling.deterministic else sampling.temperature,
            "top_p": None if sampling.deterministic or sampling.top_p == 1.0 else sampling.top_p,
            "max_output_tokens": sampling.max_new_tokens,
            "top_logprobs": sampling.top_logprobs,
            "text": text or None,
            "tools": [*map(dict, self.tools), *responses_tools(request.tools)] or None,
            **extra,
        }
        if request.tools and (choice := sampling.tool_choice) is not None:
            parameters["tool_choice"] = {"type": "function", "name": choice} if kind_of(choice) == "name" else choice
        return self.not_refused(parameters)


class OpenAIAssistant(OpenAIResponses):
    """What was an assistant of OpenAI: instructions and tools, on the Responses API.

    OpenAI shut the Assistants API down on 26 August 2026. This class takes the same arguments and answers through the
    Responses API: the system prompt is the assistant's instructions, and each prompt is a conversation of its own. An
    assistant that was turned into a stored prompt is named by `run(..., prompt={"id": "pmpt_..."})`, which OpenAI
    serves until 30 November 2026; move its text into `system_prompt`.

    Args:
        tools: Built-in tools. Those of the old API are translated: `{"type": "code_interpreter"}` gets a container of
            its own, and `{"type": "file_search"}` needs `vector_store_ids`.
        model_name, system_prompt, organization, api_key, base_url, api_version, **kwargs: See `OpenAI`.
    """

    def __init__(
        self,
        model_name: str,
        system_prompt: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        organization: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        translated: list[dict[str, Any]] = []
        for tool in tools or []:
            kind = {"retrieval": "file_search"}.get(str(tool.get("type")), tool.get("type"))
            if kind == "file_search" and not tool.get("vector_store_ids"):
                raise DefinitionError(
                    'The tool "file_search" needs vector_store_ids: the Responses API has no files of an assistant. '
                    "Put the files into a vector store, and name it."
                )
            own = {"container": {"type": "auto"}} if kind == "code_interpreter" else {}
            translated.append({**own, **tool, "type": kind})
        super().__init__(
            model_name,
            system_prompt,
            organization,
            api_key,
            base_url,
            api_version,
            retry_on_fail,
            cache_folder_path,
            tools=translated,
            **kwargs,
        )

    @property
    def assistant_id(self) -> None:
        """None: there are no assistants any more."""
        return None


def _items(message: dict[str, Any]) -> list[dict[str, Any]]:
    called = responses_items(message)
    if called is None:
        return [_item(message)]
    return [_item(each) if "role" in each else {**each, **_parts("output", each)} for each in called]


def _item(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in message.items() if value is not None}, **_parts("content", message)}


def _parts(field: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a field of a message that has parts; nothing if it has none."""
    content = message.get(field)
    if not isinstance(content, list):
        return {}
    parts = []
    for part in content:
        kind = part.get("type")
        if message.get("role") == "assistant" and kind == "text":
            parts.append({"type": "output_text", "text": part["text"]})
        elif kind == "image_url":
            image = part["image_url"]
            address = {"image_url": image} if isinstance(image, str) else {**image, "image_url": image["url"]}
            address.pop("url", None)
            parts.append({"type": "input_image", "detail": "auto", **address})
        else:
            parts.append({**part, "type": _PARTS.get(kind, kind)})
    return {field: parts}


def _finish_reason(response: Any) -> str | None:
    if response.status == "incomplete":
        reason = getattr(response.incomplete_details, "reason", None)
        return str(_INCOMPLETE.get(str(reason), reason or response.status))
    return "stop" if response.status == "completed" else response.status


def _text(response: Any, shaped: bool) -> AnswerText:
    parts = [part for item in response.output if item.type == "message" for part in item.content]
    thoughts = [
        part.text
        for item in response.output
        if item.type == "reasoning"
        for part in (getattr(item, "content", None) or item.summary or ())
    ]
    called = [item for item in response.output if item.type == "function_call"]
    items = [item.to_dict() for item in response.output] if called else []
    kept = RESPONSES.thoughts(items, lambda item: item["type"] == "function_call")
    calls = [
        tool_call(each.call_id, each.name, each.arguments, thought=thought)
        for each, thought in zip(called, kept, strict=True)
    ]
    reasoning = "\n\n".join(thoughts) or None
    return answer_text(parts or None, _finish_reason(response), reasoning=reasoning, shaped=shaped, calls=calls)


def _logprobs(response: Any) -> list[TokenLogprob]:
    return [
        TokenLogprob(each.token, each.logprob, tuple((top.token, top.logprob) for top in each.top_logprobs or ()))
        for item in response.output
        if item.type == "message"
        for part in item.content
        for each in getattr(part, "logprobs", None) or ()
    ]


def _usage(usage: Any) -> Usage:
    details = getattr(usage, "input_tokens_details", None)
    return Usage(
        token_count(usage, "input_tokens"),
        token_count(usage, "output_tokens"),
        token_count(details, "cached_tokens") or 0,
        token_count(details, "cache_write_tokens") or 0,
    )
