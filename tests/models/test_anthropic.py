from __future__ import annotations

import inspect
import logging
import pickle
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import AnthropicServer, error, message, tool_use
from flaky_server import Reply
from pydantic import BaseModel

from datadreamer_like import DataDreamer
from datadreamer_like.errors import AuthenticationFailed, BadRequest, DefinitionError, PromptTooLong, UnknownModel
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import Anthropic
from datadreamer_like.models.llms.prices import known_prices
from datadreamer_like.steps import DataSource, Prompt

OVERLOADED = b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}'
OLD, NEW = "claude-sonnet-4-6", "claude-opus-5-5"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Anthropic, "retry_seconds", 0.005)


def client(server: AnthropicServer, folder: Path, model: str = OLD, **options: Any) -> Anthropic:
    return Anthropic(model, **{"api_key": "k", "base_url": server.url, "cache_folder_path": folder, **options})


def test_it_has_datadreamers_signature() -> None:
    names = list(inspect.signature(Anthropic.__init__).parameters)[1:]
    assert names[:4] == ["model_name", "api_key", "retry_on_fail", "cache_folder_path"]


def test_a_request_says_what_was_asked_and_no_more(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "d"},
    ]
    with AnthropicServer() as server:
        llm = client(server, tmp_path, system_prompt="Be brief.")
        assert llm.run(["a"]) == ["echo: a"]
        llm.run([chat], max_new_tokens=7, temperature=0.5, top_p=1.0, stop=["x", "y"], seed=3, effort="low")
        llm.run(["e"], temperature=1.0, top_p=0.9, metadata={"user_id": "u"})
    assert server.requests[0] == {
        "model": OLD, "max_tokens": 16_384, "temperature": 0.0, "system": "Be brief.",
        "messages": [{"role": "user", "content": "a"}],
    }  # fmt: skip
    assert server.requests[1] == {
        "model": OLD, "max_tokens": 7, "temperature": 0.5, "stop_sequences": ["x", "y"],
        "system": "Be long.\n\nBe kind.", "messages": [chat[1], chat[2], chat[4]], "output_config": {"effort": "low"},
    }  # fmt: skip
    assert (server.requests[2]["top_p"], server.requests[2]["metadata"]) == (0.9, {"user_id": "u"})
    assert "temperature" not in server.requests[2]
    assert server.headers[0]["authorization"] == "Bearer k"


def test_newer_models_get_no_temperature_and_say_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AnthropicServer() as server, caplog.at_level(logging.WARNING, "datadreamer_like"):
        llm = client(server, tmp_path, NEW)
        llm.run(["a"])
        llm.run(["b"], temperature=0.3, top_p=0.5)
    assert all(not {"temperature", "top_p"} & body.keys() for body in server.requests)
    assert caplog.text.count("supports neither temperature nor top_p") == 1


def test_a_model_that_refuses_the_temperature_in_words_is_asked_without_it(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Any:
        if "temperature" in body:
            return error(400, "invalid_request_error", "`temperature` is deprecated for this model.")
        return message("fine")

    with AnthropicServer(behave) as server:
        assert client(server, tmp_path).run([f"q{number}" for number in range(10)]) == ["fine"] * 10


def test_a_refused_parameter_that_the_script_insists_on_ends_the_run(tmp_path: Path) -> None:
    refusal = error(400, "invalid_request_error", "`temperature` is deprecated for this model.")
    with AnthropicServer(lambda body, before: refusal) as server:
        with pytest.raises(DefinitionError, match="temperature"):
            client(server, tmp_path).run(["a"], extra_body={"temperature": 0.5})
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"logit_bias": {1: 2.0}}, "no logit_bias"),
        ({"top_logprobs": 2}, "no top_logprobs"),
        ({"repetition_penalty": 1.1}, "no repetition_penalty"),
        ({"stop": ["\n"]}, "white space"),
        ({"temperature": 1.5, "top_p": 1.0}, "0 to 1"),
        ({"temperature": 0.5, "top_p": 0.5}, "not both"),
    ],
)
def test_what_the_api_does_not_have_is_refused_before_it_is_sent(options: Any, match: str, tmp_path: Path) -> None:
    with AnthropicServer() as server:
        with pytest.raises(DefinitionError, match=match):
            client(server, tmp_path).run(["a"], **options)
        assert not server.requests


