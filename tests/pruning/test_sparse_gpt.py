"""SparseGPT against the paper's algorithm written out in NumPy and float64, and what must hold for its result."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, batches, build, logits
from torch import nn
from transformers import AutoModelForCausalLM

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats import stored_bytes
from datadreamer_like.formats.modules import block_linears, linears, stacks, weight_of
from datadreamer_like.pruning import Magnitude, SparseGPT, Wanda
from datadreamer_like.quantization import DynamicInt8


def as_in_the_paper(
    weight: np.ndarray,
    x: np.ndarray,
    block: int,
    damping: float,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
) -> np.ndarray:
    """Algorithm 1 without its Cholesky trick: the inverse of the Hessian that is left is computed anew for each column.

    `weight` [out, in], `x` [tokens, in].
    """
    weight = weight.astype(np.float64).copy()
    hessian = 2 / len(x) * x.T.astype(np.float64) @ x
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian += damping * np.diag(hessian).mean() * np.eye(len(hessian))
    rows, columns = weight.shape
    # The first entry of each inverse, which the trick has as U_jj².
    costs = np.array([np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(columns)])
    keep = np.ones(weight.shape, dtype=bool)
    for j in range(columns):
        if pattern is None and j % block == 0:
            end = min(j + block, columns)
            scores = weight[:, j:end] ** 2 / costs[j:end]
            order = np.argsort(scores, axis=None, kind="stable")[: round(sparsity * scores.size)]
            part = keep[:, j:end].reshape(-1)
            part[order] = False
            keep[:, j:end] = part.reshape(rows, end - j)
        elif pattern is not None and j % pattern[1] == 0:
            scores = weight[:, j : j + pattern[1]] ** 2 / costs[j : j + pattern[1]]
            lowest = np.argsort(scores, axis=1, kind="stable")[:, : pattern[1] - pattern[0]]
            np.put_along_axis(keep[:, j : j + pattern[1]], lowest, False, axis=1)
        inverse = np.linalg.inv(hessian[j:, j:])
        error = np.where(keep[:, j], 0, weight[:, j]) / inverse[0, 0]
        weight[:, j:] -= np.outer(error, inverse[0])
        weight[~keep[:, j], j] = 0
    return weight


def inputs(tokens: int, features: int, seed: int = 0) -> torch.Tensor:
    """Correlated inputs of different size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator) / features**0.5
    sizes = torch.rand(features, generator=generator) + 0.1
    return torch.randn(tokens, features, generator=generator) @ (mixing + 0.5) * sizes


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    return 2 / len(x) * x.T @ x


def output_error(weight: torch.Tensor, pruned: torch.Tensor, x: torch.Tensor) -> float:
    return float((x.double() @ (weight - pruned).double().T).square().sum())


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        (SparseGPT(0.5, block=8), (6, 24)),
        (SparseGPT(0.3, block=8), (5, 21)),  # the last block is narrower
        (SparseGPT(0.7), (9, 40)),
        (SparseGPT(pattern=(2, 4), block=8), (6, 24)),
        (SparseGPT(pattern=(1, 3), block=12, damping=0.1), (4, 18)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dead", [False, True])
def test_it_is_the_papers_algorithm(method: SparseGPT, shape: tuple[int, int], dead: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape), inputs(200, shape[1])
    if dead:
        x[:, [2, 7]] = 0
    sparsity = 0.5 if method.sparsity is None else method.sparsity
    expected = as_in_the_paper(weight.numpy(), x.numpy(), method.block, method.damping, sparsity, method.pattern)
    found = method.pruned(weight, hessian_of(x))
    assert np.array_equal(found.numpy() == 0, expected == 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("amount", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"pattern": (2, 4)}])
def test_its_output_error_on_correlated_inputs_is_below_wandas_and_magnitudes(amount: dict[str, object]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128), inputs(1000, 128)
    layer = nn.Linear(128, 64, bias=False)
    layer.weight.data.copy_(weight)
    from datadreamer_like.kernels import wanda_mask

    by_wanda = weight * wanda_mask(weight, x.norm(dim=0), **amount)  # type: ignore[arg-type]
    by_magnitude = Magnitude(**amount).apply(layer).weight.detach()  # type: ignore[arg-type]
    error = output_error(weight, SparseGPT(**amount).pruned(weight, hessian_of(x)), x)  # type: ignore[arg-type]
    assert error < 0.7 * output_error(weight, by_wanda, x)
    assert error < 0.5 * output_error(weight, by_magnitude, x)


def test_uncorrelated_inputs_leave_nothing_to_update() -> None:
    torch.manual_seed(0)
    weight, hessian = torch.randn(16, 32), torch.diag(torch.rand(32) + 0.1)
    found = SparseGPT(0.5, damping=0).pruned(weight, hessian)
    kept = found != 0
    torch.testing.assert_close(found[kept], weight[kept])
    # 1 / U_jj² is then H_jj: the score is Wanda's, squared.
    scores = weight.square() * hessian.diagonal()
    assert float(scores[kept].min()) >= float(scores[~kept].max())


