"""A classifier as a step, and the rows that it would learn most from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Probabilities
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.steps import ChooseRowsToLabel, DataSource, Predict, Step
from datadreamer_like.steps.labelling.choose_rows import uncertainty

TEXTS = ["a", "b", "c", "d"]
# Margins 0.1, 0.8, 0.0 and 0.3; of three classes, so that the order by entropy is another one.
SHARES = [[0.35, 0.45, 0.2], [0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.55, 0.25, 0.2]]


def teacher(rows: list[list[float]] = SHARES, classes: str = "xyz") -> Probabilities:
    return Probabilities(TEXTS, rows, classes=list(classes))


def column(texts: list[Any] = TEXTS) -> Any:
    return DataSource("Texts", {"text": texts}).output["text"]


def chosen(texts: list[Any] = TEXTS, **args: Any) -> Step:
    return ChooseRowsToLabel("Next", inputs={"texts": column(texts)}, args={"n": 2, "models": [teacher()], **args})


def test_labels_come_with_the_probability_of_each_class(session: DataDreamer):
    step = Predict("Labels", inputs={"texts": column(["b", None, "d"])}, args={"model": teacher()})
    rows = list(step.output)
    assert [row["labels"] for row in rows] == ["x", None, "x"]
    assert [row["probabilities"] for row in rows] == pytest.approx([0.9, None, 0.55], abs=1e-6)
    assert rows[2]["soft_labels"] == pytest.approx({"x": 0.55, "y": 0.25, "z": 0.2}, abs=1e-6)
    assert rows[1]["soft_labels"] is None
    assert step.card.models == ["Probabilities(4 texts, 3 classes)"]


def test_a_multi_label_teacher_gives_lists(session: DataDreamer):
    many = Probabilities(TEXTS, [[0.9, 0.8], [0.1, 0.2], [0.6, 0.4], [0.2, 0.7]], ["x", "y"], multi_label=True)
    step = Predict("Labels", inputs={"texts": column()}, args={"model": many})
    assert list(step.output["labels"]) == [["x", "y"], [], ["x"], ["y"]]
    assert list(step.output["probabilities"]) == [None] * 4
    with pytest.raises(MethodMisfit, match="multi-label"):
        chosen(models=[many])


@pytest.mark.parametrize(("by", "expected"), [("margin", ["c", "a"]), ("entropy", ["a", "d"])])
def test_the_least_certain_rows_are_chosen_first(session: DataDreamer, by: str, expected: list[str]):
    step = chosen(by=by)
    assert list(step.output["texts"]) == expected
    scores = list(step.output["scores"])
    for text, score in zip(expected, scores, strict=True):
        shares = np.array(SHARES[TEXTS.index(text)])
        best = sorted(shares)
        entropy = -sum(share * np.log(share) for share in shares if share)
        assert score == pytest.approx(1 - best[-1] + best[-2] if by == "margin" else entropy, abs=1e-6)


def test_a_committees_score_is_the_mean_divergence_of_its_members_from_their_mean(session: DataDreamer):
    rng = np.random.default_rng(0)
    said = rng.dirichlet(np.ones(4), size=(3, 5))
    mean = said.mean(0)
    expected = [np.mean([(p[row] * np.log(p[row] / mean[row])).sum() for p in said]) for row in range(5)]
    assert uncertainty(said, "committee") == pytest.approx(expected, abs=1e-12)
    assert uncertainty(np.repeat(said[:1], 3, axis=0), "committee") == pytest.approx([0.0] * 5, abs=1e-12)
    # Members may order their classes differently: both say the same of "a" to "c", and disagree about "d".
    swapped = [[row[2], row[1], row[0]] for row in [*SHARES[:3], [0.05, 0.05, 0.9]]]
    step = chosen(models=[teacher(), teacher(swapped, "zyx")], by="committee", n=1)
    assert list(step.output["texts"]) == ["d"]


def test_what_is_labelled_already_or_occurs_twice_is_not_chosen_again(session: DataDreamer):
    step = chosen(["c", "a", "c", None, "d"], exclude=["a"], n=9)
    assert list(step.output["texts"]) == ["c", "d"]
    with pytest.raises(EmptyDataset, match="no text is left to choose from: 3 rows have.*`exclude`, and 2 have none"):
        chosen(["c", None, "a", None, "c"], exclude=TEXTS)


def test_random_rows_need_no_model_and_depend_on_the_seed(session: DataDreamer):
    texts = [f"text {number}" for number in range(40)]
    draws = [tuple(chosen(texts, models=[], by="random", n=10, seed=seed).output["texts"]) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len({*draws}) == 3
    assert {*draws[0]} < {*texts}


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({"by": "margins"}, DefinitionError, 'by "margins".*margin'),
        ({"n": 0}, DefinitionError, "n is 0"),
        ({"models": []}, DefinitionError, "has 0 classifiers.*needs 1"),
        ({"by": "committee"}, DefinitionError, "has 1 classifiers.*needs 2"),
        ({"models": [3]}, ArgumentTypeError, r"models\[0\] is of type int"),
        ({"models": [teacher(), teacher(classes="xyw")]}, MethodMisfit, "different classes"),
    ],
)
def test_wrong_arguments_are_refused(session: DataDreamer, args: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        chosen(**args)


def test_a_model_that_is_none_is_refused_before_any_work(session: DataDreamer, tmp_path: Path):
    with pytest.raises(ArgumentTypeError, match='"Labels": model is of type int'):
        Predict("Labels", inputs={"texts": column()}, args={"model": 3})
