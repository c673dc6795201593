from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engines import Echo

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph import DataDreamer, OutputIterableDataset
from datadreamer_like.models.retrievers.embedding_retriever import EmbeddingRetriever
from datadreamer_like.models.task_models.task_model import TaskModel
from datadreamer_like.steps import (
    CosineSimilarity,
    DataSource,
    Embed,
    FewShotPromptWithRetrieval,
    RAGPrompt,
    Retrieve,
    RunTaskModel,
)
from datadreamer_like.testing import FakeEmbedder


def letters() -> FakeEmbedder:
    """Counts the letters a to e."""
    return FakeEmbedder(lambda text: [text.count(c) for c in "abcde"], dims=5, max_length=3)


class Length(TaskModel[dict[str, int]]):
    """Tells how long a text is."""

    model_name = "length"
    model_max_length = 100

    def count_tokens(self, value: str) -> int:
        return len(value.split())

    def compute(self, texts: Sequence[str], **asks: Any) -> list[dict[str, int]]:
        return [{"length": len(text)} for text in texts]


@pytest.fixture
def corpus(session: DataDreamer) -> DataSource:
    return DataSource("Corpus", data={"text": ["aa", "bb", "ab", "e", None], "other": ["aab", "c", "abab", None, "a"]})


def test_embed(corpus: DataSource) -> None:
    made = Embed("Embed", {"texts": corpus.output["text"]}, {"embedder": letters(), "batch_size": 2})
    assert made.output.column_names == ["texts", "embeddings"]
    assert list(made.output["embeddings"]) == [
        [2, 0, 0, 0, 0], [0, 2, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1], None,
    ]  # fmt: skip
    assert made.card.models == ["fake"]
    told = Embed("Told", {"texts": corpus.output["text"]}, {"embedder": letters(), "instruction": "d", "lazy": True})
    assert isinstance(told.output, OutputIterableDataset)
    assert [list(row) for row in told.output["embeddings"] if row is not None][3] == [0, 0, 0, 1, 1]


def test_a_text_that_is_too_long_fails_its_row_alone(session: DataDreamer) -> None:
    texts = DataSource("Texts", data={"text": ["a b", "a b c d"]})
    made = Embed("Embed", {"texts": texts.output["text"]}, {"embedder": letters()})
    assert made.output["embeddings"][1] is None
    assert "4 tokens" in made.errors[1]
    cut = Embed("Cut", {"texts": texts.output["text"]}, {"embedder": letters(), "truncate": True})
    assert cut.output["embeddings"][1] is not None


def test_unknown_options_are_refused(corpus: DataSource) -> None:
    with pytest.raises(DefinitionError, match='no argument "batchsize".*Did you mean "batch_size"'):
        Embed("Embed", {"texts": corpus.output["text"]}, {"embedder": letters(), "batchsize": 2})


@pytest.mark.parametrize("k", [0, -1])
def test_a_step_asks_its_retriever_for_at_least_one_text(corpus: DataSource, k: int) -> None:
    queries, llm = {"queries": corpus.output["text"]}, Echo()
    retriever = EmbeddingRetriever(["a", "b"], letters())
    with pytest.raises(DefinitionError, match=f"k is {k}; it must be at least 1"):
        Retrieve("Find", queries, {"retriever": retriever, "k": k})
    with pytest.raises(DefinitionError, match=f"k is {k}; it must be at least 1"):
        RAGPrompt("Ask", {"prompts": corpus.output["text"]}, {"llm": llm, "retriever": retriever, "k": k})
    assert llm.asked == []


def test_retrieve_and_what_its_corpus_decides(tmp_path: Path) -> None:
    def run(texts: list[str], query: str = "a") -> tuple[str, dict[str, Any]]:
        with DataDreamer(tmp_path, verbose=False):
            corpus = DataSource("Corpus", data={"text": texts})
            queries = DataSource("Queries", data={"query": [query, None]})
            retriever = EmbeddingRetriever(corpus.output["text"], letters())
            found = Retrieve("Find", {"queries": queries.output["query"]}, {"retriever": retriever, "k": 2})
            assert found.output["results"][1] is None
            return found.fingerprint, found.output["results"][0]

    first, found = run(["b", "aaab", "aa"])
    assert found["indices"] == [2, 1]
    assert found["texts"] == ["aa", "aaab"]
    assert found["scores"] == pytest.approx([1.0, 3 / 10**0.5])
    assert run(["b", "aaab", "aa"])[0] == first
    other, found = run(["a", "b"])
    assert other != first
    assert found["texts"] == ["a", "b"]


