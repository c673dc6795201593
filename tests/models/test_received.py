"""An answer that was received is not paid for again because another request of its row failed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import AnthropicServer, message
from anthropic_server import error as anthropic_error
from flaky_server import FlakyServer, Reply, error
from responses_server import ResponsesServer, response

from datadreamer_like.models import LLM, Anthropic, Groq, OpenAIResponses
from datadreamer_like.models.llms.generation import Request, Sampling
from datadreamer_like.models.llms.received import Received

KINDS: dict[str, tuple[Any, Callable[[str], Any], Any, Callable[..., LLM]]] = {
    "Anthropic": (AnthropicServer, message, anthropic_error(529, "overloaded_error", "busy"), Anthropic),
    "Groq": (FlakyServer, Reply, error(503, "busy"), Groq),
    "Responses": (ResponsesServer, response, error(503, "busy"), OpenAIResponses),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_failed_one_of_n_requests_is_sent_again(kind: str, tmp_path: Path) -> None:
    make_server, said, busy, make = KINDS[kind]
    count = 0

    def behave(body: dict[str, Any], before: int) -> Any:
        nonlocal count
        count += 1
        return busy if count % 3 == 0 else said(f"answer {count}")

    with make_server(behave) as server:
        llm = make("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path)
        llm.retry_seconds = 0.0
        answers = list(llm.answers(["a", "b"], n=4, concurrency=1, max_new_tokens=9))
        asked = len(server.requests)
    texts = [text for answer in answers for text in answer.texts]
    assert sorted(map(str, texts)) == sorted(f"answer {number}" for number in range(1, 12) if number % 3)
    assert asked == 11  # 8 answers and 3 failures
    assert all(answer.error is None for answer in answers)


def test_replies_belong_to_one_request_and_are_no_part_of_a_pickle() -> None:
    received = Received()
    first, second, single = Request("a", Sampling(n=2)), Request("a", Sampling(n=2)), Request("a", Sampling())
    received.of(first).append("x")
    assert received.of(first) == ["x"]
    assert received.of(second) == received.of(single) == []
    assert pickle.loads(pickle.dumps(received)).of(first) == []
    received.done(first)
    assert received.of(first) == []
