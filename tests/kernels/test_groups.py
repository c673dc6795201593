"""Groups of inputs that share a scale, against the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import group_dequantize, group_quantize, group_scales


@pytest.mark.parametrize(("shape", "size"), [((5, 12), 4), ((3, 13), 5), ((7, 9), 32), ((1, 1), 1)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_and_scales_are_those_of_the_formula(
    shape: tuple[int, int], size: int, bits: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape).to(dtype)
    codes, scale = group_quantize(w, bits, size)
    decoded = group_dequantize(codes, scale, size).double().numpy()
    plain, half = w.double().numpy(), 2 ** (bits - 1)
    for row in range(shape[0]):
        for number, start in enumerate(range(0, shape[1], size)):
            part = plain[row, start : start + size]
            s = float(scale[row, number])
            assert s == pytest.approx(np.abs(part).max() / (half - 0.5), rel=2**-11)
            assert np.array_equal(codes[row, start : start + size].numpy(), np.clip(np.rint(part / s), -half, half - 1))
            error = np.abs(decoded[row, start : start + size] - part)
            assert error.max() <= s * (0.5 + half * 2**-10)  # the scale is rounded to fp16
    assert codes.shape == w.shape
    assert scale.dtype == torch.float16


def test_zeros_stay_zero() -> None:
    codes, scale = group_quantize(torch.zeros(2, 6), 4, 4)
    assert not codes.any()
    assert scale.isfinite().all()
    assert (scale > 0).all()


@pytest.mark.parametrize(("bits", "deviation"), [(8, 1e-4), (4, 1e-5)])
def test_small_weights_are_rounded_as_closely_as_large_ones(bits: int, deviation: float) -> None:
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))

    def error(scaled: torch.Tensor) -> float:
        decoded = group_dequantize(*group_quantize(scaled, bits, 64), 64)
        return float((decoded.double() - scaled.double()).norm() / scaled.double().norm())

    assert error(w * deviation) < 1.1 * error(w)


@pytest.mark.parametrize(
    ("w", "bits", "size"),
    [(torch.ones(2, 2), 1, 2), (torch.ones(2, 2), 4, 0), (torch.ones(2), 4, 1), (torch.ones(2, 2).int(), 4, 1)],
)
def test_what_has_no_groups_is_refused(w: torch.Tensor, bits: int, size: int) -> None:
    with pytest.raises(DefinitionError, match=r"from 2 to 8|group_scales takes"):
        group_scales(w, bits, size)


@pytest.mark.parametrize(("bits", "largest"), [(4, 491_250), (8, 8_351_000), (2, 98_250)])
def test_weights_whose_scales_fp16_cannot_hold_are_refused(bits: int, largest: float) -> None:
    for weight in (largest, -largest):
        w = torch.tensor([[1.0, 0.5, weight, 0.0]])
        codes, scale = group_quantize(w, bits, 2)
        assert float((group_dequantize(codes, scale, 2) - w).abs().max()) <= 1.001 * 65504 / 2
        with pytest.raises(DefinitionError, match="the scales of groups are fp16"):
            group_scales(1.01 * w, bits, 2)
