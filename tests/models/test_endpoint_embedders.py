from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from embedding_server import EmbeddingServer, embeddings, vector_of
from flaky_server import FlakyServer, Reply, error

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    OverBudget,
    PromptTooLong,
    UnknownModel,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import (
    EmbeddingRetriever,
    MistralAIEmbedder,
    OpenAIEmbedder,
    ParallelEmbedder,
    TogetherEmbedder,
)
from datadreamer_like.steps import DataSource, Embed
from datadreamer_like.storage.ledger import LEDGER_NAME, Ledger

PRICES = {"input": 10.0, "output": 0.0}


def embedder(server: FlakyServer, folder: Path | None = None, **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder("m", api_key="k", base_url=server.url, cache_folder_path=folder, **options)


def test_texts_are_embedded_in_order_once_many_a_request(tmp_path: Path) -> None:
    texts = [f"text {'x' * (index % 7)} {index}" for index in range(300)] + ["text  0"]
    with EmbeddingServer() as server:
        found = embedder(server, tmp_path).run(texts)
        np.testing.assert_array_equal(np.stack(found), np.array([vector_of(text, 4) for text in texts], np.float32))
        assert found[0].dtype == np.float32
        assert sorted(len(body["input"]) for body in server.requests) == [44, 128, 128]
        assert set(server.paths) == {"/v1/embeddings"}
        again = embedder(server, tmp_path).run([*texts, "new"], batch_size=7)
        assert len(server.requests) == 4
        np.testing.assert_array_equal(again[:-1], found)
        assert embedder(server).run(texts[:20], batch_size=7) is not None
        assert sorted(len(body["input"]) for body in server.requests[4:]) == [6, 7, 7]


def test_dimensions_the_instruction_and_the_length_of_vectors_are_those_asked_for(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        found = embedder(server, dimensions=8).run(["a", "bc"], instruction="query: ", normalize_embeddings=True)
        expected = np.array([vector_of(f"query: {text}", 8) for text in ("a", "bc")])
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
        assert server.requests[0]["input"] == ["query: a", "query: bc"]
        assert embedder(server, dimensions=8).dims == 8
        assert embedder(server, tmp_path).dims == 4  # asked for
        assert OpenAIEmbedder("text-embedding-3-large", api_key="k").dims == 3072
        other = [embedder(server), embedder(server, dimensions=8), TogetherEmbedder("m", "k", base_url=server.url)]
        assert len({fingerprint(each) for each in other}) == 3
    words = "vectors of 4 numbers instead of 8: the model cannot shorten them"
    with (
        EmbeddingServer(lambda texts, before: embeddings(texts, 4)) as server,
        pytest.raises(DefinitionError, match=words),
    ):
        embedder(server, dimensions=8).run(["a"])


def test_a_text_that_is_refused_fails_its_row_alone(tmp_path: Path) -> None:
    def behave(texts: list[str], before: int) -> Reply | None:
        long = any(len(text) > 100 for text in texts)
        return error(400, "This model's maximum context length is 100 tokens.") if long else None

    texts = [f"text {index}" for index in range(20)]
    texts[7] = "x" * 200
    with EmbeddingServer(behave) as server:
        results = list(embedder(server, tmp_path).results([*texts, 5]))  # type: ignore[list-item]
        assert [index for index, each in enumerate(results) if each.error is not None] == [7, 20]
        assert type(results[7].error) is PromptTooLong
        assert type(results[20].error) is BadRequest
        assert len(server.requests) < 12
        sent = len(server.requests)
        found = embedder(server, tmp_path, max_context_length=30).run(texts, truncate=True)
        assert all(vector is not None for vector in found)
        assert server.requests[sent]["input"][0] in (*texts, "x" * 90)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failed_requests_are_sent_again(status: int, tmp_path: Path) -> None:
    def behave(texts: list[str], before: int) -> Reply | None:
        return error(status, "later", headers={"retry-after-ms": "10"}) if before < 2 else None

    with EmbeddingServer(behave) as server:
        found = embedder(server).run(["a", "b", "c"])
        assert [list(vector) for vector in found] == [vector_of(text, 4) for text in ("a", "b", "c")]
        assert [len(body["input"]) for body in server.requests] == [3, 3, 3]


@pytest.mark.parametrize(
    "changed",
    [
        {"data": []},
        {"data": None},
        {"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": [1.0]}]},
        {"data": 5},
    ],
)
def test_an_answer_that_is_not_the_vectors_is_malformed(changed: dict[str, Any]) -> None:
    with EmbeddingServer(lambda texts, before: None if before else embeddings(texts, 4, **changed)) as server:
        assert len(embedder(server).run(["a", "b"])[0]) == 4
        assert len(server.requests) == 2


