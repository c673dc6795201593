from __future__ import annotations

import math
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, EmptyDataset
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import DataDreamer
from datadreamer_like.models import BM25Retriever, Embedder
from datadreamer_like.models.task_models.task_model import TextRun
from datadreamer_like.steps import DataSource, Retrieve


def formula(corpus: list[str], query: str, k1: float = 1.2, b: float = 0.75) -> list[float]:
    """BM25 with Lucene's idf, in float64, from the definition."""
    documents = [Counter(re.findall(r"\w+", text.lower())) for text in corpus]
    lengths = [sum(each.values()) for each in documents]
    mean = sum(lengths) / len(lengths)
    scores = [0.0] * len(corpus)
    for word in re.findall(r"\w+", query.lower()):
        having = sum(word in each for each in documents)
        idf = math.log(1 + (len(corpus) - having + 0.5) / (having + 0.5))
        for place, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            if tf := document[word]:
                scores[place] += idf * tf / (tf + k1 * (1 - b + b * length / mean))
    return scores


def zipf_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in rng.zipf(1.5, size=rng.integers(1, 30)) if n < 200) or "w1" for _ in range(count)]


@pytest.mark.parametrize("queries", ["cats", {"q": "cats"}, pd.DataFrame({"q": ["cats"]}), b"cats", 3])
def test_queries_that_are_no_list_are_refused(queries: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="A model was given .*expected a list"):
        BM25Retriever(["cats", "dogs"], cache_folder_path=tmp_path).run(queries, k=1)


@pytest.mark.parametrize("options", [{}, {"k1": 0.5, "b": 1.0}, {"k1": 2, "b": 0}, {"k1": 0.0}])
def test_scores_are_those_of_the_formula_and_ranks_follow_them(options: dict[str, float]) -> None:
    corpus, queries = zipf_texts(300), [*zipf_texts(20, seed=1), "W3 w3, unknown! w17"]
    for query, found in zip(queries, BM25Retriever(corpus, **options).run(queries, k=300), strict=True):
        expected = formula(corpus, query, **options)
        assert {*found["indices"]} == {place for place, score in enumerate(expected) if score > 0}
        assert found["scores"] == pytest.approx([expected[place] for place in found["indices"]], rel=1e-5)
        assert found["texts"] == [corpus[place] for place in found["indices"]]
        assert found["scores"] == sorted(found["scores"], reverse=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab ", max_size=8), min_size=1, max_size=12), st.text("abc ", max_size=6), st.integers(1, 15))
def test_the_best_k_are_the_first_k_of_all_and_equal_scores_are_in_the_order_of_the_corpus(corpus, query, k) -> None:
    if not any(re.findall(r"\w+", text) for text in corpus):
        corpus = [*corpus, "a"]
    retriever = BM25Retriever(corpus)
    (everything,) = retriever.run([query], k=len(corpus))
    (found,) = retriever.run([query], k=k)
    assert found["indices"] == everything["indices"][:k]
    pairs = list(zip(everything["scores"], everything["indices"], strict=True))
    assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    assert len({*everything["indices"]}) == len(everything["indices"])


def test_spellings_of_one_word_are_the_same_in_every_script() -> None:
    texts = ["straße", "cafe\u0301", "ΛΟΓΟΣ", "ＡＢＣ", "हिन्दी", "हानि", "İstanbul"]
    queries = ["STRASSE", "CAFÉ", "λογος", "abc", "हिन्दी", "istanbul"]
    found = BM25Retriever(texts).run(queries, k=9)
    assert [each["indices"] for each in found] == [[0], [1], [2], [3], [4], [6]]


def test_words_are_what_the_tokenizer_says() -> None:
    texts = ["Running shoes", "They run", "C# and C++", "日本 東京"]
    assert BM25Retriever(texts).run(["run"])[0]["indices"] == [1]

    def stems(text: str) -> list[str]:
        return [word.removesuffix("ning") for word in text.lower().split()]

    assert BM25Retriever(texts, tokenizer=stems).run(["run"], k=9)[0]["indices"] == [0, 1]
    assert BM25Retriever(texts, tokenizer=stems).run(["C++"])[0]["indices"] == [2]
    assert fingerprint(BM25Retriever(texts, tokenizer=stems)) != fingerprint(BM25Retriever(texts))
    assert BM25Retriever(texts).run(["東京"])[0]["indices"] == [3]


def test_the_index_is_kept_and_found_again(tmp_path: Path) -> None:
    corpus, queries = zipf_texts(100), zipf_texts(5, seed=1)
    expected = BM25Retriever(corpus).run(queries)

    def built() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/index.json")}

    assert BM25Retriever(corpus, cache_folder_path=tmp_path).run(queries) == expected
    first = built()
    assert BM25Retriever(corpus, cache_folder_path=tmp_path).run(queries, batch_size=2) == expected
    assert built() == first
    assert pickle.loads(pickle.dumps(BM25Retriever(corpus))).run(queries) == expected
    BM25Retriever(corpus, k1=2, cache_folder_path=tmp_path).run(queries)
    BM25Retriever([*corpus, "more"], cache_folder_path=tmp_path).run(queries)
    assert len(built()) == 3
    (kept,) = first
    scores = kept.with_name("data.csc.index.npy")
    scores.write_bytes(scores.read_bytes()[:-8])
    assert BM25Retriever(corpus, cache_folder_path=tmp_path).run(queries) == expected
    assert built()[kept] != first[kept]


def test_what_has_no_words_or_wrong_options_is_refused() -> None:
    with pytest.raises(EmptyDataset, match="None of the 3 texts of the corpus has a word"):
        BM25Retriever(["", None, "?!"]).run(["a"])  # type: ignore[list-item]
    with pytest.raises(EmptyDataset):
        BM25Retriever([])
    with pytest.raises(ArgumentTypeError, match="Text 1 of the corpus is int"):
        BM25Retriever(["a", 3])  # type: ignore[list-item]
    with pytest.raises(DefinitionError, match="b is 2; it must be at least 0 and at most 1"):
        BM25Retriever(["a"], b=2)
    with pytest.raises(ArgumentTypeError, match="k1 must be a number"):
        BM25Retriever(["a"], k1="1")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="tokenizer must be a function"):
        BM25Retriever(["a"], tokenizer="english")  # type: ignore[arg-type]
    retriever = BM25Retriever(["a b", "b", None])  # type: ignore[list-item]
    assert retriever.run(["", "zzz", "b"], k=99)[2]["indices"] == [1, 0]
    assert retriever.run([""], k=1) == [{"indices": [], "texts": [], "scores": []}]
    with pytest.raises(DefinitionError, match="k is 0"):
        retriever.run(["a"], k=0)
    with pytest.raises(ArgumentTypeError, match="k must be a whole number"):
        retriever.run(["a"], k=1.5)
    (error, fine) = retriever.search([7, "a"], 1, TextRun())  # type: ignore[list-item]
    assert isinstance(error, BadRequest)
    assert fine[0] == [0]


