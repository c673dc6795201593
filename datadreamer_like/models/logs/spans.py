"""Calls in OpenTelemetry's spans, by its conventions for generative AI.

Read are OTLP in JSON (as the collector's file exporter writes it) and the JSON of the SDK's spans, with the messages in
attributes (`gen_ai.input.messages`, since 1.37), in events (`gen_ai.content.prompt`, until 1.27; one per message, until
1.36), or in the numbered attributes of OpenLLMetry (`gen_ai.prompt.0.content`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..llms.generation import Answer
from .bodies import chat_answer
from .logged_call import LoggedCall, between, count_of, failed, options_of, plain_messages, time_of

Span = Mapping[str, Any]

_PREFIX = "gen_ai."
_REQUEST = "gen_ai.request."
_NUMBERED = re.compile(
    r"gen_ai\.(prompt|completion)\.(\d+)\."
    r"(role|content|finish_reason|tool_call_id|tool_calls\.(\d+)\.(id|name|arguments))"
)
_FUNCTION = re.compile(r"(?:llm|gen_ai)\.request\.functions\.(\d+)\.(name|description|parameters|input_schema)")
# Options that OpenLLMetry has outside of gen_ai.request.
_OPTION = re.compile(
    r"(?:llm|gen_ai)\.(?:request\.|chat\.)?"
    r"(stop_sequences|frequency_penalty|presence_penalty|repetition_penalty|top_k|top_p|temperature|max_tokens|seed)"
)
_CHATS = {None, "chat", "text_completion", "generate_content", "completion"}


def has_spans(record: Span) -> bool:
    """Whether a record is OTLP, or a span with attributes of generative AI."""
    if isinstance(record.get("resourceSpans"), list):
        return True
    attributes = record.get("attributes")
    return isinstance(attributes, Mapping | list) and any(name.startswith(_PREFIX) for name in _attributes(attributes))


def calls_in_spans(record: Span) -> Iterator[LoggedCall | str]:
    """Yields the calls in a record, and for each span that is none the reason."""
    spans = [record]
    if "resourceSpans" in record:
        spans = [
            span
            for resource in record["resourceSpans"]
            for scope in resource.get("scopeSpans", resource.get("instrumentationLibrarySpans", ()))
            for span in scope.get("spans", ())
        ]
    for span in spans:
        found = _attributes(span.get("attributes") or {})
        operation = found.get("gen_ai.operation.name", found.get("llm.request.type"))
        if not any(name.startswith(_PREFIX) for name in found):
            yield "spans of other work"
        elif operation not in _CHATS:
            yield f"spans of the operation {operation}"
        else:
            yield _call(span, found)


def _call(span: Span, found: dict[str, Any]) -> LoggedCall | str:
    asked, said = _messages(span, found)
    if not asked:
        return "spans without messages (their instrumentation did not record contents)"
    parameters = {
        name.removeprefix(_REQUEST): value
        for name, value in found.items()
        if name.startswith(_REQUEST) and name not in ("gen_ai.request.model", "gen_ai.request.encoding_formats")
    }
    parameters = {name: value for name, value in parameters.items() if not name.startswith("functions.")}
    parameters |= {match[1]: value for name, value in found.items() if (match := _OPTION.fullmatch(name))}
    if found.get("gen_ai.output.type") == "json":
        parameters.setdefault("response_format", {"type": "json_object"})
    options = options_of({**parameters, "tools": found.get("gen_ai.tool.definitions") or _functions(found)})
    if found.get("gen_ai.operation.name", found.get("llm.request.type")) in ("text_completion", "completion"):
        options["text_completion"] = True
    usage = {
        "prompt_tokens": count_of(found.get("gen_ai.usage.input_tokens"), found.get("gen_ai.usage.prompt_tokens")),
        "completion_tokens": count_of(
            found.get("gen_ai.usage.output_tokens"), found.get("gen_ai.usage.completion_tokens")
        ),
    }
    status = span.get("status") or {}
    error = found.get("error.type")
    answer: Answer
    if error or status.get("code", status.get("status_code")) in (2, "STATUS_CODE_ERROR", "ERROR") or not said:
        answer = failed(status.get("message") or status.get("description") or error, "there is no output")
    else:
        reasons = found.get("gen_ai.response.finish_reasons") or ()
        choices = [
            {
                "message": plain_messages([{"role": "assistant", **message}])[0],
                "finish_reason": message.get("finish_reason") or (reasons[i] if i < len(reasons) else None),
            }
            for i, message in enumerate(said)
        ]
        answer = chat_answer(choices, usage, options)
    cost = found.get("gen_ai.usage.cost")
    answer.cost = float(cost) if isinstance(cost, int | float) and answer.error is None else None
    start = span.get("startTimeUnixNano", span.get("start_time"))
    end = span.get("endTimeUnixNano", span.get("end_time"))
    model = found.get("gen_ai.request.model") or found.get("gen_ai.response.model")
    messages = plain_messages(asked, found.get("gen_ai.system_instructions"))
    return LoggedCall("OpenTelemetry", model, messages, options, answer, time_of(start), between(start, end))


def _messages(span: Span, found: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Returns the messages of a span: those of the prompt, and those of the answer."""
    if "gen_ai.input.messages" in found:
        return found["gen_ai.input.messages"] or [], found.get("gen_ai.output.messages") or []
    numbered: dict[str, dict[int, dict[str, Any]]] = {"prompt": {}, "completion": {}}
    for name, value in found.items():
        if match := _NUMBERED.fullmatch(name):
            message = numbered[match[1]].setdefault(int(match[2]), {})
            if match[4]:
                message.setdefault("tool_calls", {}).setdefault(int(match[4]), {})[match[5]] = value
            else:
                message[match[3]] = value
    for message in [each for part in numbered.values() for each in part.values() if "tool_calls" in each]:
        message["tool_calls"] = [
            {"id": call.get("id"), "type": "function", "function": call}
            for _, call in sorted(message["tool_calls"].items())
        ]
    asked, said = ([each for _, each in sorted(part.items())] for part in numbered.values())
    for event in span.get("events") or ():
        kind, inside = event.get("name"), _attributes(event.get("attributes") or {})
        if kind == "gen_ai.content.prompt":
            asked += _listed(inside.get("gen_ai.prompt"))
        elif kind == "gen_ai.content.completion":
            said += _listed(inside.get("gen_ai.completion"))
        elif kind == "gen_ai.client.inference.operation.details":
            found |= {name: value for name, value in inside.items() if name == "gen_ai.system_instructions"}
            asked += _listed(inside.get("gen_ai.input.messages"))
            said += _listed(inside.get("gen_ai.output.messages"))
        elif kind == "gen_ai.choice":
            said.append({**(inside.get("message") or {"content": inside.get("content")}), **inside})
        elif kind in ("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message"):
            asked.append({"role": kind.split(".")[1], **inside})
    return asked, said


