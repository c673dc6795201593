"""LLM.int8's split: its formula in float64, its limits, planted outlier features, and bitsandbytes' own functions."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import (
    absmax_quantize,
    int8_linear,
    llm_int8_linear,
    outlier_features,
    pack_int8_weight,
)
from datadreamer_like.kernels.llm_int8 import dense_is_faster
from datadreamer_like.quantization import LLMInt8

OUTLIERS = [3, 17]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layer(planted: bool = True, rows: int = 9) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 80, generator=generator)
    if planted:
        x[0, OUTLIERS[0]], x[5 % rows, OUTLIERS[1]] = 60.0, -6.0
        x[1:, OUTLIERS[0]] *= 20
    w = torch.randn(30, 80, generator=generator)
    codes, scale = absmax_quantize(w, axis=-1)
    return x, w, codes, scale, torch.randn(30, generator=generator)


def formula(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, largest: int) -> np.ndarray:
    """The sum over outlier features in floats, and over the others in integers with a scale per row of both."""
    x, codes = x.numpy().astype(np.float64), codes.numpy().astype(np.int64)
    weight_scale = scale.numpy().astype(np.float64).T
    is_outlier = (np.abs(x) >= 6.0).any(0)
    rest = x[:, ~is_outlier]
    x_scale = np.abs(rest).max(1, keepdims=True) / largest
    integers = np.rint(rest / x_scale).astype(np.int64) @ codes[:, ~is_outlier].T
    return integers * x_scale * weight_scale + x[:, is_outlier] @ codes[:, is_outlier].T * weight_scale + bias.numpy()


def test_it_is_the_formula() -> None:
    x, _, codes, scale, bias = layer()
    assert outlier_features(x, 6.0).tolist() == OUTLIERS
    found = llm_int8_linear(x, codes, scale, bias, backend="reference")
    np.testing.assert_allclose(found.numpy(), formula(x, codes, scale, bias, 127), rtol=1e-4, atol=1e-4)


def test_the_path_of_the_processor_differs_by_its_rounding_alone() -> None:
    x, _, codes, scale, bias = layer()
    found, exact = (llm_int8_linear(x, codes, scale, bias, backend=backend) for backend in (None, "reference"))
    assert (found - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("rows", [1, 9, 2500])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_packed_weight_gives_the_formula_in_any_number_of_rows(rows: int, autocast: bool) -> None:
    x, _, codes, scale, bias = layer(rows=rows)
    packed = pack_int8_weight(codes, scale)
    if packed is None:
        pytest.skip("no int8 engine for this processor")
    given = x.clone()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = llm_int8_linear(x, codes, scale, bias, packed=packed)
        without = llm_int8_linear(x, codes, scale, packed=packed)
    wanted = formula(x, codes, scale, bias, packed.largest)
    # A code may round the other way in fp32 than in float64, in few places.
    off = np.abs(found.numpy() - wanted)
    assert np.median(off) < 1e-5
    step = np.abs(np.delete(x.numpy(), OUTLIERS, 1)).max() / packed.largest * float(scale.max())
    assert off.max() < 2 * 127 * step
    torch.testing.assert_close(without, found - bias, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, given)


@pytest.mark.parametrize("backend", ["reference", None])
def test_threshold_zero_is_the_full_product_and_none_is_pure_int8(backend: None) -> None:
    x, _, codes, scale, bias = layer()
    full = x @ (codes * scale).T + bias
    torch.testing.assert_close(llm_int8_linear(x, codes, scale, bias, threshold=0.0, backend=backend), full)
    pure = int8_linear(x, codes, scale, bias, backend=backend)
    for threshold in (None, float("inf"), 61.0):
        assert torch.equal(llm_int8_linear(x, codes, scale, bias, threshold=threshold, backend=backend), pure)


def test_planted_outliers_cost_pure_int8_its_precision_and_not_this() -> None:
    x, _, codes, scale, bias = layer()
    exact = x @ (codes * scale).T + bias
    errors = {t: float((llm_int8_linear(x, codes, scale, bias, threshold=t) - exact).norm()) for t in (None, 6.0)}
    tensor = float((int8_linear(x, codes, scale, bias, granularity="tensor") - exact).norm())
    assert 5 * errors[6.0] < errors[None] < tensor


@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize("rows", [1, 9])
def test_it_agrees_with_bitsandbytes_within_the_rounding_of_both(planted: bool, rows: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("bitsandbytes")
    peer = torch.ops.bitsandbytes  # a layer of its own would compute in floats on a CPU
    x, w, codes, scale, bias = layer(planted, rows)
    theirs_codes, theirs_scale, _ = peer.int8_vectorwise_quant(w.clone())
    x_codes, x_scale, columns = peer.int8_vectorwise_quant(x.clone(), 6.0)
    theirs, _ = peer.int8_mixed_scaled_mm(x, x_codes, theirs_codes, x_scale, theirs_scale, columns, bias)
    assert columns.tolist() == outlier_features(x, 6.0).tolist()
    assert torch.equal(codes, theirs_codes)
    torch.testing.assert_close(scale.flatten() * 127, theirs_scale)
    ours = llm_int8_linear(x, codes, scale, bias, backend="reference")
    exact = x.double() @ w.double().T + bias
    error, peers_error = (float((y.double() - exact).norm()) for y in (ours, theirs))
    assert error < 1.05 * peers_error
    assert float((ours - theirs).norm()) < error + peers_error


def test_gradients_are_those_of_the_dequantized_weight() -> None:
    x, _, codes, scale, bias = layer()
    x.requires_grad_()
    weights = torch.randn(9, 30, generator=torch.Generator().manual_seed(1))
    (llm_int8_linear(x, codes, scale, bias) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ (codes * scale), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shape_and_dtype_are_kept(dtype: torch.dtype) -> None:
    x, _, codes, scale, bias = layer()
    found = llm_int8_linear(x.to(dtype).view(3, 3, 80), codes, scale, bias)
    assert (found.dtype, found.shape) == (dtype, (3, 3, 30))
    assert llm_int8_linear(x[:0], codes, scale, bias).shape == (0, 30)


def test_where_int8_is_slower_on_a_cpu_all_features_are_multiplied_in_fp32() -> None:
    x, _, codes, scale, bias = layer()
    dense = (codes * scale).T.contiguous()
    full, split = x @ dense + bias, llm_int8_linear(x, codes, scale, bias)
    assert not torch.equal(split, full)
    torch.testing.assert_close(llm_int8_linear(x, codes, scale, bias, dense=dense), full)
    for forced in ("reference", "cpu"):
        options = {"backend": forced, "packed": pack_int8_weight(codes, scale)}
        if forced == "reference" or options["packed"] is not None:
            split = llm_int8_linear(x, codes, scale, bias, **options)
            assert torch.equal(llm_int8_linear(x, codes, scale, bias, dense=dense, **options), split)
    pure = llm_int8_linear(x, codes, scale, bias, threshold=None)
    assert torch.equal(llm_int8_linear(x, codes, scale, bias, threshold=None, dense=dense), pure)


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "is_faster"),
    [
        (1, 384, 384, True), (8192, 384, 384, True), (16, 1536, 384, True), (32, 1536, 384, False),
        (1, 1024, 1024, False), (1, 2048, 2048, False), (8, 3, 400_000, False), (8, 3, 384, True),
    ],
)  # fmt: skip
def test_int8_is_used_for_many_rows_and_for_large_weights(
    rows: int, outputs: int, inputs: int, is_faster: bool
) -> None:
    weight = torch.empty(outputs, inputs, dtype=torch.int8)
    assert dense_is_faster(torch.empty(rows, inputs), weight) is is_faster
    assert not dense_is_faster(torch.empty(rows, inputs, device="meta"), weight)  # another device


def test_a_layer_keeps_its_dense_weight_up_to_date_and_to_itself() -> None:
    linear = torch.nn.Linear(80, 30)
    layer_of = LLMInt8().apply(torch.nn.Sequential(linear))
    x = layer()[0]
    with torch.inference_mode():
        first = layer_of(x)
    torch.testing.assert_close(first, x @ layer_of[0].dequantized().T + linear.bias)
    assert "_dense" not in str(layer_of.state_dict())
    x = x.clone().requires_grad_()
    layer_of(x).sum().backward()  # after the weight was kept in inference mode
    torch.testing.assert_close(x.grad, layer_of[0].dequantized().sum(0).expand_as(x))
    with torch.no_grad():
        layer_of[0].weight_scale.mul_(2)
        torch.testing.assert_close(layer_of(x) - linear.bias, 2 * (first - linear.bias), rtol=1e-4, atol=1e-4)
    assert pickle.loads(pickle.dumps(layer_of))[0]._dense == (None, None)


def test_a_negative_threshold_is_refused() -> None:
    x, _, codes, scale, _ = layer()
    for bad in (-1.0, float("nan")):
        with pytest.raises(DefinitionError, match="threshold is"):
            llm_int8_linear(x, codes, scale, threshold=bad)
