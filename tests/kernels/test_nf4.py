"""NF4 is that of bitsandbytes to the bit: codes, scales, doubly quantized scales, and what they stand for."""

import warnings

import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import absmax_from_dynamic8, absmax_to_dynamic8, nf4_dequantize, nf4_quantize
from datadreamer_like.kernels.nf4 import NF4_LEVELS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (2,), (63,), (64,), (65,), (128, 64), (7, 13), (33, 129), (3, 5, 7), (256, 300)]


@pytest.fixture(scope="module")
def peer():
    """bitsandbytes' own functions, which complain about kernels that are not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("bitsandbytes.functional")
    torch.compiler.set_stance("force_eager")  # it compiles some of them, for every shape
    yield functional
    torch.compiler.set_stance("default")


def cases(shape, dtype):
    """Tensors that are easy, and tensors that are not: zeros, ties, denormals, outliers."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(shape, generator=generator)
    levels = torch.tensor(NF4_LEVELS)
    middle = torch.cat([(levels[:-1] + levels[1:]) / 2, torch.tensor([1.0, -1.0])])
    index = torch.randint(len(middle), shape, generator=generator)
    yield "normal", normal.to(dtype)
    yield "zeros", torch.zeros(shape, dtype=dtype)
    yield "half zeros", (normal * (normal > 0)).to(dtype)
    yield "ties", middle[index].to(dtype)
    yield "levels", levels[index % 16].to(dtype)
    yield "denormals", (normal * 1e-40).to(dtype) if dtype != torch.float16 else (normal * 1e-7).to(dtype)
    yield "small", (normal * 1e-37).to(dtype)
    yield "outliers", (normal**5 * 100).to(dtype).clamp(-6e4, 6e4)
    yield "constant", torch.full(shape, -0.3, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_size", [64, 128])
def test_codes_and_scales_are_those_of_bitsandbytes(peer, shape, dtype, block_size):
    for what, weight in cases(shape, dtype):
        # Its dequantization on CPUs misreads rows that are narrower than a block, so those are laid flat.
        laid = weight.flatten() if shape[-1] < block_size else weight
        expected, state = peer.quantize_4bit(laid, blocksize=block_size, quant_type="nf4")
        packed, absmax = nf4_quantize(weight, block_size)
        assert torch.equal(packed, expected.flatten()), what
        assert torch.equal(absmax, state.absmax), what
        back = nf4_dequantize(packed, absmax, shape, block_size=block_size, dtype=dtype)
        reference = nf4_dequantize(packed, absmax, shape, block_size=block_size, dtype=dtype, backend="reference")
        assert torch.equal(back, peer.dequantize_4bit(expected, state).view(shape)), what
        assert torch.equal(back, reference), what
        assert back.dtype == dtype


@pytest.mark.parametrize("shape", [*SHAPES, (1024, 128)])
def test_doubly_quantized_scales_are_those_of_bitsandbytes(peer, shape):
    for what, weight in cases(shape, torch.float32):
        expected, state = peer.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        packed, absmax = nf4_quantize(weight)
        codes, scale, offset = absmax_to_dynamic8(absmax)
        assert torch.equal(codes, state.absmax), what
        assert torch.equal(scale, state.state2.absmax), what
        assert torch.equal(offset, state.offset), what
        back = nf4_dequantize(packed, absmax_from_dynamic8(codes, scale, offset), shape)
        assert torch.equal(back, peer.dequantize_4bit(expected, state).view(shape)), what


def test_scales_of_every_size_are_coded_as_bitsandbytes_does(peer):
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        spread = 10 ** float(torch.empty(()).uniform_(-4, 2, generator=generator))
        absmax = torch.randn(700, generator=generator).abs() ** 3 * spread
        expected, state = peer.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
        codes, scale, _ = absmax_to_dynamic8(absmax)
        assert torch.equal(codes, expected)
        assert torch.equal(scale, state.absmax)


def test_the_nearest_level_is_taken():
    torch.manual_seed(0)
    weight = torch.randn(40, 64)
    packed, absmax = nf4_quantize(weight)
    shares = weight / absmax[:, None]
    nearest = torch.tensor(NF4_LEVELS)[(shares[..., None] - torch.tensor(NF4_LEVELS)).abs().argmin(-1)]
    torch.testing.assert_close(nf4_dequantize(packed, absmax, weight.shape), nearest * absmax[:, None])


def test_bits_a_weight():
    packed, absmax = nf4_quantize(torch.randn(1024, 1024))
    codes, scale, offset = absmax_to_dynamic8(absmax)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in (packed, codes, scale, offset))
    assert stored * 8 / 1024**2 == pytest.approx(4.127, abs=0.001)


def test_what_cannot_be_quantized_is_refused():
    for bad in (torch.ones(2, dtype=torch.int8), torch.ones(0)):
        with pytest.raises(DefinitionError, match="floating tensor that is not empty"):
            nf4_quantize(bad)
    with pytest.raises(DefinitionError, match="even number"):
        nf4_quantize(torch.ones(4), 3)
    with pytest.raises(DefinitionError, match='no backend "triton"'):
        nf4_quantize(torch.ones(4), backend="triton")
    packed, absmax = nf4_quantize(torch.ones(10, 10))
    with pytest.raises(DefinitionError, match=r"are 50 bytes and 1 scales, got 50 and 2"):
        nf4_dequantize(packed, absmax, (10, 10), block_size=128)
