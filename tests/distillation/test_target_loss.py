"""The loss with soft or weighted targets against torch's own and the plain formula, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from datadreamer_like.distillation import (
    HiddenStates,
    Outputs,
    SoftTargets,
    Supervised,
    TeacherModel,
    divergence,
    hard_target_loss,
    soft_target_loss,
    supervised_loss,
    target_loss,
)
from datadreamer_like.errors import DefinitionError
from datadreamer_like.evaluation.soft_labels import loss_targets
from datadreamer_like.kernels.policy_gradient import clipped_policy_loss, clipped_value_loss, whitened


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 4), (1, 2)])
def test_it_is_the_cross_entropy_with_probabilities_and_so_are_its_gradients(shape):
    logits = drawn(*shape).requires_grad_()
    targets = drawn(*shape, seed=1).softmax(-1)
    loss = target_loss(logits, targets)
    expected = -(targets * (logits - logits.logsumexp(-1, keepdim=True))).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    given, wanted = (torch.autograd.grad(each, logits)[0] for each in (loss, expected))
    assert torch.allclose(given, wanted, atol=1e-12)


def test_one_hot_targets_are_labels_for_one_class_and_for_many():
    logits, labels = drawn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    one_hot = F.one_hot(labels, 4).double()
    assert target_loss(logits, one_hot).item() == pytest.approx(supervised_loss(logits, labels).item(), abs=1e-12)
    yes = torch.tensor([[1.0, 0, 1, 0]] * 6, dtype=torch.float64)
    both = torch.stack([yes, 1 - yes], dim=-1)
    assert target_loss(logits, both).item() == pytest.approx(supervised_loss(logits, yes).item(), abs=1e-12)
    soft = drawn(6, 4, seed=2).sigmoid()
    expected = F.binary_cross_entropy_with_logits(logits, soft)
    assert target_loss(logits, torch.stack([soft, 1 - soft], -1)).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_a_mask_of_zeros_and_ones_masks_and_does_not_index(dtype):
    logits, mask = drawn(4, 5, 3), torch.tensor([[1, 1, 0, 0, 1]] * 4).bool()
    labels, other = torch.randint(3, (4, 5), generator=torch.Generator().manual_seed(0)), drawn(4, 5, 3, seed=3)
    states, batch = Outputs(hidden_states=(logits, other), mask=mask), {"labels": labels, "mask": mask}
    teacher = Outputs(logits=other, hidden_states=(other, logits))
    tiny = TeacherModel(torch.nn.Linear(3, 3), str)
    losses = {
        "targets": lambda m: target_loss(logits, other.softmax(-1), m),
        "labels": lambda m: supervised_loss(logits, labels, m),
        "hard": lambda m: hard_target_loss(logits, other, labels, m),
        "soft": lambda m: soft_target_loss(logits, other, labels, mask=m),
        "divergence": lambda m: divergence(logits, other, mask=m),
        "objective": lambda m: Supervised().loss(
            Outputs(logits=logits), None, {**batch, "mask": m, "targets": other.softmax(-1)}
        ),
        "hidden": lambda m: HiddenStates(tiny, layers={1: 1}).loss(replace(states, mask=m), teacher, batch),
        "policy": lambda m: clipped_policy_loss(logits[..., 0], other[..., 0], logits[..., 1], m),
        "value": lambda m: clipped_value_loss(logits[..., 0], other[..., 0], logits[..., 1], m),
        "whitened": lambda m: whitened(logits[..., 0], m).square().sum(),
    }
    for name, loss in losses.items():
        assert loss(mask.to(dtype)).item() == pytest.approx(loss(mask).item(), abs=1e-12), name


def test_masked_positions_leave_no_trace():
    logits = drawn(4, 3).requires_grad_()
    targets, mask = drawn(4, 3, seed=1).softmax(-1), torch.tensor([True, False, True, False])
    with torch.no_grad():
        logits[1] = float("nan")
    loss = target_loss(logits, targets, mask)
    assert loss.item() == pytest.approx(target_loss(logits[mask], targets[mask]).item())
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[~mask] == 0).all()
    assert target_loss(logits, targets, torch.zeros(4, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_and_smoothing_are_torchs_but_for_the_mean(smoothing):
    logits, labels, weights = drawn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0]), torch.tensor([0.5, 1.0, 3.0, 0.0])
    targets = loss_targets(F.one_hot(labels, 4).float().numpy(), weights.numpy(), smoothing, multi=False)
    expected = F.cross_entropy(logits, labels, weights.double(), reduction="sum", label_smoothing=smoothing) / 6
    assert target_loss(logits, torch.from_numpy(targets)).item() == pytest.approx(expected.item(), rel=1e-6)
    yes = torch.tensor([[1.0, 0, 1, 0]] * 6)
    targets = loss_targets(yes.numpy(), weights.numpy(), smoothing, multi=True)
    smooth = yes.double() * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights.double())
    assert target_loss(logits, torch.from_numpy(targets)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_objectives_take_targets_instead_of_labels_where_a_row_has_one():
    logits, teacher = drawn(3, 2), drawn(3, 2, seed=1)
    targets = torch.tensor([[0.3, 0.7], [0.0, 0.0], [0.9, 0.1]], dtype=torch.float64)
    batch = {"labels": torch.tensor([1, -100, 0]), "targets": targets, "mask": torch.ones(3, dtype=torch.bool)}
    hard = -(targets * logits.log_softmax(-1)).sum(-1)[[0, 2]].mean()
    assert Supervised().loss(Outputs(logits), None, batch).item() == pytest.approx(hard.item(), abs=1e-12)
    soft = F.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    objective = SoftTargets(TeacherModel(torch.nn.Linear(1, 1), str), temperature=1.0, alpha=0.25)
    found = objective.loss(Outputs(logits), Outputs(teacher), batch)
    assert found.item() == pytest.approx((0.25 * soft + 0.75 * hard).item(), abs=1e-12)


def test_targets_of_another_shape_are_refused():
    for shape in ((3,), (2, 5), (2, 4, 3)):
        with pytest.raises(DefinitionError, match="do not fit logits of shape"):
            target_loss(drawn(2, 4), torch.zeros(shape))
