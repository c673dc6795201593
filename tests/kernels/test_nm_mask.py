"""N:M masks of every path against a count in plain Python, group by group."""

from __future__ import annotations

import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import nm_mask

from .interpreted import INTERPRETED, passes_interpreted

PATHS = ["reference", *(["triton"] if INTERPRETED else [])]
PATTERNS = [(2, 4), (1, 4), (4, 8), (3, 3), (0, 2), (1, 1), (5, 7)]


def expected(scores: torch.Tensor, kept: int, group: int) -> list[bool]:
    values, mask = scores.flatten().tolist(), [True] * scores.numel()
    for start in range(0, len(values), group):
        places = sorted(range(start, start + group), key=lambda place: (values[place], place))
        for place in places[: group - kept]:
            mask[place] = False
    return mask


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_group_keeps_its_n_highest_of_m_and_the_last_among_equals(pattern, dtype, backend):
    kept, group = pattern
    generator = torch.Generator().manual_seed(group)
    for scores in (
        torch.randn(3, 37 * group, generator=generator),
        torch.randint(3, (5, 9 * group), generator=generator).float(),  # mostly ties
        torch.randn(2, 3, group, generator=generator).abs(),
        torch.randn(4 * group, 6, generator=generator).T,  # as the weight of a Conv1D: not contiguous
    ):
        scores = scores.to(dtype)
        mask = nm_mask(scores, pattern, backend=backend)
        assert mask.dtype == torch.bool
        assert mask.shape == scores.shape
        assert mask.flatten().tolist() == expected(scores, kept, group)


def test_without_a_backend_rows_may_be_one_group():
    scores = torch.randn(4, 300)
    assert nm_mask(scores, (100, 300)).flatten().tolist() == expected(scores, 100, 300)


@pytest.mark.parametrize("pattern", [(2, 3), (5, 4), (-1, 4), (0, 0)])
def test_patterns_that_do_not_divide_the_inputs_are_refused(pattern):
    with pytest.raises(DefinitionError, match=r"must divide the 4 inputs"):
        nm_mask(torch.ones(2, 4), pattern)


def test_an_unknown_backend_is_refused():
    with pytest.raises(DefinitionError, match='no backend "sse"'):
        nm_mask(torch.ones(2, 4), (2, 4), backend="sse")


@pytest.mark.skipif(INTERPRETED, reason="it is the interpreted run")
def test_the_gpu_kernel_passes_these_tests_in_tritons_interpreter():
    passes_interpreted(__file__, "highest and triton and not dtype2")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")  # Triton warns of a default that will change
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_gpu_kernel_compiles_without_a_gpu(dtype):
    triton = pytest.importorskip("triton")
    backends = pytest.importorskip("triton.backends.compiler")
    from datadreamer_like.kernels.triton.nm_mask import _mask_kernel as kernel

    types = {"scores": f"*{dtype}", "mask": "*i1", "GROUP": "constexpr", "BLOCK": "constexpr"}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in {"GROUP": 4, "BLOCK": 1024}.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=backends.GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gpu_kernel_gives_the_same_masks_on_a_gpu(pattern):
    scores = torch.randn(129, 64 * pattern[1], device="cuda")
    assert torch.equal(nm_mask(scores, pattern), nm_mask(scores, pattern, backend="reference"))
