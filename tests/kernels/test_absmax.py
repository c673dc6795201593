"""AbsMax against numpy in float64, and the promises of methods.md."""

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import absmax_dequantize, absmax_quantize

SHAPES = [(7,), (5, 3), (1, 77), (33, 65), (3, 5, 17), (700, 451), (2, 300, 511)]
AXES = [None, 0, -1]


def in_numpy(x: np.ndarray, bits: int, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(x.astype(np.float64)).max(axis=axis, keepdims=True) / largest
    return np.rint(x / scale), scale


def test_the_worked_example():
    codes, scale = absmax_quantize(torch.tensor([0.5, 20.0, -0.0001, -0.01, -0.1]))
    assert codes.tolist() == [3, 127, 0, 0, -1]
    assert scale.item() == pytest.approx(20 / 127)


def test_half_rounds_to_even():
    codes, _ = absmax_quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 127.0]))
    assert codes.tolist() == [0, 2, 2, 0, -2, 127]


@pytest.mark.parametrize("backend", ["reference", "cpu", None])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_and_scales_are_those_of_numpy(shape, axis, bits, backend):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes, scale = absmax_quantize(x, bits=bits, axis=axis, backend=backend)
    wanted, wanted_scale = in_numpy(x.numpy(), bits, axis)
    assert codes.dtype == torch.int8
    assert codes.abs().max() == 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(codes.numpy(), wanted)
    np.testing.assert_allclose(scale.numpy(), wanted_scale, rtol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("axis", AXES)
def test_the_error_is_half_a_step_at_most_and_backends_agree(dtype, axis):
    x = torch.randn(600, 501, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, scale = absmax_quantize(x, axis=axis, backend="reference")
    assert scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    error = (x.double() - codes.double() * scale.double()).abs()
    assert (error <= scale.double() / 2 * (1 + 1e-5)).all()
    fast_codes, fast_scale = absmax_quantize(x, axis=axis, backend="cpu")
    assert torch.equal(codes, fast_codes)
    assert torch.equal(scale, fast_scale)
    assert torch.equal(absmax_dequantize(codes, scale), codes * scale)
    assert absmax_dequantize(codes, scale, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("x", [torch.zeros(4, 3), torch.full((4, 3), 1e-42), torch.zeros(0, 3), torch.zeros(600, 500)])
def test_nothing_to_scale_gives_zeros_and_a_finite_scale(x):
    for axis in AXES:
        if axis == 0 and not len(x):
            continue
        codes, scale = absmax_quantize(x, axis=axis)
        assert not codes.any()
        assert scale.isfinite().all()
        assert (scale > 0).all()


def test_finer_granularity_never_raises_the_error():
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(2)) * torch.logspace(-2, 2, 64)[:, None]

    def error(axis):
        return float((absmax_dequantize(*absmax_quantize(x, axis=axis)) - x).square().sum())

    assert error(-1) < error(None)
    assert error(0) <= error(None)


def test_negation_commutes():
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(3))
    for axis in AXES:
        codes, scale = absmax_quantize(x, axis=axis)
        negated, same_scale = absmax_quantize(-x, axis=axis)
        assert torch.equal(negated, -codes)
        assert torch.equal(same_scale, scale)


def test_a_number_that_is_none_shows_in_the_scale_of_its_row_only():
    x = torch.ones(3, 4)
    x[0, 1], x[1, 1] = float("nan"), float("inf")
    _, scale = absmax_quantize(x, axis=-1)
    assert scale.isfinite().flatten().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.ones(3), {"bits": 9}),
        (torch.ones(3), {"bits": 1}),
        (torch.ones(3, dtype=torch.int32), {}),
        (torch.ones(3), {"backend": "triton"}),
        (torch.ones(3, requires_grad=True), {"backend": "cpu"}),
    ],
)
def test_what_cannot_be_quantized_is_refused(x, options):
    with pytest.raises(DefinitionError):
        absmax_quantize(x, **options)
