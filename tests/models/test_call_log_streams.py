"""Streamed responses in logs: their chunks, as a list or as server-sent events, are the answer that they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_call_log import CHAT, CLAUDE, OPTIONS, SYSTEM, USER, facts, written

from datadreamer_like.models import CallLog


def delta(finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": fields, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "m-2025", "choices": [choice], "usage": None}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


USED = {"object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
OPENAI = [delta(role="assistant", content=""), delta(content="Bl"), delta(content="ue."), delta("stop"), USED]
STARTED = {
    "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1},
}  # fmt: skip
ENDED = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
ANTHROPIC = [
    event("message_start", message=STARTED),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("ping"),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Blu"}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "e."}),
    event("content_block_stop", index=0),
    ENDED,
    event("message_stop"),
]
ITEM = {"type": "message", "content": [{"type": "output_text", "text": "Blue."}]}
WHOLE = {"status": "completed", "output": [ITEM], "usage": {"input_tokens": 7, "output_tokens": 2}}
RESPONSES = [
    event("response.created", response={"status": "in_progress", "output": []}),
    event("response.output_text.delta", delta="Blue."),
    event("response.completed", response=WHOLE),
]
STREAMS = {"OpenAI": (CHAT, OPENAI), "Anthropic": (CLAUDE, ANTHROPIC), "Responses": (CHAT, RESPONSES)}


def as_events(chunks: list[Any]) -> str:
    return "".join(f"event: x\ndata: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks)


@pytest.mark.parametrize("form", ["list", "events", "HTTP"])
@pytest.mark.parametrize("name", STREAMS)
def test_the_chunks_of_a_stream_are_its_answer(name: str, form: str, tmp_path: Path) -> None:
    request, chunks = STREAMS[name]
    events = as_events(chunks) + "data: [DONE]\n\n"
    response = {"list": chunks, "events": events, "HTTP": {"status": 200, "body": events}}[form]
    (call,) = CallLog(written(tmp_path, [{"request": request, "response": response}]))
    assert facts(call) == ([SYSTEM, USER], ["Blue."], None, 7, 2)
    assert call.options == OPTIONS


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_was_cut_off_or_failed_is_no_answer(name: str, tmp_path: Path) -> None:
    request, chunks = STREAMS[name]
    failed = [*chunks[:3], {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}]
    responses = [chunks[:-3] or chunks[:1], failed, as_events(chunks)[:-60]]
    calls = list(CallLog(written(tmp_path, [{"request": request, "response": response} for response in responses])))
    assert [call.answer.texts for call in calls] == [()] * 3
    assert "only a part" in str(calls[0].answer.error)
    assert "busy" in str(calls[1].answer.error)


def test_tool_calls_thoughts_and_several_choices_are_joined(tmp_path: Path) -> None:
    def called(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function, **({"id": "c1"} if "name" in function else {})}

    openai = [
        delta(index=1, content="b"),
        delta(tool_calls=[called(0, name="get_weather", arguments="")]),
        delta(tool_calls=[called(0, arguments='{"city": ')]),
        delta("tool_calls", tool_calls=[called(0, arguments='"Rome"}')]),
        delta("stop", index=1, content="c\u2028d"),
    ]
    block = {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {}}
    anthropic = [
        ANTHROPIC[0],
        event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Where"}),
        event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "?"}),
        event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "s"}),
        event("content_block_start", index=1, content_block=block),
        event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"city": "Ro'}),
        event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": 'me"}'}),
        event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 2}),
    ]
    pairs = [(CHAT, openai), (CLAUDE, anthropic)]
    records = [{"request": request, "response": as_events(chunks)} for request, chunks in pairs]
    first, second = CallLog(written(tmp_path, records))
    for call in (first, second):
        assert call.answer.error is None
        assert call.answer.tool_calls is not None
        ((made,), *_) = call.answer.tool_calls
        assert (made["id"], made["name"], made["arguments"]) == ("c1", "get_weather", {"city": "Rome"})
    assert list(first.answer.texts) == [None, "bc\u2028d"]
    assert second.answer.reasoning == ["Where?"]
