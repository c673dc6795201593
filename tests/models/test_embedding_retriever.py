from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from datasets import Dataset

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, PromptTooLong
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.output import OutputDataset, OutputDatasetColumn
from datadreamer_like.graph.session import DataDreamer
from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.embedders.sentence_transformers_embedder import SentenceTransformersEmbedder
from datadreamer_like.models.retrievers.embedding_retriever import EmbeddingRetriever
from datadreamer_like.steps import DataSource
from datadreamer_like.testing import FakeLLM

PETS = ["A kitten sleeps on the sofa.", "The stock market fell today.", "He repaired the old engine."]


class Drawn(Embedder):
    """A vector for each number; counts what it embeds."""

    embedded = 0

    @property
    def model_max_length(self) -> int:
        return 3

    def count_tokens(self, value: str) -> int:
        return len(value.split())

    def compute(self, texts, *, instruction=None, **asks):
        self.embedded += len(texts)
        return [_vector(text) for text in texts]


def _vector(text: str) -> np.ndarray:
    seed = int(text.split()[0])
    return np.random.default_rng(seed).normal(size=16).astype(np.float32) * (1 + seed % 3)


def _brute_force(corpus: list[str], query: str, k: int) -> tuple[list[int], np.ndarray]:
    matrix = np.stack([_vector(text) for text in corpus]).astype(np.float64)
    one = _vector(query).astype(np.float64)
    cosines = matrix @ one / np.linalg.norm(matrix, axis=1) / np.linalg.norm(one)
    best = np.argsort(-cosines)[:k]
    return best.tolist(), cosines[best]


def test_results_are_those_of_brute_force():
    corpus = [str(n) for n in range(5_000)]
    retriever = EmbeddingRetriever(corpus, Drawn("drawn"), index_batch_size=500)
    queries = [str(n) for n in range(10_000, 10_030)]
    for query, found in zip(queries, retriever.run(queries, k=7), strict=True):
        indices, cosines = _brute_force(corpus, query, 7)
        assert found["indices"] == indices
        assert found["texts"] == [corpus[index] for index in indices]
        assert found["scores"] == pytest.approx(cosines.tolist(), abs=1e-5)


def test_a_paraphrase_is_found_by_its_meaning(minilm_path):
    retriever = EmbeddingRetriever(PETS, SentenceTransformersEmbedder(str(minilm_path), device="cpu"))
    found = retriever.run(["a small cat is napping on the couch", "shares lost value", "fixing a motor"], k=1)
    assert [each["indices"] for each in found] == [[0], [1], [2]]
    assert all(each["scores"][0] > 0.4 for each in found)


def test_more_than_there_are_gives_all_there_are():
    retriever = EmbeddingRetriever(["1", "2", "3"], Drawn("drawn"))
    [found] = retriever.run(["2"], k=10)
    assert sorted(found["indices"]) == [0, 1, 2]
    assert found["texts"][0] == "2"
    assert found["scores"][0] == pytest.approx(1)
    with pytest.raises(DefinitionError, match="k is 0"):
        retriever.run(["2"], k=0)


def test_the_index_is_made_once_and_follows_the_corpus(tmp_path):
    corpus = [str(n) for n in range(50)]
    changed = [*corpus[:49], "777"]
    with DataDreamer(tmp_path):
        first = Drawn("drawn")
        assert EmbeddingRetriever(corpus, first).run(["7"], k=1)[0]["texts"] == ["7"]
        assert first.embedded == 50
    with DataDreamer(tmp_path):
        again = Drawn("drawn")
        assert EmbeddingRetriever(corpus, again).run(["7"], k=1)[0]["texts"] == ["7"]
        assert again.embedded == 0
        # The ancestor answered this from the index of the older corpus.
        other = EmbeddingRetriever(changed, again)
        assert other.run(["777"], k=1)[0]["texts"] == ["777"]
        assert again.embedded == 1
        assert fingerprint(other) != fingerprint(EmbeddingRetriever(corpus, again))
        assert EmbeddingRetriever(corpus, again).run(["49"], k=1)[0]["texts"] == ["49"]
    assert len(list((tmp_path / ".cache").glob("EmbeddingRetriever-*/vectors.faiss"))) == 2
    assert not list((tmp_path / ".cache").glob("*.draft"))


