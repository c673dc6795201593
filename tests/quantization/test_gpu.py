"""Quantized and pruned models on a GPU give what they give on a CPU, and methods find the same weights there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, batches, build, logits

from datadreamer_like.pruning import Magnitude, SparseGPT, Wanda
from datadreamer_like.quantization import GOBO, GPTQ, NF4, AbsMax, Binary, Cast, DynamicInt8, LLMInt8, ZeroPoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
METHODS: list[Any] = [
    AbsMax(), ZeroPoint(), DynamicInt8(), LLMInt8(), NF4(block_size=32), NF4(block_size=32, double_quant=False),
    GOBO(), GOBO(bits=4), Binary(), GPTQ(), Cast("bfloat16"), Magnitude(0.5), Wanda(0.5), Wanda(pattern=(2, 4)),
    SparseGPT(0.5),
]  # fmt: skip


def on_gpu(batch: Any) -> Any:
    return {name: value.cuda() for name, value in batch.items()}


def same(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    error = (found.cpu().double() - expected.double()).norm() / expected.double().norm()
    assert float(error) < bound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: repr(method)[:40])
def test_logits_are_those_of_the_cpu(family: str, method: Any) -> None:
    model = build(family)
    calibration = batches(model)
    small = method.apply(model, calibration if method.needs_calibration else None)
    batch = calibration[0]
    expected = logits(small, batch)
    # One row is multiplied by other kernels than several.
    one = {name: value[:1, -1:] if value.dim() == 2 else value[:1] for name, value in batch.items()}
    expected_one = logits(small, one)
    moved = copy.deepcopy(small).cuda()
    bound = 2e-2 if isinstance(method, Cast | DynamicInt8 | LLMInt8 | Binary) else 1e-4
    same(logits(moved, on_gpu(batch)), expected, bound)
    same(logits(moved, on_gpu(one)), expected_one, bound)


@pytest.mark.parametrize(
    "method", [GPTQ(), Wanda(0.5), SparseGPT(0.5), GOBO()], ids=lambda method: type(method).__name__
)
def test_methods_find_the_same_model_on_a_gpu(method: Any) -> None:
    model = build("llama")
    calibration = batches(model)
    given = calibration if method.needs_calibration else None
    small, moved = method.apply(model, given), method.apply(copy.deepcopy(model).cuda(), given)
    assert {value.device.type for value in moved.state_dict().values()} == {"cuda"}
    same(logits(moved, on_gpu(calibration[0])), logits(small, calibration[0]), 2e-2)
