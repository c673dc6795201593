"""Logged calls that look like the one that is asked, and are another: they are never served."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer

from datadreamer_like.models import CallLog, OpenAI

ASKED = [{"role": "user", "content": "Sky?"}]
SPAN = {
    "gen_ai.request.model": "m", "llm.request.type": "chat", "gen_ai.prompt.0.role": "user",
    "gen_ai.prompt.0.content": "Sky?", "gen_ai.completion.0.content": "Blue.",
}  # fmt: skip
NEW_SPAN = {
    "gen_ai.operation.name": "chat", "gen_ai.request.model": "m",
    "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "Sky?"}]}]),
    "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "Blue."}]}]),
}  # fmt: skip
SCHEMA = {"type": "object", "properties": {}}
FUNCTION = {
    "llm.request.functions.0.name": "now", "llm.request.functions.0.description": "The time.",
    "llm.request.functions.0.parameters": json.dumps(SCHEMA),
}  # fmt: skip
TOOLS = [{"name": "now", "description": "The time.", "parameters": SCHEMA}]
CALL = {
    "gen_ai.completion.0.tool_calls.0.id": "c1", "gen_ai.completion.0.tool_calls.0.name": "now",
    "gen_ai.completion.0.tool_calls.0.arguments": "{}", "gen_ai.completion.0.finish_reason": "tool_calls",
}  # fmt: skip


def completion(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Blue.", **message}}]}


def response(status: str, text: str = "Blu") -> dict[str, Any]:
    part = {"type": "output_text", "text": text}
    return {"object": "response", "status": status, "output": [{"type": "message", "content": [part]}]}


def langfuse(output: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "GENERATION", "traceId": "t", "model": "m", "input": ASKED, "output": output, **fields}


def distilabel(**metadata: Any) -> dict[str, Any]:
    other = {"raw_input_rate_0": [{"role": "user", "content": "Rate."}], "raw_output_rate_0": "5"}
    asked = {"raw_input_write_0": ASKED, "raw_output_write_0": "Blue."}
    return {"model_name": "m", "distilabel_metadata": {**asked, **other, **metadata}}


def span(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"name": "chat", "attributes": attributes}


def asked_again(record: Any, folder: Path, **options: Any) -> tuple[list[Any], int]:
    file = folder / "log.jsonl"
    file.write_text(json.dumps(record), encoding="utf-8")
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url).reuse(CallLog(file))
        answers = list(llm.answers(["Sky?"], temperature=1.0, top_p=1.0, **options))
        return [answer.text or answer.tool_calls for answer in answers], len(server.requests)


@pytest.mark.parametrize(
    "record",
    [
        {"request": {"model": "m", "prompt": "Sky?"}, "response": {"choices": [{"text": " is the limit"}]}},
        {
            "call_type": "atext_completion", "status": "success", "model": "m", "messages": "Sky?",
            "model_parameters": {}, "response": {"choices": [{"text": " is the limit"}]},
        },
        span({**SPAN, "llm.request.type": "completion"}),
        span({**SPAN, **FUNCTION}),
        span({**SPAN, "llm.chat.stop_sequences": ["b"]}),
        span({**SPAN, "llm.presence_penalty": 1.5}),
        span({**NEW_SPAN, "gen_ai.output.type": "json"}),
        distilabel(),
        {"seq_no": 0, "step_name": "rate_0", "data": [[distilabel()]]},
        {"request": {"model": "m", "input": "Sky?"}, "response": response("in_progress")},
        {"request": {"model": "m", "messages": [{**ASKED[0], "name": "Eve"}]}, "response": completion()},
        {"request": {"model": "m", "messages": ASKED}, "response": completion(content="")},
        langfuse([{"role": "assistant", "content": "Blue."}, {"role": "assistant", "content": "Red."}]),
    ],
)  # fmt: skip
def test_what_looks_like_the_call_is_not_served(record: Any, tmp_path: Path) -> None:
    assert asked_again(record, tmp_path) == (["echo: Sky?"], 1)


@pytest.mark.parametrize(
    ("record", "options"),
    [
        (span(SPAN), {}),
        (span({**SPAN, **FUNCTION}), {"tools": TOOLS}),
        (span({**SPAN, "llm.chat.stop_sequences": ["b"], "llm.frequency_penalty": 1.5}),
         {"stop": ["b"], "frequency_penalty": 1.5}),
        ({"seq_no": 0, "step_name": "write_0", "data": [[distilabel()]]}, {}),
        (langfuse(response("", "Blue.")["output"]), {}),
        (langfuse([{"role": "assistant", "content": "Blue."}], modelParameters={"max_tokens": "Infinity"}), {}),
    ],
)  # fmt: skip
def test_the_call_itself_is(record: Any, options: dict[str, Any], tmp_path: Path) -> None:
    assert asked_again(record, tmp_path, **options) == (["Blue."], 0)


def test_a_call_of_a_tool_in_numbered_attributes_is_served(tmp_path: Path) -> None:
    record = span({**SPAN, **FUNCTION, **CALL, "gen_ai.completion.0.content": None})
    call = {"id": "c1", "name": "now", "arguments": {}}
    assert asked_again(record, tmp_path, tools=TOOLS) == ([[[call]]], 0)


def test_the_reason_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        asked_again(span({**SPAN, "llm.request.type": "completion"}), tmp_path)
    assert "text_completion (True there, not given here)" in caplog.text
