"""The Hessian of a layer's inputs against float64 sums over single tokens, and the factor of its inverse."""

import pytest
import torch
from tiny_models import batches, build
from torch import nn

from datadreamer_like.compression.calibration import walk_blocks
from datadreamer_like.compression.hessian import input_hessians, inverse_factor
from datadreamer_like.errors import DataError
from datadreamer_like.formats.modules import block_linears, weight_of


def correlated(tokens: int, inputs: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(tokens, inputs) @ torch.randn(inputs, inputs)


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    return (2 / len(x) * x.double().T @ x.double()).float()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_it_is_the_second_derivative_of_the_error_over_the_tokens_that_are_not_padding(family: str) -> None:
    model = build(family)
    calibration = batches(model)
    seen: dict[str, list[torch.Tensor]] = {}
    layers = block_linears(model)
    handles = [
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0].detach()))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in calibration:
            model.eval()(**batch)
    for handle in handles:
        handle.remove()
    kept = [batch["attention_mask"].bool() for batch in calibration]
    for block in walk_blocks(model, calibration, "test"):
        inside = {name: layer for name, layer in layers.items() if name.startswith(f"{block.name}.")}
        assert inside
        for name, found in input_hessians(block, inside).items():
            x = torch.cat([x[mask] for x, mask in zip(seen[name], kept, strict=True)]).double()
            w = torch.zeros(x.shape[1], dtype=torch.float64)
            expected = torch.autograd.functional.hessian(lambda w, x=x: (x @ w).square().sum() / len(x), w)
            assert found.shape == (weight_of(layers[name]).shape[1],) * 2
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_that_gets_no_token_has_zeros() -> None:
    model = build("llama")
    block = next(walk_blocks(model, batches(model), "test"))
    found = input_hessians(block, {"never": nn.Linear(5, 3)})
    assert torch.equal(found["never"], torch.zeros(5, 5))


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_the_factor_is_upper_and_gives_the_inverse_of_the_damped_hessian(damping: float) -> None:
    hessian = hessian_of(correlated(400, 12))
    before = hessian.clone()
    factor = inverse_factor(hessian, damping)
    exact = hessian.double()
    exact += damping * exact.diagonal().mean() * torch.eye(12)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.double().T @ factor.double(), exact.inverse(), rtol=1e-3, atol=1e-4)
    assert torch.equal(hessian, before)


def test_row_j_is_the_first_row_of_the_inverse_once_the_columns_before_are_fixed() -> None:
    hessian = hessian_of(correlated(400, 8))
    factor = inverse_factor(hessian, damping=0).double()
    for j in range(8):
        rest = hessian.double()[j:, j:].inverse()
        torch.testing.assert_close(factor[j, j] * factor[j, j:], rest[0], rtol=1e-3, atol=1e-4)


def test_inputs_that_are_always_zero_do_not_touch_the_others() -> None:
    x = correlated(400, 6)
    x[:, [1, 4]] = 0
    factor = inverse_factor(hessian_of(x), damping=0)
    alive = [0, 2, 3, 5]
    alone = inverse_factor(hessian_of(x[:, alive]), damping=0)
    torch.testing.assert_close(factor[alive][:, alive], alone)
    assert factor[1].tolist() == [0, 1, 0, 0, 0, 0]
    assert factor[4].tolist() == [0, 0, 0, 0, 1, 0]


def test_fewer_tokens_than_inputs_need_damping() -> None:
    hessian = hessian_of(correlated(4, 16))
    assert inverse_factor(hessian).isfinite().all()
    with pytest.raises(DataError, match=r"not positive definite with damping=0\. Raise damping"):
        inverse_factor(hessian, damping=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    hessian = hessian_of(correlated(40, 4))
    hessian[1, 2] = value
    with pytest.raises(DataError, match="NaN or infinities"):
        inverse_factor(hessian)
