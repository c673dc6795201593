"""The inline assembly of the GPU kernels, which Triton's interpreter leaves out: their compiled PTX, run on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from datadreamer_like.kernels import absmax_quantize, nf4_dequantize, nf4_quantize, pack_bits
from datadreamer_like.kernels.nf4 import NF4_LEVELS

from . import ptx
from .interpreted import INTERPRETED

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Triton warns of a default that will change
]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def near(found: Tensor, exact: Tensor, most: float) -> None:
    assert float((found.double() - exact.double()).norm() / exact.double().norm()) < most


@pytest.mark.parametrize(("bits", "inputs"), [(1, 256), (2, 1040), (3, 264), (4, 1024), (4, 1032)])
def test_levels_of_other_lanes(bits: int, inputs: int) -> None:
    from datadreamer_like.kernels.triton.lookup import _matvec_kernel

    x, levels, outputs = random(2, inputs), random(2**bits), 6
    numbers = torch.randint(0, 2**bits, (outputs, inputs), generator=torch.Generator().manual_seed(0))
    packed = pack_bits(numbers, bits)
    codes, words = (32 // bits, inputs * bits // 32) if bits != 3 else (8, inputs // 8)
    values = x.view(2, words, codes).transpose(1, 2).contiguous()
    y = torch.full((2, outputs), torch.nan)
    ptx.launch(
        _matvec_kernel, (2, 2),
        values, packed if bits == 3 else packed.view(torch.int32), levels, levels, y,
        outputs, words, packed.shape[1] if bits == 3 else words, warps=1,
        BITS=bits, CODES=codes, WHOLE=bits != 3, SCALE_WORDS=0, HIGH_FIRST=False, PTX=True,
        EVEN=words % 128 == 0, OUTPUTS=4, WORDS=128,
    )  # fmt: skip
    near(y, x @ levels[numbers].T, 1e-6)


@pytest.mark.parametrize(("block_size", "inputs"), [(64, 1024), (24, 1032)])
def test_scaled_levels_of_other_lanes(block_size: int, inputs: int) -> None:
    from datadreamer_like.kernels.triton.lookup import _matvec_kernel

    x, w, words = random(1, inputs), random(5, inputs), inputs // 8
    packed, absmax = nf4_quantize(w, block_size)
    y = torch.full((1, 5), torch.nan)
    ptx.launch(
        _matvec_kernel, (2, 1),
        x.view(1, words, 8).transpose(1, 2).contiguous(), packed.view(torch.int32), torch.tensor(NF4_LEVELS), absmax, y,
        5, words, words, warps=2,
        BITS=4, CODES=8, WHOLE=True, SCALE_WORDS=block_size // 8, HIGH_FIRST=True, PTX=True,
        EVEN=words % 256 == 0, OUTPUTS=4, WORDS=256,
    )  # fmt: skip
    near(y, x @ nf4_dequantize(packed, absmax, w.shape, block_size=block_size).T, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("outputs", "inputs", "scaled", "tile"),
    [(40, 1280, True, (32, 128)), (17, 1344, True, (16, 256)), (33, 1032, False, (32, 128))],
)
def test_pairs_of_levels_from_shared_memory(
    dtype: torch.dtype, outputs: int, inputs: int, scaled: bool, tile: tuple[int, int]
) -> None:
    from datadreamer_like.kernels.triton.pairs import _halves_kernel, _pairs_kernel

    w, words = random(outputs, inputs), inputs // 8
    x = (random(2, inputs) * torch.tensor([[1e-3], [1e30 if dtype == torch.bfloat16 else 1e4]])).to(dtype)
    if scaled:
        packed, scales = nf4_quantize(w)
        levels, weight = torch.tensor(NF4_LEVELS), nf4_dequantize(packed, scales, w.shape)
    else:
        levels, scales = 1e-6 * random(16), torch.empty(0)
        numbers = torch.randint(0, 16, w.shape, generator=torch.Generator().manual_seed(0))
        packed, weight = pack_bits(numbers, 4), levels[numbers]
    halves, x_scales = torch.zeros(2, 4, words, dtype=torch.int32), torch.zeros(2)
    ptx.launch(_halves_kernel, (2,), x, halves.view(torch.float16), x_scales, inputs, warps=8, BLOCK=1024)
    y = torch.full((2, outputs), torch.nan)
    ptx.launch(
        _pairs_kernel, (-(-outputs // tile[0]), 2),
        halves, x_scales, packed.view(torch.int32), levels, scales, y, outputs, words, warps=8,
        SCALE_WORDS=8 if scaled else 0, HIGH_FIRST=scaled, PTX=True,
        EVEN=words % tile[1] == 0, OUTPUTS=tile[0], WORDS=tile[1], WARPS=8,
    )  # fmt: skip
    for found, row in zip(y, x, strict=True):
        near(found, row.double() @ weight.double().T, 1e-3)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_row_that_is_not_finite_has_no_scale(value: float) -> None:
    from datadreamer_like.kernels.triton.pairs import _halves_kernel

    x, scales = random(2, 64), torch.zeros(2)
    x[1, 7] = value
    ptx.launch(_halves_kernel, (2,), x.half(), torch.zeros(128).half(), scales, 64, warps=8, BLOCK=64)
    assert scales.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("inputs", [2048, 1300])
def test_products_of_four_bytes(inputs: int) -> None:
    from datadreamer_like.kernels.triton.int8 import _quantize_kernel, _row_kernel

    x, (b, b_scale) = random(1, inputs), absmax_quantize(random(11, inputs), axis=-1)
    a, a_scale, bias = torch.zeros(1, inputs, dtype=torch.int8), torch.zeros(1, 1), random(11)
    ptx.launch(_quantize_kernel, (1,), x, a, a_scale, inputs, 127.0, warps=8, BLOCK=1024)
    codes, scale = absmax_quantize(x, axis=-1)
    assert torch.equal(a, codes)
    y = torch.full((1, 11), torch.nan)
    given: list[Any] = [a.view(torch.int32), b.view(torch.int32), a_scale, b_scale, bias, y, 11, inputs // 4]
    ptx.launch(_row_kernel, (2,), *given, warps=8, BIASED=True, PTX=True, OUTPUTS=8, WORDS=512)
    near(y, (codes.double() @ b.double().T) * scale.double() * b_scale.double().T + bias, 1e-6)