def _functions(found: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the tools in OpenLLMetry's numbered attributes; None if there are none."""
    tools: dict[int, dict[str, Any]] = {}
    for name, value in found.items():
        if match := _FUNCTION.fullmatch(name):
            if match[2] in ("parameters", "input_schema") and isinstance(value, str):
                with suppress(ValueError, RecursionError):
                    value = json.loads(value)
            tools.setdefault(int(match[1]), {})["parameters" if match[2] == "input_schema" else match[2]] = value
    return [{"type": "function", "function": tool} for _, tool in sorted(tools.items())] or None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [{"role": "user", "content": value}] if value else []


def _attributes(attributes: Any) -> dict[str, Any]:
    """Returns attributes by name, from OTLP's list or the SDK's object; JSON in the texts of messages is read."""
    if isinstance(attributes, list):
        attributes = {each.get("key"): _value(each.get("value")) for each in attributes if isinstance(each, Mapping)}
    found = {}
    for name, value in attributes.items():
        if isinstance(value, str) and value[:1] in "[{" and isinstance(name, str) and name.startswith(_PREFIX):
            with suppress(ValueError, RecursionError):
                value = json.loads(value) if value and not _NUMBERED.fullmatch(name) else value
        found[str(name)] = value
    return found


def _value(value: Any) -> Any:
    """Returns a value of OTLP: `{"stringValue": "x"}` is "x"; integers are texts there."""
    if not isinstance(value, Mapping):
        return value
    for kind, inner in value.items():
        if kind == "intValue":
            return int(inner)
        if kind == "arrayValue":
            return [_value(each) for each in inner.get("values", ())]
        if kind == "kvlistValue":
            return {each["key"]: _value(each.get("value")) for each in inner.get("values", ())}
        return inner
    return None