def test_errors_that_all_texts_meet_end_the_run() -> None:
    for reply, kind in ((error(401, "no"), AuthenticationFailed), (error(404, "no such model"), UnknownModel)):
        with EmbeddingServer(lambda texts, before, reply=reply: reply) as server, pytest.raises(kind):
            embedder(server).run(["a", "b"])


def test_a_budget_bounds_requests_for_embeddings_and_their_cost_is_counted(tmp_path: Path) -> None:
    texts = [f"text number {index:03}" for index in range(400)]
    tokens = len(texts[0])
    with EmbeddingServer() as server:
        results = list(embedder(server, prices=PRICES).results(texts[:10]))
        assert sum(each.cost or 0 for each in results) == pytest.approx(10 * tokens * 10.0 / 1e6)
        assert sum(each.prompt_tokens for each in results) == 10 * tokens
        assert [each.cost for each in embedder(server).results(["a"])] == [None]
        del server.requests[:]
        with pytest.raises(OverBudget, match="used up"):
            embedder(server, tmp_path, prices=PRICES, budget="0.03 USD").run(texts, batch_size=20)
        spent = sum(len(body["input"]) for body in server.requests) * tokens * 10.0 / 1e6
        assert 0.02 < spent <= 0.03
        assert embedder(server, tmp_path, prices=PRICES, budget="1 USD").run(texts, batch_size=20)[399] is not None
        assert sum(len(body["input"]) for body in server.requests) == 400
    ledger = Ledger(tmp_path / LEDGER_NAME)
    assert ledger.spent() / 1e9 == pytest.approx(400 * tokens * 10.0 / 1e6)
    ledger.close()
    assert OpenAIEmbedder("text-embedding-3-small", api_key="k").api.prices is not None


class Encoding:
    """A token a word, as `tiktoken.Encoding` has them."""

    def encode(self, text: str, disallowed_special: Any) -> list[int]:
        assert disallowed_special == ()
        return [len(word) for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join("x" * token for token in tokens)


def test_tiktoken_counts_and_cuts_where_it_has_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.machinery import ModuleSpec

    stand_in = ModuleType("tiktoken")
    stand_in.__spec__ = ModuleSpec("tiktoken", None)
    stand_in.encoding_for_model = lambda name: {"m": Encoding()}[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiktoken", stand_in)
    with EmbeddingServer() as server:
        results = list(embedder(server, max_context_length=3).results(["a b c", "a b c d"]))
        assert "The text has 4 tokens; the limit" in str(results[1].error)
        assert [body["input"] for body in server.requests] == [["a b c"]]
        embedder(server, max_context_length=3).run(["a bb c d"], truncate=True)
        assert server.requests[-1]["input"] == ["x xx x"]
        other = OpenAIEmbedder("other", api_key="k", base_url=server.url)
        assert other.tokenizer is None
        assert other.count_tokens("123456") == 2


def test_embedders_of_providers_are_used_by_steps_retrievers_and_in_parallel(tmp_path: Path) -> None:
    with EmbeddingServer() as server, DataDreamer(tmp_path, verbose=False):
        texts = DataSource("Rows", data={"t": [f"text {index}" for index in range(10)]}).output["t"]
        mistral = MistralAIEmbedder("m", api_key="k", base_url=server.url)
        embedded = Embed("Embedded", inputs={"texts": texts}, args={"embedder": mistral})
        assert [list(each) for each in embedded.output["embeddings"]] == [vector_of(f"text {i}", 4) for i in range(10)]
        together = TogetherEmbedder("m", api_key="k", base_url=server.url)
        retriever = EmbeddingRetriever(texts, embedder=together)
        assert retriever.run(["text 3"], k=1)[0]["texts"] == ["text 3"]
        both = ParallelEmbedder(together, pickle.loads(pickle.dumps(TogetherEmbedder("m", "k", base_url=server.url))))
        assert [list(each) for each in both.run(["p", "qq"])] == [vector_of("p", 4), vector_of("qq", 4)]


def test_bad_arguments_are_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(AuthenticationFailed, match="Set OPENAI_API_KEY"):
        OpenAIEmbedder("text-embedding-3-small")
    for dimensions in (0, -3, 2.5, True, "many"):
        with pytest.raises(DefinitionError, match="expected a whole number above 0"):
            OpenAIEmbedder("m", dimensions, api_key="k")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="sends no batches of a day"):
        OpenAIEmbedder("m", api_key="k", batch=True)
    with pytest.raises(DefinitionError, match="A budget needs prices"):
        OpenAIEmbedder("m", api_key="k", budget="1 USD")
