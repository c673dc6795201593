from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer

from datadreamer_like.errors import AuthenticationFailed
from datadreamer_like.models import OpenAI


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-secret")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: gateway-secret\nAuthorization: Bearer ambient-secret")


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
    assert OpenAI("m", base_url=address)._key == ("sk-of-openai-secret" if own else "none")


def test_azures_key_goes_to_azure_and_openais_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    azure = {"base_url": "https://mine.openai.azure.com", "api_version": "2026-01-01"}
    assert OpenAI("m", **azure)._key == "azure-secret"
    assert OpenAI("m", **azure, api_key="mine")._key == "mine"
    assert OpenAI("m", **azure, azure_ad_token="token").client.api_key != "azure-secret"
    assert OpenAI("m", **azure).client.admin_api_key is None
    gateway = {**azure, "base_url": "https://gateway.example"}
    with pytest.raises(AuthenticationFailed, match="AZURE_OPENAI_ENDPOINT"):
        OpenAI("m", **gateway)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://gateway.example")
    assert OpenAI("m", **gateway)._key == "azure-secret"


def test_a_missing_key_is_an_error_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(AuthenticationFailed, match="Set OPENAI_API_KEY"):
        OpenAI("gpt-5-mini")
