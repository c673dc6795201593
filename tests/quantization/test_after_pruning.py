"""Quantizing a pruned model: the zeros stay where the codes have one, and who loses them is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_models import batches, build
from transformers import MambaConfig, MambaForCausalLM

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.compression.hessian import inverse_factor
from datadreamer_like.formats.gobo import GOBOLinear
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.formats.quantizer import has_codes
from datadreamer_like.kernels import group_dequantize
from datadreamer_like.pruning import Magnitude, Wanda
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


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("sparsity", [0.9, 0.97])
def test_outliers_of_a_sparse_layer_are_loaded_as_saved(bits: int, sparsity: float, tmp_path: Path) -> None:
    # Codes of 0 can be so many that they are stored sparse: their values had the name of the outliers'.
    model = build("t5")
    small = GOBO(bits).apply(Magnitude(sparsity, scope="layer").apply(model))
    for module in small.modules():
        if isinstance(module, GOBOLinear):  # all to the first centroid but for a few
            codes = module.codes.clone()
            codes[:, 1:] = 0
            module.set_codes(codes)
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    outliers = 0
    for name, module in small.named_modules():
        if isinstance(module, GOBOLinear):
            outliers += len(module.get_buffer("weight_values"))
            assert torch.equal(loaded.get_submodule(name).dequantized(), module.dequantized())
    assert outliers


@pytest.mark.parametrize(
    "method", [AbsMax(8), AbsMax(3, "row"), DynamicInt8(), NF4(), GPTQ(4, 16), LayerByLayer(steps=1, group_size=16)]
)
def test_layers_whose_weights_the_module_around_them_reads_stay_as_they_are(method: CompressionMethod) -> None:
    config = MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config).eval()
    given = [{"input_ids": torch.randint(5, 99, (4, 9))}]
    small = method.apply(model, given)
    kept = "backbone.layers.0.mixer.dt_proj"
    assert torch.equal(small.get_submodule(kept).weight, model.get_submodule(kept).weight)
    assert has_codes(small)
    with torch.no_grad():
        assert small(**given[0]).logits.isfinite().all()
