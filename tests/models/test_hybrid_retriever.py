from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import DataDreamer, current_session
from datadreamer_like.models import BM25Retriever, HybridRetriever, ParallelRetriever, Retriever

TEXTS = [f"text {n}" for n in range(12)]
MEET = threading.Barrier(2)


class Ranked(Retriever):
    """Finds fixed positions for each query; fails for "bad"."""

    def __init__(self, rankings: dict[str, list[int]], texts: list[str] = TEXTS, name: str = "ranked") -> None:
        super().__init__(texts)
        self.rankings = rankings
        self.model_name = name
        self.asked: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {"texts": self.texts, "rankings": self.rankings}

    def search(self, queries: Any, k: int, run: Any) -> Any:
        for query in queries:
            self.asked.append(k)
            if query == "bad":
                yield BadRequest("bad")
            else:
                found = self.rankings[query][:k]
                yield found, [1.0 - rank / 10 for rank in range(len(found))]


class Meeting(Ranked):
    """Searches when another one does at the same time."""

    session: Any = None

    def search(self, queries: Any, k: int, run: Any) -> Any:
        self.session = current_session()
        MEET.wait(10)
        return super().search(queries, k, run)


def test_scores_are_those_of_reciprocal_rank_fusion() -> None:
    rng = np.random.default_rng(0)
    queries = [f"q{n}" for n in range(20)]
    lists = [{q: rng.permutation(12)[: rng.integers(0, 12)].tolist() for q in queries} for _ in range(3)]
    weights, constant = [1.0, 0.3, 2.0], 20
    model = HybridRetriever(*map(Ranked, lists), weights=weights, rank_constant=constant)
    for query, found in zip(queries, model.run(queries, k=12), strict=True):
        expected = np.zeros(12)
        for ranking, weight in zip(lists, weights, strict=True):
            for position in range(12):
                if position in ranking[query]:
                    expected[position] += weight / (constant + 1 + ranking[query].index(position))
        assert {*found["indices"]} == {*np.flatnonzero(expected).tolist()}
        np.testing.assert_allclose(found["scores"], expected[found["indices"]], rtol=1e-12)
        assert found["scores"] == sorted(found["scores"], reverse=True)
        assert found["texts"] == [TEXTS[position] for position in found["indices"]]
        (best,) = model.run([query], k=2)
        assert best["indices"] == found["indices"][:2]


def test_equal_scores_are_in_the_order_of_the_corpus_and_a_weight_of_0_counts_nothing() -> None:
    one, other = Ranked({"q": [5, 3]}), Ranked({"q": [3, 5, 7]})
    assert HybridRetriever(one, other).run(["q"])[0]["indices"] == [3, 5, 7]
    assert HybridRetriever(one, other, weights=[1, 0]).run(["q"])[0]["indices"] == [5, 3]


def test_each_retriever_is_asked_for_depth_texts_and_a_failed_query_fails_alone() -> None:
    one, other = Ranked({"q": list(range(12))}), Ranked({"q": [9]})
    model = HybridRetriever(one, other, depth=4)
    found = model.run(["q", "bad", "q"], k=3)
    assert found[1] is None
    assert found[0] == found[2]
    assert [result.error is None for result in model.results(["bad", "q"])] == [False, True]
    model.run(["q"], k=7)
    model.run(["q"], k=50)
    assert one.asked == [4, 4, 4, 5, 5, 7, 12]


def test_what_cannot_be_joined_is_refused() -> None:
    one = Ranked({"q": [1]})
    with pytest.raises(DefinitionError, match="two or more retrievers, not 1"):
        HybridRetriever(one)
    with pytest.raises(DefinitionError, match="searches other texts"):
        HybridRetriever(one, Ranked({}, TEXTS[:5]))
    with pytest.raises(ArgumentTypeError, match="takes retrievers"):
        HybridRetriever(one, "bm25")  # type: ignore[arg-type]
    for weights in ([1], [0, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(DefinitionError, match=r"[wW]eight"):
            HybridRetriever(one, one, weights=weights)
    with pytest.raises(DefinitionError, match="depth is 0"):
        HybridRetriever(one, one, depth=0)
    HybridRetriever(one, Ranked({}, list(TEXTS)))  # equal texts


def test_a_retriever_that_leaves_queries_out_shifts_no_results() -> None:
    class Short(Ranked):
        def search(self, queries: Any, k: int, run: Any) -> Any:
            return super().search([query for query in queries if query != "q1"], k, run)

    rankings = {f"q{n}": [n] for n in range(4)}
    short = Short(rankings)
    for model in (ParallelRetriever(short, short), HybridRetriever(Ranked(rankings), short)):
        with pytest.raises(DefinitionError, match=r"search of Short yields \d results for \d queries"):
            model.run(list(rankings))


def test_what_decides_a_result_is_in_the_identity() -> None:
    one, other = Ranked({"q": [1]}), Ranked({"q": [2]})
    models = [
        HybridRetriever(one, other), HybridRetriever(other, one), HybridRetriever(one, other, weights=[1, 2]),
        HybridRetriever(one, other, rank_constant=1), HybridRetriever(one, other, depth=5),
    ]  # fmt: skip
    assert len({fingerprint(model) for model in models}) == 5
    assert fingerprint(HybridRetriever(one, other, weights=[1, 1])) == fingerprint(models[0])


def test_parallel_retrievers_share_the_queries_and_are_one_model(tmp_path) -> None:
    rankings = {f"q{n}": [n, 0] for n in range(9)}
    one, other = Meeting(rankings), Meeting(rankings)
    model = ParallelRetriever(one, other)
    with DataDreamer(tmp_path, verbose=False) as session:
        found = model.run(list(rankings), k=1)
    assert [each["indices"] for each in found] == [[n] for n in range(9)]
    assert (len(one.asked), len(other.asked)) == (5, 4)
    assert [one.session, other.session] == [session, session]  # so that their threads find the caches
    assert fingerprint(model) == fingerprint(one)
    with pytest.raises(DefinitionError, match="at least one"):
        ParallelRetriever()
    with pytest.raises(DefinitionError, match="one retriever several times"):
        ParallelRetriever(one, Ranked({"q": [1]}))
    with pytest.raises(ArgumentTypeError, match="takes retrievers"):
        ParallelRetriever(one, 3)  # type: ignore[arg-type]


def test_an_index_of_parallel_retrievers_is_that_of_one(tmp_path) -> None:
    pair = [BM25Retriever(TEXTS, cache_folder_path=tmp_path) for _ in range(2)]
    model = ParallelRetriever(*pair)
    assert model.run(["5", "text 7"], k=1)[1]["indices"] == [7]
    assert model.index is pair[0].index
    assert len(list(tmp_path.glob("*/index.json"))) == 1
