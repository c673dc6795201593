"""Tools where the wire differs: batches, single providers, engines in this process, and what models do wrong."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic_server import AnthropicServer, message
from batch_server import BatchServer
from bedrock_server import BedrockServer, said
from flaky_server import FlakyServer, Reply, prompt_of
from responses_server import ResponsesServer
from stand_ins import stand_in
from test_tools import CONVERSATION, ROME, TIME, WEATHER, WIRES, Wire

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, RejectedAnswer
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import (
    AI21,
    VLLM,
    Anthropic,
    Cohere,
    DeepSeek,
    GoogleAIStudio,
    HFTransformers,
    LMStudio,
    MistralAI,
    Ollama,
    OpenAI,
    OpenAIResponses,
    OpenRouter,
    ToolPrompt,
    VertexAI,
)
from datadreamer_like.models.calls.batch_api import BatchAPI
from datadreamer_like.models.llms.generation import Request, Sampling
from datadreamer_like.models.llms.tool_messages import neutral_calls

# Batches

BATCHES: dict[str, tuple[str, Any, str]] = {
    "chat": ("openai", OpenAI, "m"),
    "responses": ("openai", OpenAIResponses, "m"),
    "anthropic": ("anthropic", Anthropic, "claude-sonnet-4-6"),
    "mistral": ("mistral", MistralAI, "m"),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_batches_send_the_tools_of_each_row_and_give_it_its_calls(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchAPI, "poll_seconds", 0.01)
    kind, model, model_name = BATCHES[name]
    wire = WIRES["chat" if name == "mistral" else name]

    def fate(body: dict[str, Any], before: int) -> Any:
        (tool,) = body["tools"]
        called, asked = tool.get("function", tool)["name"], prompt_of(body)
        # The first calls for Oslo do not fit; what they are followed up with is another prompt.
        city = 3 if asked == "Oslo?" else asked if asked.endswith("?") else "Oslo, again"
        arguments = {"city": city} if called == "get_weather" else {}
        reply = wire.reply({"id": "c", "name": called, "arguments": arguments})
        found = reply if isinstance(reply, dict) else json.loads(reply.body)
        return found | ({"choices": found["choices"] * body["n"]} if body.get("n") else {})

    prompts = ["Rome?", ToolPrompt("Now?", [TIME]), "Oslo?"]
    options: dict[str, Any] = {"n": 2, "top_p": 1.0, "tools": [WEATHER]}
    with BatchServer(kind, fate) as server:
        llm = model(model_name, api_key="k", base_url=server.url, batch=True, cache_folder_path=tmp_path)
        for _ in range(2):  # the second time from the answer store
            answers = list(llm.answers(prompts, **options))
            assert [answer.error for answer in answers] == [None] * 3
            found = [[(call["name"], call["arguments"]) for (call,) in answer.tool_calls] for answer in answers]
            assert found == [
                [("get_weather", {"city": "Rome?"})] * 2,
                [("get_time", {})] * 2,
                [("get_weather", {"city": "Oslo, again"})] * 2,
            ]
        assert len(server.jobs) == 2
        lines = [line.get("params") or line["body"] for line in server.jobs[0].lines if "Rome?" in json.dumps(line)]
        assert lines[0]["tools"] == wire.tools


# Providers


def _calls(*calls: dict[str, Any], finish_reason: str = "tool_calls", **fields: Any) -> Reply:
    said = {"role": "assistant", **fields, "tool_calls": list(calls)}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost": 0.25}
    choice = {"index": 0, "finish_reason": finish_reason, "message": said}
    return Reply(body=json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode())


def _call(id: str, **fields: Any) -> dict[str, Any]:
    return {"id": id, "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}, **fields}


# Answers as each provider's documentation shows them, and what `tool_choice` it takes.
ROWS: dict[Any, tuple[Reply, str | None]] = {
    MistralAI: (_calls(_call("D681PevKs", index=0), content=""), "required"),
    VertexAI: (
        _calls(_call("function-call-1", type="function", extra_content={"google": {"thought_signature": "s"}})),
        "get_weather",
    ),
    GoogleAIStudio: (_calls(_call("", type="function"), finish_reason="stop"), "required"),
    Ollama: (_calls(_call("call_8x", index=0, type="function"), content=""), None),
    LMStudio: (_calls(_call("365174485", type="function")), "required"),
    OpenRouter: (
        _calls(_call("toolu_1", index=0, type="function"), content=None, refusal=None, reasoning="I think."),
        "get_weather",
    ),
    Cohere: (_calls(_call("get_weather_1", type="function"), content="I look."), None),
    AI21: (_calls(_call("tool_1", type="function"), content=None), None),
    DeepSeek: (_calls(_call("call_0_1", index=0, type="function"), content="", reasoning_content="I think."), "none"),
}


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
def test_a_provider_gets_tools_and_conversations_and_its_calls_are_read(kind: Any, tmp_path: Path) -> None:
    reply, choice = ROWS[kind]
    with FlakyServer(lambda body, before: reply) as server:
        llm = kind("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path)
        (answer,) = llm.answers([CONVERSATION], tools=[WEATHER], tool_choice=choice, max_new_tokens=20)
        body = server.requests[0]
        assert body["tools"] == [{"type": "function", "function": WEATHER}]
        by_name = {"type": "function", "function": {"name": "get_weather"}}
        assert body.get("tool_choice") == (by_name if choice == "get_weather" else choice)
        sent = body["messages"]
        assert [call["function"]["arguments"] for call in sent[1]["tool_calls"]] == [
            '{"city": "Rome"}',
            '{"city": "Oslo"}',
        ]
        ids = [call["id"] for call in sent[1]["tool_calls"]]
        assert ids == [each["tool_call_id"] for each in sent[2:4]]
        if kind is MistralAI:
            assert len({each for each in ids if re.fullmatch("[a-zA-Z0-9]{9}", each)}) == 2
        else:
            assert ids == ["c1", "c2"]
        if choice == "none":
            assert "It calls a tool; answer without one" in str(answer.error)
            return
        assert answer.error is None
        ((call,),) = answer.tool_calls
        assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Rome"})
        assert call["id"]
        assert answer.reasoning == (["I think."] if kind is OpenRouter else None)
        assert answer.text == ("I look." if kind is Cohere else None)
        assert kind is not OpenRouter or answer.cost == 0.25
        # "auto" is the default: it is not sent, and not another question.
        if choice is None:
            list(llm.answers([CONVERSATION], tools=[WEATHER], tool_choice="auto", max_new_tokens=20))
            assert len(server.requests) == 1


def test_an_id_that_mistral_takes_is_kept(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [{**ROME, "id": "D681PevKs"}]},
        {"role": "tool", "tool_call_id": "D681PevKs", "content": "sunny"},
    ]
    with FlakyServer() as server:
        MistralAI("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path).run([chat], tools=[WEATHER])
        assert server.requests[0]["messages"][2]["tool_call_id"] == "D681PevKs"


# What models do wrong


@pytest.mark.parametrize("choice", ["get_time", "none"])
def test_a_call_that_tool_choice_rules_out_is_asked_for_again(choice: str, tmp_path: Path) -> None:
    wire = WIRES["chat"]
    right = {"get_time": wire.reply({"id": "c", "name": "get_time", "arguments": {}}), "none": wire.reply(text="Hi.")}
    with FlakyServer(lambda body, before: right[choice] if len(server.requests) > 1 else wire.reply(ROME)) as server:
        options: Any = {"tools": [WEATHER, TIME], "tool_choice": choice}
        (answer,) = wire.model(server, tmp_path).answers(["Now?"], **options)
        assert answer.error is None
        assert len(server.requests) == 2
        assert answer.text == ("Hi." if choice == "none" else None)
        assert answer.tool_calls == (None if choice == "none" else [[{"id": "c", "name": "get_time", "arguments": {}}]])


def _cut(wire: Wire) -> Any:
    """An answer that the token limit ended within its call, whose arguments look whole: no field is required."""
    part = {"id": "c", "name": "get_time", "arguments": {}}
    if wire.server is AnthropicServer:
        use = {"type": "tool_use", "id": "c", "name": "get_time", "input": {}}
        return message(use, stop_reason="max_tokens")
    if wire.server is BedrockServer:
        return said({"toolUse": {"toolUseId": "c", "name": "get_time", "input": {}}}, stop="max_tokens")
    body = json.loads(wire.reply(part).body)
    if wire.server is ResponsesServer:
        body |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    else:
        body["choices"][0]["finish_reason"] = "length"
    return Reply(body=json.dumps(body).encode())


@pytest.mark.parametrize("name", WIRES)
def test_a_call_that_the_token_limit_cut_fails_its_row(name: str, tmp_path: Path) -> None:
    wire = WIRES[name]
    with wire.server(lambda body, before: _cut(wire)) as server:
        (answer,) = wire.model(server, tmp_path).answers(["Now?"], tools=[TIME], max_new_tokens=5)
        assert isinstance(answer.error, RejectedAnswer)
        assert "Raise max_new_tokens" in str(answer.error)
        assert "get_time" in str(answer.error)
        assert len(server.requests) == 1  # it would be cut again


# Conversations


@pytest.mark.parametrize("content", ["sunny", {"sky": "blue"}, None, [{"type": "text", "text": "sunny"}]])
def test_a_result_is_sent_as_a_text(content: Any, tmp_path: Path) -> None:
    chat = [*CONVERSATION[:2], {**CONVERSATION[2], "content": content}, *CONVERSATION[3:]]
    expected = {"sunny": "sunny", "None": ""}.get(str(content), '{"sky": "blue"}' if "sky" in str(content) else "sunny")
    found = {}
    for name, wire in WIRES.items():
        with wire.server(lambda body, before, wire=wire: wire.reply(text="fine")) as server:
            wire.model(server, tmp_path / name).run([chat], tools=[WEATHER])
            found[name] = wire.messages(server.requests[0])
    assert found["chat"][2]["content"] == expected
    assert found["responses"][4]["output"] == expected
    assert found["anthropic"][2]["content"][0]["content"] == expected
    assert found["bedrock"][2]["content"][0]["toolResult"]["content"] == [{"text": expected}]


def _ids(name: str, sent: Any) -> list[str]:
    """The ids of calls and of results in sent messages, in order."""
    text = json.dumps(WIRES[name].messages(sent))
    field = {
        "chat": "(?:tool_call_)?id",
        "responses": "call_id",
        "anthropic": "(?:tool_use_)?id",
        "bedrock": "toolUseId",
    }
    return re.findall(rf'"{field[name]}": "([^"]*)"', text)


@pytest.mark.parametrize("name", WIRES)
def test_calls_with_one_id_get_their_own_in_an_answer_and_over_several_rounds(name: str, tmp_path: Path) -> None:
    wire = WIRES[name]
    twice = [ROME, {**ROME, "arguments": {"city": "Oslo"}}]
    with wire.server(
        lambda body, before: wire.reply(text="Warm.") if _ids(name, body) else wire.reply(*twice)
    ) as server:
        llm = wire.model(server, tmp_path)
        (answer,) = llm.answers(["Rome?"], tools=[WEATHER])
        assert [(call["id"], call["arguments"]["city"]) for call in answer.tool_calls[0]] == [
            ("c1", "Rome"),
            ("c1_1", "Oslo"),
        ]
        turn = [
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": "", "tool_calls": twice},  # as another program kept them
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "assistant", "content": "Nice.", "tool_calls": []},
        ]
        again = [{**turn[0], "content": "And Rome?"}, {**turn[1], "tool_calls": [ROME]}, turn[2], turn[0]]
        assert llm.run([[*turn, *again]], tools=[WEATHER]) == ["Warm."]
        ids = _ids(name, server.requests[-1])
        assert ids == ["c1", "c1_1", "c1", "c1_1", "c1_2", "c1_2"]
        assert "tool_calls" not in json.dumps(wire.messages(server.requests[-1])).partition("Nice.")[2][:40]


def test_items_of_the_responses_api_with_one_id_get_ids_of_their_own(tmp_path: Path) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'}
    result = {"type": "function_call_output", "call_id": "c1", "output": "warm"}
    with ResponsesServer() as server:
        llm = OpenAIResponses("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path)
        said = {"role": "user", "content": "?"}
        llm.run([[said, call, call, result, result, call, result, said]])
    sent = [item.get("call_id") for item in server.requests[0]["input"]]
    assert sent == [None, "c1", "c1_1", "c1", "c1_1", "c1_2", "c1_2", None]


def test_a_result_with_an_image_is_sent_as_one_where_the_api_takes_it(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}, "text": None}
    chat = [*CONVERSATION[:2], {**CONVERSATION[2], "content": [{"type": "text", "text": "sunny"}, image]}]
    chat += [{**CONVERSATION[3], "content": ""}, *CONVERSATION[4:]]
    found, errors = {}, {}
    for name, wire in WIRES.items():
        with wire.server(lambda body, before, wire=wire: wire.reply(text="fine")) as server:
            (answer,) = wire.model(server, tmp_path / name).answers([chat], tools=[WEATHER])
            errors[name] = answer.error
            found[name] = wire.messages(server.requests[0]) if server.requests else None
    assert found["chat"] is None
    assert "this API takes only texts there" in str(errors["chat"])
    source = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    blocks = [{"type": "text", "text": "sunny"}, {"type": "image", "source": source}]
    assert found["anthropic"][2]["content"][0]["content"] == blocks
    parts = [
        {"type": "input_text", "text": "sunny"},
        {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,aGk="},
    ]
    assert found["responses"][4]["output"] == parts
    converse = [{"text": "sunny"}, {"image": {"format": "png", "source": {"bytes": "aGk="}}}]
    assert found["bedrock"][2]["content"][0]["toolResult"]["content"] == converse


def test_arguments_that_a_column_filled_with_none_are_left_out() -> None:
    filled = {**ROME, "arguments": {"city": "Rome", "zone": None, "near": {"lake": None, "sea": "Tyrrhenian"}}}
    written = {**ROME, "arguments": '{"city": "Rome", "zone": null}'}
    first, second = neutral_calls({"tool_calls": [filled, written]})
    assert first["arguments"] == {"city": "Rome", "near": {"sea": "Tyrrhenian"}}
    assert second["arguments"] == {"city": "Rome", "zone": None}  # as the model wrote it


# Engines in this process

SHORT = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{% for message in messages %}{{ message.content "
    "}} {% endfor %}<|assistant|>"
)
RESPONSE = {
    "start_anchor": "<|assistant|>",
    "fields": {
        "content": {"close": "<eos>"},
        "tool_calls": {
            "open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}  # fmt: skip
CALL = 'I look. <tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
EXPECTED = [{"id": "call_0", "name": "get_weather", "arguments": {"city": "Rome"}}]


@pytest.fixture
def vllm() -> Iterator[list[Any]]:
    with stand_in("vllm") as found:
        yield found


def test_vllm_in_process_reads_the_calls_of_each_of_n_answers(
    vllm: list[Any], tiny_causal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm as module

    if not hasattr(module.LLM, "one"):
        pytest.skip("needs the stand-in")
    llm = VLLM(str(tiny_causal_lm), chat_prompt_template=SHORT, response_template=RESPONSE, cache_folder_path=tmp_path)
    seen: list[str] = []

    def one(self: Any, ids: list[int], options: Any) -> Any:
        seen.append(llm.tokenizer.decode(ids))
        texts = [CALL, "Rain fell."] if "get_weather" in seen[-1] else ["The cat sat."] * 2
        ids_of = [[*llm.tokenizer.encode(text, add_special_tokens=False), llm.tokenizer.eos_token_id] for text in texts]
        outputs = [
            SimpleNamespace(text=text, token_ids=own, logprobs=None, finish_reason="stop")
            for text, own in zip(texts, ids_of, strict=True)
        ]
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=None, outputs=outputs[: options.n])

    monkeypatch.setattr(module.LLM, "one", one)
    prompts = ["Hello", ToolPrompt("Rome?", [WEATHER])]
    plain, called = llm.answers(prompts, n=2, top_p=1.0, max_new_tokens=8)
    assert (plain.texts, plain.tool_calls) == (["The cat sat."] * 2, None)
    assert (called.texts, called.tool_calls) == (["I look.", "Rain fell."], [EXPECTED, []])
    assert sorted("get_weather" in prompt for prompt in seen) == [False, True]


def test_transformers_reads_the_calls_that_a_model_writes(
    tiny_causal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    options: Any = {"chat_prompt_template": SHORT, "device": "cpu", "cache_folder_path": tmp_path}
    llm = HFTransformers(tiny_causal_lm, response_template=RESPONSE, **options)
    encode, end = llm.tokenizer.encode, llm.tokenizer.eos_token_id

    def generate(input_ids: Any, **_: Any) -> Any:
        texts = ["Rain fell.", CALL, CALL + CALL] if len(input_ids) == 3 else [CALL.replace("Rome", "Ro")]
        written = [[*encode(text, add_special_tokens=False), end] for text in texts]
        longest = max(map(len, written))
        padded = torch.tensor([each + [end] * (longest - len(each)) for each in written])
        return torch.cat([input_ids, padded], dim=1)

    monkeypatch.setattr(llm.model, "generate", generate)
    (answer,) = llm.answers(["Rome?"], tools=[WEATHER], n=3, top_p=1.0, max_new_tokens=60)
    twice = [*EXPECTED, {**EXPECTED[0], "id": "call_1"}]
    assert answer.tool_calls == [[], EXPECTED, twice]
    assert answer.texts[:2] == ["Rain fell.", "I look."]
    assert answer.completion_tokens > 3
    # Answers that another template read are other answers.
    assert fingerprint(llm) != fingerprint(HFTransformers(tiny_causal_lm, **options))
    llm.unload_model()
    for copy in (llm, pickle.loads(pickle.dumps(llm))):
        assert copy.tokenizer.response_template == RESPONSE
        assert "get_weather" in copy._text(Request("a", Sampling(), None, (WEATHER,)))[0]


def test_parts_of_messages_reach_a_chat_template_as_texts_and_images_fail_their_row(
    tiny_causal_lm: Path, tmp_path: Path
) -> None:
    llm = HFTransformers(tiny_causal_lm, device="cpu", cache_folder_path=tmp_path)
    said = {"type": "text", "text": "The cat"}
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    chats = [[{"role": "user", "content": content}] for content in ("The cat", [said], [said, image])]
    whole, parts, fails = llm.answers(chats, max_new_tokens=4)
    assert (parts.texts, parts.prompt_tokens) == (whole.texts, whole.prompt_tokens)
    assert isinstance(fails.error, BadRequest)
    assert "a part of the type 'image_url'" in str(fails.error)


def test_a_response_template_that_cannot_be_used_is_refused(tiny_causal_lm: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="must be a dictionary"):
        HFTransformers(tiny_causal_lm, response_template="x")
    llm = HFTransformers(tiny_causal_lm, chat_prompt_template=SHORT, device="cpu", response_template={"x": 1})
    with pytest.raises(DefinitionError, match="cannot use the response_template"):
        list(llm.answers(["a"], tools=[WEATHER]))
