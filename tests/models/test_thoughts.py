"""Thoughts that a provider wants back with the calls of its answer come back as it sent them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import AnthropicServer, message
from bedrock_server import BedrockServer, said
from flaky_server import FlakyServer, Reply
from responses_server import ResponsesServer, response

from datadreamer_like import DataDreamer
from datadreamer_like.errors import BadRequest
from datadreamer_like.models import (
    Anthropic,
    Bedrock,
    DeepSeek,
    GoogleAIStudio,
    Groq,
    OpenAI,
    OpenAIResponses,
    OpenRouter,
    VertexAI,
)
from datadreamer_like.steps import CallLogDataSource, DataSource, Prompt

WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@dataclass(frozen=True)
class Provider:
    """A provider's answer with two calls, and the same as part of the next request."""

    model: type[Any]
    server: type[FlakyServer]
    reply: Callable[[], Any]  # the answer
    turn: Callable[[dict[str, Any]], Any]  # the part of a request's body with the assistant's turn
    expected: Any


def _call(city: str, **fields: Any) -> dict[str, Any]:
    arguments = json.dumps({"city": city})
    return {"id": f"c{city}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}, **fields}


def _chat(model: type[Any], turn: dict[str, Any]) -> Provider:
    choice = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": None, **turn}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    body = json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode()
    expected = {"role": "assistant", "content": None, **turn}
    return Provider(model, FlakyServer, lambda: Reply(body=body), lambda sent: sent["messages"][1], expected)


SIGNED = {"tool_calls": [_call("Rome", extra_content={"google": {"thought_signature": "a=="}}), _call("Oslo")]}
PLAIN = {"tool_calls": [_call("Rome"), _call("Oslo")]}
DETAILS = [{"type": "reasoning.encrypted", "data": "e==", "format": "google-gemini-v1", "index": 0, "id": None}]
BLOCKS = [
    {"type": "thinking", "thinking": "Hm.", "signature": "s=="},
    {"type": "redacted_thinking", "data": "r=="},
    {"type": "text", "text": "I look. "},
    {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Rome"}},
    {"type": "thinking", "thinking": "And?", "signature": "t=="},
    {"type": "tool_use", "id": "c2", "name": "get_weather", "input": {"city": "Oslo"}},
]
CONVERSE = [
    {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "s=="}}},
    {"reasoningContent": {"redactedContent": base64.b64encode(b"\xff\x00").decode()}},
    {"text": "I look."},
    {"toolUse": {"toolUseId": "c1", "name": "get_weather", "input": {"city": "Rome"}}},
    {"toolUse": {"toolUseId": "c2", "name": "get_weather", "input": {"city": "Oslo"}}},
]
ITEMS = [
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e=="},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
    },
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'},
    {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": '{"city": "Oslo"}'},
]
LAST = {"role": "user", "content": "And now?"}
PROVIDERS = {
    "GoogleAIStudio": _chat(GoogleAIStudio, SIGNED),
    "VertexAI": _chat(VertexAI, SIGNED),
    "DeepSeek": _chat(DeepSeek, {**PLAIN, "reasoning_content": "I think."}),
    "DeepSeek without thoughts": _chat(DeepSeek, {**PLAIN, "reasoning_content": ""}),
    "OpenRouter": _chat(OpenRouter, {**PLAIN, "reasoning_details": DETAILS}),
    "any server": _chat(OpenAI, {**SIGNED, "reasoning_content": "I think."}),
    "Anthropic": Provider(
        Anthropic, AnthropicServer, lambda: message(*BLOCKS, stop_reason="tool_use"),
        lambda sent: sent["messages"][1]["content"], BLOCKS,
    ),
    "Bedrock": Provider(
        Bedrock, BedrockServer, lambda: said(*CONVERSE, stop="tool_use"),
        lambda sent: sent["messages"][1]["content"], CONVERSE,
    ),
    "Responses": Provider(
        OpenAIResponses, ResponsesServer, lambda: response(output=ITEMS), lambda sent: sent["input"][1:5], ITEMS
    ),
}  # fmt: skip


def _llm(provider: Provider, server: Any, folder: Path) -> Any:
    if provider.model is Bedrock:
        return Bedrock("m", "id", "key", "us-east-1", base_url=server.url, cache_folder_path=folder)
    return provider.model("m", api_key="k", base_url=server.url, cache_folder_path=folder)


def _continued(answer: Any) -> list[dict[str, Any]]:
    (calls,) = answer.tool_calls
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in calls]
    turn = {"role": "assistant", "content": answer.text, "tool_calls": calls}
    return [{"role": "user", "content": "Rome and Oslo?"}, turn, *results, LAST]


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_conversation_goes_on_with_the_thoughts_of_a_stored_answer(name: str, tmp_path: Path) -> None:
    provider = PROVIDERS[name]
    with provider.server(lambda body, before: provider.reply()) as server:
        for _ in range(2):  # the second time from the answer store
            (answer,) = _llm(provider, server, tmp_path).answers(["Rome and Oslo?"], tools=[WEATHER])
        assert answer.error is None
        assert len(server.requests) == 1
        list(_llm(provider, server, tmp_path).answers([_continued(answer)], tools=[WEATHER]))
        assert provider.turn(server.requests[1]) == provider.expected


