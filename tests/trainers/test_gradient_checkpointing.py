"""Gradient checkpointing saves memory and changes nothing else, for every trainer of transformers models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import modeling_utils

from datadreamer_like.trainers import (
    TrainHFClassifier,
    TrainHFDPO,
    TrainHFFineTune,
    TrainHFGRPO,
    TrainHFPPO,
    TrainHFRewardModel,
    TrainHFRLOO,
)

from .conftest import Rows
from .test_dpo import PAIRS, columns
from .test_reward_model import pairs

FEW: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3}
TRAINERS = {
    "classifier": TrainHFClassifier, "fine-tuning": TrainHFFineTune, "dpo": TrainHFDPO, "reward": TrainHFRewardModel,
    "ppo": TrainHFPPO, "grpo": TrainHFGRPO, "rloo": TrainHFRLOO,
}  # fmt: skip


def count_of_t(texts: list[str]) -> list[float]:
    return [float(text.count("t")) for text in texts]


def given(kind: str, data: Any) -> dict[str, Any]:
    if kind == "classifier":
        rows = {"text": PAIRS["chosen"] + PAIRS["rejected"], "label": ["good"] * 4 + ["bad"] * 4}
        return data(rows, rows)
    if kind == "fine-tuning":
        rows = {"text": PAIRS["prompt"], "label": PAIRS["chosen"]}
        return data(rows, rows)
    if kind == "dpo":
        return columns()
    if kind == "reward":
        return pairs()
    asked = {
        split: Rows(split, {"p": PAIRS["prompt"]}).output["p"] for split in ("train_prompts", "validation_prompts")
    }
    answers = {} if kind == "ppo" else {"num_generations": 2}
    return {**asked, **answers, "reward_model": count_of_t, "max_new_tokens": 3}


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [*((kind, kind in ("fine-tuning", "reward", "grpo")) for kind in TRAINERS), ("ppo", True)],
)
def test_losses_and_weights_are_the_same(session, tiny_causal_lm, data, kind, adapter, monkeypatch):
    lora = LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "down_proj"]) if adapter else None
    found, counts = [], []
    for checkpointing in (False, True):
        calls = [0]
        original = modeling_utils.checkpoint

        def counted(*args: Any, calls: list[int] = calls, original: Any = original, **kwargs: Any) -> Any:
            calls[0] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(modeling_utils, "checkpoint", counted)
        trainer: Any = TRAINERS[kind](f"{kind} {checkpointing}", str(tiny_causal_lm), peft_config=lora)
        trainer.train(**given(kind, data), **FEW, gradient_checkpointing=checkpointing)
        monkeypatch.undo()
        counts.append(calls[0])
        found.append(trainer)
    assert counts[0] == 0
    assert counts[1] > 0
    first, second = found
    for name in ("loss", "reward"):
        if name in first.metrics:
            assert second.metrics[name] == pytest.approx(first.metrics[name], abs=1e-6)
    for name, weight in first.model.named_parameters():
        assert torch.allclose(weight, second.model.get_parameter(name), atol=1e-5), name
