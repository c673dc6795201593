"""Vertex AI at the wire. What google-auth itself does is tested where it is installed."""

from __future__ import annotations

import importlib.util
import json
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, error

from datadreamer_like.errors import AuthenticationFailed, DefinitionError, MissingExtra
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import Vertex, VertexAI

SECRET = "ya29.S3cr3tT0k3n-0123456789abcdef"
HAS_GOOGLE_AUTH = importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.auth") is not None


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROJECT", "LOCATION"):
        monkeypatch.delenv(f"VERTEXAI_{name}", raising=False)
        monkeypatch.delenv(f"GOOGLE_CLOUD_{name}", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")


def test_the_address_is_made_of_project_and_location() -> None:
    llm = Vertex("gemini-2.5-flash", "my-project", "europe-west1", api_key="token")
    assert llm.base_url == (
        "https://europe-west1-aiplatform.googleapis.com/v1/projects/my-project/locations/europe-west1/endpoints/openapi"
    )
    assert llm.model_name == "google/gemini-2.5-flash"
    anywhere = VertexAI("meta/llama-4", "my-project", api_key="token")
    assert anywhere.base_url == (
        "https://aiplatform.googleapis.com/v1/projects/my-project/locations/global/endpoints/openapi"
    )
    assert anywhere.model_name == "meta/llama-4"
    # Where and to whom it is billed decides no answer.
    assert fingerprint(llm) == fingerprint(VertexAI("gemini-2.5-flash", "other", api_key="other"))
    with pytest.raises(DefinitionError, match="needs a project"):
        VertexAI("m", api_key="token")


def test_a_request_is_as_documented_and_options_that_it_lacks_are_refused(tmp_path: Path) -> None:
    with FlakyServer() as server:
        llm = VertexAI("m", base_url=server.url, api_key="token", cache_folder_path=tmp_path)
        assert llm.run(["a"], n=2, max_new_tokens=5, temperature=0.5, top_p=0.9, seed=1) == [["echo: a"] * 2]
        for option in ({"top_logprobs": 1}, {"repetition_penalty": 1.1}, {"logit_bias": {1: 1.0}}):
            with pytest.raises(DefinitionError, match=f"VertexAI's API has no {next(iter(option))}"):
                llm.run(["a"], **option)
    assert server.requests == [
        {"model": "google/m", "messages": [{"role": "user", "content": "a"}], "n": 2, "max_tokens": 5,
         "temperature": 0.5, "top_p": 0.9}
    ]  # fmt: skip
    assert server.headers[0]["authorization"] == "Bearer token"


def test_credentials_give_each_request_a_valid_token(tmp_path: Path) -> None:
    credentials = SimpleNamespace(valid=True, token=SECRET)

    def behave(body: dict[str, Any], before: int) -> Reply:
        credentials.token = "renewed"
        return Reply("fine")

    with FlakyServer(behave) as server:
        llm = VertexAI("m", base_url=server.url, credentials=credentials, cache_folder_path=tmp_path)
        llm.run(["a", "b"], concurrency=1)
        assert llm.client.api_key == "renewed"
    assert [header["authorization"] for header in server.headers] == [f"Bearer {SECRET}", "Bearer renewed"]
    assert b"renewed" not in pickle.dumps(llm)


def test_a_wrong_token_stops_the_run_and_is_not_shown(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: error(401, f"Invalid credentials {SECRET}")) as server:
        llm = VertexAI("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
        with pytest.raises(AuthenticationFailed) as caught:
            llm.run(["a"])
    assert SECRET not in str(caught.value)


def test_the_default_credentials_go_to_google_only() -> None:
    assert VertexAI("m", base_url="https://elsewhere.example/v1").key == "none"


@pytest.mark.skipif(HAS_GOOGLE_AUTH, reason="google-auth is installed")
def test_without_google_auth_the_command_that_installs_it_is_named() -> None:
    with pytest.raises(MissingExtra, match=r'pip install "datadreamer-like\[vertex\]"'):
        VertexAI("m", "my-project")


@pytest.mark.skipif(not HAS_GOOGLE_AUTH, reason="needs google-auth, which the pinned set does not have")
def test_a_service_account_renews_its_token_at_the_address_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    def tokens(body: dict[str, Any], before: int) -> Reply:
        return Reply(body=json.dumps({"access_token": SECRET, "expires_in": 3600, "token_type": "Bearer"}).encode())

    key = rsa.generate_private_key(65_537, 2_048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with TokenServer(tokens) as google, FlakyServer() as server:
        account = {
            "type": "service_account", "project_id": "of-the-file", "private_key": key.decode(), "private_key_id": "1",
            "client_email": "me@of-the-file.example", "token_uri": google.url,
        }  # fmt: skip
        file = tmp_path / "account.json"
        file.write_text(json.dumps(account), encoding="utf-8")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        assert VertexAI("m").vertex_project == "of-the-file"
        credentials = VertexAI("m")._default[0]
        llm = VertexAI("m", base_url=server.url, credentials=credentials, cache_folder_path=tmp_path)
        llm.run(["a", "b"], concurrency=1)
        assert len(google.bodies) == 1
        credentials.expiry = (datetime.now(UTC) - timedelta(minutes=1)).replace(tzinfo=None)
        llm.run(["c"])
        assert len(google.bodies) == 2
    assert {header["authorization"] for header in server.headers} == {f"Bearer {SECRET}"}
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(AuthenticationFailed, match="gcloud auth application-default login"):
        VertexAI("m", "my-project")


class TokenServer(FlakyServer):
    """Google's token endpoint, whose requests are forms."""

    def __init__(self, behave: Any) -> None:
        super().__init__(behave)
        self.bodies: list[bytes] = []

    async def _request(self, reader: Any, writer: Any) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = head.partition("content-length: ")[2].partition("\r\n")[0]
        self.bodies.append(await reader.readexactly(int(length or 0)))
        return await self._send(writer, self._behave({}, 0), {})
