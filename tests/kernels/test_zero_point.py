"""Zero-point quantization against NumPy in float64, and the promises of affine codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import zero_point_dequantize, zero_point_quantize


def shifted(*shape: int, by: float) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + by


@pytest.mark.parametrize("by", [0.0, 1.0, 30.0, -30.0])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_are_those_of_numpy(bits: int, axis: int | None, by: float) -> None:
    x = shifted(33, 65, by=by)
    codes, scale, zero = zero_point_quantize(x, bits, axis)
    low = np.minimum(x.numpy().min(axis=axis, keepdims=True), 0)
    high = np.maximum(x.numpy().max(axis=axis, keepdims=True), 0)
    wanted = (high - low) / (2**bits - 1)
    wanted_zero = np.rint(-low / wanted) - 2 ** (bits - 1)
    np.testing.assert_allclose(scale.numpy(), wanted, rtol=1e-14)
    np.testing.assert_array_equal(zero.numpy(), wanted_zero)
    lowest = -(2 ** (bits - 1))
    np.testing.assert_array_equal(
        codes.numpy(), np.clip(np.rint(x.numpy() / wanted) + wanted_zero, lowest, -lowest - 1)
    )
    if by >= 0:
        assert codes.max() == -lowest - 1
    if by <= 0:
        assert codes.min() == lowest
    back = zero_point_dequantize(codes, scale, zero)
    # Half a step, and at the ends half a step more, as the zero point is rounded too.
    assert ((x - back).abs() <= scale * (1 + 1e-9)).all()
    inside = (codes > lowest) & (codes < -lowest - 1)
    assert ((x - back).abs() <= scale / 2 * (1 + 1e-9))[inside].all()


@pytest.mark.parametrize("by", [0.0, 7.0, -7.0])
def test_zero_is_an_integer_exactly(by: float) -> None:
    x = shifted(20, 30, by=by).float()
    x[3, 4] = x[5] = 0.0
    for axis in (None, 0, -1):
        codes, scale, zero = zero_point_quantize(x, axis=axis)
        assert (zero_point_dequantize(codes, scale, zero)[x == 0] == 0).all()
        assert torch.equal(codes[3, 4], zero.expand(20, 30)[3, 4])


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e-30, 3e38])
def test_constant_tensors_come_back(value: float) -> None:
    x = torch.full((4, 5), value)
    codes, scale, zero = zero_point_quantize(x)
    assert scale.isfinite().all()
    torch.testing.assert_close(zero_point_dequantize(codes, scale, zero), x, rtol=1e-5, atol=0)


def test_values_on_one_side_have_half_the_error_of_symmetric_codes() -> None:
    x = torch.rand(100, 40, generator=torch.Generator().manual_seed(0))
    error = (zero_point_dequantize(*zero_point_quantize(x)) - x).abs().max()
    assert error <= 1 / 255 / 2 * 1.01


def test_what_cannot_be_quantized_is_refused() -> None:
    for bad in (torch.ones(3, dtype=torch.int32), torch.ones(0)):
        with pytest.raises(DefinitionError, match="takes floats"):
            zero_point_quantize(bad)
    with pytest.raises(DefinitionError, match="bits is 9"):
        zero_point_quantize(torch.ones(3), 9)
