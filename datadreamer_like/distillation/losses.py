"""Losses between a student's logits and its teacher's: pure functions of tensors, of any leading shape.

`p` is the student's distribution, `q` the teacher's, `T` the temperature. Every loss is a scalar, the mean over the
positions kept, computed in fp32 (fp64 for fp64 logits) whatever the dtype of the logits. Positions left out are taken
away before anything is computed, so that not even a NaN in them reaches the loss or its gradient; where none is kept
the loss is 0 and so is its gradient.
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

IGNORED_LABEL = -100
"""The label of a position that carries no loss, as in transformers."""

_LOG_ZERO = -1e4  # its exponential is 0, yet 0 times it is 0 and not NaN, in the gradient too


def supervised_loss(student_logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with labels.

    Args:
        student_logits: [..., classes].
        labels: Class indices [...], -100 where there is none; or, where a row may have several classes, 0-1 vectors
            [..., classes] of a floating dtype, of which each class is then a question of its own.
        mask: Bool [...], True where a position is kept; None keeps all.

    Returns:
        A scalar: the mean over the positions kept (and over the classes, for 0-1 vectors).

    Raises:
        DefinitionError: Shapes do not fit together.
    """
    (student,), kept_labels = _kept((student_logits,), labels, mask)
    if kept_labels is None:
        raise DefinitionError("The cross-entropy needs labels. Pass class indices [...].")
    return _mean(F.cross_entropy(_precise(student), kept_labels, reduction="none"))


