"""Duplicates: equal texts against a set, near ones against true Jaccard similarity, vectors against all cosines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Lengths

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset, MissingExtra, UnknownColumn
from datadreamer_like.steps import DataSource, Deduplicate, DeduplicateByEmbedding, DeduplicateByMinHash, Step
from datadreamer_like.steps.quality.minhash_index import bands_of

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "sang", "on", "mat", "tree", "red", "warm", "old", "today"]


def once(kind: Any, texts: list[Any], scores: list[Any] | None = None, **args: Any) -> Step:
    rows = DataSource("Rows", {"text": texts, "row": list(range(len(texts))), "score": scores or [0] * len(texts)})
    inputs = {"inputs": rows.output["text"]} | ({"scores": rows.output["score"]} if scores else {})
    return kind("Once", inputs=inputs, args=args)


def kept(step: Step) -> list[int]:
    return list(step.output["row"])


def jaccard(a: str, b: str, n: int) -> float:
    """By counting, of words without normal form."""
    one, two = ({tuple(t.split()[i : i + n]) for i in range(max(1, len(t.split()) - n + 1))} for t in (a, b))
    return len(one & two) / len(one | two)


class TestExact:
    @settings(max_examples=12, deadline=None)
    @given(texts=st.lists(st.one_of(st.none(), st.text("aAbB ßé\u0301\u00e9\n,", max_size=4)), min_size=1, max_size=30))
    def test_each_text_is_kept_once_where_it_comes_first(self, texts: list[str | None]):
        with DataDreamer(":memory:", verbose=False):
            expected = [row for row, text in enumerate(texts) if text is None or text not in texts[:row]]
            assert kept(once(Deduplicate, texts, normalize=False)) == expected

    def test_case_white_space_and_composed_characters_do_not_count_unless_asked(self, session: DataDreamer):
        texts = ["A  café", "a cafe\u0301 ", "a\ncafé", "a cafe", "\uff21 café"]
        assert kept(once(Deduplicate, texts)) == [0, 3]
        assert kept(once(Deduplicate, texts, normalize=False)) == [0, 1, 2, 3, 4]

    def test_the_best_by_a_column_is_kept_and_of_equal_ones_the_first(self, session: DataDreamer):
        step = once(Deduplicate, ["x", "y", "x", "x", "y"], [1, None, 3.5, 3.5, None])
        assert kept(step) == [1, 2]
        assert list(step.rejected.output["cluster"]) == [2, 2, 1]

    def test_output_and_rejected_are_all_rows_with_reasons_and_origins(self, session: DataDreamer):
        step = once(Deduplicate, ["x", "X", None, "y", "x", None])
        assert kept(step) == [0, 2, 3, 5]
        assert [step.trace(index).parents[0].index for index in range(4)] == [0, 2, 3, 5]
        assert list(step.rejected.output) == [
            {"text": "X", "row": 1, "score": 0, "reason": "exact duplicate", "cluster": 0, "similarity": 1.0},
            {"text": "x", "row": 4, "score": 0, "reason": "exact duplicate", "cluster": 0, "similarity": 1.0},
        ]
        assert [step.rejected.trace(index).parents[0].index for index in range(2)] == [1, 4]
        assert step.card.facts["Rejected"] == "2 of 6 rows (33.33 %): exact duplicate 2"

    def test_drop_false_keeps_all_rows_with_their_clusters(self, session: DataDreamer):
        step = once(Deduplicate, ["x", "X", "y", "x"], drop=False)
        assert list(step.output["cluster"]) == [0, 0, 2, 0]
        assert list(step.output["reason"]) == [None, "exact duplicate", None, "exact duplicate"]
        assert list(step.rejected.output["row"]) == [1, 3]

    def test_lazy_rows_and_a_rerun_give_the_same(self, tmp_path: Path):
        found = []
        for _ in range(2):
            with DataDreamer(tmp_path / "out", verbose=False):
                rows = DataSource("Rows", {"text": ["x", "X", "y"]}).map(lambda row: {"longer": row["text"] * 2})
                step = Deduplicate("Once", inputs={"inputs": rows.output["longer"]})
                found.append((list(step.output), list(step.rejected.output)))
        assert found[0] == found[1]
        assert found[0][1][0]["text"] == "X"

    def test_a_column_that_is_no_text_a_taken_name_and_another_steps_scores_are_named(self, session: DataDreamer):
        with pytest.raises(DataError, match='"Once": column "text" has 5 in row 1, which is not a text'):
            once(Deduplicate, [None, 5])
        rows = DataSource("Rows", {"text": ["x"], "reason": ["y"]})
        with pytest.raises(DefinitionError, match='already has a column "reason".*rename_column'):
            Deduplicate("Once", inputs={"inputs": rows.output["text"]})
        other = DataSource("Other", {"score": [1]})
        own = DataSource("Own", {"text": ["x"]})
        with pytest.raises(UnknownColumn, match='"scores" must be a column of "Own".*"score" of "Other"'):
            Deduplicate("Once", inputs={"inputs": own.output["text"], "scores": other.output["score"]})
        with pytest.raises(DataError, match="scores are of type string"):
            once(Deduplicate, ["x", "y"], ["1", "2"])


def corpus(seed: int, families: int = 40) -> list[str]:
    """Texts with copies in which a few words differ."""
    rng = random.Random(seed)
    texts = []
    for _ in range(families):
        words = [rng.choice(WORDS) + rng.choice(["", "s", "ed"]) for _ in range(rng.randint(15, 40))]
        for _ in range(4):
            copy = list(words)
            for _ in range(rng.randint(0, 4)):
                copy[rng.randrange(len(copy))] = rng.choice(WORDS)
            texts.append(" ".join(copy))
    rng.shuffle(texts)
    return texts


class TestMinHash:
    @pytest.mark.parametrize(("n", "threshold"), [(1, 0.8), (2, 0.6), (3, 0.5)])
    def test_clusters_agree_with_true_jaccard_but_for_a_few_misses(
        self, session: DataDreamer, n: int, threshold: float
    ):
        texts = corpus(n)
        step = once(DeduplicateByMinHash, texts, n=n, threshold=threshold)
        for row in step.rejected.output:  # never a false one, and the similarity is the true one
            true = jaccard(row["text"], texts[row["cluster"]], n)
            assert true >= threshold
            assert row["similarity"] == pytest.approx(true)
        left = kept(step)
        assert {row["cluster"] for row in step.rejected.output} <= {*left}
        pairs = [(a, b) for a in left for b in left if a < b]
        missed = sum(jaccard(texts[a], texts[b], n) >= threshold for a, b in pairs)
        assert missed <= 0.05 * len(step.rejected.output)
        assert 20 < len(step.rejected.output) < 120

    def test_the_tables_find_what_the_formula_says(self):
        for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
            for num_perm in (64, 128, 256):
                bands, rows = bands_of(threshold, num_perm)
                assert bands * rows <= num_perm
                assert 1 - (1 - threshold**rows) ** bands >= 0.95
                if rows < num_perm:
                    assert 1 - (1 - threshold ** (rows + 1)) ** (num_perm // (rows + 1)) < 0.95

    def test_characters_find_short_texts_and_scores_choose(self, session: DataDreamer):
        texts = ["where is my card?", "Where is my card", None, "how old are you", "where is my card!!", "!", "?"]
        args = {"ngrams": "characters", "n": 3, "threshold": 0.6}
        assert kept(once(DeduplicateByMinHash, texts, **args)) == [0, 2, 3, 5, 6]
        assert kept(once(DeduplicateByMinHash, texts, [1, 9, 1, 1, 1, 1, 1], **args)) == [1, 2, 3, 5, 6]

    def test_the_same_rows_in_every_run_and_for_another_seed_no_false_ones(self, session: DataDreamer):
        texts = corpus(9, families=10)
        assert kept(once(DeduplicateByMinHash, texts)) == kept(once(DeduplicateByMinHash, texts))
        other = once(DeduplicateByMinHash, texts, seed=5)
        assert all(row["similarity"] >= 0.7 for row in other.rejected.output)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"threshold": 0}, "threshold is 0; it must be over 0 and at most 1"),
            ({"threshold": 1.5}, "threshold is 1.5"),
            ({"ngrams": "word"}, 'ngrams is .word.; expected "words" or "characters". Did you mean "words"?'),
            ({"n": 0}, "n is 0"),
            ({"num_perm": 4}, "num_perm is 4; it must be at least 16"),
        ],
    )
    def test_arguments_out_of_range_are_named_before_any_work(
        self, session: DataDreamer, args: dict[str, Any], message: str
    ):
        with pytest.raises(DefinitionError, match=message):
            once(DeduplicateByMinHash, ["x"], **args)

    def test_a_missing_library_is_named_with_the_command(self, session: DataDreamer, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r'needs rensa.*pip install "datadreamer-like\[quality\]"'):
            once(DeduplicateByMinHash, ["x"])


class TestEmbedding:
    @pytest.mark.parametrize("rows", [50, 1500])
    def test_clusters_agree_with_all_cosines(self, session: DataDreamer, rows: int):
        rng = np.random.default_rng(rows)
        centres = rng.normal(size=(rows // 5, 6))
        vectors = centres[rng.integers(len(centres), size=rows)] + rng.normal(scale=0.15, size=(rows, 6))
        step = once(DeduplicateByEmbedding, vectors.tolist(), threshold=0.97)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = unit @ unit.T
        expected: list[int] = []
        for row in range(rows):
            if not expected or cosines[row, expected].max() < 0.97:
                expected.append(row)
        assert kept(step) == expected
        for found in step.rejected.output:
            earlier = [place for place in expected if place < found["row"]]
            assert found["cluster"] == earlier[int(cosines[found["row"], earlier].argmax())]
            assert found["similarity"] == pytest.approx(cosines[found["row"], found["cluster"]], abs=1e-5)

    def test_texts_are_embedded_and_missing_ones_and_zeros_are_no_duplicates(self, session: DataDreamer):
        texts = ["one two", "two one", None, "three", None]  # as their numbers of characters and words
        assert kept(once(DeduplicateByEmbedding, texts, embedder=Lengths(), threshold=0.999)) == [0, 2, 3, 4]
        vectors = [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], None, [3.0, 0.0]]
        assert kept(once(DeduplicateByEmbedding, vectors)) == [0, 1, 2, 3]

    def test_equal_vectors_reach_a_threshold_of_one(self, session: DataDreamer):
        vectors = np.random.default_rng(0).normal(size=(40, 64))
        step = once(DeduplicateByEmbedding, [*vectors.tolist(), *(3.7 * vectors).tolist()], threshold=1.0)
        assert kept(step) == [*range(40)]
        assert max(step.rejected.output["similarity"]) <= 1.0

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            (["text"], DataError, "expected vectors of numbers. Give an embedder"),
            ([[1.0, 2.0], [1.0]], DataError, "has 1 dimensions; the first has 2"),
            ([None, [1.0, 2.0], [1.0, float("nan")]], DataError, "of row 2 has a number that is missing or not finite"),
            ([None, None], EmptyDataset, "all values .* are missing"),
        ],
    )
    def test_values_that_are_no_vectors_are_named(
        self, session: DataDreamer, values: list[Any], error: type[Exception], message: str
    ):
        with pytest.raises(error, match=message):
            once(DeduplicateByEmbedding, values)
