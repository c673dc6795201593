"""Born-again networks: who teaches whom, what each starts from, and what the ensemble says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datadreamer_like.distillation import (
    ConfidenceWeighted,
    Hidden,
    HiddenStates,
    PermutedTargets,
    SoftTargets,
    StoredTeacher,
    classes_of,
    permuted_logits,
)
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, LabelError, MethodMisfit, SessionError
from datadreamer_like.models import EnsembleModel
from datadreamer_like.recipes import BornAgain
from datadreamer_like.stages import Compare, FreshWeights
from datadreamer_like.trainers import TrainHFClassifier, TrainLinearClassifier

from .conftest import QUICK, columns, rows

SHORT = {**QUICK, "epochs": 1}
TEXTS = ["the tea was very good", "awful film", "a poor day and bad tea"]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return load_file(f"{model.path}/model.safetensors")


def test_each_generation_learns_from_the_one_before_and_starts_afresh(session, trainer, tiny_encoder):
    taught: list[Any] = []

    def objective(teacher: Any) -> SoftTargets:
        taught.append(teacher)
        return SoftTargets(teacher, temperature=1.0, alpha=1.0)

    given = columns()
    born = BornAgain("Born", trainer, **given, generations=2, objective=objective, **{**QUICK, "epochs": 2})
    assert taught == born.generations[:2]
    # What a generation minimised is its divergence from the model that the one before saved, its best checkpoint.
    logits = [each.trained.logits(list(given["validation_input"])) for each in born.generations]
    shares = [torch.from_numpy(each).double().log_softmax(-1) for each in logits]
    for student, before, after in zip(born.students, shares, shares[1:], strict=False):
        assert student.metrics["loss"] == pytest.approx(
            (before.exp() * (before - after)).sum(-1).mean().item(), abs=1e-5
        )
    assert [student.name for student in born.students] == ["Born, generation 1", "Born, generation 2"]
    # A generation's parents are its columns and its teacher, never another start.
    assert born.students[1].parents[-1] is born.students[0]
    assert all(str(each.model_name) == str(tiny_encoder) for each in born.generations)
    # Their heads were drawn by seeds of their own.
    heads = [weights(each)["classifier.weight"] for each in born.generations]
    assert not torch.allclose(heads[0], heads[1])
    assert not torch.allclose(heads[1], heads[2])
    assert "generation 2" in str(born)


def test_random_weights_leave_nothing_of_the_pretrained_model(session, trainer):
    born = BornAgain("Born", trainer, **columns(), random_weights=True, generations=2, **SHORT)
    starts = [student.start for student in born.students]
    pretrained = weights(born.teacher)
    drawn = [weights(start) for start in starts]
    assert [start.node.name for start in starts] == ["Born, generation 1, start", "Born, generation 2, start"]
    for name, tensor in drawn[0].items():
        if tensor.dim() > 1:
            assert not torch.allclose(tensor, pretrained[name])
            assert not torch.allclose(tensor, drawn[1][name])
            assert abs(float(tensor.std()) - 0.15) < 0.05  # the encoder's initializer_range
    again = FreshWeights("Again", born.teacher, seed=43)
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in drawn[0].items())
    assert again.trained.labels == born.teacher.trained.labels


def test_the_ensemble_is_the_mean_of_the_students_probabilities(session, trainer):
    given = columns()
    born = BornAgain("Born", trainer, **given, generations=2, **SHORT)
    each = [student.predict(TEXTS).probabilities for student in born.students]
    found = born.ensemble.predict(TEXTS)
    assert np.allclose(found.probabilities, (each[0] + each[1]) / 2, atol=1e-6)
    assert found.classes == ["negative", "positive"]
    assert classes_of(born.ensemble) == {"negative": 0, "positive": 1}
    weighted = EnsembleModel(born.students, [3.0, 1.0])
    assert np.allclose(weighted.predict(TEXTS).probabilities, 0.75 * each[0] + 0.25 * each[1], atol=1e-6)
    options = {"repeats": 1, "latency_texts": 1, "throughput_texts": 2, "resamples": 10}
    models = [born.teacher, *born.students, born.ensemble]
    compared = Compare("All", models, given["validation_input"], given["validation_output"], device="cpu", **options)
    shown = compared.rows[-1]
    assert compared.names[-1] == "Born, ensemble"
    assert shown["bytes_on_disk"] == sum(student.trained.bytes_on_disk for student in born.students)
    truth = list(given["validation_output"])
    said = born.ensemble.predict(list(given["validation_input"])).labels
    assert shown["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(said, truth, strict=True)]))
    assert {born.students[0], born.students[1]} <= {*compared.parents}
    one = trainer("Distilled").train(**given, objective=SoftTargets(born.ensemble, alpha=1.0), **SHORT)
    assert {*born.students} <= {*one.parents}


def test_an_ensemble_refuses_what_it_cannot_do(session, trainer):
    given = columns()
    first = trainer("First").train(**given, **SHORT)
    with pytest.raises(DefinitionError, match="at least one member"):
        EnsembleModel([])
    with pytest.raises(DefinitionError, match="weights"):
        EnsembleModel([first], [0.0])
    both = EnsembleModel([first, first])
    for call in (lambda: both.export(to="x"), lambda: both.publish_to_hf_hub("a/b"), lambda: both.tokenizer):
        with pytest.raises(MethodMisfit, match="its members|Choose one"):
            call()
    other = rows("Other", 16, 3)
    swapped = {"train_output": other["text"], "validation_output": other["text"]}
    inputs = {"train_input": other["text"], "validation_input": other["text"]}
    second = TrainLinearClassifier("Second").train(**inputs, **swapped, C=1.0)
    with pytest.raises(LabelError, match="different classes"):
        EnsembleModel([first, second]).predict(TEXTS)
    with pytest.raises(MethodMisfit, match="cannot be used where tokens|weights that transformers can draw"):
        FreshWeights("Nothing", second)


def test_the_controls_are_objectives_of_a_generation(session, trainer):
    given = columns()
    teacher = trainer("Teacher").train(**given, **SHORT)
    one = {**given, "teacher": teacher, "generations": 1, **SHORT}
    weighted = BornAgain("Weighted", trainer, objective=ConfidenceWeighted, **one)
    assert weighted.teacher is teacher
    assert "ConfidenceWeighted" in weighted.students[0].card.facts["Objective"]
    student = BornAgain("Permuted", trainer, objective=PermutedTargets, **one).students[0]
    texts = list(given["validation_input"])
    taught = permuted_logits(torch.from_numpy(teacher.trained.logits(texts)).double(), torch.arange(len(texts)))
    log_p = torch.from_numpy(student.trained.logits(texts)).double().log_softmax(-1)
    expected = (taught.softmax(-1) * (taught.log_softmax(-1) - log_p)).sum(-1).mean()
    assert student.metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_wrong_arguments_are_refused_before_any_training(session, trainer):
    given = columns()
    for more, error, message in (
        ({"generations": 0}, DefinitionError, "generations is 0"),
        ({"objective": SoftTargets(EnsembleModel(["x"]))}, ArgumentTypeError, "function of the teacher"),
        ({"seed": -1}, DefinitionError, "seed is -1"),
        ({"generation": 2}, DefinitionError, 'Did you mean "generations"'),
        ({"learning_rte": 1e-3}, DefinitionError, 'Did you mean "learning_rate"'),
        ({"trainer": "roberta"}, ArgumentTypeError, "must be a function that makes a new trainer"),
        ({"trainer": trainer("Made")}, ArgumentTypeError, "must be a function that makes a new trainer"),
        ({"trainer": lambda name: None}, ArgumentTypeError, "which is not a trainer"),
    ):
        with pytest.raises(error, match=message):
            BornAgain("Born", **{"trainer": trainer, **given, **more}, **QUICK)
    assert not list(session.folder.glob("born*"))
    teacher = trainer("Teacher").train(**given, **SHORT)
    with pytest.raises(DefinitionError, match="must take model_name too"):
        BornAgain("Born", lambda name: trainer(name), **given, teacher=teacher, random_weights=True)
    with pytest.raises(ArgumentTypeError, match="whose teacher is the model"):
        BornAgain("Born", trainer, **given, teacher=teacher, objective=lambda _: None)
    with pytest.raises(DefinitionError, match="is trained"):
        BornAgain("Born", lambda name: teacher, **given, teacher=teacher)


def test_there_must_be_a_session(trainer):
    with pytest.raises(SessionError, match="Put it inside"):
        BornAgain("Born", TrainHFClassifier, None, None, None, None)


def test_a_generation_may_be_taught_by_the_stored_states_of_the_one_before(session, trainer):
    def objective(teacher: Any) -> HiddenStates:
        return HiddenStates(StoredTeacher(teacher, Hidden([1])), layers={1: 1})

    born = BornAgain("Born", trainer, **columns(), generations=1, objective=objective, **SHORT)
    assert "StoredTeacher" in born.students[0].card.facts["Objective"]
