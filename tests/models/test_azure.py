from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, error

from datadreamer_like.errors import AuthenticationFailed, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import Azure, OpenAI

ADDRESS = "https://mine.openai.azure.com"
SECRET = "az-S3cr3tK3y-0123456789abcdef"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-openai")


def test_the_v1_api_takes_the_deployment_as_the_model_and_the_key_as_a_bearer(tmp_path: Path) -> None:
    with FlakyServer() as server:
        llm = Azure("deployed", base_url=server.url.removesuffix("/v1"), api_key="mine", cache_folder_path=tmp_path)
        assert llm.run(["hello"], max_new_tokens=5) == ["echo: hello"]
    assert server.paths == ["/openai/v1/chat/completions"]
    assert (server.requests[0]["model"], server.requests[0]["max_completion_tokens"]) == ("deployed", 5)
    assert server.headers[0]["authorization"] == "Bearer mine"
    assert "of-openai" not in str(server.headers)


def test_an_api_version_is_that_of_the_older_api(tmp_path: Path) -> None:
    with FlakyServer() as server:
        address = server.url.removesuffix("/v1")
        llm = Azure("deployed", base_url=address, api_key="mine", api_version="2024-10-21", cache_folder_path=tmp_path)
        assert llm.run(["hello"]) == ["echo: hello"]
    assert server.paths == ["/openai/deployments/deployed/chat/completions?api-version=2024-10-21"]
    assert server.headers[0]["api-key"] == "mine"


def test_refusals_mean_what_they_mean_and_show_no_key(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        if body["messages"][-1]["content"] == "busy" and not before:
            return error(429, "Requests have exceeded the token rate limit.", headers={"retry-after": "0.01"})
        filtered = {"code": "content_filter", "param": "prompt"}
        if body["messages"][-1]["content"] == "bad":
            return error(400, "The response was filtered by Azure OpenAI's content management policy.", **filtered)
        return error(401, f"Access denied for {SECRET}") if body["messages"][-1]["content"] == "no" else Reply("fine")

    with FlakyServer(behave) as server:
        llm = Azure("m", base_url=server.url, api_key=SECRET, cache_folder_path=tmp_path)
        busy, bad = llm.answers(["busy", "bad"])
        assert (busy.text, bad.text) == ("fine", None)
        with pytest.raises(AuthenticationFailed) as caught:
            llm.run(["no"])
    assert SECRET not in str(caught.value)


def test_its_key_goes_to_azure_and_to_the_address_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = Azure("m", base_url=ADDRESS)
    assert (llm.key, llm.base_url, llm.prices) == (SECRET, f"{ADDRESS}/openai/v1", None)
    assert SECRET.encode() not in pickle.dumps(llm)
    assert fingerprint(llm) == fingerprint(Azure("m", base_url=ADDRESS, api_key="other"))
    with pytest.raises(AuthenticationFailed, match="AZURE_OPENAI_ENDPOINT"):
        Azure("m", base_url="https://gateway.example")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://gateway.example")
    assert Azure("m").key == SECRET


def test_an_address_is_needed_and_tokens_need_a_version() -> None:
    with pytest.raises(DefinitionError, match='pass base_url="https://NAME.openai.azure.com"'):
        Azure("m")
    with pytest.raises(DefinitionError, match=r"azure_ad_token needs api_version=\.\.\."):
        Azure("m", base_url=ADDRESS, azure_ad_token="t")
    assert Azure("m", base_url=ADDRESS, azure_ad_token="t", api_version="2024-10-21").key is None


def test_openai_with_an_api_version_sends_azure_what_openai_takes() -> None:
    azure = OpenAI("m", base_url=ADDRESS, api_key="k", api_version="2024-10-21")
    assert azure.quirks == Azure("m", base_url=ADDRESS, api_key="k").quirks
    assert azure.quirks.penalty_names == ("presence_penalty",)
    assert OpenAI("m", base_url="http://localhost:1/v1", api_key="k").quirks != azure.quirks
