"""The Triton paths of quantized products against plain PyTorch, in Triton's interpreter (and `test_ptx.py`)."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import (
    absmax_quantize,
    binary_linear,
    binary_matmul,
    binary_quantize,
    codebook_linear,
    gobo_linear,
    gobo_quantize,
    int8_linear,
    llm_int8_linear,
    nf4_linear,
    nf4_quantize,
    pack_bits,
    pack_signs,
)

from .interpreted import INTERPRETED, passes_interpreted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="runs in the interpreter, started below")
CASES = [(1, 128, 40, torch.bfloat16), (3, 1344, 17, torch.float32)]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert float(error) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@interpreted
@pytest.mark.parametrize(("rows", "inputs", "outputs", "dtype"), CASES)
class TestTriton:
    @pytest.mark.parametrize(("granularity", "biased"), [("token", True), ("tensor", False)])
    def test_int8_products_are_exact(
        self, rows: int, inputs: int, outputs: int, dtype: torch.dtype, granularity: str, biased: bool
    ) -> None:
        x, bias = random(rows, inputs, dtype=dtype), random(outputs) if biased else None
        codes, scale = absmax_quantize(random(outputs, inputs), axis=-1)
        options = {"granularity": granularity}
        found, exact = (
            int8_linear(x, codes, scale, bias, backend=backend, **options) for backend in ("triton", "reference")
        )
        close(found, exact, dtype)

    def test_a_row_that_is_not_finite_gives_no_numbers(
        self, rows: int, inputs: int, outputs: int, dtype: torch.dtype
    ) -> None:
        x = random(rows, inputs, dtype=dtype)
        x[-1, 7] = torch.inf if rows > 1 else torch.nan
        y = int8_linear(x, *absmax_quantize(random(outputs, inputs), axis=-1), backend="triton")
        assert y.isfinite().all(-1).tolist() == [True] * (rows - 1) + [False]
        assert not y[-1].isfinite().any()

    def test_the_split_of_llm_int8(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        x = random(rows, inputs, dtype=dtype)
        x[:, 5] = 50
        codes, scale = absmax_quantize(random(outputs, inputs), axis=-1)
        found, exact = (llm_int8_linear(x, codes, scale, backend=backend) for backend in ("triton", "reference"))
        close(found, exact, dtype)

    @pytest.mark.parametrize("bits", [1, 2, 3, 4])
    @pytest.mark.parametrize("ragged", [0, 5])
    def test_indices_of_levels(
        self, rows: int, inputs: int, outputs: int, dtype: torch.dtype, bits: int, ragged: int
    ) -> None:
        inputs += ragged
        x, levels = random(rows, inputs, dtype=dtype), random(2**bits)
        codes = torch.randint(0, 2**bits, (outputs, inputs), generator=torch.Generator().manual_seed(0)).to(DEVICE)
        close(codebook_linear(x, pack_bits(codes, bits), levels, backend="triton"), x.float() @ levels[codes].T, dtype)

    def test_gobo_with_outliers(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        w = 0.04 * random(outputs, inputs)
        w[2, 3], w[2, 30], w[-1, 0] = 0.9, -0.9, 1.0
        weight, x = gobo_quantize(w), random(rows, inputs, dtype=dtype)
        found, exact = (gobo_linear(x, weight, backend=backend) for backend in ("triton", "reference"))
        close(found, exact, dtype)

    @pytest.mark.parametrize("block_size", [32, 64, 24, 0])
    def test_nf4(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype, block_size: int) -> None:
        inputs += -inputs % (block_size or 1)
        block_size = block_size or inputs
        codes, absmax = nf4_quantize(random(outputs, inputs), block_size)
        x, options = random(rows, inputs, dtype=dtype), {"block_size": block_size}
        found, exact = (
            nf4_linear(x, codes, absmax, outputs, backend=backend, **options) for backend in ("triton", "reference")
        )
        close(found, exact, dtype)

    def test_pairs_of_codes(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        x, w = random(rows, inputs, dtype=torch.bfloat16), random(outputs, inputs)
        if rows > 1:
            x[1] *= 1e30  # beyond fp16
        codes, absmax = nf4_quantize(w)
        found, exact = (nf4_linear(x, codes, absmax, outputs, backend=one) for one in ("triton-pairs", "reference"))
        for row in range(rows):
            close(found[row], exact[row], torch.bfloat16)
        levels, numbers = 1e-6 * random(16), torch.randint(0, 16, (outputs, inputs)).to(DEVICE)
        packed = torch.cat([torch.zeros(1, dtype=torch.uint8, device=DEVICE), pack_bits(numbers, 4).flatten()])[1:]
        found = codebook_linear(x, packed.view(outputs, -1), levels, backend="triton-pairs")
        for row in range(rows):
            close(found[row], x[row].float() @ levels[numbers].T, torch.bfloat16)

    def test_signs(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        x, w = random(rows, inputs, dtype=dtype), random(outputs, inputs)
        found = binary_matmul(pack_signs(x), pack_signs(w), inputs, backend="triton")
        assert torch.equal(found, (torch.where(x >= 0, 1.0, -1.0) @ torch.where(w >= 0, 1.0, -1.0).T).int())
        signs, scale = binary_quantize(w)
        found, exact = (binary_linear(x, signs, scale, backend=backend) for backend in ("triton", "reference"))
        close(found, exact, dtype)


@interpreted
def test_what_the_triton_paths_cannot_do_is_refused() -> None:
    with pytest.raises(DefinitionError, match="takes 1 to 4 bits, not 5"):
        codebook_linear(
            random(1, 8), pack_bits(torch.zeros(2, 8, dtype=torch.int64), 5), torch.zeros(32), backend="triton"
        )
    with pytest.raises(DefinitionError, match="whole blocks of a multiple of 8, not 80 inputs in blocks of 64"):
        nf4_linear(random(1, 80), *nf4_quantize(random(2, 80)), 2, backend="triton")
    x, packed = random(1, 12, dtype=torch.bfloat16), pack_bits(torch.zeros(2, 12, dtype=torch.int64), 4)
    with pytest.raises(DefinitionError, match="4 bits and a multiple of 8 inputs, not 4 and 12"):
        codebook_linear(x, packed, torch.zeros(16), backend="triton-pairs")
    with pytest.raises(DefinitionError, match=r"fp16 or bf16, and this tensor is torch.float32"):
        nf4_linear(random(1, 64), *nf4_quantize(random(2, 64)), 2, backend="triton-pairs")
    with pytest.raises(DefinitionError, match="at most 32 bits"):
        nf4_linear(random(1, 64).double(), *nf4_quantize(random(2, 64)), 2, backend="triton")


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="it is the interpreted run")
def test_the_kernels_pass_in_tritons_interpreter() -> None:
    passes_interpreted(__file__)


KERNELS = {
    ("int8", "_product_kernel"): (
        {"a": "*i8", "b": "*i8", "a_scale": "*fp32", "b_scale": "*fp32", "bias": "*fp32", "y": "*fp32"},
        {"BY_ROW": True, "BIASED": True, "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 512},
    ),
    ("binary", "_differing_kernel"): (
        {"a": "*i32", "b": "*i32", "found": "*i32"},
        {"ROWS": 4, "OUTPUTS": 64},
    ),
}


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")  # Triton warns of a default that will change
@pytest.mark.parametrize(("family", "name"), KERNELS)
def test_the_kernels_compile_without_a_gpu(family: str, name: str) -> None:
    triton = pytest.importorskip("triton")
    backends = pytest.importorskip("triton.backends.compiler")
    kernel = getattr(import_module(f"datadreamer_like.kernels.triton.{family}"), name)
    types, constants = KERNELS[family, name]
    types = types | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=places)
    assert triton.compile(source, target=backends.GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="here Triton runs")
def test_triton_is_refused_for_tensors_on_a_cpu() -> None:
    with pytest.raises(
        DefinitionError, match=r'backend="triton" of nf4_linear (takes tensors on a GPU|needs the pack)'
    ):
        nf4_linear(random(1, 64), *nf4_quantize(random(2, 64)), 2, backend="triton")


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 48, 8), (4, 96, 3000), (2, 65, 4100)])
def test_nf4_products_are_those_of_the_dequantized_weight(rows: int, inputs: int, outputs: int) -> None:
    codes, absmax = nf4_quantize(random(outputs, inputs))
    x = random(rows, inputs)
    found, exact = (nf4_linear(x, codes, absmax, outputs, backend=backend) for backend in (None, "reference"))
    close(found, exact, torch.float32)
