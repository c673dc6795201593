"""Calls in the providers' own words: the bodies of requests and responses of OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..llms.answer_text import AnswerText, answer_of, answer_text
from ..llms.generation import Answer
from ..llms.prices import Usage, cost_of, known_prices
from ..llms.thoughts import ANTHROPIC, RESPONSES
from .logged_call import LoggedCall, count_of, failed, logprobs_of, options_of, plain_messages, time_of
from .logged_tools import answer_calls, calls_in, with_thoughts
from .streamed import chunks_in, joined

Body = Mapping[str, Any]

_FINISH_REASONS = {
    "end_turn": "stop", "stop_sequence": "stop", "tool_use": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length", "refusal": "content_filter", "max_output_tokens": "length",
    "completed": "stop",
}  # fmt: skip
_STANDARD_TIERS = {None, "auto", "default", "standard", "standard_only"}


def call_of(request: Body, response: object, error: object = None, *, priced: bool = True) -> LoggedCall:
    """Returns the call of a request's body and its response's, which may be a failure.

    `priced` is whether it was paid at the published price: not that of a batch.

    Raises:
        ValueError: One of them is no body of these APIs.
    """
    body: Body = response if isinstance(response, Mapping) else {}
    if error is None:
        error = body.get("error")
    of_anthropic = body.get("type") == "message" or ("anthropic_version" in request or _is_anthropic(request, body))
    asked = request.get("messages", request.get("input", request.get("prompt")))
    if asked is None:
        raise ValueError("the request has no messages")
    options = options_of(request)
    if asked is request.get("prompt"):
        options["text_completion"] = True  # what follows a text is no answer of a chat
    reader = _anthropic_answer if of_anthropic else responses_answer if "output" in body else _chat_answer
    if error or not any(name in body for name in ("choices", "content", "output")):
        answer = failed(error, "there is no response")
    else:
        answer = reader(body, options)
    model = request.get("model") or body.get("model")
    if priced and answer.error is None:
        answer.cost = _cost(of_anthropic, model, answer, body)
    return LoggedCall(
        "Anthropic" if of_anthropic else "OpenAI",
        model if isinstance(model, str) else None,
        plain_messages(asked, request.get("system") or request.get("instructions")),
        options,
        answer,
        time_of(body.get("created", body.get("created_at"))),
    )


def _is_anthropic(request: Body, response: Body) -> bool:
    return "system" in request or "stop_sequences" in request or response.get("type") == "error"


def chat_answer(choices: Sequence[Body], usage: Body, options: Mapping[str, Any]) -> Answer:
    """Returns the answer in OpenAI's choices, each with a `message`, or in those of a completion, with a `text`."""
    shaped = "schema" in options
    texts, reasons = [], []
    for choice in choices:
        message = choice.get("message") or {"content": choice.get("text")}
        reason = choice.get("finish_reason")
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        texts.append(
            answer_text(
                message.get("content"),
                reason,
                refusal=message.get("refusal"),
                reasoning=thoughts if isinstance(thoughts, str) else None,
                shaped=shaped,
                calls=answer_calls(message),
            )
        )
        reasons.append(reason)
    return _answer(texts, reasons, usage, logprobs_of(choices) if "top_logprobs" in options else None)


def _answer(texts: list[AnswerText], reasons: list[str | None], usage: Body, logprobs: Any = None) -> Answer:
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = count_of(usage.get("cache_read_input_tokens"), details.get("cached_tokens"))
    prompt = count_of(usage.get("prompt_tokens"), usage.get("input_tokens"))
    if "cache_read_input_tokens" in usage:  # Anthropic counts them apart
        prompt += cached + count_of(usage.get("cache_creation_input_tokens"))
    return answer_of(
        texts,
        finish_reasons=reasons,
        logprobs=logprobs,
        prompt_tokens=prompt,
        completion_tokens=count_of(usage.get("completion_tokens"), usage.get("output_tokens")),
        cached_tokens=cached,
    )


