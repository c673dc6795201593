"""Logs of paid calls: each format gives the same call, and an LLM's own logged requests are never sent again."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import AnthropicServer, message, tool_use
from flaky_server import FlakyServer, Reply
from responses_server import ResponsesServer

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MissingFile
from datadreamer_like.models import LLM, Anthropic, CallLog, LoggedCall, OpenAI, OpenAIResponses
from datadreamer_like.steps import CallLogDataSource, DataSource, Prompt

SECRET = "sk-proj-abcdef123456"
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}
CHAT = {"model": "m", "messages": [SYSTEM, USER], "temperature": 0.5, "max_tokens": 9, "stop": ["\n"]}
COMPLETION = {
    "object": "chat.completion", "created": 1_700_000_000, "model": "m-2025",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Blue."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}  # fmt: skip
CLAUDE = {
    "model": "m", "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [USER], "max_tokens": 9, "temperature": 0.5, "stop_sequences": ["\n"],
}  # fmt: skip
SAID = message("Blue.", usage={"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 2})
PARAMETERS = {"temperature": 0.5, "max_tokens": 9, "stop": ["\n"]}
LITELLM = {
    "id": "1", "call_type": "acompletion", "status": "success", "model": "provider/m",
    "custom_llm_provider": "provider", "messages": [SYSTEM, USER], "response": COMPLETION,
    "model_parameters": {**PARAMETERS, "stream": False},
    "response_cost": 0.25, "prompt_tokens": 7, "completion_tokens": 2, "startTime": 1_700_000_000.0,
    "endTime": 1_700_000_001.5, "api_base": "https://u:p@host", "metadata": {"user_api_key_hash": SECRET},
    "error_str": None,
}  # fmt: skip
LANGFUSE = {
    "id": "1", "traceId": "t", "type": "GENERATION", "model": "m", "level": "DEFAULT",
    "modelParameters": {"temperature": "0.5", "max_tokens": 9, "stop": '["\\n"]'},
    "input": [SYSTEM, USER], "output": {"role": "assistant", "content": "Blue."},
    "usageDetails": {"input": 7, "output": 2, "total": 9}, "costDetails": {"total": 0.25},
    "startTime": "2023-11-14T22:13:20.000Z", "endTime": "2023-11-14T22:13:21.500Z",
}  # fmt: skip


def otlp(attributes: dict[str, Any], events: list[Any] = [], **fields: Any) -> dict[str, Any]:  # noqa: B006
    def value(of: Any) -> dict[str, Any]:
        if isinstance(of, list):
            return {"arrayValue": {"values": [value(each) for each in of]}}
        if isinstance(of, int):
            return {"intValue": str(of)}
        return {"doubleValue": of} if isinstance(of, float) else {"stringValue": of}

    def listed(of: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"key": key, "value": value(each)} for key, each in of.items()]

    span = {
        "name": "chat m", "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001500000000",
        "attributes": listed(attributes),
        "events": [{"name": name, "attributes": listed(inside)} for name, inside in events], **fields,
    }  # fmt: skip
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [span]}]}]}


OF_SPAN = {
    "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.request.temperature": 0.5,
    "gen_ai.request.max_tokens": 9, "gen_ai.request.stop_sequences": ["\n"], "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.output_tokens": 2, "gen_ai.response.finish_reasons": ["stop"],
}  # fmt: skip
PARTS = [{"role": "user", "parts": [{"type": "text", "content": "Sky?"}]}]
OUT = [{"role": "assistant", "parts": [{"type": "text", "content": "Blue."}], "finish_reason": "stop"}]
NEW_SPAN = {
    **OF_SPAN, "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
    "gen_ai.input.messages": json.dumps(PARTS), "gen_ai.output.messages": json.dumps(OUT),
}  # fmt: skip
NUMBERED = {
    "gen_ai.prompt.0.role": "system", "gen_ai.prompt.0.content": "Be brief.", "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": "Sky?", "gen_ai.completion.0.content": "Blue.",
}  # fmt: skip
CONTENT_EVENTS = [
    ("gen_ai.content.prompt", {"gen_ai.prompt": json.dumps([SYSTEM, USER])}),
    ("gen_ai.content.completion", {"gen_ai.completion": json.dumps([{"role": "assistant", "content": "Blue."}])}),
]
MESSAGE_EVENTS = [
    ("gen_ai.system.message", {"content": "Be brief."}),
    ("gen_ai.user.message", {"content": "Sky?"}),
    ("gen_ai.choice", {"finish_reason": "stop", "content": "Blue."}),
]
DISTILABEL = {
    "instruction": "Sky?", "generation": "Blue.", "model_name": "m",
    "distilabel_metadata": {
        "raw_input_text_generation_0": [SYSTEM, USER], "raw_output_text_generation_0": "Blue.",
        "statistics_text_generation_0": {"input_tokens": 7, "output_tokens": 2},
    },
}  # fmt: skip
HTTP = {
    "request": {"method": "POST", "headers": {"Authorization": f"Bearer {SECRET}"}, "body": json.dumps(CHAT)},
    "response": {"status": 200, "headers": {"set-cookie": SECRET}, "body": json.dumps(COMPLETION)},
}
RESPONSES = {
    "request": {
        "model": "m", "instructions": "Be brief.", "input": "Sky?", "temperature": 0.5, "max_output_tokens": 9,
        "stop": ["\n"],
    },
    "response": {
        "object": "response", "status": "completed", "usage": {"input_tokens": 7, "output_tokens": 2},
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": "Blue."}]},
        ],
    },
}  # fmt: skip

SAME: dict[str, tuple[str, list[Any]]] = {
    "OpenAI": ("OpenAI", [{"request": CHAT, "response": COMPLETION}]),
    "OpenAI, whole HTTP messages": ("OpenAI", [HTTP]),
    "OpenAI, a client's arguments": (
        "OpenAI",
        [{"kwargs": {**CHAT, "api_key": SECRET, "extra_headers": {"x-api-key": SECRET}}, "response": COMPLETION}],
    ),
    "OpenAI's Responses": ("OpenAI", [RESPONSES]),
    "OpenAI's batch": (
        "OpenAI",
        [
            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT},
            {"id": "b", "custom_id": "a", "response": {"status_code": 200, "body": COMPLETION}, "error": None},
        ],
    ),
    "Anthropic": ("Anthropic", [{"request": CLAUDE, "response": SAID}]),
    "Anthropic's batch": (
        "Anthropic",
        [{"custom_id": "a", "params": CLAUDE}, {"custom_id": "a", "result": {"type": "succeeded", "message": SAID}}],
    ),
    "LiteLLM": ("LiteLLM", [LITELLM]),
    "LiteLLM, in its callback's arguments": ("LiteLLM", [{"kwargs": {"standard_logging_object": LITELLM}}]),
    "Langfuse": ("Langfuse", [LANGFUSE]),
    "Langfuse, a page of its API": ("Langfuse", [{"data": [LANGFUSE], "meta": {"page": 1}}]),
    "OpenTelemetry": ("OpenTelemetry", [otlp(NEW_SPAN)]),
    "OpenTelemetry, an SDK's span": (
        "OpenTelemetry",
        [{"name": "chat m", "attributes": NEW_SPAN, "start_time": "2023-11-14T22:13:20Z"}],
    ),
    "OpenTelemetry, numbered attributes": ("OpenTelemetry", [otlp({**OF_SPAN, **NUMBERED})]),
    "OpenTelemetry, events with contents": ("OpenTelemetry", [otlp(OF_SPAN, CONTENT_EVENTS)]),
    "OpenTelemetry, an event a message": ("OpenTelemetry", [otlp(OF_SPAN, MESSAGE_EVENTS)]),
    "distilabel": ("distilabel", [DISTILABEL]),
    "distilabel, a cached batch": (
        "distilabel",
        [{"seq_no": 0, "step_name": "text_generation_0", "last_batch": True, "data": [[DISTILABEL]]}],
    ),
}
OPTIONS = {"temperature": 0.5, "max_new_tokens": 9, "stop": ["\n"]}


def written(folder: Path, records: list[Any], name: str = "log.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def facts(call: LoggedCall) -> Any:
    answer = call.answer
    return call.messages, list(answer.texts), answer.error, answer.prompt_tokens, answer.completion_tokens


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_call(name: str, tmp_path: Path) -> None:
    kind, records = SAME[name]
    log = CallLog(written(tmp_path, records))
    (call,) = log
    assert facts(call) == ([SYSTEM, USER], ["Blue."], None, 7, 2)
    assert call.format == kind
    assert "m" in (call.model, *call.other_names)
    assert call.prompt == "Sky?"
    assert call.options == ({} if kind == "distilabel" else OPTIONS)
    assert call.answer.cost == (0.25 if kind in ("LiteLLM", "Langfuse") else None)
    if kind in ("LiteLLM", "Langfuse") or "resourceSpans" in records[0]:
        assert (call.started_at, call.seconds) == ("2023-11-14T22:13:20.000+00:00", 1.5)
    assert not log.skipped
    assert SECRET not in repr(call)


def test_a_published_price_is_the_cost_of_a_call_but_not_of_a_batch(tmp_path: Path) -> None:
    request = {**CHAT, "model": "gpt-5-mini"}
    batch = [{"custom_id": "a", "body": request}, {"custom_id": "a", "response": {"body": COMPLETION}}]
    direct, of_batch = CallLog(written(tmp_path, [{"request": request, "response": COMPLETION}, *batch]))
    assert direct.answer.cost == OpenAI("gpt-5-mini", api_key="k").prices.cost(7, 2)  # type: ignore[union-attr]
    assert of_batch.answer.cost is None


FAILED: list[Any] = [
    {"request": CHAT, "response": {"status_code": 401, "body": {"error": {"message": f"Bad key {SECRET}"}}}},
    {"request": CLAUDE, "response": {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}},
    {"request": CHAT, "error": "timed out"},
    {**LITELLM, "status": "failure", "response": None, "error_str": "timed out"},
    {**LANGFUSE, "level": "ERROR", "output": None, "statusMessage": "timed out"},
    otlp({**NEW_SPAN, "error.type": "timeout"}),
    {
        "request": CHAT,
        "response": {**COMPLETION, "choices": [{"message": {"content": None}, "finish_reason": "length"}]},
    },
    {**RESPONSES, "response": {**RESPONSES["response"], "status": "incomplete", "incomplete_details": None}},
]


def test_failed_calls_are_rows_with_an_error_and_never_answers(tmp_path: Path) -> None:
    batch = [
        {"custom_id": "a", "params": CLAUDE}, {"custom_id": "a", "result": {"type": "expired"}},
        {"custom_id": "b", "body": CHAT},
        {"custom_id": "b", "response": {"status_code": 429, "body": {"error": {"message": "slow"}}}, "error": None},
    ]  # fmt: skip
    log = CallLog(written(tmp_path, [*FAILED, *batch]))
    calls = list(log)
    assert len(calls) == len(FAILED) + 2
    assert all(call.answer.error is not None and call.answer.text is None for call in calls)
    assert SECRET not in " ".join(str(call.answer.error) for call in calls)
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, system_prompt="Be brief.").reuse(log)
        assert llm.run(["Sky?"], temperature=0.5, top_p=1.0, max_new_tokens=9, stop="\n") == ["echo: Sky?"]


# What is logged of an LLM's own requests is found again


# Schemas that providers send in another form than they were given.
OBJECT = {"type": "object", "properties": {"sky": {"type": "string"}}}
LIST = {"type": "array", "items": {"type": "integer"}}
CALLS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 7, "temperature": 0.0},
    {"temperature": 0.7, "top_p": 1.0, "stop": ["END", "."]},
    {"temperature": 1.0, "top_p": 1.0},
    {"top_p": 0.9, "max_new_tokens": 3},
    {"schema": OBJECT},
    {"schema": LIST, "max_new_tokens": 20},
]
CALLS_OF_OPENAI = [
    {"n": 2, "seed": 3, "temperature": 0.7, "top_p": 0.9},
    {"logit_bias": {5: 2}, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"reasoning_effort": "low", "extra_body": {"top_k": 3}},
]


def answering(body: dict[str, Any], before: int) -> Reply:
    text = (
        json.dumps({"sky": "blue"}) if "sky" in json.dumps(body) else "[1, 2]" if "integer" in json.dumps(body) else "x"
    )
    return Reply(text)


def claude_answering(body: dict[str, Any], before: int) -> Any:
    if "tools" in body:
        wrapped = "answer" in body["tools"][0]["input_schema"]["properties"]
        return message(tool_use({"answer": [1, 2]} if wrapped else {"sky": "blue"}), stop_reason="tool_use")
    return message("x")


def log_of(server: FlakyServer, file: Path) -> CallLog:
    """What a proxy in front of the server would have logged: the bodies that went over the wire."""
    said = claude_answering if isinstance(server, AnthropicServer) else None
    with file.open("w", encoding="utf-8") as lines:
        for body in server.requests:
            if said is not None:
                response = said(body, 0)
            elif "input" in body:
                text = answering(body, 0).text
                part = {"type": "output_text", "text": text}
                response = {"status": "completed", "output": [{"type": "message", "content": [part]}], "usage": {}}
            else:
                one = {"message": {"content": answering(body, 0).text}, "finish_reason": "stop"}
                response = {"choices": [one] * (body.get("n") or 1), "usage": {}}
            lines.write(json.dumps({"request": body, "response": response}) + "\n")
    return CallLog(file)


def claude(url: str) -> LLM:
    return Anthropic("claude-haiku-4-5", base_url=url, api_key="k", system_prompt="Be brief.")


MAKE: dict[str, tuple[Any, Any, list[dict[str, Any]]]] = {
    "OpenAI": (
        lambda: FlakyServer(answering),
        lambda url: OpenAI("m", base_url=url, system_prompt="Be brief."),
        [*CALLS, *CALLS_OF_OPENAI],
    ),
    "Responses": (
        ResponsesServer,
        lambda url: OpenAIResponses("m", base_url=url, system_prompt="Be brief."),
        [{}, {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9}, {"temperature": 1.0, "top_p": 1.0}],
    ),
    "Anthropic's newer models": (
        lambda: AnthropicServer(claude_answering),
        lambda url: Anthropic("claude-haiku-5-5", base_url=url, api_key="k"),
        [{}, {"temperature": 0.7, "top_p": 1.0}],
    ),
    "Anthropic": (lambda: AnthropicServer(claude_answering), claude, [call for call in CALLS if "top_p" not in call]),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_request_that_is_in_the_log_is_never_sent_again(name: str, tmp_path: Path) -> None:
    make_server, make, calls = MAKE[name]
    prompts = ["Sky?", [{"role": "user", "content": "Grass?"}]]
    with make_server() as server:
        first = [make(server.url).run(prompts, **options) for options in calls]
        sent = len(server.requests)
        log = log_of(server, tmp_path / "log.jsonl")
        llm = make(server.url).reuse(log)
        again = [llm.run(prompts, **options) for options in calls]
        assert len(server.requests) == sent
        assert again == first or name == "Responses"  # whose server echoes
        llm.run(["Sea?"])
        assert len(server.requests) == sent + 1


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 5}, "max_new_tokens (9 there, 5 here)"),
    ({"temperature": 0.9}, "temperature (0.5 there, 0.9 here)"),
    ({"top_p": 0.5}, "top_p (not given there, 0.5 here)"),
    ({"stop": None}, "stop (['\\n'] there, not given here)"),
    ({"seed": 1}, "seed (not given there, 1 here)"),
    ({"n": 2}, "n (not given there, 2 here)"),
    ({"schema": {"type": "object"}}, "schema (not given there"),
]
AS_LOGGED: dict[str, Any] = {"temperature": 0.5, "top_p": 1.0, "max_new_tokens": 9, "stop": "\n"}


@pytest.mark.parametrize(("other", "said"), OTHERS)
def test_an_answer_to_other_options_is_not_served_and_the_difference_is_named(
    other: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = CallLog(written(tmp_path, [{"request": CHAT, "response": COMPLETION}]))
    with FlakyServer(lambda body, before: Reply("{}")) as server:
        llm = OpenAI("m", base_url=server.url, system_prompt="Be brief.").reuse(log)
        assert llm.run(["Sky?"], **AS_LOGGED) == ["Blue."]
        assert not server.requests
        llm.run(["Sky?"], **{**AS_LOGGED, **other})
        assert len(server.requests) == 1
        assert said in caplog.text
        ignoring = OpenAI("m", base_url=server.url, system_prompt="Be brief.").reuse(log, ignore=list(other))
        if "n" not in other and "schema" not in other:
            assert ignoring.run(["Sky?"], **{**AS_LOGGED, **other}) == ["Blue."]


@pytest.mark.parametrize("llm", [{"model_name": "other"}, {"system_prompt": "Be long."}, {"system_prompt": None}])
def test_another_model_or_system_prompt_is_not_served(llm: dict[str, Any], tmp_path: Path) -> None:
    log = CallLog(written(tmp_path, [{"request": CHAT, "response": COMPLETION}]))
    with FlakyServer() as server:
        given = {"model_name": "m", "system_prompt": "Be brief.", "base_url": server.url, **llm}
        assert OpenAI(**given).reuse(log).run(["Sky?"], **AS_LOGGED) == ["echo: Sky?"]
        if "model_name" in llm:
            assert OpenAI(**given).reuse(log, model_names=["m"]).run(["Sky?"], **AS_LOGGED) == ["Blue."]


def test_each_random_answer_is_served_once_and_a_greedy_one_always(tmp_path: Path) -> None:
    def said(text: str) -> dict[str, Any]:
        return {**COMPLETION, "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    greedy = {**CHAT, "temperature": 0}
    records = [{"request": CHAT, "response": said(text)} for text in ("one", "two")]
    records += [{"request": greedy, "response": said("always")}]
    log = CallLog(written(tmp_path, records))
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, system_prompt="Be brief.", cache_folder_path=tmp_path).reuse(log)
        assert llm.run(["Sky?"], **AS_LOGGED) == ["one"]
        assert llm.run(["Sky?"] * 3, **AS_LOGGED) == ["one", "two", "echo: Sky?"]
        assert llm.run(["Sky?"] * 3, **{**AS_LOGGED, "temperature": 0.0}) == ["always"] * 3
        assert len(server.requests) == 1
        # The answers are in the store, so that the log is not needed any more, and `force` asks the model.
        plain = OpenAI("m", base_url=server.url, system_prompt="Be brief.", cache_folder_path=tmp_path)
        assert plain.run(["Sky?"] * 2, **AS_LOGGED, cache_only=True) == ["one", "two"]
        assert llm.run(["Sky?"], **AS_LOGGED, force=True) == ["echo: Sky?"]


def test_a_second_log_is_added_and_asked_for_what_the_first_does_not_have(tmp_path: Path) -> None:
    def logged(file: str, *pairs: tuple[str, str]) -> CallLog:
        records = [
            {
                "request": {"model": "m", "messages": [{"role": "user", "content": asked}]},
                "response": {"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": {}},
            }
            for asked, said in pairs
        ]
        return CallLog(written(tmp_path, records, file))

    first, second = (
        logged("a.jsonl", ("Sky?", "blue"), ("Sea?", "a")),
        logged("b.jsonl", ("Sea?", "b"), ("Grass?", "green")),
    )
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path).reuse(first).reuse(second)
        prompts = ["Sky?", "Sea?", "Grass?", "Sea?", "Sea?"]
        answers = llm.run(prompts, temperature=1.0, top_p=1.0)
        assert answers == ["blue", "a", "green", "b", "echo: Sea?"]
        assert len(server.requests) == 1


def test_a_step_and_its_plan_use_the_log_at_no_cost(tmp_path: Path) -> None:
    log = CallLog(written(tmp_path, [{"request": CHAT, "response": COMPLETION}]))

    def ask() -> Prompt:
        llm = OpenAI("m", api_key="k", base_url=server.url, system_prompt="Be brief.", prices={"input": 1, "output": 1})
        rows = DataSource("Rows", data={"q": ["Sky?", "Sea?"]})
        return Prompt("Ask", inputs={"prompts": rows.output["q"]}, args={"llm": llm.reuse(log), **AS_LOGGED})

    with FlakyServer() as server:
        with DataDreamer(tmp_path / "out", verbose=False).plan() as plan:
            ask()
        forecast = plan.nodes[-1].forecast
        assert forecast is not None
        assert (forecast.stored, forecast.requests) == (1, 1)
        with DataDreamer(tmp_path / "out", verbose=False):
            step = ask()
        assert list(step.output["generations"]) == ["Blue.", "echo: Sea?"]
        assert (len(server.requests), step.usage.requests, step.usage.cached) == (1, 1, 1)
        # Where the answers come from does not decide the result.
        with DataDreamer(tmp_path / "out", verbose=False):
            rows = DataSource("Rows", data={"q": ["Sky?", "Sea?"]})
            llm = OpenAI("m", api_key="k", base_url=server.url, system_prompt="Be brief.")
            Prompt("Ask", inputs={"prompts": rows.output["q"]}, args={"llm": llm, **AS_LOGGED})
        assert len(server.requests) == 1


def test_a_reusing_llm_is_pickled_for_other_processes(tmp_path: Path) -> None:
    log = CallLog(written(tmp_path, [{"request": CHAT, "response": COMPLETION}]))
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, system_prompt="Be brief.").reuse(log)
        llm.run(["Sky?"], **AS_LOGGED)
        assert pickle.loads(pickle.dumps(llm)).run(["Sky?"], **AS_LOGGED) == ["Blue."]


# Files


def test_lines_of_other_formats_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = {"request": CHAT, "response": COMPLETION}
    file = written(tmp_path, [pair, {"level": "info", "msg": "hi"}, LITELLM, {**LANGFUSE, "type": "SPAN"}, [1], pair])
    with file.open("a", encoding="utf-8") as lines:
        lines.write("plain text\n\n" + json.dumps(pair)[:50])
    log = CallLog(file)
    assert len(list(log)) == 3
    assert dict(log.found) == {"OpenAI": 2, "LiteLLM": 1}
    assert dict(log.skipped) == {
        "of no known format (keys level, msg)": 1,
        "Langfuse's observations of type SPAN": 1,
        "of no known format (a JSON list)": 1,
        "not JSON": 1,
        "cut off (the last line)": 1,
    }
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "3 calls were read" in said
    assert f"{file}, line 2" in said


def test_arrays_objects_on_several_lines_gzip_folders_and_patterns_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pair = {"request": CHAT, "response": COMPLETION}
    (tmp_path / "array.json").write_text(json.dumps([pair] * 300, indent=1), encoding="utf-8")
    (tmp_path / "spans.json").write_text(json.dumps(otlp(NEW_SPAN), indent=2), encoding="utf-8")
    with gzip.open(tmp_path / "log.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.write(json.dumps(pair) + "\n")
    pq.write_table(pa.Table.from_pylist([DISTILABEL]), tmp_path / "rows.parquet")
    assert dict(_passed(CallLog(tmp_path)).found) == {"OpenAI": 301, "OpenTelemetry": 1, "distilabel": 1}
    assert dict(_passed(CallLog(str(tmp_path / "*.jso*"))).found) == {"OpenAI": 301, "OpenTelemetry": 1}


def _passed(log: CallLog) -> CallLog:
    for _ in log:
        pass
    return log


def test_a_batchs_requests_and_results_are_found_in_two_files_in_any_order(tmp_path: Path) -> None:
    results = written(tmp_path, [{"custom_id": "a", "response": {"body": COMPLETION}, "error": None}], "a-out.jsonl")
    requests = written(tmp_path, [{"custom_id": "a", "body": CHAT}], "b-in.jsonl")
    (call,) = CallLog(results, requests)
    assert facts(call)[:2] == ([SYSTEM, USER], ["Blue."])
    with pytest.raises(DataError, match="give the batch's input file too"):
        list(CallLog(results))


def test_batches_that_use_the_same_ids_are_never_mixed_up(tmp_path: Path) -> None:
    def of(question: str, answer: str, batch: str) -> list[Path]:
        body = {**CHAT, "messages": [{"role": "user", "content": question}]}
        said = {**COMPLETION, "choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}
        asked = [{"custom_id": "request-1", "body": body}, {"custom_id": f"{batch}-2", "body": CHAT}]
        results = [{"custom_id": "request-1", "response": {"body": said}}]
        results += [{"custom_id": f"{batch}-2", "response": {"body": COMPLETION}}]
        return [written(tmp_path, asked, f"{batch}-in.jsonl"), written(tmp_path, results, f"{batch}-out.jsonl")]

    sky, sea = of("Sky?", "Blue.", "a"), of("Grass?", "Green.", "b")
    log = CallLog(*sky, *sea)
    assert [call.prompt for call in log] == ["Sky?", "Sky?"]  # of the ids that one batch has
    ((reason, count),) = log.skipped.items()
    assert count == 2
    assert "same custom_id" in reason
    assert [call.answer.text for call in CallLog(*sky, *sky)] == ["Blue.", "Blue."]  # the same files twice
    assert [(call.prompt, call.answer.text) for call in CallLog(*sea)][0] == ("Grass?", "Green.")


def test_what_the_responses_api_names_in_its_own_way_is_compared(tmp_path: Path) -> None:
    def asked(tools: Any = None, **options: Any) -> OpenAIResponses:
        with ResponsesServer() as server:
            llm = OpenAIResponses("m", base_url=server.url, tools=tools).reuse(log)
            llm.run(["Sky?"], **options)
            sent.append(len(server.requests))
        return llm

    request = {
        "model": "m", "input": "Sky?", "temperature": 0, "text": {"verbosity": "low"}, "reasoning": {"effort": "low"},
        "prompt": {"id": "pmpt_1"}, "tools": [{"type": "web_search"}],
    }  # fmt: skip
    log = CallLog(written(tmp_path, [{"request": request, "response": RESPONSES["response"]}]))
    sent: list[int] = []
    same = {"verbosity": "low", "reasoning_effort": "low", "prompt": {"id": "pmpt_1"}}
    asked([{"type": "web_search"}], **same)
    assert sent == [0]
    asked(None, **same)
    for name, other in (("verbosity", "high"), ("reasoning_effort", "high"), ("prompt", {"id": "pmpt_2"})):
        asked([{"type": "web_search"}], **{**same, name: other})
        asked([{"type": "web_search"}], **{key: value for key, value in same.items() if key != name})
    assert sent == [0] + 7 * [1]


def test_an_answer_that_lacks_what_is_asked_for_is_not_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logged = [
        {"request": {**CHAT, "messages": [USER]}, "response": COMPLETION},
        {"request": {**CHAT, "messages": [USER], "logprobs": True}, "response": COMPLETION},
    ]
    log = CallLog(written(tmp_path, logged))
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url).reuse(log, ignore=["n"])
        assert llm.run(["Sky?"], n=2, **AS_LOGGED) == [["echo: Sky?", "echo: Sky?"]]
        assert "with 1 of 2 answers" in caplog.text
        llm.run(["Sky?"], top_logprobs=0, **AS_LOGGED)
        assert "without log-probabilities" in caplog.text
        assert len(server.requests) == 2


def test_a_compressed_log_that_is_damaged_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl.gz"
    packed = bytearray(gzip.compress(json.dumps({"request": CHAT, "response": COMPLETION}).encode() * 50))
    packed[30:60] = b"\xff" * 30
    file.write_bytes(packed)
    with pytest.raises(DataError, match="log.jsonl.gz is damaged"):
        list(CallLog(file))


WRONG: list[tuple[bytes, type[Exception], str]] = [
    (b"", EmptyDataset, "is empty"),
    (b"\n \n", EmptyDataset, "is empty"),
    (b"[]", EmptyDataset, "is empty"),
    (b"a,b\n1,2\n", DataError, "line 1: not JSON.*Known are"),
    (b'{"text": "a row"}\n', DataError, r"of no known format \(keys text\)"),
    (b'{"request": {"messages": [', DataError, "cut off"),
    (b'[{"request"', DataError, "cut off"),
    (b"\xff\xfe\x00", DataError, "not JSON"),
    (b"\x1f\x8bnot gzip", DataError, "damaged"),
    (b"SQLite format 3\0...", DataError, "hashes of its prompts"),
]


@pytest.mark.parametrize(("content", "kind", "said"), WRONG)
def test_a_file_without_calls_is_one_error_before_any_work(
    content: bytes, kind: type[Exception], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(content)
    with pytest.raises(kind, match=f"log.jsonl.*{said}"):
        OpenAI("m", base_url="http://127.0.0.1:9/v1").reuse(CallLog(file))
    with DataDreamer(":memory:", verbose=False), pytest.raises(kind, match="log.jsonl"):
        CallLogDataSource("Paid", data_files=file)


def test_malformed_records_are_skipped_with_their_reason(tmp_path: Path) -> None:
    good = {"request": CHAT, "response": COMPLETION}
    records: list[Any] = [
        {"request": {"messages": [1]}, "response": {}},
        {"request": {"messages": [USER]}, "response": {"choices": [{"message": {"content": 7}}]}},
        {"custom_id": "x", "params": 5},
        {"custom_id": "x", "result": 7},
        {"resourceSpans": [7]},
        {**LANGFUSE, "input": 7},
        {**LITELLM, "messages": 7},
        {"distilabel_metadata": {"raw_input_a": 7, "raw_output_a": "x"}},
        good,
    ]
    log = CallLog(written(tmp_path, records))
    assert [call.answer.text for call in log if call.answer.error is None] == ["Blue."]
    assert all("cannot be read" in reason for reason in log.skipped)


def test_an_llm_that_overrides_run_is_refused(tmp_path: Path) -> None:
    class Own(LLM):
        def run(self, prompts: Any, **options: Any) -> Any:
            return [str(prompt) for prompt in prompts]

    with pytest.raises(DefinitionError, match="Own overrides run"):
        Own().reuse(CallLog(written(tmp_path, [{"request": CHAT, "response": COMPLETION}])))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    llm = OpenAI("m", base_url="http://127.0.0.1:9/v1")
    log = CallLog(written(tmp_path, [{"request": CHAT, "response": COMPLETION}]))
    with pytest.raises(MissingFile, match=r"no file .*absent\.jsonl"):
        CallLog(tmp_path / "absent.jsonl")
    with pytest.raises(DefinitionError, match="at least one file"):
        CallLog()
    with pytest.raises(ArgumentTypeError, match="takes a CallLog"):
        llm.reuse("log.jsonl")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="ignore must be a list"):
        llm.reuse(log, ignore="temperature")


def test_the_rows_of_a_log_have_what_was_asked_and_paid(tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": "u"}]}
    records = [
        LITELLM,
        {"request": CHAT, "error": "timed out"},
        {"request": {**CHAT, "messages": [image]}, "response": COMPLETION},
    ]
    with DataDreamer(":memory:", verbose=False):
        rows = list(CallLogDataSource("Paid", data_files=written(tmp_path, records)).output)
    assert rows[0] == {
        "prompt": "Sky?", "messages": [SYSTEM, USER], "answer": "Blue.", "reasoning": None, "model": "provider/m",
        "options": json.dumps(OPTIONS, sort_keys=True), "prompt_tokens": 7, "completion_tokens": 2, "cost": 0.25,
        "started_at": "2023-11-14T22:13:20.000+00:00", "seconds": 1.5, "finish_reason": "stop", "error": None,
        "format": "LiteLLM", "tool_calls": None,
    }  # fmt: skip
    assert (rows[1]["answer"], rows[1]["error"]) == (None, "The log says: timed out")
    assert json.loads(rows[2]["messages"][0]["content"]) == image["content"]
