"""Quantizing a pruned model: the zeros stay where the codes have one, and who loses them is told."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_models import batches, build

from datadreamer_like.compression.hessian import inverse_factor
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.kernels import group_dequantize
from datadreamer_like.pruning import Wanda
from datadreamer_like.quantization import (
    GOBO,
    GPTQ,
    NF4,
    QAT,
    AbsMax,
    Binary,
    BinaryNetwork,
    Cast,
    DynamicInt8,
    LayerByLayer,
    LLMInt8,
    Mixed,
    ZeroPoint,
)


@pytest.fixture(scope="module")
def pruned():
    model = build("gpt2")  # Conv1D: its weights are [in, out]
    given = batches(model)
    return Wanda(pattern=(2, 4)).apply(model, given), given


@pytest.mark.parametrize(
    "method",
    [
        AbsMax(8),
        AbsMax(4, 16),
        ZeroPoint(),
        NF4(),
        LLMInt8(),
        DynamicInt8(),
        Cast(),
        GPTQ(4, 16),
        GPTQ(3, 20, act_order=False),
        LayerByLayer(4, 16, steps=60, learning_rate=1e-2),
        QAT(8, epochs=2, learning_rate=1e-2),
        QAT(4, 16, epochs=2, learning_rate=1e-2),
        Mixed({"*.0.*": GPTQ(4, 16), "*": AbsMax(8)}),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_two_to_four_pattern_stays(pruned, method, caplog):
    model, given = pruned
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        small = method.apply(model, given)
    assert "pruning had set to zero" not in caplog.text
    for name, layer in block_linears(model).items():
        module = small.get_submodule(name)
        now = module.dequantized() if hasattr(module, "dequantized") else weight_of(module)
        assert bool((now[weight_of(layer) == 0] == 0).all()), name


@pytest.mark.parametrize("method", [GOBO(3), Binary(), BinaryNetwork(epochs=1)])
def test_codes_without_a_zero_are_warned_of_with_the_count(pruned, method, caplog):
    model, given = pruned
    zeros = sum(int((layer.weight == 0).sum()) for layer in block_linears(model).values())
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        method.apply(model, given)
    assert caplog.text.count(f"of the {zeros:,} weights that pruning had set to zero are other numbers") == 1


def test_gptq_makes_up_for_the_zeros_as_for_rounding():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    weight = torch.randn(4, 8, generator=generator)
    zeros = torch.rand(4, 8, generator=generator) < 0.5
    weight[zeros] = 0.0
    hessian = 2 / 64 * x.T @ x
    codes, scale = GPTQ(8, 8).quantized(weight, hessian, zeros)
    found = group_dequantize(codes, scale, 8)
    # The same by hand, in float64: each column is fixed, and the later ones take the error.
    order = hessian.diagonal().argsort(descending=True)
    factor = inverse_factor(hessian[order][:, order]).double()
    left, expected = weight.double()[:, order], torch.zeros(4, 8, dtype=torch.float64)
    for column in range(8):
        fixed = (left[:, column] / scale[:, 0].double()).round().clamp(-128, 127) * scale[:, 0].double()
        fixed[zeros[:, order[column]]] = 0.0
        expected[:, order[column]] = fixed
        error = (left[:, column] - fixed) / factor[column, column]
        left = left - error[:, None] * factor[column]
    assert torch.allclose(found.double(), expected, atol=1e-6)
