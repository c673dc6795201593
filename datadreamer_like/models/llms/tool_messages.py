"""Calls of tools and their results in a conversation, from the neutral form to that of each API.

The neutral form is `{"role": "assistant", "content": ..., "tool_calls": [{"id", "name", "arguments"}]}` and
`{"role": "tool", "tool_call_id": ..., "content": ...}`; that of OpenAI's chat completions is understood too. A call
that has a `thought` is sent with it to the API that it comes from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from datadreamer_like.errors import BadRequest

from .image_parts import anthropic_message
from .thoughts import ANTHROPIC, CALL_FIELD, CONVERSE, MESSAGE_FIELDS, RESPONSES, thought_fields, thought_of
from .tools import Tool, ToolCall, calls_with_own_ids, kind_of

Messages = list[dict[str, Any]]


def neutral_calls(message: Mapping[str, Any]) -> list[ToolCall]:
    """Returns the calls of an assistant's message, their arguments as dictionaries.

    Raises:
        BadRequest: They are no calls.
    """
    found: list[ToolCall] = []
    for index, call in enumerate(message.get("tool_calls") or ()):
        inner = (call.get("function") or call) if isinstance(call, Mapping) else None
        arguments = None if inner is None else inner.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = without_empty(arguments)  # a column of calls fills each with the arguments of all others
        elif isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                arguments = None
        if (
            not isinstance(inner, Mapping)
            or not isinstance(inner.get("name"), str)
            or not isinstance(arguments, Mapping)
        ):
            raise BadRequest(
                f"A call in tool_calls is {call!r:.200}; expected an id, a name and arguments, which are a dictionary "
                "or a JSON object as a text."
            )
        made = ToolCall(id=str(call.get("id") or f"call_{index}"), name=inner["name"], arguments=dict(arguments))
        thought = call.get("thought")
        if thought is None:
            thought = thought_of({CALL_FIELD: call.get(CALL_FIELD)})
        if thought is not None:
            made["thought"] = thought
            thought_fields(made)
        found.append(made)
    return found


def without_empty(value: Any) -> Any:
    """Returns a value without the fields that a column fills with None."""
    if isinstance(value, Mapping):
        return {name: without_empty(each) for name, each in value.items() if each is not None}
    return [without_empty(each) for each in value] if isinstance(value, list) else value


def with_own_ids(messages: Messages) -> Messages:
    """Returns messages in which no two calls have one id, as APIs want it, and without empty lists of calls.

    Results follow their calls: those with the same id are taken in order. Calls and results may also be items of
    OpenAI's Responses API.
    """
    used: set[str] = set()
    ids: dict[Any, list[str]] = {}
    answered: set[Any] = set()
    made = []
    for message in messages:
        calls, item = message.get("tool_calls"), message.get("call_id")
        if isinstance(calls, list) and not calls:
            message = {name: value for name, value in message.items() if name != "tool_calls"}
        elif isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls):
            given = [{**call, "id": str(call.get("id") or f"call_{index}")} for index, call in enumerate(calls)]
            own = calls_with_own_ids(given, used)
            ids |= {call["id"]: [] for call in given}
            for call, new in zip(given, own, strict=True):
                ids[call["id"]].append(new["id"])
            message = {**message, "tool_calls": own}
        elif message.get("role") == "tool" and (left := ids.get(message.get("tool_call_id"))):
            message = {**message, "tool_call_id": left.pop(0) if len(left) > 1 else left[0]}
        elif isinstance(item, str) and message.get("type") == "function_call":
            (call,) = calls_with_own_ids([{"id": item}], used)
            ids[item] = [*([] if item in answered else ids.get(item, ())), call["id"]]
            answered.discard(item)
            message = {**message, "call_id": call["id"]}
        elif message.get("type") == "function_call_output" and (left := ids.get(item)):
            answered.add(item)
            message = {**message, "call_id": left.pop(0) if len(left) > 1 else left[0]}
        made.append(message)
    return made


def calls_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation has calls of tools, or results."""
    return any(message.get("role") == "tool" or message.get("tool_calls") for message in messages)


def openai_messages(messages: Messages, *, as_text: bool = True, thoughts: Collection[str] = ()) -> Messages:
    """Returns messages in the form of OpenAI's chat completions; arguments are JSON texts, or dictionaries.

    Chat templates of Hugging Face take the same form with dictionaries. `thoughts` are the fields in which the server
    wants its thoughts back.
    """
    if not calls_tools(messages):
        return [_filled(message) for message in messages]
    made = []
    for message in messages:
        plain = _filled(message)
        if message.get("tool_calls"):
            calls = neutral_calls(message)
            sent = [{name: each for name, each in thought_fields(call).items() if name in thoughts} for call in calls]
            plain["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {
                        "name": call["name"],
                        "arguments": _json(call["arguments"]) if as_text else call["arguments"],
                    },
                    **{name: value for name, value in fields.items() if name == CALL_FIELD},
                }
                for call, fields in zip(calls, sent, strict=True)
            ]
            plain = {**{name: value for name, value in sent[0].items() if name in MESSAGE_FIELDS}, **plain}
            plain.setdefault("content", None if as_text else "")
        elif message.get("role") == "tool":
            plain["content"] = _result(message)[1]
        made.append(plain)
    return made


