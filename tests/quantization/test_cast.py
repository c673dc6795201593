"""Casts: every saved weight in 16 bits, loaded as it was saved; what has no number in the dtype is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, batches, build, logits
from torch import nn
from transformers import PreTrainedModel

from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.pruning import Magnitude
from datadreamer_like.quantization import NF4, Cast


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5", "mpnet"])
def test_weights_are_rounded_and_loaded_as_they_were_saved(family: str, dtype: str, tmp_path: Path) -> None:
    model = build(family)
    small = Cast(dtype).apply(model)  # type: ignore[arg-type]
    kind = getattr(torch, dtype)
    for (name, one), other in zip(small.named_parameters(), model.parameters(), strict=True):
        # T5's output projections overflow in fp16, so transformers loads them in fp32.
        target = torch.float32 if family == "t5" and kind == torch.float16 and ".wo." in name else kind
        assert one.dtype == target, name
        assert torch.equal(one, other.to(target)), name
    small.save_pretrained(tmp_path / "small")
    model.save_pretrained(tmp_path / "whole")
    again = type(model).from_pretrained(tmp_path / "small")
    batch = batches(model)[0]
    assert torch.equal(logits(again, batch), logits(small, batch))
    sizes = [(tmp_path / part / "model.safetensors").stat().st_size for part in ("small", "whole")]
    assert sizes[0] < 0.65 * sizes[1]
    expected = logits(model, batch)
    error = float((logits(small, batch).float() - expected).norm() / expected.norm())
    assert 0 < error < (0.05 if dtype == "bfloat16" else 0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_that_are_not_saved_stay_as_loading_makes_them(family: str, tmp_path: Path) -> None:
    model: PreTrainedModel = build(family)
    small = Cast().apply(model)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    dtypes = ({name: value.dtype for name, value in one.named_buffers()} for one in (small, again))
    assert next(dtypes) == next(dtypes)


def test_shared_weights_stay_shared_and_zeros_sparse(tmp_path: Path) -> None:
    model = build("llama")
    small = Cast().apply(Magnitude(0.8).apply(model))
    assert small.lm_head.weight is small.model.embed_tokens.weight
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    batch = batches(model)[0]
    assert torch.equal(logits(again, batch), logits(small, batch))


def test_numbers_beyond_the_dtype_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for value, beyond in ((7e4, True), (6e4, False)):
        model[0].weight.data[0, 0] = value
        if beyond:
            with pytest.raises(
                MethodMisfit, match='"0.weight" holds numbers beyond 65504, the largest of float16, or NaN'
            ):
                Cast("float16").apply(model)
        else:
            assert Cast("float16").apply(model)[0].weight.dtype == torch.float16
    model[0].weight.data[0, 0] = 7e4
    assert Cast("bfloat16").apply(model)[0].weight.dtype == torch.bfloat16
    assert model[0].weight.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DefinitionError, match="dtype is 'float8'"):
        Cast("float8")  # type: ignore[arg-type]
    model = build("bert")
    with pytest.raises(MethodMisfit, match="has no weights in a wider dtype than bfloat16"):
        Cast("bfloat16").apply(Cast("float16").apply(model))
    with pytest.raises(MethodMisfit, match="quantized already"):
        Cast().apply(NF4().apply(model))
