"""Hard concrete gates against their definition in NumPy and against what samples show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import (
    hard_concrete_keep_probability,
    hard_concrete_kept_value,
    hard_concrete_mask,
    hard_concrete_sample,
)

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def random(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_alpha = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return log_alpha, torch.rand(shape, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 33), (0,)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_samples_are_the_definition(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    log_alpha, uniform = (each.to(dtype) for each in random(*shape))
    a, u = log_alpha.double().numpy(), uniform.double().numpy()
    s = sigmoid((np.log(u) - np.log(1 - u) + a) / BETA)
    expected = np.minimum(1, np.maximum(0, s * (HIGH - LOW) + LOW))
    np.testing.assert_allclose(hard_concrete_sample(log_alpha, uniform).numpy(), expected, atol=tolerance)


def test_gradients_of_samples_are_those_of_the_plain_formula() -> None:
    log_alpha, uniform = random(200)
    log_alpha.requires_grad_()
    weights = torch.linspace(-1, 2, 200, dtype=torch.float64)
    (hard_concrete_sample(log_alpha, uniform) * weights).sum().backward()
    a, u = log_alpha.detach().numpy(), uniform.numpy()
    s = sigmoid((np.log(u) - np.log(1 - u) + a) / BETA)
    stretched = s * (HIGH - LOW) + LOW
    slope = np.where((stretched > 0) & (stretched < 1), (HIGH - LOW) * s * (1 - s) / BETA, 0.0)
    assert log_alpha.grad is not None
    np.testing.assert_allclose(log_alpha.grad.numpy(), weights.numpy() * slope, atol=1e-12)


def test_the_keep_probability_is_the_definition_and_what_samples_show() -> None:
    log_alpha = torch.linspace(-5, 5, 11, dtype=torch.float64)
    found = hard_concrete_keep_probability(log_alpha).numpy()
    logit = np.log((-LOW / (HIGH - LOW)) / (1 + LOW / (HIGH - LOW)))
    np.testing.assert_allclose(found, 1 - sigmoid(BETA * logit - log_alpha.numpy()), atol=1e-12)
    uniform = torch.rand(40_000, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shown = (hard_concrete_sample(log_alpha.expand_as(uniform), uniform) > 0).double().mean(0).numpy()
    np.testing.assert_allclose(found, shown, atol=4 * 0.5 / 200)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 2, 12, 65])
def test_a_mask_drops_as_many_gates_as_expected_and_the_smallest(size: int, seed: int) -> None:
    log_alpha, _ = random(size, seed=seed)
    mask = hard_concrete_mask(log_alpha)
    a = log_alpha.numpy()
    zeros = round(size - float(np.sum(1 - sigmoid(BETA * np.log(1 / 11) - a))))
    assert int((mask == 0).sum()) == zeros
    dropped = np.argsort(a, kind="stable")[:zeros]
    expected = sigmoid(0.8 * a / BETA)
    np.testing.assert_allclose(hard_concrete_kept_value(log_alpha).numpy(), expected, atol=1e-12)
    expected[dropped] = 0
    np.testing.assert_allclose(mask.numpy(), expected, atol=1e-12)


def test_among_equal_gates_the_first_are_dropped() -> None:
    assert (hard_concrete_mask(torch.full((4,), -1.6)) == 0).tolist() == [True, True, False, False]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"one random number for each gate, got \[3\] for \[2\]"):
        hard_concrete_sample(torch.zeros(2), torch.rand(3))
    with pytest.raises(DefinitionError, match="one group"):
        hard_concrete_mask(torch.zeros(2, 3))