def test_a_column_is_a_corpus_and_one_that_holds_no_texts_is_refused(tmp_path: Path) -> None:
    with DataDreamer(tmp_path, verbose=False):
        rows = DataSource("Rows", data={"text": ["a cat", None, "a dog"], "number": [1, 2, 3]})
        asked = DataSource("Asked", data={"query": ["dog", None, "fish"]})
        args = {"retriever": BM25Retriever(rows.output["text"]), "k": 2}
        found = Retrieve("Found", inputs={"queries": asked.output["query"]}, args=args)
        results = list(found.output["results"])
        assert [each and (each["indices"], each["texts"]) for each in results] == [([2], ["a dog"]), None, ([], [])]
        with pytest.raises(ArgumentTypeError, match='column "number", holds int64'):
            BM25Retriever(rows.output["number"]).run(["a"])
    assert not issubclass(BM25Retriever, Embedder)


def test_texts_without_blanks_are_found_by_their_characters() -> None:
    texts = ["我喜欢吃苹果", "他喜欢打篮球", "Tokyo 東京タワー", None]
    found = BM25Retriever(texts).run(["苹果", "東京", "TOKYO", "喜欢"], k=3)
    assert [each["indices"] for each in found] == [[0], [2], [2], [0, 1]]


@pytest.mark.parametrize("returned", [[1, 2], "ab", None])
def test_a_tokenizer_that_returns_no_list_of_texts_is_named(returned: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="tokenizer must return a list of words, which are texts; for 'a b'"):
        BM25Retriever(["a b"], tokenizer=lambda text: returned).run(["a"])
