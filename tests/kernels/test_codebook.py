"""Packed indices of levels: every bit in its place, and products with what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import codebook_dequantize, codebook_linear, pack_bits, unpack_bits

COUNTS = [1, 7, 8, 9, 24, 65]


def bits_in_numpy(codes: torch.Tensor, bits: int) -> np.ndarray:
    """The bytes of rows of codes, made bit by bit."""
    each = (codes.numpy()[..., None] >> np.arange(bits)) & 1
    return np.packbits(each.reshape(*codes.shape[:-1], -1).astype(np.uint8), axis=-1, bitorder="little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", COUNTS)
def test_codes_lie_bit_by_bit_and_come_back(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(bits * count)
    codes = torch.randint(0, 2**bits, (5, count), generator=generator)
    packed = pack_bits(codes, bits)
    assert np.array_equal(packed.numpy(), bits_in_numpy(codes, bits))
    assert torch.equal(unpack_bits(packed, bits, count), codes.to(torch.uint8))
    levels = torch.randn(2**bits, generator=generator)
    for backend in (None, "cpu", "reference"):
        assert torch.equal(codebook_dequantize(packed, levels, count, backend=backend), levels[codes]), backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bits", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("shape", [(65,), (1, 65), (3, 4, 65), (0, 65)])
def test_a_product_is_that_of_the_levels(bits: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    # The outputs are several blocks of rows.
    codes = torch.randint(0, 2**bits, (5000, 65), generator=generator)
    levels = torch.randn(2**bits, generator=generator)
    x = torch.randn(shape, generator=generator).to(dtype)
    expected = x.double() @ levels.to(dtype).double()[codes].T
    packed = pack_bits(codes, bits)
    for backend in (None, "reference"):
        found = codebook_linear(x, packed, levels, backend=backend)
        assert found.dtype == dtype
        tolerance = {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(found.double(), expected, **tolerance)


def test_what_does_not_fit_is_refused() -> None:
    packed = pack_bits(torch.zeros(2, 9, dtype=torch.int64), 3)
    with pytest.raises(DefinitionError, match=r"9 codes of 4 bits are a row of 5 bytes \(uint8\), got .*\[2, 4\]"):
        unpack_bits(packed, 4, 9)
    with pytest.raises(DefinitionError, match="bits is 9"):
        pack_bits(packed, 9)
    with pytest.raises(DefinitionError, match=r"levels have the shape \[7\]"):
        codebook_dequantize(packed, torch.zeros(7), 9)
    with pytest.raises(DefinitionError, match='codebook_linear has no backend "cuda". Choose "reference" or "cpu" or'):
        codebook_linear(torch.zeros(1, 9), packed, torch.zeros(8), backend="cuda")  # type: ignore[arg-type]
