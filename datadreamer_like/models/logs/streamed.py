"""Responses that were streamed: the chunks of a log, joined to the body that the API gives without a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_WHOLE = {"role", "type", "id", "object", "model"}  # texts that are given once, or again
_CUT = {"error": "the log has only a part of the streamed response"}


def chunks_in(text: str) -> list[Any] | None:
    """Returns the data of server-sent events; None for another text.

    Raises:
        ValueError: The data of an event is not JSON.
    """
    if not text.lstrip().startswith(("data:", "event:", "id:", ":")):
        return None
    lines = [line[5:].strip() for line in re.split(r"[\r\n]+", text) if line.startswith("data:")]
    return [json.loads(line) for line in lines if line and line != "[DONE]"]


def joined(chunks: Sequence[Any]) -> dict[str, Any] | None:
    """Returns the body of a streamed response, with an `error` if its end is missing; None for other lists."""
    if not chunks or not all(isinstance(chunk, Mapping) for chunk in chunks):
        return None
    error = next((chunk for chunk in chunks if chunk.get("error")), None)
    if error is not None:
        return {"error": error["error"]}
    kinds = {str(chunk.get("type")) for chunk in chunks}
    if "message_start" in kinds:
        return _of_anthropic(chunks)
    if any(kind.startswith("response.") for kind in kinds):
        ends = ("response.completed", "response.incomplete", "response.failed")
        return next((dict(chunk["response"]) for chunk in chunks if chunk.get("type") in ends), _CUT)
    if any(chunk.get("object") == "chat.completion.chunk" or _has_delta(chunk) for chunk in chunks):
        return _of_chat(chunks)
    return None


def _has_delta(chunk: Mapping[str, Any]) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(isinstance(each, Mapping) and "delta" in each for each in choices)


def _of_chat(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        body |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        for choice in chunk.get("choices") or ():
            _add(choices.setdefault(choice.get("index", 0), {}), choice)
    if not choices or not all(choice.get("finish_reason") for choice in choices.values()):
        return _CUT
    found = [{**choices[index], "message": choices[index].get("delta") or {}} for index in sorted(choices)]
    return {**body, "choices": found}


def _of_anthropic(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    for chunk in chunks:
        kind, index, delta = chunk.get("type"), chunk.get("index", 0), chunk.get("delta") or {}
        if kind == "message_start":
            body = dict(chunk["message"])
        elif kind == "content_block_start":
            blocks[index] = dict(chunk["content_block"])
        elif kind == "content_block_delta" and "partial_json" in delta:
            inputs[index] = inputs.get(index, "") + delta["partial_json"]
        elif kind == "content_block_delta":
            _add(blocks[index], {name: value for name, value in delta.items() if name != "type"})
        elif kind == "message_delta":
            usage = {**(body.get("usage") or {}), **(chunk.get("usage") or {})}
            body |= {**delta, "usage": usage}
    if not body.get("stop_reason"):
        return _CUT
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text or "{}")
    return {**body, "content": [blocks[index] for index in sorted(blocks)]}


def _add(whole: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Adds a part: texts are continued, and items of lists that have an `index` added to those with the same."""
    for name, value in part.items():
        known = whole.get(name)
        if isinstance(value, str) and isinstance(known, str) and name not in _WHOLE:
            whole[name] = known + value
        elif isinstance(value, Mapping):
            whole[name] = known if isinstance(known, dict) else {}
            _add(whole[name], value)
        elif isinstance(value, list):
            whole[name] = known = known if isinstance(known, list) else []
            for item in value:
                same = [each for each in known if isinstance(item, Mapping) and "index" in item]
                same = [each for each in same if each.get("index") == item["index"]]
                if same:
                    _add(same[0], item)
                else:
                    known.append(dict(item) if isinstance(item, Mapping) else item)
        elif value is not None:
            whole[name] = value
