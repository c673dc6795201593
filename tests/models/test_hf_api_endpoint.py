from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from flaky_server import FlakyServer, error

from datadreamer_like.errors import AuthenticationFailed, DefinitionError
from datadreamer_like.models import HFAPIEndpoint

SECRET = "not-a-real-token-of-hugging-face"
DEDICATED = "https://abc.us-east-1.aws.endpoints.huggingface.cloud"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))


def test_it_has_datadreamers_arguments() -> None:
    assert list(inspect.signature(HFAPIEndpoint.__init__).parameters)[1:] == [
        "endpoint", "model_name", "chat_prompt_template", "system_prompt", "token", "revision", "trust_remote_code",
        "retry_on_fail", "cache_folder_path", "kwargs",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "here"), [("base_url", "endpoint"), ("api_key", "token")])
def test_options_of_other_providers_are_refused_by_name(name: str, here: str) -> None:
    with pytest.raises(DefinitionError, match=f'no option "{name}"; it is "{here}"'):
        HFAPIEndpoint("m", **{name: DEDICATED})  # type: ignore[arg-type]


def test_a_dedicated_endpoint_is_an_address_and_a_model_id_goes_to_the_router() -> None:
    llm = HFAPIEndpoint("Qwen/Qwen3-32B:cheapest")
    assert (llm.base_url, llm.model_name) == ("https://router.huggingface.co/v1", "Qwen/Qwen3-32B:cheapest")
    assert llm.model_card == "https://huggingface.co/Qwen/Qwen3-32B"
    for address in (DEDICATED, f"{DEDICATED}/", f"{DEDICATED}/v1"):
        llm = HFAPIEndpoint(address)
        assert (llm.base_url, llm.model_name, llm.key) == (f"{DEDICATED}/v1", "tgi", SECRET)
    assert HFAPIEndpoint(DEDICATED, "me/tuned").model_name == "me/tuned"


def test_the_token_is_sent_as_documented_and_shown_nowhere(tmp_path: Path) -> None:
    def behave(body: dict[str, object], before: int) -> object:
        return error(401, f"Invalid token {SECRET}")

    with FlakyServer() as server, FlakyServer(behave) as wrong:  # type: ignore[arg-type]
        llm = HFAPIEndpoint(server.url, "m", token="mine", cache_folder_path=tmp_path)
        assert llm.run(["a"], max_new_tokens=3, repetition_penalty=1.2) == ["echo: a"]
        with pytest.raises(AuthenticationFailed) as caught:
            HFAPIEndpoint(wrong.url, token=SECRET, cache_folder_path=tmp_path).run(["a"])
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == "Bearer mine"
    assert (server.requests[0]["model"], server.requests[0]["repetition_penalty"]) == ("m", 1.2)
    assert SECRET not in str(caught.value)


def test_the_token_goes_to_hugging_face_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert HFAPIEndpoint("Qwen/Qwen3-32B").key == SECRET
    assert HFAPIEndpoint("https://elsewhere.example/v1").key == "none"
    assert HFAPIEndpoint(f"{DEDICATED.replace('https', 'http')}").key == "none"
    assert HFAPIEndpoint("https://endpoints.huggingface.cloud.evil.example").key == "none"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AuthenticationFailed, match="Set HF_TOKEN"):
        HFAPIEndpoint("Qwen/Qwen3-32B")
