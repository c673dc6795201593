"""The objective of coarse-to-fine pruning against its formula in float64, and its layer map by all possible maps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build
from torch import nn

from datadreamer_like.distillation import ClosestLayers, Outputs, TeacherModel
from datadreamer_like.distillation.closest_layers import layer_map
from datadreamer_like.errors import DefinitionError, MethodMisfit


@pytest.fixture(scope="module")
def teacher() -> TeacherModel:
    return TeacherModel(build("bert"), str)


def outputs(depth: int, seed: int, size: int = 5) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(3, 4, size, generator=generator, dtype=torch.float64) for _ in range(depth + 1)]
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    return Outputs(logits=logits, hidden_states=tuple(states), mask=mask)


def written_out(student: Any, teacher: Any, objective: ClosestLayers, w: np.ndarray, left: list[int]) -> float:
    """`(1 - a) T² KL + a Σ_i MSE(W H_m(i), H'_i)`; in order, m is chosen from the last layer to the first."""
    t = objective.temperature
    q, p = (np.exp(each.logits.detach().numpy() / t) for each in (teacher, student))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    kl = float((q * np.log(q / p)).sum(-1).mean())
    mask = student.mask.numpy()
    total, below = 0.0, 10**6
    for i in sorted(objective.layers or (), reverse=True):
        target = teacher.hidden_states[i].numpy()[mask]
        errors = {m: ((student.hidden_states[m].detach().numpy()[mask] @ w.T - target) ** 2).mean() for m in left}
        allowed = [m for m in left if m < below or not objective.in_order] or [below]
        m = min(allowed, key=lambda layer: errors[layer])
        total, below = total + errors[m], m
    return (1 - objective.weight) * t**2 * kl + objective.weight * total


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_papers_formula(teacher: TeacherModel, in_order: bool, seed: int) -> None:
    student, theirs = outputs(5, seed), outputs(6, 10 + seed)
    assert student.hidden_states is not None
    states = list(student.hidden_states)
    states[3] = states[2].clone()  # layer 3 was removed
    student = Outputs(logits=student.logits, hidden_states=tuple(states), mask=student.mask)
    objective = ClosestLayers(teacher, temperature=3.0, weight=0.7, layers=(2, 4, 5, 6), in_order=in_order)
    projection = nn.Linear(5, 5, bias=False).double()
    found = objective.loss(student, theirs, {}, projection).detach()
    expected = written_out(student, theirs, objective, projection.weight.detach().numpy(), [1, 2, 4, 5])
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_the_chosen_layers_the_projection_and_nothing_else(teacher: TeacherModel) -> None:
    theirs = outputs(2, 1)
    assert theirs.hidden_states is not None
    noise = [each + 0.1 for each in theirs.hidden_states]
    states = [noise[0], torch.full_like(noise[1], 9.0), noise[1], noise[2]]
    student = Outputs(
        logits=outputs(2, 2).logits, hidden_states=tuple(each.requires_grad_() for each in states), mask=theirs.mask
    )
    projection = nn.Linear(5, 5, bias=False).double()
    nn.init.eye_(projection.weight)
    ClosestLayers(teacher).loss(student, theirs, {}, projection).backward()
    assert states[1].grad is None
    assert states[2].grad is not None
    assert states[3].grad is not None
    assert torch.equal(states[2].grad[1, 2:], torch.zeros(2, 5, dtype=torch.float64))  # padding
    assert projection.weight.grad is not None


def test_maps_are_those_of_least_error_and_in_order_those_that_the_last_layer_begins() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        errors = {i: dict(zip((1, 2, 4, 5, 6), random.random(5).tolist(), strict=True)) for i in (1, 2, 3)}
        free = min(
            itertools.product((1, 2, 4, 5, 6), repeat=3), key=lambda m: sum(errors[i + 1][m[i]] for i in range(3))
        )
        assert layer_map(errors, in_order=False) == dict(zip((1, 2, 3), free, strict=True))
        found = list(layer_map(errors, in_order=True).values())
        assert found == sorted(found)
        assert errors[3][found[2]] == min(errors[3].values())
    assert layer_map({1: {1: 0.5}, 2: {1: 0.1}}, in_order=True) == {1: 1, 2: 1}


def test_the_projection_starts_as_the_identity_or_between_the_sizes(teacher: TeacherModel) -> None:
    projection = ClosestLayers(teacher).modules(teacher.model, teacher.model)
    assert isinstance(projection, nn.Linear)
    assert torch.equal(projection.weight, torch.eye(32))
    wide = build("bert")
    wide.config.hidden_size = 40
    between = ClosestLayers(teacher).modules(teacher.model, wide)
    assert isinstance(between, nn.Linear)
    assert between.weight.shape == (40, 32)


def test_what_makes_no_sense_is_refused(teacher: TeacherModel) -> None:
    for options, says in (
        ({"temperature": 0.0}, "temperature"),
        ({"weight": 1.5}, "1.5"),
        ({"layers": ()}, "layers of the teacher"),
        ({"layers": (0, 3)}, "layers of the teacher"),
    ):
        with pytest.raises(DefinitionError, match=says):
            ClosestLayers(teacher, **options)  # type: ignore[arg-type]
    with pytest.raises(MethodMisfit, match="has 3 layers and the teacher 3"):
        ClosestLayers(teacher, layers=(4,)).modules(teacher.model, teacher.model)
