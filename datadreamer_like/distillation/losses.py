"""Losses between a student's logits [..., classes] and its teacher's: pure functions of tensors.

`p` is the student's distribution, `q` the teacher's, `T` the temperature; no gradient flows into the teacher's logits.
Every loss is a scalar, the mean over the positions where `mask` [...] is True (None keeps all), computed in fp32 (fp64
for fp64 logits). Masked positions are removed before any computation, so that a NaN there cannot reach the loss or its
gradient; if all positions are masked, loss and gradient are 0. Shapes that do not fit, and options out of range, raise
`DefinitionError`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError, did_you_mean

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
"""How two distributions are compared; see `divergence`."""

Logits = tuple[Tensor, ...]

IGNORED_LABEL = -100
"""The label of a position that carries no loss, as in transformers."""

_LOG_ZERO = -1e4  # finite stand-in for log(0): exp gives 0, and 0 times it is 0, not NaN, in the gradient too


def supervised_loss(student_logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with labels, averaged over the positions that `mask` keeps.

    `labels` are class indices [...], -100 for none; or multi-label targets, 0-1 vectors [..., classes] of a floating
    dtype, for which each class is an independent binary decision and the mean is over the classes too.
    """
    (student,), kept_labels = _kept((student_logits,), labels, mask)
    if kept_labels is None:
        raise DefinitionError("The cross-entropy needs labels. Pass class indices [...].")
    return _mean(F.cross_entropy(_precise(student), kept_labels, reduction="none"))