def test_thoughts_come_through_the_columns_of_steps(tmp_path: Path) -> None:
    provider = PROVIDERS["Anthropic"]
    with (
        provider.server(lambda body, before: provider.reply() if len(body["messages"]) == 1 else message("fine")) as (
            server
        ),
        DataDreamer(tmp_path),
    ):
        asked = DataSource("Asked", data={"prompts": ["Rome and Oslo?"]})
        args = {"llm": _llm(provider, server, tmp_path), "tools": [WEATHER]}
        called = Prompt("Called", inputs={"prompts": asked.output["prompts"]}, args=args)
        (row,) = called.output
        turn = {"role": "assistant", "content": row["generations"], "tool_calls": row["tool_calls"]}
        results = [{"role": "tool", "tool_call_id": each, "content": "sunny"} for each in ("c1", "c2")]
        chat = DataSource("Chat", data={"prompts": [[{"role": "user", "content": row["prompts"]}, turn, *results]]})
        answered = Prompt("Answered", inputs={"prompts": chat.output["prompts"]}, args=args)
        assert list(answered.output["generations"]) == ["fine"]
        assert provider.turn(server.requests[1]) == BLOCKS


def test_another_provider_gets_the_calls_without_thoughts(tmp_path: Path) -> None:
    provider = PROVIDERS["GoogleAIStudio"]
    with FlakyServer(lambda body, before: provider.reply()) as server:
        (answer,) = _llm(provider, server, tmp_path).answers(["Rome and Oslo?"], tools=[WEATHER])
        list(Groq("m", api_key="k", base_url=server.url).answers([_continued(answer)], tools=[WEATHER]))
        assert provider.turn(server.requests[1]) == {"role": "assistant", "content": None, **PLAIN}


def test_the_thoughts_of_an_answer_without_calls_are_sent_if_its_message_has_them(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "Sunny.", "reasoning_content": "I think."}
    provider = PROVIDERS["DeepSeek"]
    with FlakyServer(lambda body, before: provider.reply() if len(body["messages"]) == 1 else Reply("fine")) as server:
        (answer,) = _llm(provider, server, tmp_path).answers(["Rome and Oslo?"], tools=[WEATHER])
        chat = [*_continued(answer)[:-1], said, LAST]
        list(_llm(provider, server, tmp_path).answers([chat], tools=[WEATHER]))
        assert server.requests[1]["messages"][4] == said


def test_a_text_that_was_changed_is_sent_with_the_thoughts(tmp_path: Path) -> None:
    provider = PROVIDERS["Anthropic"]
    with provider.server(lambda body, before: provider.reply()) as server:
        (answer,) = _llm(provider, server, tmp_path).answers(["Rome and Oslo?"], tools=[WEATHER])
        user, turn, *results = _continued(answer)
        list(_llm(provider, server, tmp_path).answers([[user, {**turn, "content": "I ask."}, *results]]))
        changed = [*BLOCKS[:2], {"type": "text", "text": "I ask."}, *BLOCKS[3:]]
        assert provider.turn(server.requests[1]) == changed


@pytest.mark.parametrize("thought", ["s==", "[1]", {"anthropic": []}, '{"anthropic": "s=="}', '{"converse": ["s=="]}'])
def test_a_thought_that_is_not_one_fails_its_row(thought: Any, tmp_path: Path) -> None:
    provider = PROVIDERS["DeepSeek"]
    call = {"id": "c1", "name": "get_weather", "arguments": {"city": "Rome"}, "thought": thought}
    with FlakyServer() as server:
        chat = [{"role": "user", "content": "Rome?"}, {"role": "assistant", "tool_calls": [call]}]
        bad, good = _llm(provider, server, tmp_path).answers([chat, "Hi."], tools=[WEATHER])
        assert isinstance(bad.error, BadRequest)
        assert "answer.tool_calls" in str(bad.error)
        assert good.error is None


@pytest.mark.parametrize("name", ["Anthropic", "DeepSeek", "GoogleAIStudio", "Responses"])
def test_logged_answers_have_their_thoughts(name: str, tmp_path: Path) -> None:
    provider = PROVIDERS[name]
    reply = provider.reply()
    found = reply if isinstance(reply, dict) else json.loads(reply.body)
    asked = {"model": "m", "input" if name == "Responses" else "messages": [{"role": "user", "content": "Rome?"}]}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"request": asked, "response": found}), encoding="utf-8")
    with DataDreamer(tmp_path / "out"):
        (row,) = CallLogDataSource("Log", data_files=log).output
    turn = {"role": "assistant", "content": row["answer"], "tool_calls": json.loads(row["tool_calls"])}
    with provider.server(lambda body, before: provider.reply()) as server:
        chat = [{"role": "user", "content": "Rome?"}, turn, LAST]
        list(_llm(provider, server, tmp_path).answers([chat], tools=[WEATHER]))
        assert provider.turn(server.requests[0]) == provider.expected
