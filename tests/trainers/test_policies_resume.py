"""A killed reward model, DPO, PPO, GRPO or RLOO resumes after its last finished epoch, and ends in the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dying import counting_steps, run
from safetensors.torch import load_file

from datadreamer_like import DataDreamer
from datadreamer_like.trainers import TrainHFDPO, TrainHFGRPO, TrainHFPPO, TrainHFRewardModel, TrainHFRLOO

from .test_dpo import columns
from .test_ppo import prompts, share_of_b, speller  # noqa: F401
from .test_reward_model import pairs

ROWS = {"prompt": ["a b", "c d", "e f", "b b"], "chosen": ["b", "b a", "b", "b c"], "rejected": ["a", "c", "d e", "f"]}
# Each has two rounds or batches an epoch; an adaptive penalty changes after each round.
SAMPLED: dict[str, Any] = {"reward_model": share_of_b, "max_new_tokens": 4, "epochs": 3, "learning_rate": 1e-2}
GROUPS: dict[str, Any] = {**SAMPLED, "batch_size": 8, "num_generations": 4, "beta": 0.1, "num_iterations": 2}
CODES = {"dpo on codes": 3, "grpo on codes": 5, "rloo on codes": 5, "reward on codes, accumulated": 3}
DIES_AT = {"reward": 3, "ppo": 20, "ppo with an adapter": 20, "grpo": 12, "rloo": 12, **CODES}
"""The step of the optimizer, within the second epoch or later."""


def train(kind: str, folder: Path, start: Path, dies_at: int) -> None:
    """What each process runs."""
    from peft import LoraConfig

    with counting_steps(dies_at) as steps, DataDreamer(folder, verbose=False):
        what, options = kind.split()[0], {"qlora": kind in CODES}
        few: dict[str, Any] = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2}
        if what == "reward":
            accumulated = {"batch_size": 1, "gradient_accumulation_steps": 2} if "accumulated" in kind else {}
            trainer: Any = TrainHFRewardModel("A", str(start), **options)
            trainer.train_with_pairs(**pairs(ROWS), **few | accumulated)
        elif what == "dpo":
            trainer = TrainHFDPO("A", str(start), **options)
            trainer.train(**columns(ROWS, ROWS), **few)
        elif what in ("grpo", "rloo"):
            trainer = (TrainHFGRPO if what == "grpo" else TrainHFRLOO)("A", str(start), **options)
            trainer.train(**prompts(6), **GROUPS | ({"num_iterations": 1} if kind in CODES else {}))
        else:
            lora = LoraConfig(r=4, target_modules=["down_proj"]) if "adapter" in kind else None
            trainer = TrainHFPPO("A", str(start), peft_config=lora)
            trainer.train(**prompts(8), **SAMPLED, batch_size=4, mini_batch_size=2, adap_kl_target=0.1, max_kl=None)
        (folder / "steps.json").write_text(json.dumps(steps()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIES_AT)
def test_a_killed_training_goes_on_and_ends_in_the_same_weights(speller, tmp_path, kind):  # noqa: F811
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(train, kind, whole, speller)
    run(train, kind, cut, speller, dies_at=DIES_AT[kind])
    assert list(cut.glob(".work/*/checkpoints/checkpoint-*/trainer_state.json")), "no epoch was finished"
    run(train, kind, cut, speller)
    first, second = (load_file(folder / "a/model/model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((folder / "a/node.json").read_text())["result"] for folder in (whole, cut)]
    assert results[0]["epochs"] == results[1]["epochs"] == 3
    assert without_times(results[0]["history"]) == without_times(results[1]["history"])
    curves = [json.loads((folder / "a/curves.json").read_text()) for folder in (whole, cut)]
    assert without_times(curves[0]) == without_times(curves[1])
    steps = [json.loads((folder / "steps.json").read_text()) for folder in (whole, cut)]
    assert steps[1] < steps[0], "the finished epoch was trained again"
    run(train, kind, cut, speller)
    assert json.loads((cut / "steps.json").read_text()) == 0  # finished: no work


def without_times(points: Any) -> Any:
    return [{name: value for name, value in each.items() if "time" not in name} for each in points]