def hard_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy with the teacher's most likely class, averaged over the positions that `mask` keeps.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531. Classes beyond the student's are never chosen. `labels` only mask:
    positions labelled -100 are left out, and 0-1 vectors [..., classes] of a floating dtype make each class a binary
    decision (the teacher's is "yes" above a logit of 0).
    """
    (student, teacher), _ = _kept((student_logits, teacher_logits), labels, mask)
    chosen = teacher.detach()[:, : student.shape[-1]].argmax(-1)
    return _mean(F.cross_entropy(_precise(student), chosen, reduction="none"))


def soft_target_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    temperature: float = 2.0,
    alpha: float = 0.5,
    mask: Tensor | None = None,
) -> Tensor:
    """Soft targets, weighted by `alpha`, and labels: `alpha T² KL(q_T ‖ p_T) + (1 - alpha) CE(labels, p)`.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531; `q_T = softmax(teacher / T)`, `p_T = softmax(student / T)`. T²
    keeps the soft term's gradient on the scale of T = 1, so `alpha` means the same at every temperature. `alpha=0` is
    supervised learning; `alpha=1` needs no labels. Logits are [..., classes], `labels` as in `supervised_loss`;
    positions labelled -100 are left out of both terms, as are those that the bool `mask` [...] does not keep.
    """
    check_temperature(temperature)
    check_alpha(alpha)
    if labels is None and alpha < 1:
        raise DefinitionError(f"alpha is {alpha}, so labels have weight {1 - alpha:g}, but are missing. Pass labels.")
    (student, teacher), kept_labels = _kept((student_logits, teacher_logits), labels, mask)
    loss = student.new_zeros((), dtype=_precise(student).dtype)
    if alpha > 0:
        loss = loss + alpha * divergence(student, teacher, temperature=temperature)
    if alpha < 1 and kept_labels is not None:
        loss = loss + (1 - alpha) * _mean(F.cross_entropy(_precise(student), kept_labels, reduction="none"))
    return loss


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    mask: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's distribution from the teacher's, times T² (which trl and Liger leave out).

    | kind | formula | |
    | --- | --- | --- |
    | forward_kl | `KL(q ‖ p)` | mode-covering: the student gives probability wherever the teacher does |
    | reverse_kl | `KL(p ‖ q)`, per position | mode-seeking: the student avoids what the teacher finds unlikely |
    | jsd | `β KL(q ‖ m) + (1-β) KL(p ‖ m)`, `m = βq + (1-β)p` | GKD, Agarwal et al. 2023, arXiv:2306.13649 |
    | skew_kl | `KL(q ‖ λq + (1-λ)p)` | DistiLLM, Ko et al. 2024, arXiv:2402.03898 |
    | skew_reverse_kl | `KL(p ‖ (1-λ)q + λp)` | the same |

    If one side has fewer classes, it gives the missing ones probability 0 (a logit of -∞). Forward KL is then infinite,
    by definition, if the teacher gives such a class any probability; the mixtures stay finite.

    `temperature` T, above 0, divides both sides' logits. `skew` λ is from 0 (the plain KL) to less than 1. `beta` β is
    strictly between 0 and 1: at the ends the formula is 0, while divided by β (or 1-β) it tends to the forward
    (reverse) KL, which some libraries return instead; use those kinds by name.
    """
    check_divergence(kind, temperature, beta, skew)
    (student, teacher), _ = _kept((student_logits, teacher_logits), None, mask)
    width = max(student.shape[-1], teacher.shape[-1])
    dtype = torch.promote_types(_precise(student).dtype, _precise(teacher).dtype)
    log_p, log_q = (
        F.pad(F.log_softmax(logits.to(dtype) / temperature, dim=-1), (0, width - logits.shape[-1]), value=-math.inf)
        for logits in (student, teacher.detach())
    )
    return _mean(row_divergence(log_q, log_p, kind, beta, skew)) * temperature**2


def row_divergence(log_q: Tensor, log_p: Tensor, kind: Divergence, beta: float = 0.5, skew: float = 0.1) -> Tensor:
    """Returns `divergence` of each row, without T², of log-probabilities [rows, classes] of teacher and student."""
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


def check_temperature(temperature: float) -> None:
    """Raises `DefinitionError` unless the temperature is above 0."""
    if not 0 < temperature < math.inf:
        raise DefinitionError(f"temperature is {temperature}; logits are divided by it, so it must be above 0.")


def check_alpha(alpha: float) -> None:
    """Raises `DefinitionError` unless the weight of the soft term is in [0, 1]."""
    if not 0 <= alpha <= 1:
        raise DefinitionError(
            f"alpha is {alpha}; it is the weight of the soft term against the labels, so it must be from 0 to 1."
        )


def check_divergence(kind: str, temperature: float, beta: float, skew: float) -> None:
    """Raises `DefinitionError` if an option of `divergence` is out of range."""
    check_temperature(temperature)
    if kind not in get_args(Divergence):
        raise DefinitionError(
            f'There is no divergence "{kind}".{did_you_mean(kind, get_args(Divergence))} '
            f"Choose one of {', '.join(get_args(Divergence))}."
        )
    if kind == "jsd" and not 0 < beta < 1:
        raise DefinitionError(
            f"beta is {beta}; the generalised Jensen-Shannon divergence is 0 at 0 and at 1, so beta must lie between. "
            'Its limits, rescaled, are kind="forward_kl" (beta near 0) and kind="reverse_kl" (beta near 1).'
        )
    if kind.startswith("skew") and not 0 <= skew < 1:
        raise DefinitionError(f"skew is {skew}; it is a share of a mixture, so it must be at least 0 and under 1.")


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(losses.numel(), 1)


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


def _kept(logits: Logits, labels: Tensor | None, mask: Tensor | None) -> tuple[Logits, Tensor | None]:
    """The unmasked positions as rows: logits [kept, classes] and labels [kept]."""
    if labels is not None and labels.is_floating_point():
        logits, labels, mask = _as_questions(logits, labels, mask)
    shape = logits[0].shape[:-1]
    others = {"the teacher's logits": logits[-1][..., 0], "the labels": labels, "the mask": mask}
    for what, other in others.items():
        if other is not None and other.shape != shape:
            raise DefinitionError(
                f"The student's logits cover positions of shape {tuple(shape)}, but {what} {tuple(other.shape)}. "
                "They must describe the same positions: logits [..., classes], labels and mask [...]."
            )
    keep = None if mask is None else mask.bool()
    if labels is not None:
        keep = labels != IGNORED_LABEL if keep is None else keep & (labels != IGNORED_LABEL)
    if keep is None:
        return tuple(item.reshape(-1, item.shape[-1]) for item in logits), None
    return tuple(item[keep] for item in logits), None if labels is None else labels[keep]


def _as_questions(logits: Logits, labels: Tensor, mask: Tensor | None) -> tuple[Logits, Tensor, Tensor | None]:
    """Turns multi-label targets into one binary decision per class: [..., classes] becomes [..., classes, 2].

    The softmax of `(z, 0)` is the sigmoid of `z`, so every formula applies unchanged.
    """
    for item in logits:
        if item.shape != labels.shape:
            raise DefinitionError(
                f"Labels of a floating dtype are 0-1 vectors of classes, of shape {tuple(labels.shape)} here, but "
                f"logits are of shape {tuple(item.shape)}. Pass class indices as integers, or one number per class."
            )
    questions = tuple(torch.stack((item, torch.zeros_like(item)), dim=-1) for item in logits)
    answers = torch.where(labels == IGNORED_LABEL, labels, (labels < 0.5).to(labels.dtype)).long()
    return questions, answers, None if mask is None else mask[..., None].expand(labels.shape)
