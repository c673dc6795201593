"""A loss as a sum of means: however a batch is divided, its parts add up to the loss of the whole, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from datadreamer_like.distillation import (
    Combined,
    ConfidenceWeighted,
    DistilBERT,
    HiddenStates,
    Outputs,
    SoftTargets,
    Supervised,
    TeacherModel,
    WordLevel,
)

TEACHER = TeacherModel(nn.Linear(1, 1), str)
ROWS, TOKENS, CLASSES = 9, 6, 5


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_classes() -> tuple[Any, Any, Any]:
    """Rows of which the first four, one in the middle and the last have no label."""
    labels = torch.tensor([-100, -100, -100, -100, 1, 4, -100, 0, -100])
    batch = {"labels": labels, "mask": torch.ones(ROWS, dtype=torch.bool), "rows": torch.arange(ROWS)}
    states = [(numbers(ROWS, TOKENS, 3, seed=seed),) * 2 for seed in (1, 2)]
    mask = torch.arange(TOKENS) < torch.tensor([6, 5, 1, 2, 4, 3, 6, 1, 2])[:, None]
    ours = Outputs(logits=3 * numbers(ROWS, CLASSES, seed=3), hidden_states=states[0], mask=mask)
    return ours, Outputs(logits=3 * numbers(ROWS, CLASSES, seed=4), hidden_states=states[1]), batch


def of_tokens() -> tuple[Any, Any, Any]:
    """The same rows with a label for some of their tokens."""
    ours, theirs, batch = of_classes()
    assert ours.mask is not None
    hidden = (numbers(ROWS, TOKENS, seed=5) > 0.5) & ours.mask
    batch = {**batch, "mask": ours.mask, "labels": torch.where(hidden, 2, -100)}
    logits = [2 * numbers(ROWS, TOKENS, CLASSES, seed=seed) for seed in (6, 7)]
    ours = Outputs(logits=logits[0], hidden_states=ours.hidden_states, mask=ours.mask)
    return ours, Outputs(logits=logits[1], hidden_states=theirs.hidden_states), batch


def some(outputs: Outputs, rows: slice) -> Outputs:
    mask, states = outputs.mask, outputs.hidden_states
    assert outputs.logits is not None
    assert states is not None
    return Outputs(
        logits=outputs.logits[rows],
        hidden_states=tuple(state[rows] for state in states),
        mask=None if mask is None else mask[rows],
    )


SOFT = SoftTargets(TEACHER, temperature=2.0, alpha=0.6)
CASES = [
    (Supervised(), of_classes),
    (SOFT, of_classes),
    (SoftTargets(TEACHER, alpha=1.0), of_classes),
    (ConfidenceWeighted(TEACHER), of_classes),
    (HiddenStates(TEACHER), of_classes),
    (Combined([ConfidenceWeighted(TEACHER), SOFT, HiddenStates(TEACHER)], [0.5, 2.0, 0.1]), of_classes),
    (Supervised(), of_tokens),
    (SOFT, of_tokens),
    (WordLevel(TEACHER, alpha=0.3), of_tokens),
    (DistilBERT(TEACHER), of_tokens),
]


@pytest.mark.parametrize(("objective", "make"), CASES, ids=lambda each: getattr(each, "__name__", type(each).__name__))
@pytest.mark.parametrize("parts", [[9], [4, 5], [1, 3, 5], [1] * 9])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(objective, make, parts):
    student, teacher, batch = make()
    leaves = [student.logits.requires_grad_(), student.hidden_states[0].requires_grad_()]
    whole = objective.loss(student, teacher, batch)
    expected = torch.autograd.grad(whole, leaves, allow_unused=True)
    found, start = [], 0
    for size in parts:
        rows = slice(start, start + size)
        part = {name: value[rows] for name, value in batch.items()}
        found.append(objective.means(some(student, rows), some(teacher, rows), part))
        start += size
    assert len({len(means) for means in found}) == 1
    total = torch.zeros((), dtype=torch.float64)
    for means in zip(*found, strict=True):
        weights = torch.stack([mean.weight.double() for mean in means])
        total = total + (torch.stack([mean.value for mean in means]) * weights).sum() / weights.sum()
    # Distances of hidden states are computed in single precision.
    torch.testing.assert_close(total, whole.double(), rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    for mine, theirs in zip(gradients, expected, strict=True):
        if theirs is not None and mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
        assert (mine is None) == (theirs is None)


def test_labels_of_all_positions_need_one_mean():
    student, teacher, batch = of_classes()
    batch = {**batch, "labels": batch["labels"].clamp(min=0)}
    (mean,) = SOFT.means(student, teacher, batch, all_labelled=True)
    assert mean.weight == ROWS
    torch.testing.assert_close(mean.value, SOFT.loss(student, teacher, batch))
