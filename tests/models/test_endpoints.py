"""Every provider of the table, at the wire: its request as documented, its answers and refusals, and its key."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion, error

from datadreamer_like import llms, models
from datadreamer_like.errors import AuthenticationFailed, DefinitionError, MalformedAnswer
from datadreamer_like.models import (
    AI21,
    Cohere,
    DeepSeek,
    GoogleAIStudio,
    Groq,
    LlamaCPPServer,
    LMStudio,
    MistralAI,
    Ollama,
    OpenRouter,
    Together,
    VLLMServer,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
STRICT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
JSON = {"type": "json_object"}

# Of each provider: its address and key, the names of `max_new_tokens` and `seed`, whether a request has `n`, how it
# asks for a schema, the name of `repetition_penalty`, and whether it returns log-probabilities.
HOSTED: dict[Any, tuple[str, str | None, str, str | None, bool, Any, str | None, bool]] = {
    AI21: ("https://api.ai21.com/studio/v1", "AI21_API_KEY", "max_tokens", None, True, JSON, None, False),
    Cohere: (
        "https://api.cohere.ai/compatibility/v1",
        "COHERE_API_KEY",
        "max_tokens",
        "seed",
        False,
        STRICT,
        None,
        False,
    ),
    DeepSeek: ("https://api.deepseek.com", "DEEPSEEK_API_KEY", "max_tokens", None, False, JSON, None, True),
    GoogleAIStudio: (
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "GEMINI_API_KEY",
        "max_tokens",
        None,
        True,
        STRICT,
        None,
        False,
    ),
    Groq: (
        "https://api.groq.com/openai/v1",
        "GROQ_API_KEY",
        "max_completion_tokens",
        "seed",
        False,
        STRICT,
        None,
        False,
    ),
    MistralAI: ("https://api.mistral.ai/v1", "MISTRAL_API_KEY", "max_tokens", "random_seed", True, STRICT, None, False),
    OpenRouter: (
        "https://openrouter.ai/api/v1",
        "OPENROUTER_API_KEY",
        "max_tokens",
        "seed",
        False,
        STRICT,
        "repetition_penalty",
        True,
    ),
    Together: (
        "https://api.together.xyz/v1",
        "TOGETHER_API_KEY",
        "max_tokens",
        "seed",
        True,
        STRICT,
        "repetition_penalty",
        True,
    ),
}
LOCAL: dict[Any, tuple[str, str | None, str, str | None, bool, Any, str | None, bool]] = {
    LlamaCPPServer: ("http://localhost:8080/v1", None, "max_tokens", "seed", True, STRICT, "repeat_penalty", True),
    LMStudio: ("http://localhost:1234/v1", None, "max_tokens", "seed", False, STRICT, "repeat_penalty", False),
    Ollama: ("http://localhost:11434/v1", None, "max_tokens", "seed", False, STRICT, None, True),
    VLLMServer: ("http://localhost:8000/v1", None, "max_tokens", "seed", True, STRICT, "repetition_penalty", True),
}
PROVIDERS = {**HOSTED, **LOCAL}
SECRET = "sk-S3cr3tK3y-0123456789abcdef"


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-openai")
    for _, key, *_ in PROVIDERS.values():
        if key is not None:
            monkeypatch.delenv(key, raising=False)


def test_every_row_of_the_table_is_tested() -> None:
    rows = {each for each in vars(models.llms.endpoints).values() if inspect.isclass(each) and "endpoint" in vars(each)}
    assert rows == PROVIDERS.keys()


@pytest.mark.parametrize("kind", PROVIDERS, ids=lambda kind: kind.__name__)
def test_a_request_is_as_the_provider_documents_it(kind: Any, tmp_path: Path) -> None:
    _, _, limit, seed, takes_n, shape, penalty, _ = PROVIDERS[kind]
    with FlakyServer(lambda body, before: Reply('{"a": 1}')) as server:
        llm = kind("m", base_url=server.url, api_key="mine", system_prompt="Be brief.", cache_folder_path=tmp_path)
        more = {"repetition_penalty": 1.5} if penalty else {}
        options = {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.5, "n": 2, "seed": 3, "stop": ["."], **more}
        assert llm.run(["Say one."], **options, schema=SCHEMA) == [['{"a": 1}'] * 2]
    bodies = server.requests
    assert len(bodies) == (1 if takes_n else 2)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say one."}]
    told = bodies[0].pop("messages")
    if shape is JSON:
        assert told[0]["content"].startswith("Be brief.\n\nAnswer with JSON")
        assert told[0]["content"].endswith(json.dumps(SCHEMA))
        told[0]["content"] = "Be brief."
    assert told == messages
    expected = {
        "model": "m", limit: 7, "temperature": 0.5, "top_p": 0.5, "stop": ["."], "response_format": shape,
        **({"n": 2} if takes_n else {}), **({seed: 3} if seed else {}), **({penalty: 1.5} if penalty else {}),
    }  # fmt: skip
    assert bodies[0] == expected
    if seed and not takes_n:
        assert [body[seed] for body in bodies] == [3, 4]
    assert {header["authorization"] for header in server.headers} == {"Bearer mine"}
    assert "of-openai" not in str(server.headers)


@pytest.mark.parametrize("kind", PROVIDERS, ids=lambda kind: kind.__name__)
def test_what_a_provider_lacks_is_refused_before_anything_is_sent(kind: Any, tmp_path: Path) -> None:
    _, _, _, _, _, _, penalty, logprobs = PROVIDERS[kind]
    with FlakyServer() as server:
        llm = kind("m", base_url=server.url, api_key="mine", cache_folder_path=tmp_path)
        for option, has in ({"repetition_penalty": 1.5}, penalty), ({"top_logprobs": 1}, logprobs):
            if not has:
                with pytest.raises(DefinitionError, match=f"{kind.__name__}'s API has no {next(iter(option))}"):
                    llm.run(["a"], **option)
        assert server.requests == []


@pytest.mark.parametrize("kind", PROVIDERS, ids=lambda kind: kind.__name__)
def test_an_answer_is_read_with_its_reasoning_and_its_cost(kind: Any, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        answer = completion(Reply("Paris"), body)
        answer["choices"][0]["message"]["reasoning_content"] = "It is in France."
        return Reply(body=json.dumps(answer).encode())

    with FlakyServer(behave) as server:
        prices = {"input": 1e6, "output": 1e6}
        llm = kind("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path)
        (answer,) = llm.answers(["The capital of France?"])
        priced = kind("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path / "p", prices=prices)
        (costly,) = priced.answers(["The capital of France?"])
    assert (answer.text, answer.reasoning) == ("Paris", ["It is in France."])
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 2)
    assert answer.cost == (0.0 if kind in LOCAL else None)
    assert costly.cost == 5.0


@pytest.mark.parametrize("kind", PROVIDERS, ids=lambda kind: kind.__name__)
def test_refusals_of_the_server_mean_what_they_mean(kind: Any, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        prompt = body["messages"][-1]["content"]
        if prompt == "limited" and not before:
            return error(429, "slow down", headers={"retry-after": "0.01"})
        if prompt == "hot" and "presence_penalty" in body:
            return error(400, "Unsupported parameter: 'presence_penalty'.", param="presence_penalty")
        return error(401, f"the key {SECRET} is wrong") if prompt == "unknown" else Reply("fine")

    with FlakyServer(behave) as server:
        llm = kind("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
        assert llm.run(["limited"]) == ["fine"]
        assert server.seen["limited"] == 2
        assert llm.run(["hot"], presence_penalty=0.5) == ["fine"]
        with pytest.raises(AuthenticationFailed) as caught:
            llm.run(["unknown"] * 3, temperature=1.0, top_p=1.0)
    assert SECRET not in str(caught.value)
    assert "refuses the key" in str(caught.value)


@pytest.mark.parametrize("kind", HOSTED, ids=lambda kind: kind.__name__)
def test_a_key_goes_to_its_own_provider_only(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address, variable, *_ = HOSTED[kind]
    with pytest.raises(AuthenticationFailed, match=f"Set {variable}"):
        kind("m")
    monkeypatch.setenv(str(variable), SECRET)
    llm = kind("m")
    assert (llm.client.api_key, str(llm.client.base_url).rstrip("/")) == (SECRET, address)
    assert kind("m", base_url="https://elsewhere.example/v1").key == "none"
    assert kind("m", base_url=address.replace("https", "http")).key == "none"
    assert llm.model_card.startswith("https://")
    assert llm.license.startswith("https://")


@pytest.mark.parametrize("kind", LOCAL, ids=lambda kind: kind.__name__)
def test_a_server_on_this_machine_needs_no_key_and_one_elsewhere_has_no_known_price(kind: Any) -> None:
    llm = kind("m")
    assert (llm.key, str(llm.client.base_url).rstrip("/")) == ("none", LOCAL[kind][0])
    assert llm.prices.cost(1_000, 1_000) == 0.0
    assert kind("m", base_url="http://gpu-box:8000/v1").prices is None
    assert kind("m", api_key="mine").key == "mine"


@pytest.mark.parametrize("kind", [MistralAI, Cohere, AI21, GoogleAIStudio], ids=lambda kind: kind.__name__)
def test_arguments_have_datadreamers_order(kind: Any, tmp_path: Path) -> None:
    llm = kind("m", "mine", False, tmp_path)
    assert (llm.model_name, llm.key, llm.retry_on_fail, llm.cache_folder_path) == ("m", "mine", False, tmp_path)
    assert getattr(llms, kind.__name__) is kind


def test_openrouter_reports_what_an_answer_cost(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        answer = completion(Reply("fine"), body)
        answer["usage"]["cost"] = 0.25
        return Reply(body=json.dumps(answer).encode())

    with FlakyServer(behave) as server:
        (answer,) = OpenRouter("m", "k", base_url=server.url, cache_folder_path=tmp_path).answers(["a"], n=2)
        (other,) = Groq("m", "k", base_url=server.url, cache_folder_path=tmp_path).answers(["a"])
    assert (answer.cost, other.cost) == (0.5, None)


def test_without_a_system_message_the_schema_is_the_first_one(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: Reply('{"a": 1}')) as server:
        DeepSeek("m", "k", base_url=server.url, cache_folder_path=tmp_path).run(["a"], schema=SCHEMA)
    assert [message["role"] for message in server.requests[0]["messages"]] == ["system", "user"]


def test_the_context_window_is_read_from_a_list_of_models(tmp_path: Path) -> None:
    with FlakyServer() as server:
        server.models = [{"id": "m", "max_context_length": 1_000}, {"id": "other", "max_context_length": 5}]
        assert MistralAI("m", "k", base_url=server.url).get_max_context_length(100) == 900
        server.models = b'[{"id": "other"}, {"id": "m", "context_length": 500}]'
        assert Together("m", api_key="k", base_url=server.url).get_max_context_length(100) == 400
        server.models = b'{"data": ["m"]}'
        with pytest.raises(NotImplementedError, match="does not define the length"):
            Together("m", api_key="k", base_url=server.url).get_max_context_length(100)
        server.models = b"<!DOCTYPE html><html></html>"
        with pytest.raises(MalformedAnswer, match="sent an invalid answer: it is not JSON .*: '<!DOCTYPE html>"):
            Together("m", api_key="k", base_url=server.url).get_max_context_length(100)
