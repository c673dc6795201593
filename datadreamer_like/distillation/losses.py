"""Losses between a student's logits [..., classes] and its teacher's: pure functions of tensors.

`p` is the student's distribution, `q` the teacher's, `T` the temperature; no gradient flows into the teacher's logits.
Every loss is a scalar, the mean over the positions where `mask` [...] is True (None keeps all), computed in fp32 (fp64
for fp64 logits). Masked positions are removed before any computation, so that a NaN there cannot reach the loss or its
gradient; if all positions are masked, loss and gradient are 0. Shapes that do not fit, and options out of range, raise
`DefinitionError`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels.divergences import (
    Divergence,
    check_alpha,
    check_divergence,
    check_temperature,
    divergence_of_rows,
)

Logits = tuple[Tensor, ...]

IGNORED_LABEL = -100
"""The label of a position that carries no loss, as in transformers."""


def supervised_loss(student_logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with labels, averaged over the positions that `mask` keeps.

    `labels` are class indices [...], -100 for none; or multi-label targets, 0-1 vectors [..., classes] of a floating
    dtype, for which each class is an independent binary decision and the mean is over the classes too.
    """
    (student,), kept_labels = _kept((student_logits,), labels, mask)
    if kept_labels is None:
        raise DefinitionError("The cross-entropy needs labels. Pass class indices [...].")
    return mean_of(_label_losses(student, kept_labels))


def target_loss(student_logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy with targets that are soft or weighted: `-Σ_k t_k log p_k`, averaged over positions.

    `targets` are [..., classes], such as probabilities, times the weights of classes; or [..., classes, 2] for
    multi-label rows: those of a yes and of a no for each class, and the mean is over the classes too. A position's
    targets need not sum to 1; one-hot ones give `supervised_loss`.
    """
    if targets.shape[: student_logits.dim()] != student_logits.shape or targets.shape[student_logits.dim() :] > (2,):
        raise DefinitionError(
            f"Targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(student_logits.shape)}. Pass "
            "one number per class, or two, [..., classes, 2], for multi-label rows."
        )
    if mask is not None:
        mask = mask.bool()  # whole numbers would be read as indices of rows
        student_logits, targets = student_logits[mask], targets[mask]
    logits = _precise(student_logits)
    if targets.dim() > logits.dim():
        logprobs = torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=-1)
    else:
        logprobs = F.log_softmax(logits, dim=-1)
    return mean_of(-(targets.to(logprobs.dtype) * logprobs).sum(-1))


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
    return mean_of(F.cross_entropy(_precise(student), chosen, reduction="none"))


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
        loss = loss + (1 - alpha) * mean_of(_label_losses(student, kept_labels))
    return loss


def confidence_weighted_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy with labels, weighted by the teacher's confidence: `Σ_s w_s CE(y_s, p_s) / Σ_s w_s`.

    `w_s = max_k q_k` is the probability of the teacher's most likely class, right or wrong. Confidence weighting by
    teacher max (CWTM) of Furlanello et al. 2018, arXiv:1805.04770, equation 10: the control that keeps of soft targets
    only their effect on the size of a row's gradient. Arguments as in `soft_target_loss`.
    """
    (student, teacher), kept_labels = _kept((student_logits, teacher_logits), labels, mask)
    weights = confidence(teacher)
    losses = _label_losses(student, kept_labels)  # type: ignore[arg-type]
    return (weights * losses).sum() / weights.sum().clamp(min=1e-12)


def confidence(logits: Tensor) -> Tensor:
    """Returns the probability [...] of the most likely class of logits [..., classes], without gradients."""
    return F.softmax(_precise(logits.detach()), dim=-1).amax(-1)


def permuted_logits(teacher_logits: Tensor, rows: Tensor, seed: int = 0) -> Tensor:
    """Returns logits [rows, classes] whose values are shuffled among all classes but each row's most likely one.

    The dark knowledge with permuted predictions (DKPP) of Furlanello et al. 2018, arXiv:1805.04770, equation 11: which
    of the other classes are similar is lost, how certain the teacher is stays. `rows` [rows] numbers the rows: a row's
    permutation depends on its number and `seed` alone, so it is the same in each epoch and after a resume.
    """
    classes = torch.arange(teacher_logits.shape[-1], device=teacher_logits.device)
    best = classes == teacher_logits.argmax(-1, keepdim=True)
    key = rows.to(classes.device).long()[:, None] * 0x5851F42D4C957F2D + classes * 0x14057B7EF767814F + seed
    for factor in (0x7F4A7C15F39CC060, 0x1CE4E5B9BF58476D, 0x133111EB94D049BB):
        key = (key ^ (key >> 29)) * factor  # int64 wraps around: a hash of row, class and seed
    key = key ^ (key >> 32)
    order = key.masked_fill(best, torch.iinfo(key.dtype).min).argsort(dim=-1)
    places = classes.expand_as(key).masked_fill(best, -1).argsort(dim=-1, stable=True)
    return torch.empty_like(teacher_logits).scatter_(-1, places, teacher_logits.gather(-1, order))


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
    return mean_of(divergence_of_rows(log_p, log_q, kind, beta, skew)) * temperature**2


def _label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row of logits [rows, classes] with its label [rows]."""
    check_labels(labels, logits.shape[-1])
    return F.cross_entropy(_precise(logits), labels, reduction="none")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises `DefinitionError` for a label that is not a class index."""
    outside = (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        raise DefinitionError(
            f"The label {int(labels[outside][0])} is none of the {classes:,} classes, which are numbered from 0; "
            f"{IGNORED_LABEL} stands for no label."
        )


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def mean_of(losses: Tensor) -> Tensor:
    """Returns the mean of the losses [...] of positions; 0 if there are none."""
    return losses.sum() / max(losses.numel(), 1)


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
    if keep is None or bool(keep.all()):  # without a copy of the logits
        flat = tuple(item.reshape(-1, item.shape[-1]) for item in logits)
        return flat, None if labels is None else labels.flatten()
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
