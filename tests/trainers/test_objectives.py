"""What a trainer minimises is the objective's formula, on the teacher's answers, class by class and token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from datadreamer_like.distillation import (
    ConfidenceWeighted,
    HardTargets,
    HiddenStates,
    Probabilities,
    SoftTargets,
    Supervised,
)
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, LabelError, MethodMisfit
from datadreamer_like.evaluation.tasks.examples import ShuffledBatches
from datadreamer_like.models import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune

from .conftest import opinions

# A large epsilon keeps Adam from blowing the rounding noise of vanishing gradients up to whole steps.
OPTIONS: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.0, "adam_epsilon": 1e-3}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True, eq=False)
class CountedTeacher:
    """A teacher that writes down the texts that it reads; what it is makes its fingerprint."""

    trainer: Any
    asked: list[str]

    @property
    def model(self) -> Any:
        return self.trainer.model

    @property
    def tokenizer(self) -> Any:
        def tokenize(texts: list[str], **options: Any) -> Any:
            self.asked.extend(texts)
            return self.trainer.tokenizer(texts, **options)

        tokenize.model_max_length = self.trainer.tokenizer.model_max_length  # type: ignore[attr-defined]
        return tokenize

    def __fingerprint__(self) -> Any:
        return self.trainer


def hand_written(model: Any, batches: list[Any], loss_of: Any, learning_rate: float, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, eps=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_two_steps_for_a_classifier_are_those_of_a_hand_written_loop(session, tiny_encoder, data, kind):
    columns = data()
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(
        **columns, epochs=3, batch_size=8, learning_rate=3e-3
    )
    # The student has the classes in another order than the teacher, so they must be matched by name.
    start = TrainHFClassifier("Start", str(tiny_encoder), **NO_DROPOUT)
    start.train(**columns, epochs=1, batch_size=96, learning_rate=0.0)
    objective = SoftTargets(teacher, temperature=3.0, alpha=0.7) if kind == "soft" else HardTargets(teacher)
    student = TrainHFClassifier("Student", start, **NO_DROPOUT)
    student.train(**columns, objective=objective, epochs=1, batch_size=48, **OPTIONS)

    rows = opinions(96)
    tokenizer = teacher.tokenizer
    lengths = np.array([len(ids) for ids in tokenizer(rows["text"])["input_ids"]])
    batches = []
    for indices in ShuffledBatches(lengths, 48, seed=42):
        batch = tokenizer([rows["text"][i] for i in indices], padding=True, return_tensors="pt")
        batches.append((batch, torch.tensor([int(rows["label"][i] == "positive") for i in indices])))

    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        inputs, labels = batch
        logits = model(**inputs).logits
        with torch.no_grad():
            said = teacher.model(**inputs).logits
        if kind == "hard":
            return F.cross_entropy(logits, said.argmax(-1))
        soft = F.kl_div(F.log_softmax(logits / 3, -1), F.softmax(said / 3, -1), reduction="batchmean")
        return 0.7 * 9 * soft + 0.3 * F.cross_entropy(logits, labels)

    model = AutoModelForSequenceClassification.from_pretrained(start.path, **NO_DROPOUT)
    hand_written(model, batches, loss_of, 1e-2, steps=2)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, student.model.get_parameter(name), atol=2e-6), name
    # A loss of another kind, or without the teacher, is not this one.
    supervised = AutoModelForSequenceClassification.from_pretrained(start.path, **NO_DROPOUT)
    hand_written(supervised, batches, lambda model, b: F.cross_entropy(model(**b[0]).logits, b[1]), 1e-2, steps=2)
    assert not torch.allclose(supervised.classifier.weight, student.model.classifier.weight, atol=1e-5)


def test_two_steps_for_a_language_model_look_at_the_answers_alone(session, tiny_causal_lm, data):
    rows = {"text": ["The cat", "A dog", "The bird sang"], "label": ["sat on the mat.", "ran.", "in the tree."]}
    columns = data(rows, rows)
    teacher = TrainHFFineTune("Teacher", str(tiny_causal_lm)).train(**columns, epochs=2, learning_rate=1e-2)
    student = TrainHFFineTune("Student", str(tiny_causal_lm))
    student.train(
        **columns, objective=SoftTargets(teacher, temperature=2.0, alpha=0.5), epochs=2, batch_size=3, **OPTIONS
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    sequences = []
    for prompt, answer in zip(rows["text"], rows["label"], strict=True):
        asked = tokenizer.encode(f"<|user|>{prompt}<eos><|assistant|>", add_special_tokens=False)
        answered = tokenizer.encode(f"{answer}<eos>", add_special_tokens=False)
        sequences.append((asked + answered, len(asked)))

    def loss_of(model: Any, _: Any) -> torch.Tensor:
        # Row by row without padding, which must make no difference.
        wanted, given, taught = [], [], []
        for ids, start in sequences:
            inputs = torch.tensor([ids])
            given.append(model(inputs).logits[0, start - 1 : -1])
            with torch.no_grad():
                taught.append(teacher.model(inputs).logits[0, start - 1 : -1])
            wanted.append(inputs[0, start:])
        logits, said, labels = torch.cat(given), torch.cat(taught), torch.cat(wanted)
        soft = F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(said / 2, -1), reduction="batchmean")
        return 0.5 * 4 * soft + 0.5 * F.cross_entropy(logits, labels)

    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    hand_written(model, [None, None], loss_of, 1e-2, steps=2)
    with torch.no_grad():
        assert student.metrics["loss"] == pytest.approx(float(loss_of(student.model, None)), abs=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, student.model.get_parameter(name), atol=2e-5), name


def test_another_teacher_is_another_student_and_the_teacher_is_among_its_ancestors(session, tiny_encoder, data):
    columns = data()
    options = {"epochs": 1, "batch_size": 8}
    teachers = [
        TrainHFClassifier(f"Teacher {n}", str(tiny_encoder)).train(**columns, seed=n, **options) for n in (1, 2)
    ]
    students = [
        TrainHFClassifier(f"Student of {teacher.name}", str(tiny_encoder)).train(
            **columns, objective=SoftTargets(teacher), **options
        )
        for teacher in teachers
    ]
    assert students[0].fingerprint != students[1].fingerprint
    assert "Teacher 1" in [card.name for card in students[0].card.lineage()]
    # The teacher was asked before training, and its memory is free again.
    assert "model" not in vars(teachers[0].trained)


def test_the_next_student_finds_the_teachers_answers_and_asks_about_new_rows_alone(session, tiny_encoder, data):
    columns = data()
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(**columns, epochs=1)
    more = opinions(120)
    asked = []

    # A teacher is known by what it is, so all three students have the same one.
    for name, objective, rows in (
        ("Soft", SoftTargets, None), ("Hard", HardTargets, None), ("More", SoftTargets, more),
    ):  # fmt: skip
        student = TrainHFClassifier(name, str(tiny_encoder))
        counted = CountedTeacher(teacher, asked)
        student.train(**(columns if rows is None else data(rows)), objective=objective(counted), epochs=1)
        if name == "Soft":
            assert set(asked) == {*opinions(96)["text"], *opinions(32, seed=1)["text"]}
            assert len(asked) == len(set(asked))
            asked.clear()
    assert set(asked) == set(more["text"]) - set(opinions(96)["text"]) - set(opinions(32, seed=1)["text"])


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_rows_without_labels_are_learnt_from_the_teacher_alone(session, tiny_encoder, data, alpha):
    columns = data(opinions(160))
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(
        **columns, epochs=6, batch_size=8, learning_rate=3e-3
    )
    rows = opinions(160)
    rows["label"] = [label if row < 4 else None for row, label in enumerate(rows["label"])]
    some = data(rows)
    objective = SoftTargets(teacher, alpha=alpha)
    student = TrainHFClassifier("Some labels", str(tiny_encoder))
    student.train(**some, objective=objective, epochs=6, batch_size=8, learning_rate=3e-3)
    assert student.trained.labels == ["negative", "positive"]
    assert student.metrics["accuracy"] > 0.9
    if alpha == 1.0:
        alone = TrainHFClassifier("No labels", str(tiny_encoder))
        alone.train(
            some["train_input"], None, some["validation_input"], None, objective=objective, epochs=6, batch_size=8,
            learning_rate=3e-3,
        )  # fmt: skip
        assert set(alone.metrics) == {"loss"}
        # Which rows have labels makes no difference.
        assert torch.equal(alone.model.classifier.weight, student.model.classifier.weight)


def test_validation_loss_does_not_depend_on_how_unlabelled_rows_fall_into_batches(session, tiny_encoder, data):
    columns = data()
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(
        **columns, epochs=1, batch_size=48, learning_rate=3e-3
    )
    rows = opinions(32, seed=1)
    # Labels of 11 of 32 rows; batches of similar length have none, some or all of them.
    rows["label"] = [label if row % 3 == 0 else None for row, label in enumerate(rows["label"])]
    validation = data(validation=rows)
    losses, logits = {}, None
    for size in (1, 3, 16, 96):
        student = TrainHFClassifier(f"Student {size}", str(tiny_encoder))
        student.train(
            **validation, objective=SoftTargets(teacher, temperature=2.0, alpha=0.6), epochs=1, batch_size=size,
            per_device_eval_batch_size=size, learning_rate=0.0,
        )  # fmt: skip
        losses[size] = student.metrics["loss"]
        logits = torch.from_numpy(student.trained.logits(rows["text"])).double()
    taught = torch.from_numpy(teacher.trained.logits(rows["text"])).double()
    q, p = (taught / 2).softmax(-1), (logits / 2).log_softmax(-1)
    soft = 4 * (q * (q.log() - p)).sum(-1).mean()
    labels = torch.tensor([int(label == "positive") for label in rows["label"] if label])
    hard = F.cross_entropy(logits[::3], labels)
    assert losses == pytest.approx(dict.fromkeys(losses, float(0.6 * soft + 0.4 * hard)), rel=1e-5)


@pytest.mark.parametrize("size", [3, 96])
def test_the_validation_loss_of_weighted_rows_is_one_weighted_mean(session, tiny_encoder, data, size):
    given = opinions(32, seed=1)
    texts = given["text"]
    shares = [(len(text) % 9 + 1) / 10 for text in texts]
    teacher = Probabilities(texts, [{"positive": share, "negative": 1 - share} for share in shares])
    student = TrainHFClassifier("Student", str(tiny_encoder))
    student.train(
        **data(given, given), objective=ConfidenceWeighted(teacher), epochs=1, batch_size=size,
        per_device_eval_batch_size=size, learning_rate=0.0,
    )  # fmt: skip
    logits = torch.from_numpy(student.trained.logits(texts)).double()
    labels = torch.tensor([int(label == "positive") for label in given["label"]])
    weights = torch.tensor([max(share, 1 - share) for share in shares], dtype=torch.float64)
    expected = (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / weights.sum()
    assert student.metrics["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_missing_labels_are_refused_where_the_objective_needs_them(session, tiny_encoder, data):
    columns = data()
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(**columns, epochs=1)
    soft = SoftTargets(teacher, alpha=0.5)
    for name in ("train_output", "validation_output"):
        with pytest.raises(DefinitionError, match=rf"{name} is None, and SoftTargets needs labels.*alpha=1.0"):
            TrainHFClassifier("A", str(tiny_encoder)).train(**{**columns, name: None}, objective=soft)
    with pytest.raises(ArgumentTypeError, match="train_output is of type NoneType"):
        TrainHFClassifier("B", str(tiny_encoder)).train(**{**columns, "train_output": None})
    rows = opinions(16)
    rows["label"][3] = None
    with pytest.raises(DataError, match=r"train_output is None in row 3, and this objective learns from labels alone"):
        TrainHFClassifier("C", str(tiny_encoder)).train(**data(rows))
    none = {**rows, "label": [None] * 16}
    with pytest.raises(DefinitionError, match="none of the training rows has a label"):
        TrainHFClassifier("D", str(tiny_encoder)).train(**data(none), objective=soft)


class Wanting(Supervised):
    """An objective that asks for more than it uses."""

    def __init__(self, *wants: str) -> None:
        object.__setattr__(self, "wanted", frozenset({"logits", *wants}))

    @property
    def wants(self) -> frozenset[str]:
        return self.wanted


def test_an_objective_that_wants_what_its_task_cannot_give_is_refused_before_work(session, tiny_encoder, data):
    columns = data()
    with pytest.raises(MethodMisfit, match="needs values, but models for classification give attentions"):
        TrainHFClassifier("A", str(tiny_encoder)).train(**columns, objective=Wanting("values"))
    with pytest.raises(MethodMisfit, match=r'the student does not return with attn_implementation="sdpa".*"eager"'):
        TrainHFClassifier("B", str(tiny_encoder)).train(**columns, objective=Wanting("attentions"))
    eager = TrainHFClassifier("C", str(tiny_encoder), attn_implementation="eager")
    eager.train(**columns, objective=Wanting("attentions"), epochs=1)


def test_a_teacher_of_other_classes_or_other_tokens_is_refused(
    session, tiny_encoder, tiny_causal_lm, tiny_seq2seq, data
):
    columns = data()
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(**columns, epochs=1)
    rows = opinions(16)
    rows["label"] = [label.upper() for label in rows["label"]]
    with pytest.raises(LabelError, match="different classes"):
        TrainHFClassifier("Student", str(tiny_encoder)).train(**data(rows, rows), objective=SoftTargets(teacher))
    with pytest.raises(MethodMisfit, match="LlamaForCausalLM, is a language model and no classifier.*ScoreLabels"):
        TrainHFClassifier("Taught", str(tiny_encoder)).train(
            **columns, objective=SoftTargets(TrainedModel(tiny_causal_lm))
        )
    with pytest.raises(MethodMisfit, match="is not a language model"):
        TrainHFFineTune("LM", str(tiny_causal_lm)).train(**data(), objective=SoftTargets(teacher))
    with pytest.raises(ArgumentTypeError, match="objective must be an objective"):
        TrainHFClassifier("Wrong", str(tiny_encoder)).train(**columns, objective="soft")


@dataclass(frozen=True)
class WordList:
    """A teacher that is no model: it counts words."""

    good: tuple[str, ...] = ("good", "fine", "great")

    @property
    def classes(self) -> list[str]:
        return ["positive", "negative"]

    def class_logits(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[4.0, -4.0] if set(self.good) & set(text.split()) else [-4.0, 4.0] for text in texts])


def test_a_teacher_that_reads_texts_itself_teaches_a_classifier_without_labels(session, tiny_encoder, data):
    columns = {**data(), "train_output": None, "validation_output": None}
    objective = SoftTargets(WordList(), temperature=1.0, alpha=1.0)
    student = TrainHFClassifier("Student", str(tiny_encoder)).train(
        **columns, objective=objective, epochs=12, batch_size=8, learning_rate=5e-3
    )
    rows = opinions(64, seed=5)
    agreed = np.mean(np.array(student.predict(rows["text"]).labels) == np.array(rows["label"]))
    assert agreed > 0.9
    assert student.trained.labels == ["positive", "negative"]


def test_a_teacher_that_reads_texts_itself_is_refused_where_its_tokens_are_needed(session, tiny_encoder, data):
    with pytest.raises(MethodMisfit, match="hidden states of its teacher"):
        TrainHFClassifier("Student", str(tiny_encoder)).train(**data(), objective=HiddenStates(WordList()), epochs=1)
