"""The controls of born-again networks, against their formulas written out row by row in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import grad

from datadreamer_like.distillation import (
    ConfidenceWeighted,
    Outputs,
    PermutedTargets,
    Probabilities,
    confidence_weighted_loss,
    permuted_logits,
    soft_target_loss,
    supervised_loss,
)
from datadreamer_like.errors import DefinitionError, MethodMisfit

TEACHER = Probabilities(["a"], [{"x": 0.5, "y": 0.5}])


def logits(rows: int = 7, classes: int = 5, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row: np.ndarray) -> np.ndarray:
    shares = np.exp(row - row.max())
    return shares / shares.sum()


def test_confidence_weighting_is_its_formula_and_its_gradient_that_of_equation_10():
    student, teacher = logits().requires_grad_(), logits(seed=1)
    labels = torch.tensor([0, 4, 2, -100, 1, 1, 3])
    kept = [row for row, label in enumerate(labels.tolist()) if label >= 0]
    weights = {row: softmax(teacher[row].numpy()).max() for row in kept}
    total = sum(weights.values())
    found = confidence_weighted_loss(student, teacher, labels)
    expected = sum(-w * np.log(softmax(student[row].detach().numpy())[labels[row]]) for row, w in weights.items())
    assert found.item() == pytest.approx(expected / total, abs=1e-12)
    # Σ_s w_s / Σ_u w_u (q_s − y_s)
    expected_gradient = np.zeros(student.shape)
    for row, weight in weights.items():
        expected_gradient[row] = weight / total * (softmax(student[row].detach().numpy()) - np.eye(5)[labels[row]])
    assert np.allclose(grad(found, student)[0].numpy(), expected_gradient, atol=1e-12)


def test_a_teacher_that_is_as_certain_of_every_row_leaves_plain_cross_entropy():
    student, labels = logits(), torch.tensor([0, 4, 2, 0, 1, 1, 3])
    teacher = torch.stack([torch.roll(logits(1)[0], shift) for shift in range(7)])
    found = confidence_weighted_loss(student, teacher, labels)
    assert found.item() == pytest.approx(supervised_loss(student, labels).item(), abs=1e-12)


def test_permuted_logits_keep_the_best_class_and_the_values_of_each_row_and_move_the_others():
    teacher, rows = logits(400, 6), torch.arange(400)
    found = permuted_logits(teacher, rows)
    assert torch.equal(found.sort(-1).values, teacher.sort(-1).values)
    assert torch.equal(found.argmax(-1), teacher.argmax(-1))
    # Of five values one in five stays where it was: 400 of 2,000, with a standard error of 18.
    others = torch.nn.functional.one_hot(teacher.argmax(-1), 6) == 0
    assert 300 < int((found == teacher)[others].sum()) < 500
    assert not torch.equal(permuted_logits(teacher, rows, seed=1), found)


def test_every_value_lands_on_every_other_class_about_equally_often():
    rows, values = 4000, torch.tensor([0.0, 9.0, 1.0, 2.0, 3.0])  # the second is the best
    found = permuted_logits(values.expand(rows, 5), torch.arange(rows))
    for value in (0.0, 1.0, 2.0, 3.0):
        counts = (found == value).sum(0).double()
        assert counts[1] == 0
        # A share of 1/4 of 4,000 rows has a standard error of 27.4.
        assert (counts[[0, 2, 3, 4]] - rows / 4).abs().max() < 4 * 27.4


def test_a_rows_permutation_is_its_own_wherever_it_is_in_a_batch():
    teacher = logits(50, 8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    whole, part = permuted_logits(teacher, torch.arange(50)), permuted_logits(teacher[order], order)
    assert torch.equal(whole[order], part)
    same = permuted_logits(teacher[:1].expand(50, 8), torch.arange(50))
    assert len({tuple(row.tolist()) for row in same}) > 40


def test_two_classes_have_nothing_to_permute():
    teacher = logits(9, 2)
    assert torch.equal(permuted_logits(teacher, torch.arange(9)), teacher)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_permuted_targets_are_soft_targets_of_the_permuted_teacher(temperature):
    student, teacher, rows = logits().requires_grad_(), logits(seed=1), torch.tensor([4, 9, 2, 0, 11, 7, 5])
    mask = torch.tensor([True] * 6 + [False])
    batch = {"labels": torch.full((7,), -100), "mask": mask, "rows": rows}
    found = PermutedTargets(TEACHER, temperature, seed=2).loss(Outputs(student), Outputs(teacher), batch)
    moved = permuted_logits(teacher, rows, seed=2).numpy()
    expected, expected_gradient = 0.0, np.zeros(student.shape)
    for row in range(6):
        q, p = softmax(moved[row] / temperature), softmax(student[row].detach().numpy() / temperature)
        expected += temperature**2 * float((q * np.log(q / p)).sum()) / 6
        expected_gradient[row] = temperature * (p - q) / 6  # q − φ(p) of equation 11, at T = 1
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert np.allclose(grad(found, student)[0].numpy(), expected_gradient, atol=1e-12)
    plain = soft_target_loss(student, teacher, None, temperature, alpha=1.0, mask=mask)
    assert abs(found.item() - plain.item()) > 1e-3


def test_the_objectives_say_what_they_need_and_refuse_what_they_cannot_weigh():
    weighted = ConfidenceWeighted(TEACHER)
    assert weighted.needs_labels
    assert not PermutedTargets(TEACHER).needs_labels
    outputs = Outputs(logits(2, 2)), Outputs(logits(2, 2, seed=1))
    labels = torch.tensor([0, 1])
    assert float(weighted.loss(*outputs, {"labels": labels})) == pytest.approx(
        float(confidence_weighted_loss(outputs[0].logits, outputs[1].logits, labels))
    )
    for batch in ({"labels": labels, "targets": torch.ones(2, 2)}, {"labels": torch.ones(2, 2)}):
        with pytest.raises(MethodMisfit, match="one label each"):
            weighted.loss(*outputs, batch)
    with pytest.raises(MethodMisfit, match="multi-label"):
        PermutedTargets(TEACHER).loss(*outputs, {"labels": torch.ones(2, 2)})
    with pytest.raises(DefinitionError, match="temperature"):
        PermutedTargets(TEACHER, temperature=0.0)