def with_short_ids(messages: Messages) -> Messages:
    """Returns messages of `openai_messages` whose calls have ids of nine letters and digits, as Mistral's API wants."""

    def short(message: dict[str, Any]) -> dict[str, Any]:
        made = dict(message)
        if made.get("tool_calls"):
            made["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in made["tool_calls"]]
        if made.get("role") == "tool":
            made["tool_call_id"] = _short_id(made["tool_call_id"])
        return made

    return [short(message) for message in messages] if calls_tools(messages) else messages


def openai_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Returns tools in the form of OpenAI's chat completions, and of Hugging Face's chat templates."""
    return [{"type": "function", "function": dict(tool)} for tool in tools]


def openai_choice(choice: str | None) -> Any:
    """Returns `tool_choice` in the form of OpenAI's chat completions; None for the default."""
    kind = kind_of(choice)
    return {"type": "function", "function": {"name": choice}} if kind == "name" else choice


def responses_items(message: dict[str, Any]) -> Messages | None:
    """Returns the items of OpenAI's Responses API for a message with calls or a result; None for another message."""
    if message.get("role") == "tool":
        call, content = _result(message, images=True)
        return [{"type": "function_call_output", "call_id": call, "output": content}]
    if not message.get("tool_calls"):
        return None

    def item(call: ToolCall) -> dict[str, Any]:
        arguments = _json(call["arguments"])
        return {"type": "function_call", "call_id": call["id"], "name": call["name"], "arguments": arguments}

    said = {name: value for name, value in _filled(message).items() if name != "tool_calls"}
    return RESPONSES.turn([said] if said.get("content") else [], neutral_calls(message), item)


def responses_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Returns tools in the form of OpenAI's Responses API, which would make schemas strict by itself."""
    return [{"type": "function", **tool, "strict": False} for tool in tools]


def anthropic_messages(messages: Messages) -> Messages:
    """Returns messages in the form of Anthropic's Messages API; results that follow each other become one message."""
    made: Messages = []
    results: dict[str, Any] = {}
    for message in messages:
        plain = _filled(message)
        if message.get("tool_calls"):
            blocks = ANTHROPIC.turn(_parts(plain.get("content")), neutral_calls(message), _tool_use)
            plain = {"role": "assistant", "content": blocks}
        elif message.get("role") == "tool":
            call, content = _result(message, images=True)
            block = anthropic_message({"type": "tool_result", "tool_use_id": call, "content": content})
            if made and made[-1] is results:
                results["content"].append(block)
                continue
            plain = results = {"role": "user", "content": [block]}
        made.append(plain)
    return made


def anthropic_choice(choice: str | None) -> dict[str, Any] | None:
    """Returns `tool_choice` in Anthropic's form; None for the default."""
    kind = kind_of(choice)
    if choice is None or kind == "name":
        return None if choice is None else {"type": "tool", "name": choice}
    return {"type": "any" if kind == "required" else kind}


def converse_result(message: Mapping[str, Any], blocks: Callable[[Any], list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns the block of Bedrock's Converse API for the result of a call; `blocks` makes those of its content."""
    call, content = _result(message, images=True)
    return {"toolResult": {"toolUseId": call, "content": blocks(content)}}


def converse_turn(said: Sequence[dict[str, Any]], message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the blocks of Bedrock's Converse API for a message with calls; `said` are those of its text."""

    def block(call: ToolCall) -> dict[str, Any]:
        return {"toolUse": {"toolUseId": call["id"], "name": call["name"], "input": call["arguments"]}}

    return CONVERSE.turn(said, neutral_calls(message), block)


def converse_tools(tools: Sequence[Tool], choice: str | None) -> dict[str, Any]:
    """Returns the `toolConfig` of Bedrock's Converse API."""
    specs = [
        {
            "toolSpec": {
                "name": tool["name"],
                **({"description": tool["description"]} if tool["description"] else {}),
                "inputSchema": {"json": tool["parameters"]},
            }
        }
        for tool in tools
    ]
    kind = kind_of(choice)
    kinds: dict[str, dict[str, Any]] = {"auto": {"auto": {}}, "required": {"any": {}}}
    chosen = kinds.get(kind, {"tool": {"name": choice}})
    return {"tools": specs, **({} if choice is None else {"toolChoice": chosen})}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["arguments"]}


def _filled(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message without the fields that a column of messages fills with None."""
    return {name: value for name, value in message.items() if value is not None}


def _result(message: Mapping[str, Any], *, images: bool = False) -> tuple[str, Any]:
    """Returns the id of a call and its result: a text or, if the API takes `images` and there are any, parts."""
    call, content = message.get("tool_call_id"), message.get("content")
    if not isinstance(call, str) or not call:
        raise BadRequest('A message of the role "tool" has no tool_call_id: the id of the call that it is a result of.')
    if isinstance(content, list) and any(_is_image(part) for part in content):
        if not images:
            raise BadRequest(
                "The result of a call has an image, and this API takes only texts there. Put the image into a message "
                'of the role "user" after the results, or leave it out.'
            )
        return call, [without_empty(part) for part in content]
    if isinstance(content, list) and all(_text_of(part) is not None for part in content):
        content = "".join(str(_text_of(part)) for part in content)
    return call, content if isinstance(content, str) else "" if content is None else _json(content)


def _text_of(part: object) -> str | None:
    """Returns the text of a part of a message; None for other parts and other values."""
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _is_image(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image_url" and bool(part.get("image_url"))


def _short_id(call: str) -> str:
    fits = re.fullmatch("[a-zA-Z0-9]{9}", call)
    return call if fits else hashlib.blake2b(call.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _parts(content: object) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content) if isinstance(content, list) else []


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
