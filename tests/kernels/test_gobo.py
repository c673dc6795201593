"""GOBO against its procedure written in NumPy: outliers, centroids, what is stored, and products with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import (
    absmax_dequantize,
    absmax_quantize,
    gobo_centroids,
    gobo_dequantize,
    gobo_linear,
    gobo_outliers,
    gobo_quantize,
    unpack_bits,
)


def gaussian(*shape: int, deviation: float = 0.04, planted: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    w = deviation * torch.randn(shape, generator=generator)
    w.view(-1)[:planted] = 20 * deviation
    return w


def in_numpy(values: np.ndarray, bits: int) -> tuple[np.ndarray, list[float]]:
    """The procedure as the paper has it, on every number: bins of equal population, nearest, mean, until L1 stops."""
    centroids = np.array([part.mean() for part in np.array_split(np.sort(values), 2**bits)])
    errors: list[float] = []
    best = centroids
    while True:
        nearest = np.abs(values[:, None] - centroids).argmin(1)
        error = float(np.abs(values - centroids[nearest]).sum())
        if errors and error >= errors[-1]:
            return best, errors
        errors.append(error)
        best = centroids
        centroids = np.array([values[nearest == k].mean() for k in range(len(centroids))])


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_centroids_and_errors_are_those_of_the_procedure(bits: int) -> None:
    values = gaussian(512 * 7)
    centroids, errors = gobo_centroids(values, bits)
    expected, expected_errors = in_numpy(values.double().numpy(), bits)
    np.testing.assert_allclose(centroids.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(errors, expected_errors, rtol=1e-9)
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False))
    assert len(errors) > 2 or bits == 1  # two bins are where they belong at once


def test_outliers_have_a_low_density_under_the_fitted_gaussian() -> None:
    w = gaussian(64, 50, planted=3)
    mean, deviation = (float(part) for part in (w.double().mean(), w.double().std(correction=0)))
    density = torch.distributions.Normal(mean, deviation).log_prob(w.double())
    assert torch.equal(gobo_outliers(w), density < -4)
    assert torch.equal(gobo_outliers(w, -2.5), density < -2.5)
    assert gobo_outliers(w).flatten()[:3].all()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("shape", [(64, 50), (7, 13), (1, 1), (128, 129)])
def test_outliers_come_back_bit_for_bit_and_the_others_as_the_nearest_centroid(
    shape: tuple[int, int], bits: int
) -> None:
    w = gaussian(*shape, planted=min(2, shape[0] * shape[1] - 1))
    found = gobo_quantize(w, bits)
    assert found.packed.shape == (shape[0], -(-shape[1] * bits // 8))
    outlier = gobo_outliers(w)
    back = gobo_dequantize(found, shape[1])
    assert torch.equal(back[outlier], w[outlier])
    assert torch.equal(found.positions.long(), outlier.flatten().nonzero().flatten())
    codes = unpack_bits(found.packed, bits, shape[1])
    distance = (w[..., None] - found.centroids).abs()
    chosen = distance.gather(-1, codes[..., None].long())[..., 0]
    assert (chosen - distance.amin(-1))[~outlier].max() <= 1e-8
    assert torch.equal(back[~outlier], found.centroids[codes.long()][~outlier])


def test_three_bits_have_a_smaller_error_than_three_bits_of_absmax() -> None:
    w = gaussian(128, 96, planted=10)
    gobo = gobo_dequantize(gobo_quantize(w, 3), 96)
    for axis in (None, -1):
        absmax = absmax_dequantize(*absmax_quantize(w, 3, axis))
        assert (gobo - w).norm() < (absmax - w).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("shape", [(129,), (1, 129), (2, 5, 129)])
def test_a_product_is_that_of_the_dequantized_weight(dtype: torch.dtype, bits: int, shape: tuple[int, ...]) -> None:
    found = gobo_quantize(gaussian(70, 129, planted=10), bits)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = x.double() @ gobo_dequantize(found, 129).double().T
    for backend in (None, "reference", "cpu"):
        y = gobo_linear(x, found, backend=backend)
        assert y.dtype == dtype
        tolerance = 0.03 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_constant_weights_and_few_of_them_are_exact() -> None:
    for w in (torch.full((3, 4), 0.7), torch.zeros(2, 2), torch.tensor([[0.1, -0.2, 0.3]])):
        found = gobo_quantize(w, 3)
        torch.testing.assert_close(gobo_dequantize(found, w.shape[1]), w, rtol=1e-7, atol=0)


def test_without_outliers_the_product_is_that_of_the_centroids() -> None:
    w = gaussian(8, 16)
    found = gobo_quantize(w, 3, threshold=-float("inf"))
    assert len(found.positions) == 0
    x = torch.ones(2, 16)
    torch.testing.assert_close(gobo_linear(x, found), x @ gobo_dequantize(found, 16).T)


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(DefinitionError, match="bits is 9"):
        gobo_quantize(torch.ones(2, 2), 9)
    for bad in (torch.ones(4), torch.ones(2, 2, dtype=torch.int32), torch.ones(0, 2)):
        with pytest.raises(DefinitionError, match="floating matrix"):
            gobo_quantize(bad)
