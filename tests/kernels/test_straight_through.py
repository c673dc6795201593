"""Straight-through gradients against their definitions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from datadreamer_like.kernels import binary_sign, straight_through


def test_the_gradient_of_sign_is_that_of_the_hard_tanh() -> None:
    x = torch.tensor([-1.5, -1.0, -0.3, -0.0, 0.0, 0.7, 1.0, 1.001], dtype=torch.float64, requires_grad=True)
    weights = torch.arange(1.0, 9.0, dtype=torch.float64)
    found = binary_sign(x)
    assert found.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert found.dtype == x.dtype
    (found * weights).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]
    inside = x.detach()[x.detach().abs() != 1].requires_grad_()
    (F.hardtanh(inside) * weights[x.detach().abs() != 1]).sum().backward()
    assert torch.equal(x.grad[x.detach().abs() != 1], inside.grad)  # type: ignore[arg-type]


def test_a_value_comes_through_exactly_and_its_gradient_goes_to_what_it_was_made_of() -> None:
    x = torch.tensor([0.1, 1e8, -3.0], requires_grad=True)
    y = straight_through(x, x.detach().round())
    assert torch.equal(y, x.detach().round())
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3]
