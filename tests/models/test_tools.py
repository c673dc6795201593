"""Tools as data: what each wire is sent, and what is kept of the calls that come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from anthropic_server import AnthropicServer, message
from bedrock_server import BedrockServer, said
from flaky_server import FlakyServer, Reply
from pydantic import BaseModel, Field
from responses_server import ResponsesServer, response

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, PromptTooLong, RejectedAnswer
from datadreamer_like.models import (
    LLM,
    Answer,
    Anthropic,
    Bedrock,
    Cohere,
    HFTransformers,
    LlamaCPP,
    Ollama,
    OpenAI,
    OpenAIResponses,
    ToolPrompt,
)
from datadreamer_like.models.calls.budget import worst_case
from datadreamer_like.models.calls.llm_calls import LLMCalls
from datadreamer_like.models.llms.generation import Request, Sampling
from datadreamer_like.models.llms.hf_calls import CallReader
from datadreamer_like.models.llms.tools import tools_of


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius", *, days: int = 1) -> str:
    """Returns the weather of a city.

    Now and later.

    Args:
        city: Its name,
            in English.
        unit (str): Of the temperature.

    Returns:
        A text with: colons.
    """
    raise AssertionError("a tool is never executed")


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}
TIME = {"name": "get_time", "description": "", "parameters": {"type": "object", "properties": {}}}
ROME = {"id": "c1", "name": "get_weather", "arguments": {"city": "Rome"}}


# Tools


def test_a_typed_function_becomes_a_tool_by_its_signature_and_docstring() -> None:
    (tool,) = tools_of([get_weather])
    assert tool["name"] == "get_weather"
    assert tool["description"] == "Returns the weather of a city.\n\nNow and later."
    assert tool["parameters"]["required"] == ["city"]
    assert tool["parameters"]["properties"] == {
        "city": {"type": "string", "description": "Its name, in English."},
        "unit": {
            "type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius",
            "description": "Of the temperature.",
        },
        "days": {"type": "integer", "default": 1},
    }  # fmt: skip


def test_models_and_both_forms_of_dictionaries_are_tools() -> None:
    class Search(BaseModel):
        """Searches the web."""

        query: Annotated[str, Field(description="Words.")]

    search, weather, bare = tools_of([Search, {"type": "function", "function": WEATHER}, {"name": "now"}])
    assert (search["name"], search["description"]) == ("Search", "Searches the web.")
    assert search["parameters"]["properties"]["query"]["description"] == "Words."
    assert weather == WEATHER
    assert bare == {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}


def _untyped(city): ...  # type: ignore[no-untyped-def]


def _several(*cities: str) -> None: ...


@pytest.mark.parametrize(
    ("tools", "error", "words"),
    [
        ("get_weather", ArgumentTypeError, "must be a list"),
        ([3], ArgumentTypeError, "a function, a pydantic model class or a dictionary"),
        ([_untyped], DefinitionError, '"city" has no type'),
        ([_several], DefinitionError, "cannot be given by name"),
        ([WEATHER, WEATHER], DefinitionError, 'two tools with the name "get_weather"'),
        ([{"name": "a b"}], DefinitionError, "letters, digits"),
        ([{"name": "required"}], DefinitionError, "is a tool_choice"),
        ([{"type": "web_search"}], DefinitionError, "option of its model"),
        ([{**WEATHER, "parameters": {"type": "strin"}}], DefinitionError, "not a valid JSON schema"),
        ([{**WEATHER, "parameters": {"type": "string"}}], DefinitionError, "JSON schema of an object"),
        ([{**WEATHER, "paramters": {}}], DefinitionError, '"paramters"'),
    ],
)
def test_what_is_no_tool_is_refused(tools: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tools_of(tools)


# Wires


def _chat(*calls: dict[str, Any], text: str | None = None) -> Reply:
    made = [
        {
            "id": call["id"],
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": call["arguments"] if isinstance(call["arguments"], str) else json.dumps(call["arguments"]),
            },
        }
        for call in calls
    ]
    reason = "tool_calls" if calls else "stop"
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    if calls:
        choice["message"]["tool_calls"] = made  # type: ignore[index]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return Reply(body=json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode())


def _responses(*calls: dict[str, Any], text: str | None = None) -> Reply:
    output = [
        {
            "type": "function_call", "id": "fc_1", "call_id": call["id"], "name": call["name"], "status": "completed",
            "arguments": call["arguments"] if isinstance(call["arguments"], str) else json.dumps(call["arguments"]),
        }
        for call in calls
    ]  # fmt: skip
    said = {
        "type": "message", "id": "m", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }  # fmt: skip
    return response(text) if not calls else response(output=[*([said] if text else []), *output])


def _anthropic(*calls: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    blocks = [{"type": "tool_use", "id": c["id"], "name": c["name"], "input": c["arguments"]} for c in calls]
    return message(*([text] if text else []), *blocks, stop_reason="tool_use" if calls else "end_turn")


def _bedrock(*calls: dict[str, Any], text: str | None = None) -> Reply:
    blocks = [{"toolUse": {"toolUseId": c["id"], "name": c["name"], "input": c["arguments"]}} for c in calls]
    return said(*([{"text": text}] if text else []), *blocks, stop="tool_use" if calls else "end_turn")


@dataclass
class Wire:
    """One wire: its server, its model, its replies, and what a request must have."""

    server: type[FlakyServer]
    model: Callable[[FlakyServer, Path], LLM]
    reply: Callable[..., Any]
    tools: Any
    by_name: Any
    """What the request for `get_weather` has under `tool_choice`, or the name that the API gives it."""
    conversation: list[dict[str, Any]]
    """CONVERSATION as the server must receive it."""

    def sent_tools(self, body: dict[str, Any]) -> Any:
        return body["toolConfig"]["tools"] if "toolConfig" in body else body["tools"]

    def sent_choice(self, body: dict[str, Any]) -> Any:
        return body["toolConfig"].get("toolChoice") if "toolConfig" in body else body.get("tool_choice")

    def messages(self, body: dict[str, Any]) -> Any:
        return body.get("messages") or body["input"]


CONVERSATION = [
    {"role": "user", "content": "The weather in Rome and Oslo?", "tool_calls": None},  # as a column has it
    {
        "role": "assistant", "content": "I ask.",
        "tool_calls": [ROME, {**ROME, "id": "c2", "arguments": '{"city": "Oslo"}'}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "c2", "content": "snow"},
    {"role": "user", "content": "Where is it warmer?"},
]  # fmt: skip
_FUNCTIONS = [
    {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
    {"id": "c2", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
]
_ASKED, _LAST = {"role": "user", "content": "The weather in Rome and Oslo?"}, CONVERSATION[-1]
WIRES = {
    "chat": Wire(
        FlakyServer,
        lambda server, folder: OpenAI("m", base_url=server.url, api_key="k", cache_folder_path=folder),
        _chat,
        [{"type": "function", "function": WEATHER}],
        {"type": "function", "function": {"name": "get_weather"}},
        [_ASKED, {"role": "assistant", "content": "I ask.", "tool_calls": _FUNCTIONS}, *CONVERSATION[2:]],
    ),
    "responses": Wire(
        ResponsesServer,
        lambda server, folder: OpenAIResponses("m", base_url=server.url, api_key="k", cache_folder_path=folder),
        _responses,
        [{"type": "function", **WEATHER, "strict": False}],
        {"type": "function", "name": "get_weather"},
        [
            _ASKED,
            {"role": "assistant", "content": "I ask."},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'},
            {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": '{"city": "Oslo"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "function_call_output", "call_id": "c2", "output": "snow"},
            _LAST,
        ],
    ),
    "anthropic": Wire(
        AnthropicServer,
        lambda server, to: Anthropic("claude-sonnet-4-6", base_url=server.url, api_key="k", cache_folder_path=to),
        _anthropic,
        [{"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}],
        {"type": "tool", "name": "get_weather"},
        [
            _ASKED,
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I ask."},
                    {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Rome"}},
                    {"type": "tool_use", "id": "c2", "name": "get_weather", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
                    {"type": "tool_result", "tool_use_id": "c2", "content": "snow"},
                ],
            },
            _LAST,
        ],
    ),
    "bedrock": Wire(
        BedrockServer,
        lambda server, folder: Bedrock("m", "AKIA", "s", "us-east-1", base_url=server.url, cache_folder_path=folder),
        _bedrock,
        [{"toolSpec": {"name": "get_weather", "description": "The weather.", "inputSchema": {"json": SCHEMA}}}],
        {"tool": {"name": "get_weather"}},
        [
            {"role": "user", "content": [{"text": "The weather in Rome and Oslo?"}]},
            {
                "role": "assistant",
                "content": [
                    {"text": "I ask."},
                    {"toolUse": {"toolUseId": "c1", "name": "get_weather", "input": {"city": "Rome"}}},
                    {"toolUse": {"toolUseId": "c2", "name": "get_weather", "input": {"city": "Oslo"}}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"toolResult": {"toolUseId": "c1", "content": [{"text": "sunny"}]}},
                    {"toolResult": {"toolUseId": "c2", "content": [{"text": "snow"}]}},
                    {"text": "Where is it warmer?"},
                ],
            },
        ],
    ),
}  # fmt: skip


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.param]


def test_tools_are_sent_and_an_answer_of_calls_alone_is_kept(wire: Wire, tmp_path: Path) -> None:
    with wire.server(lambda body, before: wire.reply(ROME)) as server:
        for _ in range(2):  # the second time from the answer store
            (answer,) = wire.model(server, tmp_path).answers(["Rome?"], tools=[WEATHER], tool_choice="get_weather")
            assert answer.error is None
            assert answer.text is None
            assert answer.tool_calls == [[ROME]]
        (body,) = server.requests
        assert wire.sent_tools(body) == wire.tools
        assert wire.sent_choice(body) == wire.by_name
        list(wire.model(server, tmp_path).answers(["Rome?"], tools=[WEATHER]))
        assert wire.sent_choice(server.requests[1]) is None  # the default; and other options are another question
        list(wire.model(server, tmp_path).answers(["Rome?"]))
        assert len(server.requests) == 3
        assert not {"tools", "toolConfig"} & server.requests[2].keys()


def test_text_next_to_a_call_is_kept(wire: Wire, tmp_path: Path) -> None:
    with wire.server(lambda body, before: wire.reply(ROME, text="I look.")) as server:
        (answer,) = wire.model(server, tmp_path).answers(["Rome?"], tools=[WEATHER])
    assert (answer.text, answer.tool_calls) == ("I look.", [[ROME]])


def test_calls_and_results_in_a_conversation_have_the_form_of_the_wire(wire: Wire, tmp_path: Path) -> None:
    with wire.server(lambda body, before: wire.reply(text="In Rome.")) as server:
        (answer,) = wire.model(server, tmp_path).answers([CONVERSATION], tools=[WEATHER])
        assert answer.text == "In Rome."
        assert answer.tool_calls is None
        assert wire.messages(server.requests[0]) == wire.conversation


def test_arguments_that_do_not_fit_are_asked_for_again_once_with_the_reason(wire: Wire, tmp_path: Path) -> None:
    wrong = {**ROME, "arguments": {"city": 3}}
    with wire.server(lambda body, before: wire.reply(wrong if len(server.requests) == 1 else ROME)) as server:
        (answer,) = wire.model(server, tmp_path).answers(["Rome?"], tools=[WEATHER])
        assert answer.tool_calls == [[ROME]]
        assert len(server.requests) == 2
        asked = json.dumps(wire.messages(server.requests[1]))
        assert "city: 3 is not of type 'string'" in asked
        assert 'get_weather({\\\\\\"city\\\\\\": 3})' in asked or 'get_weather({\\"city\\": 3})' in asked
    with wire.server(lambda body, before: wire.reply(wrong)) as server:
        (answer,) = wire.model(server, tmp_path).answers(["Oslo?"], tools=[WEATHER])
        assert isinstance(answer.error, RejectedAnswer)
        assert 'get_weather({"city": 3})' in str(answer.error)
        assert answer.tool_calls == [[wrong]]  # kept with its error
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("calls", "choice", "reason"),
    [
        ([{**ROME, "arguments": '{"city": "Ro'}], None, "The arguments of get_weather are not one JSON object"),
        ([{**ROME, "arguments": "[1]"}], None, "are not one JSON object"),
        ([{**ROME, "name": "get_time"}], None, 'It calls "get_time", which is no tool; the tools are: get_weather'),
        ([], "required", "It calls no tool"),
    ],
)
def test_calls_that_cannot_be_used_fail_their_row(
    calls: list[Any], choice: str | None, reason: str, tmp_path: Path
) -> None:
    wire = WIRES["chat"]
    with wire.server(lambda body, before: wire.reply(*calls, text="text")) as server:
        options: Any = {} if choice is None else {"tool_choice": choice}
        (answer,) = wire.model(server, tmp_path).answers(["Rome?"], tools=[WEATHER], **options)
        assert isinstance(answer.error, RejectedAnswer)
        assert reason in str(answer.error)
        assert answer.tool_calls == ([[{**call} for call in calls]] if calls else None)
        assert len(server.requests) == 2


def test_of_several_answers_those_that_fit_are_kept(tmp_path: Path) -> None:
    good, bad = json.loads(_chat(ROME).body or b""), json.loads(_chat({**ROME, "arguments": "{"}).body or b"")
    choices = [*good["choices"], *bad["choices"]]
    with FlakyServer(lambda body, before: Reply(body=json.dumps({**good, "choices": choices}).encode())) as server:
        (answer,) = WIRES["chat"].model(server, tmp_path).answers(["Rome?"], tools=[WEATHER], n=2)
    assert answer.tool_calls == [[ROME], []]
    assert [one.tool_calls for one in answer.each()] == [[[ROME]], [[]]]


def test_a_prompt_may_have_tools_of_its_own(tmp_path: Path) -> None:
    wire = WIRES["chat"]
    prompts = ["Hello", ToolPrompt("Hello", [WEATHER]), ToolPrompt("Hello", [TIME]), ToolPrompt("Hello", [])]
    with wire.server(lambda body, before: wire.reply(text="hi")) as server:
        answers = list(wire.model(server, tmp_path).answers(prompts, concurrency=1, temperature=0.0))
        assert [answer.text for answer in answers] == ["hi"] * 4
        sent = sorted(json.dumps(body.get("tools")) for body in server.requests)
        assert sent == sorted(json.dumps(t and [{"type": "function", "function": t}]) for t in (None, WEATHER, TIME))


def test_a_result_without_the_id_of_its_call_fails_its_row(wire: Wire, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "tool", "content": "sunny"}]
    with wire.server(lambda body, before: wire.reply(text="fine")) as server:
        bad, fine = wire.model(server, tmp_path).answers([messages, "b"], tools=[WEATHER])
    assert isinstance(bad.error, BadRequest)
    assert "has no tool_call_id" in str(bad.error)
    assert fine.text == "fine"


class _Plain(LLM):
    model_name = "plain"

    def answer_batch(self, requests: Any) -> Any:
        raise AssertionError("nothing may be sent")


@pytest.mark.parametrize(
    ("llm", "choice", "words"),
    [
        (_Plain, None, "takes no tools"),
        (lambda: Cohere("m", api_key="k"), "required", 'does not take tool_choice="required"; it takes "auto"'),
        (lambda: Ollama("m"), "get_weather", "does not take tool_choice"),
        (lambda: Bedrock("m", "AKIA", "s", "us-east-1"), "none", "does not take tool_choice"),
        (lambda: Anthropic("claude-haiku-5-5", api_key="k"), "required", "does not let a tool be forced"),
        (lambda: OpenAI("m", api_key="k"), "get_time", 'tool_choice cannot be "get_time"'),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_anything_is_sent(llm: Any, choice: str | None, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        list(llm().answers(["a"], tools=[WEATHER], tool_choice=choice))


def test_options_that_contradict_each_other_are_refused() -> None:
    llm = OpenAI("m", api_key="k")
    with pytest.raises(DefinitionError, match="schema or tools, not both"):
        list(llm.answers(["a"], tools=[WEATHER], schema=SCHEMA))
    with pytest.raises(DefinitionError, match="needs tools"):
        list(llm.answers(["a"], tool_choice="required"))
    with pytest.raises(DefinitionError, match="takes no tools"):
        list(_Plain().answers([ToolPrompt("a", [WEATHER])]))
    with pytest.raises(ArgumentTypeError, match="tool_choice must be"):
        list(llm.answers(["a"], tools=[WEATHER], tool_choice=3))  # type: ignore[arg-type]


# Keys, stored answers, money


def test_options_without_tools_have_the_key_that_they_had_before() -> None:
    assert Sampling(temperature=0.5).key_material() == '{"temperature": 0.5}'
    (key,), _ = LLMCalls("id", Sampling(), lambda *_: "").admit(["a"])
    (own,), _ = LLMCalls("id", Sampling(), lambda *_: "").admit([ToolPrompt("a", [WEATHER])])
    calls = LLMCalls("id", Sampling(tools=(WEATHER,)), lambda *_: "")
    (all_, same, none), requests = calls.admit(["a", ToolPrompt("a", [WEATHER]), ToolPrompt("a", [])])
    assert len({key, own, all_, none}) == 4
    # Tools that are the same, or none in either way, are the same question.
    assert same == all_
    assert [request.tools for request in requests] == [(WEATHER,), (WEATHER,), ()]
    assert LLMCalls("id", Sampling(), lambda *_: "").admit([ToolPrompt("a", [])])[0] == [key]


def test_calls_are_stored_and_answers_of_before_are_read() -> None:
    answer = Answer([None], 3, 2, ["tool_calls"], tool_calls=[[{**ROME, "arguments": {"city": "Rom\u00e9"}}]], cost=0.0)
    assert LLMCalls.decode(LLMCalls.encode(answer)) == answer
    assert LLMCalls.decode(b'[["a"],1,2,["stop"]]').tool_calls is None


def test_the_worst_case_of_a_request_counts_its_tools() -> None:
    llm = OpenAI("m", api_key="k", prices={"input": 1.0, "output": 1.0})
    sampling = Sampling(max_new_tokens=10)
    without, with_tools = Request("a", sampling), Request("a", sampling, None, (WEATHER,))
    assert worst_case(llm, with_tools) - worst_case(llm, without) >= 1_000 * len(json.dumps(WEATHER))


# Local engines

# Qwen's template, for the tokens that SmolLM2 has too.
TEMPLATE = (
    "{%- if tools %}{{ '<|im_start|>system\nYou may call one or more functions.\n\n<tools>' }}{% for tool in tools %}"
    "{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n</tools>\n\nFor each function call, return a json object with "
    'function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
    '"arguments": <args-json-object>}\n</tool_call><|im_end|>\n\' }}{% endif %}{% for message in messages %}'
    "{%- if message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + message.content + "
    "'\n</tool_response><|im_end|>\n' }}{% elif message.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{% for tool_call in message.tool_calls %}{% set tool_call = tool_call.function %}"
    '{{ \'\n<tool_call>\n{"name": "\' + tool_call.name + \'", "arguments": \' }}{{ tool_call.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + message.role + '\n' + "
    "message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _examples(*cities: str) -> list[dict[str, Any]]:
    """A conversation in which the model has called the tool before, which a small model goes on with."""
    return [
        turn
        for city in cities
        for turn in (
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [{**ROME, "arguments": {"city": city}}]},
        )
    ]


def test_llama_cpp_calls_a_tool(smollm_gguf: Path, tmp_path: Path) -> None:
    llm = LlamaCPP(smollm_gguf, chat_prompt_template=TEMPLATE, threads=1, slots=1, cache_folder_path=tmp_path)
    chat = [*_examples("Paris", "Oslo"), {"role": "user", "content": "What is the weather in Rome?"}]
    (answer,) = llm.answers([chat], tools=[WEATHER], max_new_tokens=40)
    assert answer.tool_calls is not None
    (call,) = answer.tool_calls[0]
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Rome"})
    with pytest.raises(DefinitionError, match="does not take tool_choice"):
        list(llm.answers([chat], tools=[WEATHER], tool_choice="get_weather"))


def test_llama_cpp_refuses_tools_that_the_template_would_leave_out(smollm_gguf: Path) -> None:
    with pytest.raises(DefinitionError, match="takes no tools.* whose chat template has a place for tools"):
        list(LlamaCPP(smollm_gguf).answers(["a"], tools=[WEATHER]))


def test_transformers_reads_calls_by_the_tokenizers_response_template(tiny_causal_lm: Path) -> None:
    llm = HFTransformers(tiny_causal_lm, chat_prompt_template=TEMPLATE, device="cpu")
    with pytest.raises(DefinitionError, match="has no response_template"):
        list(llm.answers(["a"], tools=[WEATHER]))
    llm.tokenizer.response_template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {"close": "<|im_end|>"},
            "tool_calls": {
                "open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
        },
    }  # fmt: skip
    text, _ = llm._text(Request([*_examples("Oslo")], Sampling(), None, (WEATHER,)))
    assert '{"city": "Oslo"}' in text
    assert json.dumps(WEATHER["description"]) in text
    reader = CallReader(llm.tokenizer, text, [WEATHER])
    written = 'I look. <tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    found = reader.read_text(written, written, "stop")
    assert (found.text, found.error) == ("I look.", None)
    assert found.calls == ({"id": "call_0", "name": "get_weather", "arguments": {"city": "Rome"}},)
    broken = reader.read_text("<tool_call>{oops</tool_call>", "{oops", "stop")
    assert broken.calls == ({"id": "call_0", "name": "", "arguments": "{oops"},)
    fits, too_long = llm.answers(["The cat sat", ToolPrompt("The cat sat", [WEATHER])], max_new_tokens=8)
    assert (fits.error, fits.tool_calls) == (None, None)
    assert isinstance(too_long.error, PromptTooLong)  # tools are a part of the prompt
