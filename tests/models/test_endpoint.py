from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, error

from datadreamer_like.errors import AuthenticationFailed, BadRequest, DefinitionError
from datadreamer_like.models import OpenAI
from datadreamer_like.models.llms.endpoint import Endpoint, Quirks
from datadreamer_like.models.llms.openai_compatible import OpenAICompatible


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-secret")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: gateway-secret\nauthorization: Bearer ambient-secret")


def headers_at(server: FlakyServer, folder: Path, **options: Any) -> dict[str, str]:
    OpenAI("m", cache_folder_path=folder, **options).run(["a"], force=True)
    return server.headers[-1]


def test_a_foreign_server_gets_no_key_and_none_of_the_sdks_variables(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "datadreamer_like")
    with FlakyServer() as server:
        headers = headers_at(server, tmp_path, base_url=server.url)
    assert headers["authorization"] == "Bearer none"
    assert "secret" not in str(headers)
    assert "OPENAI_API_KEY is not sent to http://127.0.0.1" in caplog.text
    assert "secret" not in caplog.text


def test_a_key_that_is_given_is_sent(tmp_path: Path) -> None:
    with FlakyServer() as server:
        headers = headers_at(server, tmp_path, base_url=server.url, api_key="mine", organization="ours")
    assert headers["authorization"] == "Bearer mine"
    assert headers["openai-organization"] == "ours"
    assert "secret" not in str(headers)


def test_the_server_that_the_environment_names_with_the_key_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "datadreamer_like")
    monkeypatch.delenv("OPENAI_CUSTOM_HEADERS")
    with FlakyServer() as server, FlakyServer() as other:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert headers_at(server, tmp_path)["authorization"] == "Bearer sk-of-openai-secret"
        assert headers_at(server, tmp_path, base_url=server.url)["authorization"] == "Bearer sk-of-openai-secret"
        assert headers_at(other, tmp_path, base_url=other.url)["authorization"] == "Bearer none"
    assert "OPENAI_API_KEY is sent to http://127.0.0.1" in caplog.text
    assert "which OPENAI_BASE_URL names" in caplog.text


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://api.openai.com@evil.example/v1", False),
        ("https://notapi.openai.com/v1", False),
    ],
)
def test_a_servers_own_address_is_told_by_its_host(address: str, own: bool) -> None:
    assert OpenAI.endpoint.serves(address) is own
    assert OpenAI("m", base_url=address).key == ("sk-of-openai-secret" if own else "none")


def test_azures_key_goes_to_azure_and_openais_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    azure = {"base_url": "https://mine.openai.azure.com", "api_version": "2026-01-01"}
    assert OpenAI("m", **azure).key == "azure-secret"
    assert OpenAI("m", **azure, api_key="mine").key == "mine"
    assert OpenAI("m", **azure, azure_ad_token="token").client.api_key != "azure-secret"
    assert OpenAI("m", **azure).client.admin_api_key is None
    gateway = {**azure, "base_url": "https://gateway.example"}
    with pytest.raises(AuthenticationFailed, match="AZURE_OPENAI_ENDPOINT"):
        OpenAI("m", **gateway)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://gateway.example")
    assert OpenAI("m", **gateway).key == "azure-secret"


def test_a_missing_key_is_an_error_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(AuthenticationFailed, match="Set OPENAI_API_KEY"):
        OpenAI("gpt-5-mini")


# Providers that differ from the protocol in data


def odd(quirks: Quirks | None = None) -> type[OpenAICompatible]:
    class Odd(OpenAICompatible):
        endpoint = Endpoint("Odd", "https://odd.example/v1", "ODD_KEY", quirks or Quirks())

    return Odd


def test_the_quirks_of_a_provider_decide_what_is_sent(tmp_path: Path) -> None:
    quirks = Quirks(
        limit_name="max_completion_tokens",
        penalty_names=("repeat",),
        logprobs_as_count=True,
        refuses={"logit_bias": "Leave it out."},
    )
    with FlakyServer() as server:
        llm = odd(quirks)("m", base_url=server.url, cache_folder_path=tmp_path, system_prompt="Be brief.")
        (texts,) = llm.run(
            ["a"], n=2, seed=3, max_new_tokens=7, repetition_penalty=1.5, top_logprobs=2, temperature=0.5, top_p=1.0
        )
        with pytest.raises(DefinitionError, match="Odd's API has no logit_bias. Leave it out."):
            llm.run(["a"], logit_bias={1: 2.0})
    assert texts == ["echo: a"] * 2
    assert [sorted(body) for body in server.requests] == [
        ["logprobs", "max_completion_tokens", "messages", "model", "n", "repeat", "seed", "temperature"]
    ]
    assert (server.requests[0]["logprobs"], server.requests[0]["repeat"]) == (2, 1.5)
    assert server.headers[0]["authorization"] == "Bearer none"


def test_another_providers_key_is_read_from_its_own_variable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = odd()
    with pytest.raises(AuthenticationFailed, match="Set ODD_KEY"):
        kind("m")
    monkeypatch.setenv("ODD_KEY", "odd")
    assert kind("m").key == "odd"
    client = kind("m").client
    assert (client.api_key, client.organization, client.project, client.admin_api_key) == ("odd", None, None, None)
    assert kind("m", base_url="https://elsewhere.example/v1").key == "none"


def test_a_chat_template_is_refused_without_being_shown() -> None:
    kind = odd()
    with pytest.raises(DefinitionError, match="takes no chat_prompt_template") as caught:
        kind("m", "sk-mistaken-for-a-key")
    assert "sk-" not in str(caught.value)


# What a server refuses


@pytest.mark.parametrize("named", [True, False])
def test_an_optional_parameter_that_is_refused_in_words_is_left_out(named: bool, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        if "temperature" not in body:
            return Reply("ok")
        fields = {"param": "temperature", "code": "unsupported_value"} if named else {}
        return error(400, "Unsupported value: 'temperature' does not support 0.0 with this model.", **fields)

    with FlakyServer(behave) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        assert llm.run([f"q{number}" for number in range(20)], temperature=0.0) == ["ok"] * 20


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("Unsupported parameter: 'response_format'.", {"param": "response_format", "code": "unsupported_parameter"}),
        ("temperature must be at most 1", {"param": "temperature"}),
        ("Unknown parameter: 'response_format'.", {}),
    ],
)
def test_a_parameter_that_an_answer_depends_on_ends_the_run_when_it_is_refused(
    message: str, fields: dict[str, str], tmp_path: Path
) -> None:
    with FlakyServer(lambda body, before: error(400, message, **fields)) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        options: dict[str, Any] = {"temperature": 1.5, "top_p": 0.5, "schema": {"type": "object"}, "concurrency": 2}
        with pytest.raises(DefinitionError, match="which every request has") as caught:
            llm.run([f"q{number}" for number in range(20)], **options)
    assert message in str(caught.value)
    assert len(server.requests) <= 4


def test_payment_required_ends_the_run(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: error(402, "Insufficient credits", code=402)) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        with pytest.raises(AuthenticationFailed, match="no credit left: Insufficient credits"):
            llm.run([f"q{number}" for number in range(20)], concurrency=2)
    assert len(server.requests) <= 4


def test_half_a_surrogate_in_a_prompt_fails_its_row_at_once(tmp_path: Path) -> None:
    with FlakyServer() as server:
        cut, whole = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path).answers(["cut \ud83d", "whole"])
    assert whole.text == "echo: whole"
    assert isinstance(cut.error, BadRequest)
    assert "prompt is not valid text" in str(cut.error)
    assert len(server.requests) == 1