def hard_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy with the class that the teacher holds most likely; what the labels say does not matter.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531.

    Args:
        student_logits: [..., classes].
        teacher_logits: [..., classes]; classes beyond the student's are not chosen.
        labels: Only say where to look: positions labelled -100 are left out, and 0-1 vectors [..., classes] of a
            floating dtype make each class a question of its own (the teacher's answer is yes above a logit of 0).
        mask: Bool [...], True where a position is kept; None keeps all.

    Returns:
        A scalar: the mean over the positions kept.

    Raises:
        DefinitionError: Shapes do not fit together.
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
    """Soft targets, weighed by `alpha`, and labels: `alpha T² KL(q_T ‖ p_T) + (1 - alpha) CE(labels, p)`.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531; `q_T = softmax(teacher / T)`, `p_T = softmax(student / T)`. T²
    keeps the gradient of the soft term at the size that it has at T = 1, so `alpha` means the same at every
    temperature. `alpha=0` is supervised learning; `alpha=1` needs no labels.

    Args:
        student_logits: [..., classes].
        teacher_logits: [..., classes]; no gradient flows into them.
        labels: As in `supervised_loss`. Positions labelled -100 are left out of both terms.
        temperature: T, above 0.
        alpha: Weight of the soft term, from 0 to 1.
        mask: Bool [...], True where a position is kept; None keeps all.

    Returns:
        A scalar: the mean over the positions kept.

    Raises:
        DefinitionError: An option is out of its range, shapes do not fit, or labels are missing where `alpha < 1`.
    """
    check_temperature(temperature)
    check_alpha(alpha)
    if labels is None and alpha < 1:
        raise DefinitionError(f"alpha is {alpha}, so labels weigh {1 - alpha:g}, but there are none. Pass labels.")
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
    """How far the student's distribution is from the teacher's, times T² (which trl and Liger leave out).

    | kind | formula | |
    | --- | --- | --- |
    | forward_kl | `KL(q ‖ p)` | the student covers all that the teacher says |
    | reverse_kl | `KL(p ‖ q)`, of each position | the student says only what the teacher would |
    | jsd | `β KL(q ‖ m) + (1-β) KL(p ‖ m)`, `m = βq + (1-β)p` | GKD, Agarwal et al. 2023, arXiv:2306.13649 |
    | skew_kl | `KL(q ‖ λq + (1-λ)p)` | DistiLLM, Ko et al. 2024, arXiv:2402.03898 |
    | skew_reverse_kl | `KL(p ‖ (1-λ)q + λp)` | the same |

    A side with fewer classes gives the others no probability (a logit of -∞, never 0). Then, as by definition,
    forward KL is infinite where the teacher gives such a class any probability, unlike the mixtures.

    Args:
        student_logits: [..., classes].
        teacher_logits: [..., classes]; no gradient flows into them.
        kind: Which divergence.
        temperature: T, above 0; both sides' logits are divided by it.
        beta: β of "jsd", between 0 and 1, both excluded: the formula is 0 there, while its quotient by β (or 1-β)
            tends to the forward (reverse) KL, which libraries put in its place. Ask for those by their names.
        skew: λ of "skew_kl" and "skew_reverse_kl", from 0 (the plain KL) to less than 1.
        mask: Bool [...], True where a position is kept; None keeps all.

    Returns:
        A scalar: the mean over the positions kept.

    Raises:
        DefinitionError: An option is out of its range, or shapes do not fit together.
    """
    check_temperature(temperature)
    _check_kind(kind, beta, skew)
    (student, teacher), _ = _kept((student_logits, teacher_logits), None, mask)
    width = max(student.shape[-1], teacher.shape[-1])
    dtype = torch.promote_types(_precise(student).dtype, _precise(teacher).dtype)
    log_p = _log_probabilities(student.to(dtype) / temperature, width)
    log_q = _log_probabilities(teacher.detach().to(dtype) / temperature, width)
    if kind == "forward_kl":
        found = _kl(log_q, log_p)
    elif kind == "reverse_kl":
        found = _kl(log_p, log_q)
    elif kind == "jsd":
        log_m = _log_mixture(log_q, log_p, beta)
        found = beta * _kl(log_q, log_m) + (1 - beta) * _kl(log_p, log_m)
    elif kind == "skew_kl":
        found = _kl(log_q, _log_mixture(log_q, log_p, skew))
    else:
        found = _kl(log_p, _log_mixture(log_p, log_q, skew))
    return _mean(found) * temperature**2


def check_temperature(temperature: float) -> None:
    """Refuses a temperature that is not above 0.

    Raises:
        DefinitionError: It is not.
    """
    if not 0 < temperature < math.inf:
        raise DefinitionError(f"temperature is {temperature}; logits are divided by it, so it must be above 0.")


def check_alpha(alpha: float) -> None:
    """Refuses a weight of the soft term outside [0, 1].

    Raises:
        DefinitionError: It is outside.
    """
    if not 0 <= alpha <= 1:
        raise DefinitionError(
            f"alpha is {alpha}; it is the weight of the soft term against the labels, so it must be from 0 to 1."
        )


def _check_kind(kind: str, beta: float, skew: float) -> None:
    if kind not in get_args(Divergence):
        raise DefinitionError(
            f'"{kind}" is not a divergence known here.{did_you_mean(kind, get_args(Divergence))} '
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


def _log_probabilities(logits: Tensor, width: int) -> Tensor:
    log_probabilities = F.log_softmax(logits, dim=-1)
    return F.pad(log_probabilities, (0, width - logits.shape[-1]), value=-math.inf)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`KL(a ‖ b)` of each row [rows, classes]: 0 for a class without probability in a, infinite for one only in a."""
    without_a, without_b = log_a.isneginf(), log_b.isneginf()
    finite_a, finite_b = log_a.masked_fill(without_a, _LOG_ZERO), log_b.masked_fill(without_b, _LOG_ZERO)
    terms = finite_a.exp() * (finite_a - finite_b)
    return terms.masked_fill(without_b & ~without_a, math.inf).sum(-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """`log(share a + (1 - share) b)`, -∞ where both have no probability."""
    if share == 0:
        return log_b
    nowhere = log_a.isneginf() & log_b.isneginf()
    log_a, log_b = log_a.masked_fill(nowhere, _LOG_ZERO), log_b.masked_fill(nowhere, _LOG_ZERO)
    mixture = torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))
    return mixture.masked_fill(nowhere, -math.inf)


def _kept(
    logits: tuple[Tensor, ...], labels: Tensor | None, mask: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The positions that count, as rows: logits [kept, classes] and labels [kept]."""
    if labels is not None and labels.is_floating_point():
        logits, labels, mask = _as_questions(logits, labels, mask)
    shape = logits[0].shape[:-1]
    for what, other in (
        *(("the teacher's logits", item.shape[:-1]) for item in logits[1:]),
        *(() if labels is None else (("the labels", labels.shape),)),
        *(() if mask is None else (("the mask", mask.shape),)),
    ):
        if other != shape:
            raise DefinitionError(
                f"The student's logits cover positions of shape {tuple(shape)}, but {what} {tuple(other)}. "
                "They must describe the same positions: logits [..., classes], labels and mask [...]."
            )
    rows = tuple(item.reshape(-1, item.shape[-1]) for item in logits)
    keep = None if mask is None else mask.bool().flatten()
    if labels is not None:
        labels = labels.flatten()
        labelled = labels != IGNORED_LABEL
        keep = labelled if keep is None else keep & labelled
    if keep is None:
        return rows, labels
    return tuple(item[keep] for item in rows), None if labels is None else labels[keep]


def _as_questions(
    logits: tuple[Tensor, ...], labels: Tensor, mask: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """Rows that may have several classes, as one yes-or-no question a class: [..., classes] becomes [..., classes, 2].

    The softmax of `(z, 0)` is the sigmoid of `z`, so every formula holds unchanged.
    """
    for item in logits:
        if item.shape != labels.shape:
            raise DefinitionError(
                f"Labels of a floating dtype are 0-1 vectors of classes, of shape {tuple(labels.shape)} here, but "
                f"logits are of shape {tuple(item.shape)}. Pass class indices as integers, or one number a class."
            )
    questions = tuple(torch.stack((item, torch.zeros_like(item)), dim=-1) for item in logits)
    answers = torch.where(labels == IGNORED_LABEL, labels, (labels < 0.5).to(labels.dtype)).long()
    return questions, answers, None if mask is None else mask[..., None].expand(labels.shape)
