"""The ROUGE-L filter: exactly the rows that comparing all pairs would keep, the pool, and the reasons of the others."""

from __future__ import annotations

import random
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DataError, DefinitionError
from datadreamer_like.evaluation import rouge_l
from datadreamer_like.steps import DataSource, DeduplicateByRougeL


@pytest.fixture
def session(tmp_path) -> Any:
    with DataDreamer(tmp_path / "output", verbose=False) as opened:
        yield opened


def by_all_pairs(pool: list[str], texts: list[str], threshold: float) -> list[float | None]:
    """For each text the highest ROUGE-L with those before it if that is at least the threshold, by the definition."""
    known, found = [*pool], []
    for text in texts:
        score = max((rouge_l(text, other) for other in known), default=0.0)
        is_similar = score >= threshold - 1e-12
        found.append(score if is_similar else None)
        if not is_similar:
            known.append(text)
    return found


def sentences(count: int, seed: int) -> list[str]:
    """Texts of few different words in many lengths, some of them changed in a word or two, so that many are similar."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        if found and draw.random() < 0.5:
            words = draw.choice(found).split()
            words[draw.randrange(len(words))] = draw.choice("abcdefgh")
            if draw.random() < 0.5:
                words.insert(draw.randrange(len(words) + 1), draw.choice(["the", "of"]))
        else:
            words = draw.choices(["the", "of", *"abcdefghijk"], k=draw.randint(1, 14))
        found.append(" ".join(words))
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 1.0])
def test_it_keeps_what_comparing_all_pairs_keeps(session, threshold):
    texts, pool = sentences(200, 1), sentences(40, 2)
    new, old = DataSource("New", {"text": texts}), DataSource("Old", {"text": pool})
    step = DeduplicateByRougeL(
        "Novel", {"inputs": new.output["text"], "pool": old.output["text"]}, {"threshold": threshold, "drop": False}
    )
    expected = by_all_pairs(pool, texts, threshold)
    assert list(step.output["similarity"]) == pytest.approx(expected)
    for text, other, score in zip(texts, step.output["similar_to"], expected, strict=True):
        assert score is None or rouge_l(text, other) == pytest.approx(score)
    assert 0 < sum(score is None for score in expected) < len(texts)


def test_rejected_rows_name_the_text_that_they_are_similar_to(session):
    texts = ["Write a poem on cats.", "Write a poem on big cats!", None, "Add two numbers.", "", "..."]
    rows = DataSource("Rows", {"text": texts, "id": list(range(6))})
    step = DeduplicateByRougeL("Novel", {"inputs": rows.output["text"]})
    assert list(step.output["id"]) == [0, 2, 3, 4, 5]
    (rejected,) = step.rejected.output
    assert rejected["similar_to"] == texts[0]
    assert rejected["similarity"] == pytest.approx(10 / 11)


def test_wrong_arguments_are_refused(session):
    rows = DataSource("Rows", {"text": ["a"], "number": [1]})
    for threshold in (0, 1.1, -0.5):
        with pytest.raises(DefinitionError, match='"threshold" is'):
            DeduplicateByRougeL("Novel", {"inputs": rows.output["text"]}, {"threshold": float(threshold)})
    with pytest.raises(DataError, match="which is not a text"):
        DeduplicateByRougeL("Novel", {"inputs": rows.output["text"], "pool": rows.output["number"]})