def _chat_answer(body: Body, options: Mapping[str, Any]) -> Answer:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, Mapping) for choice in choices):
        return failed("the response has no choices")
    return chat_answer(choices, body.get("usage") or {}, options)


def responses_answer(body: Body, options: Mapping[str, Any]) -> Answer:
    """Returns the answer in a response of the Responses API, whose `output` is a list of items."""
    items = [item for item in body["output"] if isinstance(item, Mapping)]
    parts = [part for item in items if item.get("type") == "message" for part in item.get("content") or ()]
    thoughts = [
        str(part.get("text"))
        for item in items
        if item.get("type") == "reasoning"
        for part in item.get("content") or item.get("summary") or ()
    ]
    status = body.get("status") or "completed"
    if status == "incomplete":
        status = (body.get("incomplete_details") or {}).get("reason") or status
    elif status != "completed":
        return failed(f"the response is {status}")
    reason = _FINISH_REASONS.get(str(status), status)
    reasoning = "\n\n".join(thoughts) or None
    calls = [call for item in items if _is_call(item) for call in calls_in(item)]
    calls = with_thoughts(calls, RESPONSES.thoughts(items, _is_call))
    text = answer_text(parts or None, reason, reasoning=reasoning, shaped="schema" in options, calls=calls)
    return _answer([text], [reason], body.get("usage") or {})


def _is_call(item: Body) -> bool:
    return item.get("type") == "function_call"


def _anthropic_answer(body: Body, options: Mapping[str, Any]) -> Answer:
    parts = [part for part in body["content"] if isinstance(part, Mapping)]
    reason = _FINISH_REASONS.get(str(body.get("stop_reason")), body.get("stop_reason"))
    tools = [part for part in parts if part.get("type") == "tool_use"]
    if "schema" in options and tools:
        # A schema is asked for as a forced call of a tool, whose input is the answer.
        given = {"type": "text", "text": json.dumps(tools[0].get("input"), ensure_ascii=False)}
        parts, tools = [part for part in parts if part.get("type") == "thinking"] + [given], []
    thoughts = ANTHROPIC.thoughts(parts, lambda part: part.get("type") == "tool_use") if tools else []
    calls = with_thoughts(calls_in({"content": tools}), thoughts)
    text = answer_text(parts or "", reason, shaped="schema" in options, calls=calls)
    return _answer([text], [reason], body.get("usage") or {})


def _cost(of_anthropic: bool, model: object, answer: Answer, body: Body) -> float | None:
    usage = body.get("usage") or {}
    reported = usage.get("cost")
    if isinstance(reported, int | float) and not isinstance(reported, bool):
        return float(reported)
    prices = known_prices("anthropic" if of_anthropic else "openai", str(model))
    if (
        prices is None
        or not answer.prompt_tokens
        or {body.get("service_tier"), usage.get("service_tier")} - {*_STANDARD_TIERS}
    ):
        return None
    written = count_of(usage.get("cache_creation_input_tokens"))
    hour = count_of((usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens"))
    spent = Usage(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens, written - hour, hour)
    return cost_of(spent, prices)


def body_in(value: object) -> tuple[Body | None, int | None]:
    """Returns the body in a logged request or response, and its HTTP status: the value itself, as JSON, or its `body`.

    The chunks of a stream are joined, as a list or as server-sent events. Headers are not looked at.
    """
    if isinstance(value, str):
        try:
            chunks = chunks_in(value)
            value = json.loads(value) if chunks is None else chunks
        except (ValueError, RecursionError):
            return None, None
    if isinstance(value, list):
        return joined(value), None
    if not isinstance(value, Mapping):
        return None, None
    inner = value.get("body", value.get("json"))
    if inner is None or "messages" in value or "choices" in value:
        return value, None
    status = value.get("status_code", value.get("status"))
    return body_in(inner)[0], status if isinstance(status, int) else None
