"""Teachers from which a student cannot learn are refused, whatever the trainer, before it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from datadreamer_like.distillation import (
    ULD,
    Combined,
    ConfidenceWeighted,
    HardTargets,
    Hidden,
    Objective,
    OnPolicy,
    PermutedTargets,
    Probabilities,
    Sampled,
    SequenceInterpolation,
    SequenceLevel,
    SoftTargets,
    StoredAnswers,
    StoredTeacher,
    Supervised,
    TeacherModel,
    TopK,
    WordLevel,
)
from datadreamer_like.distillation.teacher import move_teacher, teacher_logits_for_texts
from datadreamer_like.errors import DataError, DefinitionError, MethodMisfit
from datadreamer_like.quantization import NF4, AbsMax, DynamicInt8
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainHFFineTune,
    TrainLinearClassifier,
    TrainStaticClassifier,
)
from datadreamer_like.trainers.training.logistic import Rows as Fixed
from datadreamer_like.trainers.training.logistic import fit_logistic

from .conftest import opinions

CLASSES = ["negative", "positive"]
TEXTS = [*opinions(96)["text"], *opinions(32, seed=1)["text"]]
KINDS = [TrainLinearClassifier, TrainEmbeddingClassifier, TrainStaticClassifier, TrainHFClassifier]


class Broken:
    """A teacher of texts with one value among its logits."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.classes = CLASSES

    def class_logits(self, texts: Any) -> torch.Tensor:
        logits = torch.zeros(len(texts), 2)
        logits[-1, 0] = self.value
        return logits


def train(kind: Any, encoder: Any, columns: dict[str, Any], objective: Objective) -> Any:
    trainer = kind("Student") if kind is TrainLinearClassifier else kind("Student", encoder)
    return trainer.train(**columns, objective=objective)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [SoftTargets, HardTargets])
@pytest.mark.parametrize("multi_label", [True, False])
def test_single_and_multi_label_do_not_teach_each_other(session, data, tiny_encoder, kind, objective, multi_label):
    shares = np.full((len(TEXTS), 2), 0.5)
    teacher = Probabilities(TEXTS, shares, CLASSES, multi_label=multi_label)
    rows = [opinions(96), opinions(32, seed=1)]
    if not multi_label:
        rows = [{**each, "label": [[label] for label in each["label"]]} for each in rows]
    with pytest.raises(MethodMisfit, match=rf"is a {'multi' if multi_label else 'single'}-label classifier, and the"):
        train(kind, tiny_encoder, data(*rows), objective(teacher))


def test_a_model_teaches_only_its_own_kind(session, data, tiny_encoder):
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_encoder, label2id={"negative": 0, "positive": 1}, id2label=dict(enumerate(CLASSES)),
        problem_type="multi_label_classification",
    )  # fmt: skip
    teacher = TeacherModel(model, AutoTokenizer.from_pretrained(tiny_encoder))
    with pytest.raises(MethodMisfit, match="is a multi-label classifier, and the labels make the student a single"):
        train(TrainLinearClassifier, None, data(), SoftTargets(teacher))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_classes_that_are_not_finite_are_refused_before_the_student_learns(session, data, tiny_encoder, kind, value):
    with pytest.raises(DataError, match="The outputs of the teacher for the text '.*' are NaN or infinite"):
        train(kind, tiny_encoder, data(), SoftTargets(Broken(value), alpha=1.0))