def test_rag_prompt_puts_what_was_found_before_the_question(corpus: DataSource) -> None:
    questions = DataSource("Questions", data={"q": ["a", "e", None]})
    documents = DataSource("Documents", data={"text": ["aa", "ab", "e"]})
    retriever = EmbeddingRetriever(documents.output["text"], letters())
    inputs = {"prompts": questions.output["q"]}
    made = RAGPrompt("Ask", inputs, {"llm": Echo(), "retriever": retriever, "k": 2})
    assert made.output.column_names == ["prompts", "generations"]
    assert made.output["prompts"][0] == "Document: aa\nDocument: ab\n\nQuestion: a"
    assert made.output["prompts"][1].startswith("Document: e\n")
    assert list(made.output["generations"]) == ["QUESTION: A", "QUESTION: E", None]
    tight = RAGPrompt("Tight", inputs, {"llm": Echo(context=5), "retriever": retriever, "k": 2})
    assert tight.output["prompts"][0] == "Document: aa\n\nQuestion: a"


def test_few_shot_prompt_with_retrieval_shows_what_is_most_alike(session: DataDreamer) -> None:
    examples = DataSource("Examples", data={"in": ["aa", "b", "cc", "ac"], "out": ["A", "B", None, "AC"]})
    inputs = DataSource("Inputs", data={"text": ["c", "b"]})
    made = FewShotPromptWithRetrieval(
        "Ask",
        {
            "input_examples": examples.output["in"],
            "output_examples": examples.output["out"],
            "inputs": inputs.output["text"],
        },
        {"llm": Echo(), "embedder": letters(), "k": 2},
    )
    # The nearest to "c" would be "cc", which has no output.
    assert made.output["prompts"][0].startswith("Input: ac\nOutput: AC\nInput: ")
    assert made.output["prompts"][0].endswith("\nInput: c\nOutput:")
    assert made.output["prompts"][1].startswith("Input: b\nOutput: B\n")


def test_cosine_similarity_of_vectors_and_of_texts(corpus: DataSource) -> None:
    texts = {"a": corpus.output["text"], "b": corpus.output["other"]}
    expected = [2 / 5**0.5, 0.0, 1.0, None, None]
    of_texts = CosineSimilarity("Texts", texts, {"embedder": letters(), "batch_size": 3})
    assert of_texts.output.column_names == ["a", "b", "similarities"]
    assert list(of_texts.output["similarities"]) == pytest.approx(expected)
    a, b = (Embed(f"Embed {n}", {"texts": column}, {"embedder": letters()}) for n, column in texts.items())
    vectors = {"a": a.output["embeddings"], "b": b.output["embeddings"]}
    of_vectors = CosineSimilarity("Vectors", vectors, {"device": "cpu", "similarity_batch_size": 2, "lazy": True})
    assert list(of_vectors.output["similarities"]) == pytest.approx(expected)
    with pytest.raises(DefinitionError, match="Give an embedder"):
        CosineSimilarity("No embedder", texts)
    with pytest.raises(DefinitionError, match='no argument "batch_size"; without an embedder'):
        CosineSimilarity("No option", vectors, {"batch_size": 3})


def test_run_task_model(corpus: DataSource) -> None:
    made = RunTaskModel("Measure", {"texts": corpus.output["other"]}, {"model": Length()})
    assert made.output.column_names == ["texts", "results"]
    assert list(made.output["results"]) == [{"length": 3}, {"length": 1}, {"length": 4}, None, {"length": 1}]
    assert made.card.models == ["length"]


def test_embed_with_the_real_model(session: DataDreamer, minilm_path: Path) -> None:
    from datadreamer_like.models.embedders.sentence_transformers_embedder import SentenceTransformersEmbedder

    source = DataSource("Pairs", data={"a": ["a small cat"], "b": ["a little kitten"], "c": ["tax law"]})
    embedder = SentenceTransformersEmbedder(str(minilm_path))
    near, far = (
        CosineSimilarity(f"Like {n}", {"a": source.output["a"], "b": source.output[n]}, {"embedder": embedder})
        for n in "bc"
    )
    assert near.output["similarities"][0] > 0.6 > 0.3 > far.output["similarities"][0]
