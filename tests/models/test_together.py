from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion

from datadreamer_like import llms
from datadreamer_like.errors import AuthenticationFailed
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import Together


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")


def test_it_has_datadreamers_signature_and_says_so() -> None:
    names = list(inspect.signature(Together.__init__).parameters)[1:]
    assert names[:10] == [
        "model_name", "chat_prompt_template", "system_prompt", "api_key", "max_context_length", "tokenizer_model_name",
        "tokenizer_revision", "tokenizer_trust_remote_code", "retry_on_fail", "cache_folder_path",
    ]  # fmt: skip
    assert str(Together.__doc__).startswith("A chat model served by Together; its key is in `TOGETHER_API_KEY`.")
    assert llms.Together is Together


def test_its_key_is_its_own_and_openais_never_gets_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AuthenticationFailed, match="Set TOGETHER_API_KEY"):
        Together("m")
    monkeypatch.setenv("TOGETHER_API_KEY", "tgp_mine")
    llm = Together("m")
    assert (llm.client.api_key, str(llm.client.base_url)) == ("tgp_mine", "https://api.together.xyz/v1/")
    assert b"tgp_mine" not in pickle.dumps(llm)
    assert pickle.loads(pickle.dumps(llm)).key == "tgp_mine"
    assert fingerprint(llm) == fingerprint(Together("m", api_key="other")) != fingerprint(Together("n"))


def test_it_asks_as_together_wants_it_and_reads_its_log_probabilities(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        answer = completion(Reply("Paris"), body)
        answer["choices"][0]["logprobs"] = {
            "tokens": ["Par", "is"],
            "token_logprobs": [-0.5, -0.25],
            "token_ids": [1, 2],
        }
        return Reply(body=json.dumps(answer).encode())

    with FlakyServer(behave) as server:
        llm = Together("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path)
        options = {"max_new_tokens": 5, "repetition_penalty": 1.2, "top_logprobs": 1, "schema": {"type": "object"}}
        (answer,) = llm.answers(["The capital of France?"], **options)
    assert (answer.text, answer.cost) == ("Paris", None)
    assert answer.logprobs is not None
    assert [(token.token, token.logprob) for token in answer.logprobs[0]] == [("Par", -0.5), ("is", -0.25)]
    assert server.headers[0]["authorization"] == "Bearer k"
    assert server.requests[0] == {
        "model": "m", "messages": [{"role": "user", "content": "The capital of France?"}], "temperature": 0.0,
        "max_tokens": 5, "repetition_penalty": 1.2, "logprobs": 1, "response_format": {"type": "json_object"},
    }  # fmt: skip


def test_tokens_are_counted_by_the_tokenizer_that_is_named(tiny_causal_lm: Path) -> None:
    from transformers import AutoTokenizer

    llm = Together("m", api_key="k", tokenizer_model_name=str(tiny_causal_lm), max_context_length=100)
    text = "The cat sat on the warm mat."
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_causal_lm)
    assert llm.count_tokens(text) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert Together("m", api_key="k").count_tokens(text) == -(-len(text) // 3)
    assert llm.get_max_context_length(30) == 70
