"""TrainHFGRPO and TrainHFRLOO: trl's loops on our prompts reach a known optimum, with adapters and a reference too."""

from __future__ import annotations

from typing import Any

import pytest

from datadreamer_like.trainers import TrainHFGRPO, TrainHFRLOO

from .test_ppo import prompts, share_of_b, speller  # noqa: F401

FAST: dict[str, Any] = {
    "max_new_tokens": 4, "batch_size": 32, "num_generations": 8, "learning_rate": 1e-2, "weight_decay": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", [TrainHFGRPO, TrainHFRLOO])
def test_a_policy_that_is_rewarded_for_one_token_learns_to_write_it(session, speller, kind):  # noqa: F811
    trainer = kind("Bees", str(speller))
    trainer.train(**prompts(18), reward_model=share_of_b, **FAST, epochs=8, beta=0.0)
    assert trainer.metrics["reward"] > 0.9  # 1 at the optimum, 1/9 at the start
