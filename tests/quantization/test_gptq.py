"""GPTQ against the paper's equations written out in float64, and what must hold for its result."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import batches, build, logits
from torch import nn

from datadreamer_like import formats
from datadreamer_like.compression.calibration import walk_blocks
from datadreamer_like.compression.hessian import input_hessians
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.quantization import GPTQ, AbsMax


def inputs(rows: int = 200, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator)
    return torch.randn(rows, size, generator=generator) @ mixing * torch.rand(size, generator=generator)


def hessian(x: torch.Tensor) -> torch.Tensor:
    return 2 / len(x) * x.T @ x


def written_out(w: torch.Tensor, h: torch.Tensor, method: GPTQ) -> tuple[np.ndarray, np.ndarray]:
    """Equations 2 and 3: after each weight the inverse Hessian of the others is that without its row and column."""
    weight, hess = w.double().numpy().copy(), h.double().numpy().copy()
    size, half, count = method.group_size, 2 ** (method.bits - 1), w.shape[1]

    def scale_of(part: np.ndarray) -> np.ndarray:
        return np.float16(np.abs(part).max(1).astype(np.float32) / np.float32(half - 0.5)).astype(np.float64)  # type: ignore[no-any-return]

    dead = np.diag(hess) == 0
    hess[dead, dead] = 1
    weight[:, dead] = 0
    hess += method.damping * np.diag(hess).mean() * np.eye(count)
    inverse = np.linalg.inv(hess)
    order = np.argsort(-np.diag(h.double().numpy()), kind="stable") if method.act_order else np.arange(count)
    scales = np.stack([scale_of(weight[:, start : start + size]) for start in range(0, count, size)], 1)
    codes = np.zeros(weight.shape)
    left = list(order)
    for j in order:
        if not method.act_order and j % size == 0:
            scales[:, j // size] = scale_of(weight[:, j : j + size])
        s = scales[:, j // size]
        codes[:, j] = np.clip(np.rint(weight[:, j] / s), -half, half - 1)
        error = (weight[:, j] - codes[:, j] * s) / inverse[j, j]
        weight[:, left] -= error[:, None] * inverse[j, left]
        left.remove(j)
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, scales


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("size", "group_size"), [(24, 8), (24, 7), (150, 64), (150, 200)])
def test_it_is_the_papers_algorithm(size: int, group_size: int, act_order: bool, bits: int) -> None:
    torch.manual_seed(1)
    x, w = inputs(size=size), torch.randn(16, size)
    x[:, 3] = 0
    method = GPTQ(bits, group_size, act_order)
    codes, scales = method.quantized(w, hessian(x))
    expected_codes, expected_scales = written_out(w, hessian(x), method)
    # A number within fp32's rounding of a half may go either way, and then the rest of its row does.
    same = (codes.numpy() == expected_codes).all(1)
    assert same.mean() >= 0.8
    np.testing.assert_allclose(scales.double().numpy()[same], expected_scales[same], rtol=2**-9)
    assert not codes[:, 3].any()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("act_order", [True, False])
def test_it_is_rounding_to_nearest_where_inputs_are_uncorrelated_and_better_where_they_are_not(
    act_order: bool, bits: int
) -> None:
    torch.manual_seed(1)
    x, w = inputs(), torch.randn(16, 24)
    method, nearest = GPTQ(bits, 8, act_order), UniformLinear(24, 16, False, bits, 8)
    nearest.quantize(w)
    codes, scale = method.quantized(w, torch.diag(torch.rand(24) + 0.1))
    assert torch.equal(codes, nearest.signed_codes())
    assert torch.equal(scale, nearest.weight_scale)
    ours = UniformLinear(24, 16, False, bits, 8)
    ours.set_quantized(*method.quantized(w, hessian(x)))
    errors = [float((x @ (made.dequantized() - w).T).square().sum()) for made in (ours, nearest)]
    assert errors[0] < 0.8 * errors[1]


def test_an_expert_that_no_token_reached_is_rounded_to_nearest() -> None:
    w, nearest = torch.randn(4, 8), UniformLinear(8, 4, False, 4, 8)
    nearest.quantize(w)
    codes, _ = GPTQ(group_size=8).quantized(w, torch.zeros(8, 8))
    assert torch.equal(codes, nearest.signed_codes())


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
def test_blocks_are_quantized_on_what_the_quantized_ones_before_them_put_out(family: str) -> None:
    model = build(family)
    given = batches(model)
    method = GPTQ(3, 16)
    small = method.apply(model, given)
    inside = block_linears(model)
    assert {name for name, module in small.named_modules() if isinstance(module, UniformLinear)} == set(inside)
    # Run the quantized model's own blocks: the Hessians of its last block are those that it was quantized with.
    seen: dict[str, torch.Tensor] = {}
    for block in walk_blocks(small, given, "test"):
        names = [name for name in inside if name.startswith(f"{block.name}.")]
        plain = {name: inside[name] for name in names}
        for name in names:  # the block before it was quantized
            block.module.set_submodule(name.removeprefix(f"{block.name}."), plain[name])
        seen |= input_hessians(block, plain)
        for name in names:
            made = method.empty(plain[name])
            made.set_quantized(*method.quantized(weight_of(plain[name]), seen[name]))
            block.module.set_submodule(name.removeprefix(f"{block.name}."), made)
    again = small.state_dict()
    expected = method.apply(model, given).state_dict()
    assert all(torch.equal(again[key], value) for key, value in expected.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", [3, 4])
def test_logits_are_nearer_than_those_of_rounding_to_nearest(family: str, bits: int) -> None:
    model = build(family)
    given = batches(model, count=4)
    expected = logits(model, given[0])
    small = [GPTQ(bits, 16).apply(model, given), AbsMax(bits, 16).apply(model)]
    errors = [float((logits(each, given[0]) - expected).norm()) for each in small]
    assert errors[0] < 0.9 * errors[1]


def test_it_is_stored_packed_and_loads_again(tmp_path: Path) -> None:
    model = build("llama")
    small = GPTQ(3, 16).apply(model, batches(model))
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, layer in block_linears(model).items():
        made, loaded = small.get_submodule(name), again.get_submodule(name)
        out, size = weight_of(layer).shape
        assert made.weight.nbytes == out * math.ceil(3 * size / 8)
        assert made.weight_scale.nbytes == 2 * out * math.ceil(size / 16)
        assert torch.equal(loaded.dequantized(), made.dequantized())
    assert formats.stored_bytes(again) < 0.6 * formats.stored_bytes(model)


def test_bad_options_data_and_models_are_refused() -> None:
    with pytest.raises(DefinitionError, match="bits is 9"):
        GPTQ(bits=9)
    with pytest.raises(DefinitionError, match="group_size is 0"):
        GPTQ(group_size=0)
    with pytest.raises(DefinitionError, match="granularity is -1"):
        AbsMax(granularity=-1)
    with pytest.raises(DefinitionError, match=r"damping is -0\.1"):
        GPTQ(damping=-0.1)
    with pytest.raises(ArgumentTypeError, match="damping must be a number"):
        GPTQ(damping="much")  # type: ignore[arg-type]
    model = build("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(EmptyDataset, match=r"GPTQ.* got no calibration batch"):
        GPTQ().apply(model, [])
    with pytest.raises(MethodMisfit, match="no nn.Linear"):
        GPTQ().apply(nn.Sequential(nn.Conv2d(4, 4, 3)), batches(model))
    with pytest.raises(MethodMisfit, match="quantized already"):
        GPTQ().apply(AbsMax().apply(model), batches(model))
    with torch.no_grad():
        weight_of(model.get_submodule("model.layers.1.mlp.up_proj"))[0, 0] = math.nan
    with pytest.raises(MethodMisfit, match=r"model.layers.1.mlp.up_proj.*infinities or NaN"):
        GPTQ().apply(model, batches(model))
    with torch.no_grad():
        weight_of(model.get_submodule("model.layers.1.mlp.up_proj"))[0, 0] = before[
            "model.layers.1.mlp.up_proj.weight"
        ][0, 0]
        model.model.layers[0].input_layernorm.weight.fill_(3e38)  # what it puts out overflows
    with pytest.raises(DataError, match="NaN or infinities"):
        GPTQ().apply(model, batches(model))


def test_a_module_without_a_list_of_blocks_is_one_block() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 16), nn.ReLU(), nn.Linear(16, 7))
    x = torch.randn(200, 33) @ torch.randn(33, 33)
    small = GPTQ(4, 16).apply(model, [{"input": x[:90]}, {"input": x[90:]}])
    for index, inputs in ((0, x), (2, model[:2](x).detach())):
        codes, scale = GPTQ(4, 16).quantized(model[index].weight, 2 / len(x) * inputs.T @ inputs)
        torch.testing.assert_close(small[index].signed_codes(), codes, rtol=0, atol=1)
        assert (small[index].signed_codes() == codes).double().mean() > 0.98
        assert torch.equal(small[index].weight_scale, scale)
    plain = AbsMax(4, 16).apply(model)
    with torch.no_grad():
        assert (small(x) - model(x)).norm() < 0.8 * (plain(x) - model(x)).norm()