class _Corpus(Node):
    """A step's stand-in: its content decides its fingerprint."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__("Corpus")
        self.content = texts

    def fingerprint_parts(self) -> dict[str, str]:
        return {"content": fingerprint(self.content)}


def _column(texts: list[str]) -> OutputDatasetColumn:
    return OutputDataset(_Corpus(texts), Dataset.from_dict({"text": texts}))["text"]


def test_a_steps_column_is_a_corpus(tmp_path):
    texts = [str(n) for n in range(100)]
    with DataDreamer(tmp_path):
        drawn = Drawn("drawn")
        [found] = EmbeddingRetriever(_column(texts), drawn).run(["42"], k=2)
        assert found["texts"][0] == "42"
        assert found["indices"] == _brute_force(texts, "42", 2)[0]
        assert EmbeddingRetriever(_column([*texts, "500"]), drawn).run(["500"], k=1)[0]["indices"] == [100]
        assert drawn.embedded == 101
        with pytest.raises(EmptyDataset):
            EmbeddingRetriever(_column([]), drawn)


def test_bad_texts_and_queries_are_left_out_and_counted_as_what_they_are(caplog):
    corpus = ["1", "2 far too long a text", "3"]
    retriever = EmbeddingRetriever(corpus, Drawn("drawn"))
    queries = ["3", "1 far too long a query", "1"]
    found = retriever.run(queries, k=3, batch_size=2)
    of_corpus, of_queries = caplog.messages
    assert of_corpus.startswith("1 of 3 texts of the corpus are left out; the first is row 1: ")
    assert of_queries.startswith("1 of 3 texts failed and have no result; the first is row 1: ")
    assert found[0]["indices"][0] == 2
    assert found[1] is None
    assert sorted(found[2]["indices"]) == [0, 2]
    assert [type(result.error) for result in retriever.results(queries, k=3)] == [type(None), PromptTooLong, type(None)]
    assert "query" not in corpus[1]
    cut = EmbeddingRetriever(corpus, Drawn("drawn"), truncate=True)
    assert cut.run(["2 far too long a query"], k=1)[0]["indices"] == [1]
    with pytest.raises(EmptyDataset, match="truncate=True"):
        EmbeddingRetriever([corpus[1]], Drawn("drawn")).run(["1"])


def test_what_is_no_corpus_is_refused():
    with pytest.raises(EmptyDataset):
        EmbeddingRetriever([], Drawn("drawn"))
    with pytest.raises(ArgumentTypeError, match="must be a column"):
        EmbeddingRetriever((str(n) for n in range(3)), Drawn("drawn"))
    with pytest.raises(ArgumentTypeError):
        EmbeddingRetriever("text", Drawn("drawn"))


def test_other_kinds_of_index_and_their_parameters():
    corpus = [str(n) for n in range(2_000)]
    retriever = EmbeddingRetriever(corpus, Drawn("drawn"), index_type="IVF16,Flat", index_batch_size=500, nprobe=16)
    [found] = retriever.run(["3000"], k=5)
    assert found["indices"] == _brute_force(corpus, "3000", 5)[0]  # all 16 cells are looked at
    with pytest.raises(DefinitionError, match='no index "Sphere"'):
        EmbeddingRetriever(["1"], Drawn("drawn"), index_type="Sphere").run(["1"])
    with pytest.raises(DefinitionError, match='no parameter "nprobes"'):
        EmbeddingRetriever(["1"], Drawn("drawn"), nprobes=3).run(["1"])
    with pytest.raises(DefinitionError, match="nprobe is 0; it must be at least 1"):
        EmbeddingRetriever(["1"], Drawn("drawn"), index_type="IVF1,Flat", nprobe=0).run(["1"])
    with pytest.raises(DefinitionError, match='no index "IVF0,Flat"'):
        EmbeddingRetriever(["1"], Drawn("drawn"), index_type="IVF0,Flat").run(["1"])


def test_it_is_pickled_without_the_index():
    retriever = EmbeddingRetriever([str(n) for n in range(1_000)], Drawn("drawn"))
    expected = retriever.run(["5"], k=2)
    data = pickle.dumps(retriever)
    assert len(data) < 20_000
    assert pickle.loads(data).run(["5"], k=2) == expected


@pytest.mark.parametrize("loaded", [True, False])
def test_retrievers_do_not_wait_for_each_others_index(loaded):
    started, searched = threading.Event(), threading.Event()

    class Slow(Drawn):
        def compute(self, texts, *, instruction=None, **asks):
            started.set()
            assert searched.wait(1), "the other retriever waits for this index"
            return super().compute(texts, instruction=instruction, **asks)

    other = EmbeddingRetriever(["1", "2"], Drawn("drawn"))
    if loaded:
        assert other.index is not None
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(lambda: EmbeddingRetriever(["3"], Slow("slow")).index)
        assert started.wait(5)
        assert other.run(["1"], k=1)[0]["texts"] == ["1"]
        searched.set()
        assert slow.result() is not None


@pytest.mark.parametrize("pickled", [True, False])
def test_threads_that_search_at_the_same_time_make_one_index(pickled):
    retriever = EmbeddingRetriever([str(n) for n in range(100)], Drawn("drawn"))
    if pickled:
        retriever = pickle.loads(pickle.dumps(retriever))
    with ThreadPoolExecutor(8) as pool:
        indexes = list(pool.map(lambda _: retriever.index, range(8)))
    assert len({id(index) for index in indexes}) == 1
    assert retriever.embedder.embedded == 100


def test_a_lazy_column_is_a_corpus(tmp_path):
    with DataDreamer(tmp_path, verbose=False):
        lazy = DataSource("Numbers", data=lambda: ({"n": str(n)} for n in range(30))).output["n"]
        embedder = Drawn("drawn")
        retriever = EmbeddingRetriever(lazy, embedder)
        assert embedder.embedded == 0
        found = retriever.run(["100", "101"], k=3)
        saved = EmbeddingRetriever([str(n) for n in range(30)], Drawn("drawn")).run(["100", "101"], k=3)
        assert found == saved
        assert retriever.parents == [lazy.step]


def test_what_is_no_embedder_is_refused_when_it_is_given():
    for wrong in ("sentence-transformers/all-MiniLM-L6-v2", FakeLLM()):
        with pytest.raises(ArgumentTypeError, match="takes an embedder"):
            EmbeddingRetriever(["text"], wrong)


def test_an_index_type_that_is_no_text_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"index_type must be a name of FAISS such as .*, not 32"):
        EmbeddingRetriever(["a"], None, index_type=32)