def test_a_class_of_probability_zero_is_taught(session, data):
    student = train(TrainLinearClassifier, None, data(), SoftTargets(Broken(-math.inf), alpha=1.0))
    assert math.isfinite(student.metrics["loss"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_never_stored(tmp_path, value):
    with pytest.raises(DataError, match="NaN or infinite"):
        teacher_logits_for_texts(Broken(value), ["a", "b"])
    store = StoredAnswers(tmp_path)
    with pytest.raises(DataError, match="NaN or infinite"):
        store.rows(["a", "b"], Broken(value).class_logits)
    assert len(store) == 0
    states = torch.zeros(1, 3, 8)
    states[0, 1, 2] = value
    mask, keys = torch.tensor([[True, True, False]]), [b"12345678"]
    for signals, found in ((TopK(2), states), (Sampled(2), states), (Hidden([1]), (states, states))):
        with pytest.raises(DataError, match="NaN or infinite"):
            signals.capture(found, mask, keys)
        signals.capture(found, torch.tensor([[True, False, False]]), keys)  # of padding it may be anything


@pytest.mark.parametrize("how", ["live", "fused", "stored", "own tokens"])
def test_a_language_model_that_is_not_finite_teaches_nothing(session, data, tiny_causal_lm, how):
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_causal_lm)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    model.get_input_embeddings().weight.data[:] = math.nan
    teacher: Any = TeacherModel(model, tokenizer)
    objective = {
        "live": WordLevel(teacher), "fused": SoftTargets(teacher), "stored": SoftTargets(StoredTeacher(teacher)),
        "own tokens": ULD(teacher),
    }[how]  # fmt: skip
    rows = {"text": ["The cat sat", "A dog ran"], "label": ["on the mat.", "after the ball."]}
    with pytest.raises(MethodMisfit, match=r'The teacher, .*"model.embed_tokens" holds infinities or NaN'):
        TrainHFFineTune("Student", tiny_causal_lm).train(**data(rows, rows), objective=objective, batch_size=2)


def test_a_regression_refuses_a_loss_that_is_not_finite(tmp_path):
    features = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    batch = {"labels": torch.arange(8) % 2, "mask": torch.ones(8, dtype=torch.bool)}
    broken = np.where(np.arange(8)[:, None] == 3, np.float32(np.nan), features)
    for train_part, validation_part, what in ((broken, features, "training"), (features, broken, "validation")):
        with pytest.raises(DataError, match=f"The {what} loss is nan"):
            fit_logistic(
                Fixed(train_part, batch, None), Fixed(validation_part, batch, None), Supervised(), 2, 1.0, Nothing,
                tmp_path / what,
            )  # fmt: skip


class Nothing:
    """A measure of nothing."""

    def add(self, outputs: Any, batch: Any) -> None:
        pass

    def result(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [WordLevel, SequenceLevel, SequenceInterpolation, OnPolicy, ULD])
def test_objectives_of_language_models_train_no_classifier(session, data, tiny_encoder, kind, objective):
    teacher = Probabilities(TEXTS, np.full((len(TEXTS), 2), 0.5), CLASSES)
    with pytest.raises(MethodMisfit, match="is an objective for TrainHFFineTune.*, not for classification"):
        train(kind, tiny_encoder, data(), objective(teacher))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [ConfidenceWeighted, PermutedTargets])
def test_controls_refuse_rows_of_several_labels_before_the_teacher_is_asked(
    session, data, tiny_encoder, kind, objective
):
    rows = [{**each, "label": [[label] for label in each["label"]]} for each in (opinions(96), opinions(32, seed=1))]
    teacher = Silent()
    for each in (objective(teacher), Combined([Supervised(), objective(teacher)], [1.0, 1.0])):
        with pytest.raises(MethodMisfit, match="learns from rows with one label each"):
            train(kind, tiny_encoder, data(*rows), each)


class Silent:
    """A teacher that must not be asked."""

    classes = CLASSES

    def class_logits(self, texts: Any) -> torch.Tensor:
        raise AssertionError("the teacher was asked")


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_probabilities_without_their_classes_are_refused(session, data, tiny_encoder, kind):
    rows = [{**each, "label": [[0.5, 0.5]] * len(each["text"])} for each in (opinions(96), opinions(32, seed=1))]
    with pytest.raises(DefinitionError, match=r"train_output are lists of numbers, whose classes are unknown"):
        train(kind, tiny_encoder, data(*rows), Supervised())


def test_a_static_student_learns_probabilities_and_class_weights(session, data, tiny_encoder):
    rows = [opinions(96), opinions(32, seed=1)]
    soft = [{**each, "label": [[0.2, 0.8] if x == "positive" else [0.7, 0.3] for x in each["label"]]} for each in rows]
    options: dict[str, Any] = {"epochs": 2}
    found = []
    for name, columns, more in (
        ("plain", data(*rows), {}),
        ("weighted", data(*rows), {"class_weights": {"negative": 50.0}}),
        ("soft", data(*soft), {"classes": CLASSES}),
    ):
        student = TrainStaticClassifier(name, tiny_encoder, dimensions=16).train(**columns, **options, **more)
        found.append(student.predict(["the day"]).probabilities[0, 0])
    assert len({round(float(each), 4) for each in found}) == 3
    assert found[1] > found[0]


@pytest.mark.parametrize("method", [NF4(), DynamicInt8(), AbsMax()])
def test_a_teacher_of_our_codes_is_moved_to_the_students_device_and_one_of_other_codes_stays(method: Any) -> None:
    teacher = method.apply(build("bert"))
    assert teacher.is_quantized
    move_teacher(teacher, torch.device("meta"))
    assert {part.device.type for part in (*teacher.parameters(), *teacher.buffers())} == {"meta"}
    foreign = build("bert")
    foreign.is_quantized = True  # type: ignore[assignment]  # as those of bitsandbytes
    move_teacher(foreign, torch.device("meta"))
    assert foreign.device.type == "cpu"
