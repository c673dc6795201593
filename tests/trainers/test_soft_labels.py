"""What labels a classifier takes: probabilities, weights of classes, smoothed ones; and teachers without tokens."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from warm import printed_by

from datadreamer_like.distillation import Ensemble, HardTargets, Probabilities, ScoreLabels, SoftTargets
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, LabelError
from datadreamer_like.evaluation.labels import LabelSet
from datadreamer_like.evaluation.soft_labels import weights_of_classes
from datadreamer_like.models import HFTransformers
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainLinearClassifier,
    TrainSetFitClassifier,
    TrainStaticClassifier,
)

from .conftest import Rows, opinions

# One step on all rows, without dropout: its loss is the one at the start.
STEP: dict[str, Any] = {"epochs": 1, "batch_size": 96, "learning_rate": 0.0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUICK: dict[str, Any] = {"epochs": 6, "batch_size": 8, "learning_rate": 3e-3}


def shares(labels: list[str], sure: float = 0.9) -> list[dict[str, float]]:
    return [{label: sure, ("negative" if label == "positive" else "positive"): 1 - sure} for label in labels]


def loss_of(trainer: Any, texts: list[str], targets: Any) -> float:
    """The mean of `-Σ t log p`, in float64, of the saved model."""
    model = AutoModelForSequenceClassification.from_pretrained(trainer.path).double().eval()
    batch = AutoTokenizer.from_pretrained(trainer.path)(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logprobs = model(**batch).logits.log_softmax(-1)
    return float(-(torch.as_tensor(targets) * logprobs).sum(-1).mean())


def test_soft_labels_are_learnt_in_every_form(session, tiny_encoder, data):
    train, validation = opinions(64), opinions(24, seed=1)
    soft = [shares(rows["label"]) for rows in (train, validation)]
    lists = [[[row["positive"], row["negative"]] for row in part] for part in soft]
    trained = []
    for name, (first, second), options in (
        ("mappings", soft, {}),
        ("lists", lists, {"classes": ["positive", "negative"]}),
    ):
        columns = data({**train, "label": first}, {**validation, "label": second})
        trainer = TrainHFClassifier(name, str(tiny_encoder))
        trained.append(trainer.train(**columns, **options, **QUICK))
        targets = [[row["negative"], row["positive"]] for row in soft[1]]
        if name == "lists":
            targets = [row[::-1] for row in targets]
        assert trainer.metrics["loss"] == pytest.approx(loss_of(trainer, validation["text"], targets), abs=1e-5)
        assert trainer.metrics["accuracy"] > 0.8
        # It learns to be as sure as its labels are, and no surer.
        sureness = trainer.predict(train["text"]).probabilities.max(axis=1)
        assert 0.7 < sureness.mean() < sureness.max() < 0.96
    assert trained[1].predict(["bad"]).classes == ["positive", "negative"]


def test_soft_labels_may_be_missing_where_a_teacher_teaches_and_validation_labels_may_be_hard(
    session, tiny_encoder, data
):
    train, validation = opinions(24), opinions(24, seed=1)
    teacher = Probabilities(train["text"] + validation["text"], shares(train["label"] + validation["label"]))
    labels = [row if index < 8 else None for index, row in enumerate(shares(train["label"]))]
    trainer = TrainHFClassifier("Student", str(tiny_encoder))
    trainer.train(**data({**train, "label": labels}, validation), objective=SoftTargets(teacher), **STEP)
    assert trainer.metrics["accuracy"] >= 0


def test_multi_label_probabilities_are_separate_decisions(session, tiny_encoder, data):
    texts = opinions(64)["text"]
    rows = [{"tea": 0.9 if "tea" in text else 0.1, "film": 0.7 if "film" in text else 0.2} for text in texts]
    columns = data({"text": texts, "label": rows}, {"text": texts, "label": rows})
    trainer = TrainHFClassifier("Topics", str(tiny_encoder))
    trainer.train(**columns, multi_label=True, **{**STEP, "learning_rate": 3e-3})
    model = AutoModelForSequenceClassification.from_pretrained(trainer.path).double().eval()
    batch = AutoTokenizer.from_pretrained(trainer.path)(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch).logits
    soft = torch.tensor([[row["film"], row["tea"]] for row in rows], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits, soft)
    assert trainer.metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert model.config.problem_type == "multi_label_classification"


def test_weights_and_smoothing_change_the_loss_as_the_formula_says(session, tiny_encoder, data):
    rows = opinions(96)
    validation = opinions(32, seed=1)
    keep = [index for index, label in enumerate(rows["label"]) if label == "positive" or index < 30]
    train = {name: [values[index] for index in keep] for name, values in rows.items()}
    negatives = train["label"].count("negative")
    balanced = [len(keep) / 2 / negatives, len(keep) / 2 / (len(keep) - negatives)]
    one_hot = np.eye(2)[[int(label == "positive") for label in validation["label"]]]
    columns = data(train, validation)
    for name, options, targets in (
        ("balanced", {"class_weights": "balanced"}, one_hot * balanced),
        ("given", {"class_weights": {"negative": 3.0}}, one_hot * [3.0, 1.0]),
        ("smoothed", {"label_smoothing_factor": 0.2}, one_hot * 0.8 + 0.1),
        (
            "both",
            {"class_weights": {"negative": 3.0}, "label_smoothing_factor": 0.2},
            (one_hot * 0.8 + 0.1) * [3.0, 1.0],
        ),
    ):
        trainer = TrainHFClassifier(name, str(tiny_encoder)).train(**columns, **options, **STEP)
        assert trainer.metrics["loss"] == pytest.approx(loss_of(trainer, validation["text"], targets), rel=1e-5)


def test_balanced_weights_give_every_class_the_same_share(session):
    rows = {"hard": ["a", "a", "a", "b", None], "many": [["a"], ["a", "b"], [], ["a"], ["a"]]}
    rows["soft"] = [{"a": 0.75, "b": 0.25}] * 4 + [None]
    step = Rows("Rows", rows)
    labels = LabelSet(("a", "b", "c"))
    found = weights_of_classes("balanced", labels, step.output["hard"], (), "labels")
    assert np.allclose(found, [4 / (3 * 3), 4 / 3, 1.0])
    found = weights_of_classes("balanced", labels, step.output["soft"], ("a", "b"), "labels")
    assert np.allclose(found, [4 / (3 * 3), 4 / 3, 1.0])
    found = weights_of_classes("balanced", LabelSet(("a", "b", "c"), True), step.output["many"], (), "labels")
    assert np.allclose(found, [1 / 4, 4 / 1, 1.0])


@pytest.mark.parametrize(
    ("labels", "options", "error", "words"),
    [
        ([[0.5, 0.5], [0.7, 0.7]], {"classes": ["a", "b"]}, DataError, "in row 1, whose sum is 1.4"),
        ([[0.5, 0.5], [1.2, -0.2]], {"classes": ["a", "b"]}, DataError, "must be from 0 to 1"),
        ([[0.5, 0.5], [float("nan"), 1.0]], {"classes": ["a", "b"]}, DataError, "must be from 0 to 1"),
        ([[0.5, 0.5], None], {"classes": ["a", "b"]}, DataError, "is None in row 1"),
        ([[0.5, 0.5], [1.0]], {"classes": ["a", "b"]}, DataError, "one probability for each of the 2"),
        ([[0.5, 0.5], [0.5, 0.5]], {}, DefinitionError, "Pass classes="),
        ([{"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 0.0}], {}, DataError, "whose sum is 0.* Filter such rows out, or"),
        ([{"a": 0.5, "c": 0.5}] * 2, {"classes": ["a", "b"]}, LabelError, '"c" is not one of the 2 classes: a, b'),
        (["a", "b"], {"classes": ["a", "b"]}, DefinitionError, "classes describe labels that are probabilities"),
        ([[0, 1], [1, 0]], {"classes": ["a", "b"]}, DefinitionError, r"Leave it out\. If each position stands for a"),
        (["a", "b"], {"multi_label": True}, DefinitionError, "multi_label describe"),
        (["a", "b"], {"class_weights": {"c": 1.0}}, LabelError, 'class_weights has the class "c"'),
        (["a", "b"], {"class_weights": {"a": -1.0}}, DefinitionError, "must be 0 or more"),
        (["a", "b"], {"class_weights": {"a": float("nan")}}, DefinitionError, "must be 0 or more"),
        (["a", "b"], {"class_weights": {"a": 0, "b": 0}}, DefinitionError, "all class_weights are 0"),
        (["a", "b"], {"class_weights": "balance"}, ArgumentTypeError, 'must be "balanced" or a mapping'),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_before_the_model_is_loaded(
    session, tiny_encoder, data, labels, options, error, words, monkeypatch
):
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", None)
    rows = {"text": ["good", "bad"], "label": labels}
    with pytest.raises(error, match=words):
        TrainHFClassifier("a", str(tiny_encoder)).train(**data(rows, rows), **options, **STEP)


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ({"a": 0.7, "b": 0.3}, {}),
        ([0.0, 1.0], {"classes": ["a", "b"]}),
        ({"a": 0.7, "b": 0.6}, {"multi_label": True}),
    ],
)
@pytest.mark.parametrize(
    "kind",
    [
        TrainHFClassifier,
        TrainSetFitClassifier,
        TrainStaticClassifier,
        TrainEmbeddingClassifier,
        TrainLinearClassifier,
    ],
)
def test_labels_that_are_the_same_in_every_row_are_refused_and_of_validation_rows_warned_of(
    session, tiny_encoder, data, kind, label, options, caplog
):
    start = () if kind is TrainLinearClassifier else (str(tiny_encoder),)
    same = {"text": ["good", "bad", "fine"], "label": [label] * 3}
    with pytest.raises(DataError, match="train_output is the same in every row, so there is nothing to learn"):
        kind("Same", *start).train(**data(same, same), **options)
    unknown = {**same, "label": [label, label, None]}
    with pytest.raises(DataError, match="train_output.*is None in row 2"):
        kind("None", *start).train(**data(unknown, same), **options)
    if kind is TrainLinearClassifier:
        other = {**same, "label": [label, label, dict.fromkeys(label, 0.5) if isinstance(label, dict) else [0.5, 0.5]]}
        kind("Other", *start).train(**data(other, same), **options)
        assert "validation_output is the same in every row" in caplog.text


def test_validation_labels_of_another_class_and_weights_without_labels_are_refused(session, tiny_encoder, data):
    train = {"text": ["good", "bad"], "label": [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}]}
    other = {"text": ["good"], "label": [{"a": 0.5, "c": 0.5}]}
    with pytest.raises(LabelError, match=r'validation_output has probabilities of the class "c"'):
        TrainHFClassifier("a", str(tiny_encoder)).train(**data(train, other), **STEP)
    teacher = Probabilities(["good", "bad"], [{"a": 1.0, "b": 0.0}] * 2)
    with pytest.raises(DefinitionError, match="HardTargets uses none"):
        TrainHFClassifier("a", str(tiny_encoder)).train(
            **data(train, train), objective=HardTargets(teacher), class_weights="balanced", **STEP
        )


def test_a_changed_weight_is_another_model_and_no_weight_is_the_same_as_before(session, tiny_encoder, data):
    columns = data(opinions(16), opinions(16))
    plain, weighted = (
        TrainHFClassifier(name, str(tiny_encoder)).train(**columns, **options, **STEP)
        for name, options in (("plain", {}), ("weighted", {"class_weights": "balanced"}))
    )
    assert plain.fingerprint != weighted.fingerprint
    assert not any("class_weights" in part for part in plain.fingerprint_parts())


def test_a_column_of_probabilities_an_ensemble_and_an_llm_teach_a_student_that_loads_elsewhere(
    session, tiny_encoder, tiny_causal_lm, data
):
    train, validation = opinions(96), opinions(32, seed=1)
    columns = data(train, validation)
    texts, labels = train["text"] + validation["text"], train["label"] + validation["label"]
    known = Rows("Known", {"text": texts, "chances": shares(labels)})
    teacher = Probabilities(known.output["text"], known.output["chances"])
    first = TrainHFClassifier("First", str(tiny_encoder)).train(**columns, **QUICK)
    llm = HFTransformers(str(tiny_causal_lm), device="cpu")
    for name, each in (
        ("Of a column", teacher),
        ("Of several", Ensemble([teacher, first], weights=[3, 1])),
    ):
        student = TrainHFClassifier(name, str(tiny_encoder))
        student.train(
            columns["train_input"], None, columns["validation_input"], columns["validation_output"],
            objective=SoftTargets(each, temperature=1.0, alpha=1.0), **QUICK,
        )  # fmt: skip
        assert student.metrics["accuracy"] > 0.8
        assert known in student.parents or first in student.parents
    assert first in student.parents
    scored = TrainHFClassifier("Of an LLM", str(tiny_encoder))
    scored.train(
        columns["train_input"], None, columns["validation_input"], columns["validation_output"],
        objective=SoftTargets(ScoreLabels(llm, ["positive", "negative"]), alpha=1.0), **STEP,
    )  # fmt: skip
    assert scored.predict(["good"]).classes == ["positive", "negative"]
    script = (
        "import sys; from datadreamer_like import TrainedModel; "
        "print(TrainedModel.load(sys.argv[1]).predict(['good', 'awful day']).probabilities.tolist())"
    )
    found = json.loads(printed_by(script, str(student.path)))
    here = TrainedModel.load(student.path).predict(["good", "awful day"]).probabilities
    assert np.allclose(found, here, atol=1e-6)
