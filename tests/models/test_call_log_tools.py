"""Calls of tools in logs: the same in every format, and served to requests with the same tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_call_log import OF_SPAN, otlp, written
from test_tools import CONVERSATION, ROME, WEATHER, WIRES, get_weather

from datadreamer_like import DataDreamer
from datadreamer_like.models import CallLog
from datadreamer_like.steps import CallLogDataSource

MESSAGES = [
    {"role": "user", "content": "Rome?"},
    {"role": "assistant", "content": None, "tool_calls": [ROME]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]
_USE = {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Rome"}}
_FUNCTION = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
_CHAT = [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [_FUNCTION]}, MESSAGES[2]]
_SAID = {"role": "assistant", "content": None, "tool_calls": [_FUNCTION]}
_COMPLETION = {"choices": [{"message": _SAID, "finish_reason": "tool_calls"}], "usage": {}}
_CHAT_TOOLS = {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"}
_ITEM = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'}
_PART = {"type": "tool_call", "id": "c1", "name": "get_weather", "arguments": {"city": "Rome"}}
_SPAN = {
    **{name: value for name, value in OF_SPAN.items() if "request." not in name},
    "gen_ai.request.model": "m",
    "gen_ai.request.tool_choice": "required",
    "gen_ai.tool.definitions": json.dumps([{"type": "function", **WEATHER}]),
    "gen_ai.input.messages": json.dumps(
        [
            {"role": "user", "parts": [{"type": "text", "content": "Rome?"}]},
            {"role": "assistant", "parts": [_PART]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
        ]
    ),
    "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [_PART], "finish_reason": "tool_call"}]),
}
LOGS: dict[str, Any] = {
    "OpenAI": {"request": {"model": "m", "messages": _CHAT, **_CHAT_TOOLS}, "response": _COMPLETION},
    "Responses": {
        "request": {
            "model": "m",
            "input": [MESSAGES[0], _ITEM, {"type": "function_call_output", "call_id": "c1", "output": "sunny"}],
            "tools": [{"type": "function", **WEATHER, "strict": False}], "tool_choice": "required",
        },
        "response": {"status": "completed", "output": [{**_ITEM, "id": "fc"}], "usage": {}},
    },
    "Anthropic": {
        "request": {
            "model": "m", "system": "",
            "messages": [
                MESSAGES[0],
                {"role": "assistant", "content": [_USE]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
            ],
            "tools": [{"name": "get_weather", "description": "The weather.", "input_schema": WEATHER["parameters"]}],
            "tool_choice": {"type": "any"},
        },
        "response": {"type": "message", "content": [_USE], "stop_reason": "tool_use", "usage": {}},
    },
    "LiteLLM": {
        "call_type": "completion", "status": "success", "model": "m", "messages": _CHAT, "response": _COMPLETION,
        "model_parameters": _CHAT_TOOLS,
    },
    "Langfuse": {
        "id": "1", "traceId": "t", "type": "GENERATION", "model": "m", "level": "DEFAULT",
        "input": {"messages": _CHAT, **_CHAT_TOOLS}, "output": _SAID,
    },
    "OpenTelemetry": otlp(_SPAN),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_every_format_gives_the_same_calls(name: str, tmp_path: Path) -> None:
    (call,) = CallLog(written(tmp_path, [LOGS[name]]))
    assert call.messages == MESSAGES
    assert call.options == {"tools": [WEATHER], "tool_choice": "required"}
    assert call.answer.error is None
    assert (call.answer.text, call.answer.tool_calls) == (None, [[ROME]])


def test_the_rows_of_a_log_have_the_calls(tmp_path: Path) -> None:
    with DataDreamer(":memory:"):
        rows = CallLogDataSource("Log", data_files=str(written(tmp_path, [LOGS["OpenAI"]])))
    (row,) = list(rows.output)
    assert json.loads(row["tool_calls"]) == [ROME]
    assert (row["answer"], row["error"]) == (None, None)
    assert json.loads(row["messages"][1]["content"]) == {"content": None, "tool_calls": [ROME]}


@pytest.mark.parametrize("name", ["chat", "responses", "anthropic"])
def test_a_request_with_tools_that_is_in_the_log_is_never_sent_again(name: str, tmp_path: Path) -> None:
    wire = WIRES[name]
    calls: list[dict[str, Any]] = [
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "get_weather"},
        {"tools": [get_weather], "tool_choice": "required"},
    ]
    prompts: list[Any] = ["Rome?", CONVERSATION]
    with wire.server(lambda body, before: wire.reply(ROME)) as server:
        llm = wire.model(server, tmp_path / "first")
        first = [[answer.tool_calls for answer in llm.answers(prompts, **options)] for options in calls]
        assert first == [[[[ROME]]] * 2] * 3
        sent = len(server.requests)
        said = wire.reply(ROME)
        body = said if isinstance(said, dict) else json.loads(said.body)
        records = [{"request": request, "response": body} for request in server.requests]
        again = wire.model(server, tmp_path / "again").reuse(CallLog(written(tmp_path, records)))
        assert [[a.tool_calls for a in again.answers(prompts, **options)] for options in calls] == first
        assert len(server.requests) == sent
        list(again.answers(["Rome?"], tools=[{**WEATHER, "description": "Another."}]))
        assert len(server.requests) == sent + 1
