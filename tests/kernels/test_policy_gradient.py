"""The formulas of reward models and PPO against their definitions, written out token by token in float64."""

from __future__ import annotations

import math

import pytest
import torch

from datadreamer_like import kernels
from datadreamer_like.errors import DefinitionError

# Answers that start at different tokens and have different lengths, one of a single token.
MASK = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(row: int) -> list[int]:
    return MASK[row].nonzero()[:, 0].tolist()


def test_preference_loss_is_that_of_bradley_and_terry():
    chosen, rejected, margin = random(6), random(6, seed=1), random(6, seed=2).abs()
    chosen.requires_grad_()
    found = kernels.preference_loss(chosen, rejected, margin)
    sigma = [
        1 / (1 + math.exp(m + r - c)) for c, r, m in zip(*(x.tolist() for x in (chosen, rejected, margin)), strict=True)
    ]
    assert found.item() == pytest.approx(-sum(map(math.log, sigma)) / 6, rel=1e-12)
    found.backward()
    # d/dr_c of -log σ(x) is σ(x) - 1.
    assert torch.allclose(chosen.grad, (torch.tensor(sigma, dtype=torch.float64) - 1) / 6)
    assert kernels.preference_loss(chosen, chosen).item() == pytest.approx(math.log(2))
    far = kernels.preference_loss(torch.tensor([-1e4]), torch.tensor([0.0]))
    assert far.item() == pytest.approx(1e4)  # no overflow where the pair is quite wrong


def test_each_token_pays_for_its_distance_and_the_last_one_gets_the_score():
    log_probs, reference, scores = random(3, 5), random(3, 5, seed=1), random(3, seed=2)
    found = kernels.penalized_rewards(log_probs, reference, scores, MASK, 0.3)
    for row in range(3):
        for token in range(5):
            wanted = -0.3 * float(log_probs[row, token] - reference[row, token]) if token in tokens(row) else 0.0
            wanted += float(scores[row]) if token == tokens(row)[-1] else 0.0
            assert found[row, token].item() == pytest.approx(wanted)
    assert torch.equal(kernels.penalized_rewards(log_probs, reference, scores, MASK, 0.0).sum(1), scores)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.97, 0.0), (0.8, 1.0), (0.0, 0.5)])
def test_advantages_are_the_sums_of_discounted_errors(gamma, lam):
    rewards, values = random(3, 5), random(3, 5, seed=1)
    advantages, returns = kernels.generalized_advantages(rewards, values, MASK, gamma, lam)
    for row in range(3):
        kept = tokens(row)
        r, v = rewards[row, kept].tolist(), [*values[row, kept].tolist(), 0.0]
        errors = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t, token in enumerate(kept):
            wanted = sum((gamma * lam) ** n * error for n, error in enumerate(errors[t:]))
            assert advantages[row, token].item() == pytest.approx(wanted)
            assert returns[row, token].item() == pytest.approx(wanted + v[t])
            if lam == 1.0:  # then the returns are the discounted rewards, whatever the values
                assert returns[row, token].item() == pytest.approx(sum(gamma**n * x for n, x in enumerate(r[t:])))
    assert not advantages[~MASK].any()
    assert not returns[~MASK].any()


def test_whitened_values_have_mean_0_and_variance_1_over_the_mask_only():
    values = random(3, 5)
    found = kernels.whitened(values.masked_fill(~MASK, 1e6), MASK)
    assert found[MASK].mean().item() == pytest.approx(0, abs=1e-12)
    assert found[MASK].var(correction=0).item() == pytest.approx(1)
    assert torch.allclose(found[MASK], (values[MASK] - values[MASK].mean()) / values[MASK].std(correction=0))
    assert not kernels.whitened(torch.full((3, 5), 2.0), MASK).any()  # no advantage at all gives none


def test_policy_loss_and_its_gradient_are_those_of_the_clipped_objective():
    new, old, advantages = random(3, 5).requires_grad_(), random(3, 5, seed=1), random(3, 5, seed=2)
    found = kernels.clipped_policy_loss(new, old, advantages, MASK, clip=0.2)
    found.backward()
    total, count = 0.0, int(MASK.sum())
    for row in range(3):
        for token in range(5):
            ratio, gain = (new - old).exp()[row, token].item(), advantages[row, token].item()
            if token not in tokens(row):
                assert new.grad[row, token].item() == 0
                continue
            total -= min(ratio * gain, min(max(ratio, 0.8), 1.2) * gain)
            # No gradient where the ratio already went too far in the direction of the advantage.
            over = (ratio > 1.2 and gain > 0) or (ratio < 0.8 and gain < 0)
            assert new.grad[row, token].item() == pytest.approx(0.0 if over else -ratio * gain / count)
    assert found.item() == pytest.approx(total / count)


def test_the_first_step_is_the_policy_gradient():
    log_probs, advantages = random(3, 5).requires_grad_(), random(3, 5, seed=2)
    kernels.clipped_policy_loss(log_probs, log_probs.detach(), advantages, MASK).backward()
    assert torch.allclose(log_probs.grad, torch.where(MASK, -advantages, 0.0) / MASK.sum())


def test_value_loss_is_the_larger_of_both_errors():
    values, old, returns = random(3, 5).requires_grad_(), random(3, 5, seed=1), random(3, 5, seed=2)
    found, total = kernels.clipped_value_loss(values, old, returns, MASK, clip=0.2), 0.0
    for row in range(3):
        for token in tokens(row):
            value, before, wanted = (part[row, token].item() for part in (values, old, returns))
            near = min(max(value, before - 0.2), before + 0.2)
            total += 0.5 * max((value - wanted) ** 2, (near - wanted) ** 2)
    assert found.item() == pytest.approx(total / int(MASK.sum()))
    found.backward()
    assert not values.grad[~MASK].any()


def test_the_penalty_grows_with_the_distance_by_at_most_two_percent():
    assert kernels.adapted_kl_coef(0.2, kl=6.0, target=6.0) == 0.2
    assert kernels.adapted_kl_coef(0.2, kl=6.6, target=6.0) == pytest.approx(0.2 * 1.01)
    assert kernels.adapted_kl_coef(0.2, kl=1e6, target=6.0) == pytest.approx(0.2 * 1.02)
    assert kernels.adapted_kl_coef(0.2, kl=-5.0, target=6.0) == pytest.approx(0.2 * 0.98)


def test_a_discount_out_of_range_is_refused():
    with pytest.raises(DefinitionError, match=r"gamma is 1\.5; it must be from 0 to 1"):
        kernels.generalized_advantages(random(3, 5), random(3, 5), MASK, gamma=1.5)
