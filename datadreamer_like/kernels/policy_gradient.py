"""The formulas of learning from rewards: reward models, PPO, and the KL penalty that keeps a policy near its start.

Tensors of tokens are [rows, tokens], with a mask that is True for the tokens that the policy wrote; those of a row are
adjacent. All is computed in fp32 or better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError


def preference_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """Returns the mean of `-log σ(r_chosen - r_rejected - margin)`, the loss of a reward model on pairs, a scalar.

    Bradley and Terry 1952; Stiennon et al. 2020, arXiv:2009.01325; with a margin Touvron et al. 2023 (Llama 2),
    arXiv:2307.09288.

    Args:
        chosen: [pairs], the rewards of the better answers.
        rejected: [pairs], those of the worse ones.
        margin: [pairs], by how much the rewards should differ at least; None for 0.

    Example:
        >>> preference_loss(torch.tensor([2.0]), torch.tensor([2.0])).item()
        0.6931471824645996
    """
    difference = _wide(chosen) - _wide(rejected)
    return -F.logsigmoid(difference if margin is None else difference - margin).mean()


def penalized_rewards(log_probs: Tensor, reference: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Returns the reward of each token [rows, tokens]: `-β (log π - log π_ref)`, and at the last token also the score.

    Ziegler et al. 2019, arXiv:1909.08593, equation 2, spread over the tokens.

    Args:
        log_probs: [rows, tokens], of the policy that wrote them.
        reference: [rows, tokens], of the reference.
        scores: [rows], the reward of each whole answer.
        mask: Bool [rows, tokens].
        kl_coef: β, from 0.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> penalized_rewards(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([2.0]), mask, 0.5).tolist()
        [[0.5, 2.5, 0.0]]
    """
    last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    rewards = -kl_coef * (_wide(log_probs) - _wide(reference))
    return torch.where(mask, rewards, 0.0) + torch.where(last, _wide(scores)[:, None], 0.0)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Returns the advantages `Σ (γλ)^l δ_{t+l}` with `δ_t = r_t + γ V_{t+1} - V_t`, and the returns, advantage + value.

    Schulman et al. 2016, arXiv:1506.02438, as in PPO. After a row's last token the value is 0. λ = 1 gives the sum of
    the discounted rewards less the value, λ = 0 the error of one step.

    Args:
        rewards: [rows, tokens].
        values: [rows, tokens], the estimate before each token is written.
        mask: Bool [rows, tokens]; both results are 0 elsewhere.
        gamma: γ, the discount of a token, from 0 to 1.
        lam: λ, from 0 to 1.

    Example:
        >>> both = torch.tensor([[True, True]])
        >>> generalized_advantages(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), both, lam=0.5)[0].tolist()
        [[0.5, 1.0]]
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise DefinitionError(f"{name} is {value}; it must be from 0 to 1.")
    mask = mask.bool()
    rewards, values = (torch.where(mask, _wide(part), 0.0) for part in (rewards, values))
    advantages, following, after = (
        torch.zeros_like(values),
        torch.zeros_like(values[:, 0]),
        torch.zeros_like(values[:, 0]),
    )
    for token in reversed(range(values.shape[1])):
        error = rewards[:, token] + gamma * after - values[:, token]
        following = torch.where(mask[:, token], error + gamma * lam * following, 0.0)
        advantages[:, token], after = following, values[:, token]
    return advantages, torch.where(mask, advantages + values, 0.0)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Returns values [rows, tokens] shifted and scaled to mean 0 and variance 1 over the mask, and 0 elsewhere.

    Example:
        >>> whitened(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])).tolist()
        [[-1.0, 1.0, 0.0]]
    """
    mask = mask.bool()
    kept = _wide(values)[mask]
    scaled = (_wide(values) - kept.mean()) / kept.var(correction=0).clamp(min=1e-16).sqrt()
    return torch.where(mask, scaled, 0.0)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """Returns PPO's loss, the mean over the tokens of `-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)` with `ρ = π / π_old`.

    Schulman et al. 2017, arXiv:1707.06347, equation 7.

    Args:
        log_probs: [rows, tokens], of the policy, with gradients.
        old_log_probs: [rows, tokens], of the policy that wrote the tokens.
        advantages: [rows, tokens].
        mask: Bool [rows, tokens].
        clip: ε, above 0.

    Example:
        >>> one, mask = torch.ones(1, 1), torch.tensor([[True]])
        >>> clipped_policy_loss(one, 0 * one, one, mask, clip=0.25).item()
        -1.25
    """
    ratio = (_wide(log_probs) - _wide(old_log_probs)).exp()
    worse = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -worse[mask.bool()].mean()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """Returns half the mean over the tokens of the larger of `(V - R)²` and `(clip(V, V_old ± ε) - R)²`.

    The clipped value loss of PPO's implementations for language models (Ziegler et al. 2019, arXiv:1909.08593).

    Args:
        values: [rows, tokens], of the value head, with gradients.
        old_values: [rows, tokens], when the tokens were written.
        returns: [rows, tokens], the targets.
        mask: Bool [rows, tokens].
        clip: ε, above 0.

    Example:
        >>> one, mask = torch.ones(1, 1), torch.tensor([[True]])
        >>> clipped_value_loss(one, 0 * one, 2 * one, mask, clip=0.5).item()
        1.125
    """
    values = _wide(values)
    near = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * errors[mask.bool()].mean()


def adapted_kl_coef(kl_coef: float, kl: float, target: float, rate: float = 0.1) -> float:
    """Returns the next β: `β (1 + K clip(KL / target - 1, -0.2, 0.2))`, larger if the policy moved too far.

    Ziegler et al. 2019, arXiv:1909.08593, section 2.2.

    Args:
        kl_coef: β.
        kl: The mean KL of an answer to the reference, in nats.
        target: The KL to aim at, above 0.
        rate: K.

    Example:
        >>> adapted_kl_coef(0.2, kl=60.0, target=6.0)
        0.20400000000000001
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + rate * error)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