def test_sparsity_0_changes_nothing() -> None:
    weight = torch.randn(4, 8)
    assert torch.equal(SparseGPT(0.0).pruned(weight, hessian_of(inputs(50, 8))), weight)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_pruned_in_order_on_what_the_pruned_blocks_before_put_out(family: str) -> None:
    model = build(family)
    calibration = batches(model)
    method = SparseGPT(0.5, block=8)
    found = method.apply(model, calibration)
    expected = copy.deepcopy(model)
    names = block_linears(expected)
    for stack in stacks(expected):
        for index in range(len(stack.blocks)):
            layers = {name: layer for name, layer in names.items() if name.startswith(f"{stack.name}.{index}.")}
            seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
            handles = [
                layer.register_forward_pre_hook(lambda _, x, rows=seen[name]: rows.append(x[0]))
                for name, layer in layers.items()
            ]
            for batch in calibration:  # the whole model runs anew, as changed so far
                logits(expected, batch)
            for handle in handles:
                handle.remove()
            for name, layer in layers.items():
                masks = [batch["attention_mask"].bool() for batch in calibration]
                x = torch.cat([rows[mask] for rows, mask in zip(seen[name], masks, strict=True)])
                weight_of(layer).data.copy_(method.pruned(weight_of(layer), hessian_of(x)))
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one == 0, other == 0), name
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [SparseGPT(0.4, block=16), SparseGPT(pattern=(2, 4))], ids=["share", "pattern"])
def test_every_block_of_columns_has_exactly_the_zeros_asked_for(family: str, method: SparseGPT) -> None:
    model = build(family)
    found = method.apply(model, batches(model))
    inside = block_linears(found)
    for name, module in linears(found).items():
        zeros = weight_of(module) == 0
        if name not in inside:
            assert not zeros.any()
        elif method.pattern is not None:
            assert (zeros.reshape(zeros.shape[0], -1, 4).sum(-1) == 2).all(), name
        else:
            for part in zeros.split(16, dim=1):
                assert int(part.sum()) == round(0.4 * part.numel()), name


def test_padding_does_not_count_and_half_precision_stays() -> None:
    model = build("llama")
    calibration = batches(model)
    other = copy.deepcopy(calibration)
    for batch in other:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    one, two = (SparseGPT(0.5).apply(model, data) for data in (calibration, other))
    for (name, left), right in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right), name
    half = SparseGPT(0.5).apply(build("llama").bfloat16(), calibration)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert int((half.model.layers[0].mlp.up_proj.weight == 0).sum()) >= 48 * 16


def test_two_of_four_take_at_most_six_tenths_of_the_bytes(tmp_path: Path) -> None:
    model = build("llama")
    calibration = batches(model)
    for method in (SparseGPT(pattern=(2, 4)), Wanda(pattern=(2, 4)), Magnitude(pattern=(2, 4))):
        small = method.apply(model, calibration)
        layers = sum(weight_of(layer).nbytes for layer in block_linears(small).values())
        saved = stored_bytes(model) - stored_bytes(small)
        assert layers - saved <= 0.6 * layers
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, calibration[0]), logits(small, calibration[0]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either sparsity or pattern"),
        ({"sparsity": 0.5, "pattern": (2, 4)}, "either sparsity or pattern"),
        ({"sparsity": 1.0}, "under 1"),
        ({"pattern": (5, 4)}, r"must be \(n, m\)"),
        ({"pattern": (1, 3)}, r"not a multiple of 3.*block=129"),
        ({"sparsity": 0.5, "block": 0}, "number of columns"),
        ({"sparsity": 0.5, "damping": -0.1}, "share of the mean diagonal"),
        ({"sparsity": 0.5, "exclude": "*.down_proj"}, "tuple of patterns"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        SparseGPT(**options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="damping"):
        SparseGPT(0.5, damping="1 %")  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    with pytest.raises(MethodMisfit, match="no linear layers"):
        SparseGPT(0.5).apply(nn.Sequential(nn.Conv2d(4, 4, 3)), [{}])
    with pytest.raises(MethodMisfit, match="32 inputs of .* not a multiple of 5"):
        SparseGPT(pattern=(2, 5), block=10).apply(build("bert"), [{}])
    with pytest.raises(MethodMisfit, match="quantized already"):
        SparseGPT(0.5).apply(DynamicInt8().apply(build("bert")), [{}])
    with pytest.raises(EmptyDataset, match="no calibration batch"):
        SparseGPT(0.5).apply(build("bert"), [])
    model = build("llama")
    with pytest.raises(DataError, match=r"not positive definite.*Raise damping"):
        SparseGPT(0.5, damping=0.0).apply(model, [{"input_ids": torch.tensor([[1, 2]])}])


@pytest.mark.parametrize(
    "method", [SparseGPT(0.5), Wanda(0.5), Magnitude(0.5)], ids=lambda method: type(method).__name__
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(method: object, value: float) -> None:
    model = build("bert")
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = value
    with pytest.raises(MethodMisfit, match=r"encoder\.layer\.1\.output\.dense.* holds infinities or NaN"):
        method.apply(model, batches(model))  # type: ignore[attr-defined]


def test_a_layer_that_no_token_reached_is_pruned_by_magnitude() -> None:
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    pruned = SparseGPT(0.5).pruned(weight, torch.zeros(16, 16))
    largest = weight.abs() >= weight.abs().flatten().sort().values[48]
    assert torch.equal(pruned, weight * largest)


@pytest.mark.parametrize("method", [SparseGPT(0.6, block=8), SparseGPT(pattern=(2, 4), block=8)], ids=str)
@pytest.mark.parametrize("first", [Magnitude(0.5), Magnitude(0.8), SparseGPT(0.5)], ids=str)
def test_what_was_pruned_before_stays_zero(method: SparseGPT, first: Magnitude | SparseGPT) -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    inputs = [{"input": torch.randn(200, 64) @ torch.randn(64, 64)}]
    before = first.apply(model, inputs)
    after = method.apply(before, inputs)
    assert not after[0].weight[before[0].weight == 0].any()
    assert (after[0].weight == 0).float().mean() >= (0.6 if method.sparsity else 0.5)
    again = method.apply(after, inputs)
    assert not again[0].weight[after[0].weight == 0].any()
