"""Divergences between distributions given as log-probabilities [rows, classes]: the definitions, in plain PyTorch.

`p` is the student's distribution, `q` the teacher's. A class of probability 0 has the log-probability -∞.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError, check_number, did_you_mean

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
"""How two distributions are compared; see `distillation.divergence`."""

_LOG_ZERO = -1e4  # finite stand-in for log(0): exp gives 0, and 0 times it is 0, not NaN, in the gradient too


@dataclass(frozen=True)
class How:
    """The checked options of `fused_linear_divergence`."""

    kind: Divergence
    temperature: float
    alpha: float
    beta: float
    skew: float
    chunk: int | None
    backend: Literal["reference", "cpu", "triton"]


def divergence_of_rows(log_p: Tensor, log_q: Tensor, kind: Divergence, beta: float, skew: float) -> Tensor:
    """Returns the divergence of each row [rows], without a factor T²; see `distillation.divergence` for the kinds."""
    if kind == "forward_kl":
        return _kl(log_q, log_p)
    if kind == "reverse_kl":
        return _kl(log_p, log_q)
    if kind == "jsd":
        log_m = _log_mixture(log_q, log_p, beta)
        return beta * _kl(log_q, log_m) + (1 - beta) * _kl(log_p, log_m)
    if kind == "skew_kl":
        return _kl(log_q, _log_mixture(log_q, log_p, skew))
    return _kl(log_p, _log_mixture(log_p, log_q, skew))


def check_divergence(kind: str, temperature: float, beta: float, skew: float) -> None:
    """Raises `DefinitionError` for an unknown kind, or an option that is out of its range."""
    check_temperature(temperature)
    check_number(beta, "beta", -math.inf)
    check_number(skew, "skew", -math.inf)
    if kind not in get_args(Divergence):
        raise DefinitionError(
            f'There is no divergence "{kind}".{did_you_mean(str(kind), get_args(Divergence))} '
            f"Choose one of {', '.join(get_args(Divergence))}."
        )
    if kind == "jsd" and not 0 < beta < 1:
        raise DefinitionError(
            f"beta is {beta}; the generalised Jensen-Shannon divergence is 0 at 0 and at 1, so beta must lie between. "
            'Its limits, rescaled, are kind="forward_kl" (beta near 0) and kind="reverse_kl" (beta near 1).'
        )
    if kind.startswith("skew") and not 0 <= skew < 1:
        raise DefinitionError(f"skew is {skew}; it is a share of a mixture, so it must be at least 0 and under 1.")


def check_temperature(temperature: float) -> None:
    """Raises `DefinitionError` unless the temperature, by which logits are divided, is a finite number above 0."""
    check_number(temperature, "temperature", over=True)


def check_alpha(alpha: float) -> None:
    """Raises `DefinitionError` unless the weight of the soft term, against the labels, is a number from 0 to 1."""
    check_number(alpha, "alpha", 0, 1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`KL(a ‖ b)` of each row [rows, classes]: infinite where a class has probability 0 in b but not in a."""
    without_a, without_b = log_a.isneginf(), log_b.isneginf()
    finite_a, finite_b = log_a.masked_fill(without_a, _LOG_ZERO), log_b.masked_fill(without_b, _LOG_ZERO)
    terms = finite_a.exp() * (finite_a - finite_b)
    return terms.masked_fill(without_b & ~without_a, math.inf).sum(-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """`log(share a + (1 - share) b)`, -∞ where both probabilities are 0."""
    if share == 0:
        return log_b
    nowhere = log_a.isneginf() & log_b.isneginf()
    log_a, log_b = log_a.masked_fill(nowhere, _LOG_ZERO), log_b.masked_fill(nowhere, _LOG_ZERO)
    mixture = torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))
    return mixture.masked_fill(nowhere, -math.inf)
