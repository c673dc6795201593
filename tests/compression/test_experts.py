"""Experts whose weights one tensor holds: methods that change layers leave them, and say so; exports refuse them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import transformers

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.models import TrainedModel
from datadreamer_like.pruning import Magnitude, Movement, SparseGPT, Wanda
from datadreamer_like.quantization import GPTQ, NF4, AbsMax, Cast, DynamicInt8, LLMInt8, Mixed

SIZES = {**tiny_models.SIZES, "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0}
FAMILIES: dict[str, Any] = {
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen2-moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            **SIZES, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24
        )
    ),
}
OF_LAYERS: list[Any] = [
    NF4(), DynamicInt8(), LLMInt8(), GPTQ(4, 16), AbsMax(4), Mixed({"*": AbsMax(8)}), Wanda(0.5), SparseGPT(0.5),
    Movement(0.5, epochs=1),
]  # fmt: skip


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "weights of experts" in each.getMessage()]


@pytest.mark.parametrize("method", OF_LAYERS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_of_layers_says_that_it_leaves_experts(family: str, method: Any, caplog: pytest.LogCaptureFixture):
    model = FAMILIES[family]()
    left = sum(weight.numel() for weight in model.parameters() if weight.dim() == 3)
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        method.apply(model, tiny_models.batches(model, count=1))
    (text,) = said(caplog)
    assert f"leaves {left:,} weights of experts as they are" in text
    assert "model.layers.0.mlp.experts.gate_up_proj" in text


@pytest.mark.parametrize("method", [Magnitude(0.5), Cast(), NF4(exclude=("*.mlp",))], ids=str)
def test_one_that_changes_them_or_was_told_to_leave_them_says_nothing(method: Any, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        method.apply(FAMILIES["mixtral"]())
    assert not said(caplog)


def test_experts_that_were_pruned_are_left_by_quantization_too(caplog: pytest.LogCaptureFixture):
    sparse = Magnitude(0.5).apply(FAMILIES["mixtral"]())
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        GPTQ(4, 16).apply(sparse, tiny_models.batches(sparse, count=1))
    assert len(said(caplog)) == 1


def test_formats_that_code_layers_refuse_them_before_the_work(tmp_path: Path):
    model = FAMILIES["mixtral"]()
    tokenizer = tiny_models.word_pieces(["a small cat sat on the mat"])
    student = TrainedModel.save(model, tokenizer, tmp_path / "model")
    sparse = TrainedModel.save(Magnitude(0.5).apply(model), tokenizer, tmp_path / "sparse")
    assert 'as "safetensors"' in (sparse.why_not_export("gptq") or "")
    for name, options in [
        ("gptq", {}), ("gguf", {}), *(("compressed-tensors", {"scheme": each}) for each in ("W8A8", "FP8_DYNAMIC")),
    ]:  # fmt: skip
        reason = student.why_not_export(name, **options)
        assert reason is not None
        assert 'as "safetensors"' in reason
        with pytest.raises(MethodMisfit, match='as "safetensors"'):
            student.export(name, to=tmp_path / "export", **options)
    assert not (tmp_path / "export").exists()
