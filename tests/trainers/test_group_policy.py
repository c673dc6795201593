"""TrainHFGRPO and TrainHFRLOO: trl's loops on our prompts reach a known optimum, with adapters and a reference too."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from datadreamer_like.errors import DefinitionError
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


class Recorded:
    """A loop that records the weights, the answers and the loss of each step."""

    steps: list[tuple[dict[str, torch.Tensor], dict[str, Any], float]]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if model.training:
            weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
            self.steps.append((weights, dict(inputs), loss.item()))
        return loss


def log_probs(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Of the tokens of each answer, each row alone and without padding."""
    found = []
    for row in range(len(inputs["prompt_ids"])):
        prompt, answer = (inputs[f"{p}_ids"][row][inputs[f"{p}_mask"][row].bool()] for p in ("prompt", "completion"))
        logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, answer[:, None])[:, 0])
    return found


def grpo(
    new: list[Any], old: list[Any], ref: list[Any], rewards: torch.Tensor, groups: list[Any], weighted: bool = True
) -> torch.Tensor:
    """The mean over tokens of the clipped loss and the penalty; advantages are scaled by the group's deviation.

    The penalty is `weighted` by the ratio, or that of the paper.
    """
    total, tokens = torch.zeros(()), 0
    for row, rows in enumerate(groups):
        advantage = (rewards[row] - rewards[rows].mean()) / (rewards[rows].std() + 1e-4)
        ratio = (new[row] - old[row]).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        apart = ref[row] - new[row]
        penalty = (apart.exp() - apart - 1) * (ratio if weighted else 1)
        total = total + (-gain + BETA * penalty).sum()
        tokens += len(ratio)
    return total / tokens


def rloo(new: list[Any], old: list[Any], ref: list[Any], rewards: torch.Tensor, groups: list[Any]) -> torch.Tensor:
    """The mean over answers of the clipped loss; the penalty is in the reward, and the others are the baseline."""
    worth = rewards - BETA * torch.stack([(a - b).sum() for a, b in zip(old, ref, strict=True)])
    losses = []
    for row, rows in enumerate(groups):
        advantage = worth[row] - worth[[other for other in rows if other != row]].mean()
        ratio = (new[row] - old[row]).sum().exp()
        losses.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
    return torch.stack(losses).mean()


BETA = 0.3


@pytest.mark.parametrize(
    ("kind", "formula", "options"),
    [
        (TrainHFGRPO, grpo, {}),
        (TrainHFGRPO, partial(grpo, weighted=False), {"use_bias_correction_kl": False}),
        (TrainHFRLOO, rloo, {}),
    ],
    ids=["GRPO", "GRPO of the paper", "RLOO"],
)
def test_steps_are_those_of_the_formula(session, speller, kind, formula, options):  # noqa: F811
    steps: list[Any] = []
    rate = 0.5
    loop = type("Loop", (Recorded, kind.loop), {"steps": steps})
    trainer = type(kind.__name__, (kind,), {"loop": loop})("It", str(speller))
    trainer.train(
        **prompts(4), reward_model=share_of_b, max_new_tokens=4, batch_size=8, num_generations=4, num_iterations=2,
        beta=BETA, epochs=1, optim="sgd", learning_rate=rate, weight_decay=0.0, max_grad_norm=0.0,
        lr_scheduler_type="constant", **options,
    )  # fmt: skip
    assert len(steps) == 4
    after = [weights for weights, _, _ in steps[1:]] + [dict(trainer.model.named_parameters())]
    clipped = 0
    for number, (weights, inputs, loss) in enumerate(steps):
        models = [AutoModelForCausalLM.from_pretrained(str(speller)).eval() for _ in range(3)]
        # Two steps are taken on the same answers; the reference is the model at the start.
        for model, state in zip(models, (weights, steps[number // 2 * 2][0], steps[0][0]), strict=True):
            model.load_state_dict(state, strict=False)
        with torch.no_grad():
            old, ref = (log_probs(model, inputs) for model in models[1:])
        new = log_probs(models[0], inputs)
        texts = trainer.tokenizer.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
        rewards = torch.tensor(share_of_b([], texts))
        asked = trainer.tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
        groups = [[row for row, text in enumerate(asked) if text == own] for own in asked]
        assert {len(rows) for rows in groups} == {4}
        expected = formula(new, old, ref, rewards, groups)
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        expected.backward()
        for name, weight in models[0].named_parameters():
            torch.testing.assert_close(after[number][name], weight - rate * weight.grad, rtol=1e-4, atol=1e-5)
        clipped += sum(((a - b).exp() - 1).abs().max() > 0.2 for a, b in zip(new, old, strict=True))
    assert clipped


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"generation_kwargs": {"num_beams": 2}}, 'decides "num_beams" of generation_kwargs itself'),
        ({"generation_kwargs": {"temperature": 2.0}}, 'decides "temperature" of generation_kwargs itself'),
        ({"temperature": 0}, "temperature is 0; it must be over 0"),
        ({"top_p": 1.5}, r"top_p is 1\.5; it must be over 0 and at most 1"),
        ({"beta": -0.1}, r"beta is -0\.1; it must be at least 0"),
    ],
)
def test_sampling_that_the_losses_do_not_know_of_is_refused(session, speller, options, said):  # noqa: F811
    with pytest.raises(DefinitionError, match=said):
        TrainHFRLOO("It", str(speller)).train(**prompts(4), reward_model=share_of_b, num_generations=4, **options)


@pytest.mark.parametrize("reward", [lambda prompts, answers: [0.0] * len(answers), share_of_b], ids=["one", "several"])
def test_a_reward_that_is_always_the_same_is_reported(session, speller, caplog, reward):  # noqa: F811
    trainer = TrainHFRLOO("It", str(speller))
    trainer.train(**prompts(4), reward_model=reward, num_generations=4, batch_size=8, epochs=1, max_new_tokens=2)
    assert ('"It": the reward was 0 for all 32 answers, so nothing' in caplog.text) == (reward is not share_of_b)
