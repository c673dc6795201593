"""Rows of a test set are found by shared n-grams, near-duplicates and close vectors, with the place they were found."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from subjects import Lengths

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset
from datadreamer_like.steps import (
    DataSource,
    Decontaminate,
    DecontaminateByEmbedding,
    DecontaminateByMinHash,
    Step,
)


def clean(kind: Any, rows: list[Any], test: list[Any], **args: Any) -> Step:
    data, held_out = DataSource("Rows", {"text": rows}), DataSource("Test", {"question": test, "answer": test})
    inputs = {"inputs": data.output["text"], "against": held_out.output["question"]}
    return kind("Clean", inputs=inputs, args=args)


def test_overlap_is_the_share_of_words_in_shared_ngrams(session: DataDreamer):
    rng = random.Random(0)
    texts = [" ".join(rng.choice("abcd") for _ in range(rng.randint(1, 14))) for _ in range(120)]
    rows, test, n = texts[:100], texts[100:], 5
    step = clean(Decontaminate, rows, test, n=n, drop=False)

    def spans(text: str) -> list[str]:
        words = text.split()
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    tested = {span for text in test for span in spans(text)}
    whole = {text for text in test if len(text.split()) < n}
    for text, row in zip(rows, step.output, strict=True):
        words = text.split()
        covered = {p for i, span in enumerate(spans(text)) if span in tested for p in range(i, i + n)}
        share = 1.0 if text in whole else len(covered) / len(words)
        assert (row["similarity"] or 0.0) == pytest.approx(share)
        assert (row["reason"] is not None) == (share > 0)
        if share:
            assert {*spans(text), text} & {*spans(test[row["found_in"]]), test[row["found_in"]]}
    assert 5 < sum(row["reason"] is not None for row in step.output) < 95


def test_case_and_punctuation_do_not_hide_a_test_row_and_a_short_one_is_found_only_whole(session: DataDreamer):
    rows = ["She said: 'THE cat, sat on the mat!' and left", "yes", "yes and no", None, "nothing alike here"]
    step = clean(Decontaminate, rows, ["The cat sat on the mat.", "Yes!", None], n=6)
    assert list(step.output["text"]) == ["yes and no", None, "nothing alike here"]
    assert list(step.rejected.output["found_in"]) == [0, 1]
    assert list(step.rejected.output["reason"]) == ['in the test set "Test"'] * 2
    assert step.card.facts["Contamination"] == '2 of 5 rows match at least 2 of 3 rows of "Test"'
    lenient = clean(Decontaminate, rows, ["The cat sat on the mat.", "Yes!", None], n=6, max_overlap=0.7)
    assert list(lenient.rejected.output["text"]) == ["yes"]  # 6 of 10 words of the first are shared


def test_near_duplicates_of_the_test_set_are_found_but_not_those_among_the_rows(session: DataDreamer):
    rows = ["a b c d e f g h", "a b c d e f g h", "a b c d e f g x", "p q r s t u v w", None]
    step = clean(DecontaminateByMinHash, rows, ["p q r s t u v x", "a b c d e f g y"], threshold=0.6, n=2)
    assert list(step.rejected.output["found_in"]) == [1, 1, 1, 0]
    assert list(step.rejected.output["similarity"]) == pytest.approx([0.75] * 4)
    assert list(step.output["text"]) == [None]


def test_close_vectors_are_found_exactly(session: DataDreamer):
    rng = np.random.default_rng(0)
    rows, test = rng.normal(size=(300, 4)), rng.normal(size=(40, 4))
    step = clean(DecontaminateByEmbedding, rows.tolist(), test.tolist(), threshold=0.95, drop=False)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, test)]
    cosines = unit[0] @ unit[1].T
    assert list(step.output["similarity"]) == pytest.approx(cosines.max(axis=1), abs=1e-5)
    assert list(step.output["found_in"]) == cosines.argmax(axis=1).tolist()
    assert len(step.rejected.output) == int((cosines.max(axis=1) >= 0.95).sum())
    same = clean(DecontaminateByEmbedding, (3.7 * test).tolist(), test.tolist(), threshold=1.0)
    assert list(same.output["text"]) == []
    texts = clean(DecontaminateByEmbedding, ["one two", "x"], ["two one"], embedder=Lengths(), threshold=0.99)
    assert list(texts.output["text"]) == ["x"]


def test_an_empty_test_set_other_dimensions_and_shares_out_of_range_are_named(session: DataDreamer):
    data, none = DataSource("Rows", {"text": ["a"]}), DataSource("Test", {"text": ["a"]}).filter(lambda row: False)
    with pytest.raises(EmptyDataset, match='"Test .filter." has no rows to compare with'):
        Decontaminate("Clean", inputs={"inputs": data.output["text"], "against": none.output["text"]})
    with pytest.raises(DataError, match="inputs have 2 dimensions, against 3"):
        clean(DecontaminateByEmbedding, [[1.0, 0.0]], [[1.0, 0.0, 0.0]])
    with pytest.raises(DefinitionError, match="max_overlap is 13; it must be at least 0 and at most 1"):
        clean(Decontaminate, ["a"], ["a"], max_overlap=13)
