"""Binary weights are the closest, take a bit each, and their products of signs are exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import binary_linear, binary_matmul, binary_quantize, pack_signs, unpack_signs

COUNTS = [1, 8, 31, 64, 65, 200]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_signs_and_scales_are_the_closest_of_all() -> None:
    w = random(3, 6)
    signs, scale = binary_quantize(w)
    best = unpack_signs(signs, 6)
    error = (w - scale * best).square().sum(1)
    for choice in itertools.product([-1.0, 1.0], repeat=6):
        other = torch.tensor(choice)
        alpha = (w @ other / 6)[:, None]  # the least-squares factor of these signs
        assert ((w - alpha * other).square().sum(1) >= error - 1e-5).all()
    for factor in (0.99, 1.01):
        assert ((w - factor * scale * best).square().sum(1) > error).all()


@pytest.mark.parametrize("count", COUNTS)
def test_a_sign_takes_a_bit_and_zero_is_positive(count: int) -> None:
    x = random(4, count)
    x[0, 0], x[1, 0] = 0.0, -0.0
    packed = pack_signs(x)
    assert packed.shape == (4, -(-count // 8))
    assert np.array_equal(packed.numpy(), np.packbits(x.numpy() >= 0, axis=1, bitorder="little"))
    assert torch.equal(unpack_signs(packed, count), torch.where(x >= 0, 1.0, -1.0))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("backend", [None, "reference", "cpu"])
def test_products_of_signs_are_exact(count: int, rows: int, backend: None) -> None:
    a, b = random(rows, count).sign(), random(37, count, seed=1).sign()
    found = binary_matmul(pack_signs(a), pack_signs(b), count, backend=backend)
    assert found.dtype == torch.int32
    assert torch.equal(found, (a.double() @ b.double().T).int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(65,), (2, 3, 65)])
def test_products_with_floats_are_those_of_the_dequantized_weight(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    w, x = random(30, 65), random(*shape, seed=2).to(dtype)
    signs, scale = binary_quantize(w)
    expected = x.double() @ (torch.where(w >= 0, 1.0, -1.0) * w.abs().mean(1, keepdim=True)).double().T
    for backend in (None, "reference"):
        found = binary_linear(x, signs, scale, backend=backend)
        assert found.dtype == dtype
        tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_many_rows_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadreamer_like.kernels.binary._PAIRS_A_BLOCK", 64)
    a, b = random(50, 130).sign(), random(7, 130, seed=1).sign()
    assert torch.equal(binary_matmul(pack_signs(a), pack_signs(b), 130), (a @ b.T).int())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"rows of 9 signs in 2 bytes \(uint8\), got .*\[3, 1\]"):
        binary_matmul(pack_signs(torch.ones(3, 8)), pack_signs(torch.ones(2, 9)), 9)
    with pytest.raises(DefinitionError, match="floating matrix"):
        binary_quantize(torch.ones(3))