def test_n_answers_are_n_requests(tmp_path: Path) -> None:
    with AnthropicServer(lambda body, before: message(f"{before}")) as server:
        (answer,) = client(server, tmp_path).answers(["a"], n=3, temperature=1.0, top_p=1.0)
    assert (answer.texts, answer.prompt_tokens, answer.completion_tokens) == (["0", "1", "2"], 9, 6)
    assert server.most_at_once == 1


def test_thoughts_are_kept_apart_and_survive_the_cache(tmp_path: Path) -> None:
    thought = {"type": "thinking", "thinking": "France ...", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    with AnthropicServer(lambda body, before: message(thought, hidden, "Par", "is")) as server:
        llm = client(server, tmp_path)
        (first,) = llm.answers(["a"], **thinking)
        (again,) = llm.answers(["a"], cache_only=True, **thinking)
    assert (first.text, first.reasoning) == ("Paris", ["France ..."])
    assert (again.text, again.reasoning, again.cost) == ("Paris", ["France ..."], 0.0)
    assert "temperature" not in server.requests[0]
    assert server.requests[0]["thinking"] == thinking["thinking"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (message(stop_reason="max_tokens"), "before it wrote any text"),
        (message("I wi", stop_reason="refusal"), "refused to answer: a safety classifier"),
        (
            message(stop_reason="refusal", stop_details={"type": "refusal", "explanation": "Not this."}),
            "refused to answer: Not this.",
        ),
    ],
)
def test_what_is_no_answer_is_a_failed_row(reply: dict[str, Any], words: str, tmp_path: Path) -> None:
    with AnthropicServer(lambda body, before: reply) as server:
        (answer,) = client(server, tmp_path).answers(["a"])
    assert answer.text is None
    assert words in str(answer.error)
    assert answer.completion_tokens == 2


def test_an_empty_answer_is_asked_for_again(tmp_path: Path) -> None:
    with AnthropicServer(lambda body, before: message("fine") if before == 2 else message()) as server:
        assert client(server, tmp_path).run(["a"]) == ["fine"]


# Schemas


class City(BaseModel):
    name: str
    people: int


def test_a_schema_is_the_input_of_a_tool_that_the_model_is_made_to_use(tmp_path: Path) -> None:
    reply = message("Here:", tool_use({"name": "Paris", "people": 2}), stop_reason="tool_use")
    with AnthropicServer(lambda body, before: reply) as server:
        (answer,) = client(server, tmp_path).answers(["a"], schema=City)
    assert City.model_validate_json(str(answer.text)) == City(name="Paris", people=2)
    assert answer.finish_reasons == ["stop"]
    assert server.requests[0]["tools"][0]["input_schema"] == City.model_json_schema()
    assert server.requests[0]["tool_choice"] == {"type": "tool", "name": "answer"}


def test_an_answer_that_is_no_object_travels_in_one(tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"$ref": "#/$defs/c"}, "$defs": {"c": City.model_json_schema()}}
    reply = message(tool_use({"answer": [{"name": "Ä", "people": 1}]}), stop_reason="tool_use")
    with AnthropicServer(lambda body, before: reply) as server:
        assert client(server, tmp_path).run(["a"], schema=schema) == ['[{"name": "Ä", "people": 1}]']
    sent = server.requests[0]["tools"][0]["input_schema"]
    assert sent["properties"] == {"answer": {"type": "array", "items": {"$ref": "#/$defs/c"}}}
    assert sent["$defs"] == schema["$defs"]


@pytest.mark.parametrize(("model", "options"), [(NEW, {}), (OLD, {"thinking": {"type": "adaptive"}})])
def test_a_model_that_cannot_be_made_to_use_a_tool_gets_a_structured_output(
    model: str, options: Any, tmp_path: Path
) -> None:
    with AnthropicServer(lambda body, before: message('{"name": "Paris", "people": 2}')) as server:
        llm = client(server, tmp_path, model)
        (text,) = llm.run(["a"], schema=City, **options)
        with pytest.raises(DefinitionError, match="cannot be constrained to this schema"):
            llm.run(["a"], schema={"type": "object", "properties": {"a": {"not": {}}}}, **options)
    assert City.model_validate_json(text).people == 2
    sent = server.requests[0]["output_config"]["format"]
    assert (sent["type"], sent["schema"]["additionalProperties"]) == ("json_schema", False)
    assert "tools" not in server.requests[0]


