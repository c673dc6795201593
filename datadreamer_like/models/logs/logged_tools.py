"""Tools, calls and results in logged requests and answers, in one form for all APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..llms.thoughts import CHAT_FIELDS, chat_thoughts
from ..llms.tool_calls import openai_calls, tool_call
from ..llms.tools import ToolCall

Message = Mapping[str, Any]

_THOUGHTS = ("thinking", "redacted_thinking")
# What Anthropic and OpenTelemetry call the parts of a message that are calls, and results.
_CALLS = ("tool_use", "tool_call")
_RESULTS = ("tool_result", "tool_call_response")
_CHOICES = {"any": "required", "REQUIRED": "required", "NONE": "none"}


def canonical_tools(tools: Sequence[Any]) -> list[Any]:
    """Returns tools in neutral form; a provider's built-in ones as they are."""
    found = []
    for tool in tools:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        is_function = (
            isinstance(inner, Mapping) and "name" in inner and tool.get("type", "function") in ("function", "custom")
        )
        if not is_function:
            found.append(tool)
            continue
        parameters = inner.get("parameters", inner.get("input_schema")) or {"type": "object", "properties": {}}
        plain = {"name": inner["name"], "description": inner.get("description") or "", "parameters": parameters}
        found.append(plain | ({"strict": True} if inner.get("strict") else {}))
    return found


def canonical_choice(choice: object) -> object:
    """Returns `tool_choice` in neutral form; None for the default."""
    if isinstance(choice, Mapping):
        named = choice.get("name") or (choice.get("function") or {}).get("name")
        choice = named if named is not None else choice.get("type")
    choice = _CHOICES.get(str(choice), choice)
    return None if choice == "auto" else choice


def calls_in(message: Message) -> tuple[ToolCall, ...]:
    """Returns the calls of a message, in any of the forms that logs have."""
    if message.get("type") == "function_call":
        return (tool_call(message.get("call_id"), message.get("name"), message.get("arguments")),)
    parts = message.get("parts") or message.get("content")
    uses = [part for part in parts if _kind(part) in _CALLS] if isinstance(parts, list) else []
    found = [
        tool_call(use.get("id"), use.get("name"), use.get("input", use.get("arguments")), index)
        for index, use in enumerate(uses)
    ]
    given = message.get("tool_calls")
    if isinstance(given, list) and given and all(isinstance(call, Mapping) for call in given):
        neutral = [call if call.get("function") else {"id": call.get("id"), "function": call} for call in given]
        found += openai_calls({"tool_calls": neutral})
    return tuple(found)


def answer_calls(message: Message) -> Sequence[ToolCall]:
    """Returns the calls of an answer in one of OpenAI's choices, with the thoughts that its provider wants back."""
    calls, given = calls_in(message), message.get("tool_calls")
    if not isinstance(given, list) or len(given) != len(calls):
        return calls  # in another form
    return with_thoughts(calls, chat_thoughts(message, CHAT_FIELDS))


def with_thoughts(calls: Sequence[ToolCall], thoughts: Sequence[str | None]) -> list[ToolCall]:
    """Returns calls with the thoughts that their provider wants back with each."""
    return [
        call if thought is None else {**call, "thought": thought} for call, thought in zip(calls, thoughts, strict=True)
    ]


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns messages with `tool_calls` in one form, and each result of a call as a message of the role "tool".

    Thoughts next to calls are left out: the calls and results tell conversations apart.
    """
    found: list[dict[str, Any]] = []
    for message in messages:
        calls = calls_in(message)
        plain = {name: value for name, value in message.items() if name != "tool_calls"}
        name = "parts" if "parts" in message else "content"
        parts = message.get(name)
        results = [part for part in parts if _kind(part) in _RESULTS] if isinstance(parts, list) else []
        if isinstance(parts, list) and (calls or results):
            left_out = (*_CALLS, *_RESULTS, *_THOUGHTS)
            plain[name] = [part for part in parts if _kind(part) not in left_out]
        if message.get("type") == "function_call_output":
            found.append(_result(message.get("call_id"), message.get("output")))
        elif message.get("type") == "function_call" and found and found[-1].get("role") == "assistant":
            found[-1]["tool_calls"] = [*found[-1].get("tool_calls", ()), *calls]
        elif calls:
            plain = {"role": "assistant", name: plain.get(name) or None, "tool_calls": list(calls)}
            found.append(plain)
        elif message.get("role") == "tool" and not results:
            found.append(_result(message.get("tool_call_id"), message.get("content")))
        else:
            found += [_result(_id_of(part), _response_of(part)) for part in results]
            if not results or plain[name]:
                found.append(plain)
    return found


def _result(call: object, content: object) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content}


def _id_of(part: Message) -> object:
    return part.get("tool_use_id", part.get("id"))


def _response_of(part: Message) -> object:
    return next((part[name] for name in ("content", "response", "result") if name in part), None)


def _kind(part: object) -> object:
    return part.get("type") if isinstance(part, Mapping) else None
