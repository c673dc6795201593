"""The Responses API at the wire, and what is left of assistants."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, error
from responses_server import response

from datadreamer_like.errors import AuthenticationFailed, DefinitionError, ModelError
from datadreamer_like.models import OpenAIAssistant, OpenAIResponses

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SECRET = "sk-S3cr3tK3y-0123456789abcdef"


def test_a_request_is_as_documented_and_reasoning_is_apart_from_the_text(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: response('{"a": 1}')) as server:
        prices = {"input": 1e6, "cached_input": 1e5, "output": 1e6}
        llm = OpenAIResponses(
            "m", "Be brief.", base_url=server.url, api_key="k", cache_folder_path=tmp_path, prices=prices
        )
        options = {"reasoning_effort": "low", "reasoning": {"summary": "auto"}, "verbosity": "low"}
        (answer,) = llm.answers(
            ["Say one."], n=2, max_new_tokens=9, temperature=0.5, top_p=0.5, schema=SCHEMA, **options
        )
    assert list(answer.texts) == ['{"a": 1}'] * 2
    assert answer.reasoning == ["I think."] * 2
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (14, 10, 8)
    assert answer.cost == pytest.approx(2 * (3 + 0.4 + 5))
    assert server.paths == ["/v1/responses"] * 2
    assert server.requests[0] == server.requests[1] == {
        "model": "m",
        "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say one."}],
        "store": False,
        "temperature": 0.5,
        "top_p": 0.5,
        "max_output_tokens": 9,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {
            "format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True},
            "verbosity": "low",
        },
    }  # fmt: skip


def test_log_probabilities_images_and_tools_have_the_apis_form(tmp_path: Path) -> None:
    token = {"token": "fine", "logprob": -0.5, "bytes": [], "top_logprobs": []}
    with FlakyServer(lambda body, before: response("fine", part={"logprobs": [token]})) as server:
        llm = OpenAIResponses(
            "m", base_url=server.url, api_key="k", cache_folder_path=tmp_path, tools=[{"type": "web_search"}]
        )
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        prompt = [
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            {"role": "user", "content": "Sure?"},
        ]
        (answer,) = llm.answers([prompt], top_logprobs=0)
    assert answer.logprobs is not None
    assert [(each.token, each.logprob) for each in answer.logprobs[0]] == [("fine", -0.5)]
    assert answer.cost is None  # of the tool's use
    (body,) = server.requests
    assert body["input"][0]["content"] == [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAAA"},
    ]
    assert body["input"][1]["content"] == [{"type": "output_text", "text": "A cat."}]
    assert body["include"] == ["message.output_text.logprobs"]
    assert body["tools"] == [{"type": "web_search"}]


def test_endings_and_refusals_mean_what_they_mean(tmp_path: Path) -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    filtered = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
    failed = {"status": "failed", "error": {"code": "server_error", "message": "It broke."}}
    parts = ("failed", "in_progress", "queued", "cancelled", "incomplete")

    def behave(body: dict[str, Any], before: int) -> Reply:
        prompt = body["input"][-1]["content"]
        if prompt == "limited" and not before:
            return error(429, "slow down", headers={"retry-after": "0.01"})
        if prompt == "warm" and "temperature" in body:
            return error(400, "Unsupported parameter: 'temperature' is not supported.", param="temperature")
        if prompt == "broken" and not before:
            return response(None, **failed)
        if prompt in parts and not before:
            return response("Not all of", status=prompt)
        if prompt == "invalid":
            return error(400, "Invalid 'input': too odd.", param="input")
        if prompt == "unknown":
            return error(401, f"Incorrect API key provided: {SECRET}")
        endings = {"cut": response(None, **cut), "filtered": response("x", **filtered)}
        return endings.get(prompt, response())

    with FlakyServer(behave) as server:
        llm = OpenAIResponses("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
        prompts = ["limited", "broken", "cut", "filtered", "invalid"]
        answers = list(llm.answers(prompts))
        assert [answer.text for answer in answers] == ["fine", "fine", None, None, None]
        assert "used up its tokens" in str(answers[2].error)
        assert "content filter" in str(answers[3].error)
        assert isinstance(answers[4].error, ModelError)
        assert llm.run(["warm", "after"]) == ["fine", "fine"]
        llm.retry_seconds = 0.001
        assert llm.run(parts) == ["fine"] * 5
        with pytest.raises(AuthenticationFailed) as caught:
            llm.run(["unknown"])
    assert SECRET not in str(caught.value)


def test_what_the_api_lacks_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with FlakyServer() as server:
        llm = OpenAIResponses("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path)
        for option in ({"stop": "."}, {"logit_bias": {1: 1.0}}, {"repetition_penalty": 1.1}):
            with pytest.raises(DefinitionError, match=f"API has no {next(iter(option))}"):
                llm.run(["a"], **option)
        with pytest.raises(DefinitionError, match="no log-probabilities of given texts"):
            llm.score(["a"], ["b"])
        with pytest.raises(DefinitionError, match="Give functions to each call"):
            OpenAIResponses("m", api_key="k", tools=[{"type": "function", "name": "f"}])
        assert server.requests == []


def test_an_assistant_is_instructions_and_tools_on_the_responses_api(tmp_path: Path) -> None:
    assert list(inspect.signature(OpenAIAssistant.__init__).parameters)[1:] == [
        "model_name", "system_prompt", "tools", "organization", "api_key", "base_url", "api_version", "retry_on_fail",
        "cache_folder_path", "kwargs",
    ]  # fmt: skip
    with FlakyServer(lambda body, before: response()) as server:
        llm = OpenAIAssistant(
            "m", "Be brief.", [{"type": "code_interpreter"}], None, "k", server.url, cache_folder_path=tmp_path
        )
        assert llm.run(["Hi"], prompt={"id": "pmpt_1", "version": "2"}) == ["fine"]
    (body,) = server.requests
    assert body["input"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert body["tools"] == [{"type": "code_interpreter", "container": {"type": "auto"}}]
    assert body["prompt"] == {"id": "pmpt_1", "version": "2"}
    assert llm.assistant_id is None
    with pytest.raises(DefinitionError, match="needs vector_store_ids"):
        OpenAIAssistant("m", tools=[{"type": "retrieval"}], api_key="k")