def test_a_model_that_refuses_forced_tools_is_asked_for_a_structured_output(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Any:
        if "tool_choice" in body:
            return error(400, "invalid_request_error", "tool_choice: forced tool use is not supported on this model.")
        return message('{"answer": "yes"}')

    with AnthropicServer(behave) as server:
        assert client(server, tmp_path).run(["a", "b"], schema={"enum": ["yes", "no"]}) == ['"yes"'] * 2


@pytest.mark.parametrize("content", ["Paris", ["Par", "is"], [{"type": "text", "text": "Par"}, "is"]])
def test_a_gateways_content_that_is_no_list_of_blocks_is_its_text(content: Any, tmp_path: Path) -> None:
    with AnthropicServer(lambda body, before: message() | {"content": content}) as server:
        assert client(server, tmp_path).run(["a"]) == ["Paris"]


def test_half_an_input_is_a_failed_row(tmp_path: Path) -> None:
    with AnthropicServer(lambda body, before: message(tool_use({"name": "Pa"}), stop_reason="max_tokens")) as server:
        (answer,) = client(server, tmp_path).answers(["a"], schema=City)
    assert "cut off" in str(answer.error)


# Limits and errors


@pytest.mark.parametrize(
    "trouble",
    [
        error(529, "overloaded_error", "Overloaded"),
        error(500, "api_error", "oops"),
        error(429, "rate_limit_error", "slow down", retry_after="0.01"),
        error(408, "timeout_error", "slow"),
        Reply(drop=True),
        Reply(body=b'{"id": "x", "conte'),
        Reply(body=b"[1, 2]"),
        Reply(body=b'{"id": "x", "type": "message"}'),
        Reply(body=OVERLOADED),
        Reply(body=b"event: error\ndata: " + OVERLOADED + b"\n\n", headers={"content-type": "text/event-stream"}),
        error(529, "overloaded_error", "Overloaded", retry_after="inf"),
        error(529, "overloaded_error", "Overloaded", retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    ],
    ids=["529", "500", "429", "408", "drop", "cut", "list", "empty", "200", "stream", "endless", "past"],
)
def test_trouble_that_passes_is_retried(trouble: Reply, tmp_path: Path) -> None:
    with AnthropicServer(lambda body, before: trouble if before == 0 else message("fine")) as server:
        assert client(server, tmp_path).run(["a", "b", "c"]) == ["fine"] * 3
    assert sum(server.seen.values()) == 6


@pytest.mark.parametrize(
    ("reply", "kind", "match"),
    [
        (error(401, "authentication_error", "invalid x-api-key"), AuthenticationFailed, "refuses the key"),
        (error(402, "billing_error", "Payment is due"), AuthenticationFailed, "no credit left"),
        (
            error(400, "invalid_request_error", "Your credit balance is too low to access the API."),
            AuthenticationFailed,
            "no credit left",
        ),
        (error(404, "not_found_error", "model: claude-nope"), UnknownModel, "claude-nope"),
        (error(400, "invalid_request_error", "max_tokens: must be at most 64000"), DefinitionError, "max_tokens"),
        (Reply(body=OVERLOADED.replace(b"overloaded", b"authentication")), AuthenticationFailed, "key: Overloaded"),
    ],
)
def test_what_every_row_would_meet_ends_the_run(reply: Reply, kind: Any, match: str, tmp_path: Path) -> None:
    with AnthropicServer(lambda body, before: reply) as server:
        with pytest.raises(kind, match=match):
            client(server, tmp_path).run([f"q{number}" for number in range(20)], concurrency=2)
        assert sum(server.seen.values()) <= 4


def test_what_is_wrong_with_one_prompt_fails_its_row_alone(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Any:
        said = body["messages"][-1]["content"]
        if said == "long":
            return error(400, "invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum")
        if said == "odd":
            return error(400, "invalid_request_error", "messages.0: all messages must have non-empty content")
        return message("fine")

    with AnthropicServer(behave) as server:
        long, odd, half, good = client(server, tmp_path).answers(["long", "odd", "cut \ud83d", "good"])
    assert good.text == "fine"
    assert [type(answer.error) for answer in (long, odd, half)] == [PromptTooLong, BadRequest, BadRequest]
    assert "non-empty content" in str(odd.error)


def test_a_limit_that_the_headers_show_as_used_up_is_waited_for(tmp_path: Path) -> None:
    arrived: list[float] = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        import json

        arrived.append(time.monotonic())
        reset = datetime.now(UTC) + timedelta(seconds=0.6 if len(arrived) == 1 else 0)
        headers = {
            "anthropic-ratelimit-requests-remaining": "0" if len(arrived) == 1 else "5",
            "anthropic-ratelimit-requests-reset": reset.isoformat(),
        }
        return Reply(body=json.dumps(message("fine")).encode(), headers=headers)

    with AnthropicServer(behave) as server:
        assert client(server, tmp_path).run(["a", "b", "c"], concurrency=1) == ["fine"] * 3
    assert arrived[1] - arrived[0] >= 0.5
    assert arrived[2] - arrived[1] < 0.4


# Tokens and money


def test_tokens_of_the_prompt_cache_are_counted_and_priced(tmp_path: Path) -> None:
    usage = {
        "input_tokens": 100, "output_tokens": 50, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 1_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
        "service_tier": "standard",
    }  # fmt: skip
    prices = {"input": 4.0, "output": 20.0, "cached_input": 0.2, "cache_write": 5.0, "cache_write_1h": 8.0}
    with AnthropicServer(lambda body, before: message("fine", usage=usage)) as server:
        (answer,) = client(server, tmp_path, prices=prices).answers(["a"])
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (1_130, 1_000, 50)
    assert answer.cost == pytest.approx((100 * 4 + 1_000 * 0.2 + 20 * 5 + 10 * 8 + 50 * 20) / 1e6)


def test_what_is_not_priced_is_unknown_in_the_card_too(tmp_path: Path) -> None:
    assert Anthropic(NEW, api_key="k").prices == known_prices("anthropic", NEW)
    assert Anthropic("claude-of-mine", api_key="k").prices is None
    with AnthropicServer() as server, DataDreamer(str(tmp_path), verbose=False):
        rows = DataSource("Rows", data={"p": ["a", "b"]})
        llm = Anthropic(NEW, api_key="k", base_url=server.url)
        step = Prompt("Ask", inputs={"prompts": rows.output["p"]}, args={"llm": llm})
        assert list(step.output["generations"]) == ["echo: a", "echo: b"]
    assert step.card.cost is None


def test_another_tier_than_the_priced_one_has_an_unknown_cost(tmp_path: Path) -> None:
    reply = message("fine", usage={"service_tier": "priority"})
    with AnthropicServer(lambda body, before: reply) as server:
        (answer,) = client(server, tmp_path, prices={"input": 1, "output": 1}).answers(["a"])
    assert answer.cost is None


# Identity and secrets


def test_the_key_goes_to_anthropic_and_to_no_other_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationFailed, match="Set ANTHROPIC_API_KEY"):
        Anthropic(NEW)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-secret")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gate: g-secret\nx-api-key: o-secret\nauthorization: p-secret")
    assert Anthropic(NEW).client.api_key == "sk-ant-secret"
    with AnthropicServer() as server:
        client(server, tmp_path, api_key=None).run(["a"])
        assert server.headers[0]["authorization"] == "Bearer none"
        assert "secret" not in str(server.headers[0])
        monkeypatch.delenv("ANTHROPIC_CUSTOM_HEADERS")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        llm = Anthropic(NEW, cache_folder_path=tmp_path)
        llm.run(["b"])
        assert server.headers[1]["authorization"] == "Bearer sk-ant-secret"
        assert b"secret" not in pickle.dumps(llm)
        assert pickle.loads(pickle.dumps(llm)).run(["c"]) == ["echo: c"]


def test_what_decides_an_answer_is_in_the_fingerprint_and_the_key_is_not() -> None:
    def of(**options: Any) -> str:
        return fingerprint(Anthropic(**{"model_name": "m", "base_url": "http://a", "api_key": "k", **options}))

    assert of(api_key="other") == of(timeout=3.0) == of(prices={"input": 1, "output": 1}) == of()
    assert len({of(), of(model_name="n"), of(base_url="http://b"), of(system_prompt="s")}) == 4


def test_the_window_is_the_smallest_of_the_served_models_unless_given() -> None:
    assert Anthropic("m", api_key="k").get_max_context_length(1_000) == 199_000
    assert Anthropic("m", api_key="k", max_context_length=1_000_000).get_max_context_length(None) == 1_000_000
