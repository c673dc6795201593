"""The GPU kernel of `fused_linear_divergence`: a chunk's logits to its losses, and in place to their gradients.

One program per token passes two or three times over the vocabulary: normalisers of both models; the divergence, and for
all kinds but the forward KL the mean of its derivative `f` under p; the gradient. For a divergence `D(p)` of
`p = softmax(u)`, the gradient is `dD/du_i = p_i (f_i - Σ_j p_j f_j)` with `f_i = dD/dp_i`, up to a constant:

| kind | f_i |
| --- | --- |
| forward_kl | `-q_i / p_i`, so that the gradient is `p_i - q_i` |
| reverse_kl | `log p_i - log q_i` |
| jsd | `(1-β) (log p_i - log m_i)`, `m = βq + (1-β)p` |
| skew_kl | `-(1-λ) q_i / m_i`, `m = λq + (1-λ)p` |
| skew_reverse_kl | `log p_i - log m_i - λ p_i / m_i`, `m = (1-λ)q + λp` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from ..divergences import How

_KINDS = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2, "skew_kl": 3, "skew_reverse_kl": 4}
_UNSKEWED = {"skew_kl": "forward_kl", "skew_reverse_kl": "reverse_kl"}
_LARGEST_BLOCK = 4096


def divergence_and_gradient(
    logits: Tensor, teacher: Tensor, labels: Tensor | None, how: How, graded: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss of each row [rows], and the gradient of their sum for `logits`, which it overwrites.

    `logits` are [rows, vocabulary], `teacher` [rows, teacher_vocabulary], at most as many; `labels` [rows].
    """
    rows, words = logits.shape
    kind = _UNSKEWED.get(how.kind, how.kind) if how.skew == 0 else how.kind
    loss = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(_LARGEST_BLOCK, triton.next_power_of_2(words))
    hard = labels is not None and how.alpha < 1
    _rows_kernel[(rows,)](
        logits,
        teacher,
        labels if hard else logits,
        loss,
        logits.stride(0),
        teacher.stride(0),
        words,
        teacher.shape[1],
        1 / how.temperature,
        how.alpha * how.temperature**2,
        how.alpha * how.temperature,
        1 - how.alpha,
        how.beta if how.kind == "jsd" else how.skew,
        KIND=_KINDS[kind],
        SOFT=how.alpha > 0,
        HARD=hard,
        GRADED=graded,
        BLOCK=block,
        num_warps=max(4, min(16, block // 256)),
    )
    return loss, logits if graded else None


@triton.jit
def _mixture(log_a, log_b, share):
    """`log(share a + (1 - share) b)`; -∞ where both are."""
    a, b = log_a + tl.log(share), log_b + tl.log(1 - share)
    top = tl.maximum(tl.maximum(a, b), -1e30)
    return top + tl.log(tl.exp(a - top) + tl.exp(b - top))


@triton.jit
def _terms(log_p, log_q, share, KIND: tl.constexpr):
    """The divergence's summands, and f where it is finite; see the module."""
    p, q = tl.exp(log_p), tl.exp(log_q)
    if KIND == 0:
        terms = tl.where(q > 0, q * (log_q - log_p), 0.0)
        slope = terms
    elif KIND == 1:
        terms = tl.where(p > 0, p * (log_p - log_q), 0.0)
        slope = log_p - log_q
    elif KIND == 2:
        log_m = _mixture(log_q, log_p, share)
        slope = (1 - share) * (log_p - log_m)
        terms = tl.where(p > 0, p * slope, 0.0) + tl.where(q > 0, share * q * (log_q - log_m), 0.0)
    elif KIND == 3:
        log_m = _mixture(log_q, log_p, share)
        slope = -(1 - share) * tl.exp(log_q - log_m)
        terms = tl.where(q > 0, q * (log_q - log_m), 0.0)
    else:
        log_m = _mixture(log_p, log_q, share)
        slope = log_p - log_m - share * tl.exp(log_p - log_m)
        terms = tl.where(p > 0, p * (log_p - log_m), 0.0)
    return p, terms, tl.where(p > 0, slope, 0.0)


@triton.jit
def _load(pointer, offsets, words):
    return tl.load(pointer + offsets, mask=offsets < words, other=-float("inf")).to(tl.float32)


@triton.jit
def _rows_kernel(
    student,
    teacher,
    labels,
    losses,
    student_stride,
    teacher_stride,
    words,
    teacher_words,
    inverse_temperature,
    soft_loss,
    soft_gradient,
    hard_weight,
    share,
    KIND: tl.constexpr,
    SOFT: tl.constexpr,
    HARD: tl.constexpr,
    GRADED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    s_top = -1e30
    s_sum = 0.0
    t_top = -1e30
    t_sum = 0.0
    h_top = -1e30
    h_sum = 0.0
    for start in range(0, words, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        z = _load(student, offsets, words)
        if SOFT:
            u = z * inverse_temperature
            v = _load(teacher, offsets, teacher_words) * inverse_temperature
            top = tl.maximum(s_top, tl.max(u, axis=0))
            s_sum = s_sum * tl.exp(s_top - top) + tl.sum(tl.exp(u - top), axis=0)
            s_top = top
            top = tl.maximum(t_top, tl.max(v, axis=0))
            t_sum = t_sum * tl.exp(t_top - top) + tl.sum(tl.exp(v - top), axis=0)
            t_top = top
        if HARD:
            top = tl.maximum(h_top, tl.max(z, axis=0))
            h_sum = h_sum * tl.exp(h_top - top) + tl.sum(tl.exp(z - top), axis=0)
            h_top = top
    s_norm = s_top + tl.log(s_sum)
    t_norm = t_top + tl.log(t_sum)
    h_norm = h_top + tl.log(h_sum)
    loss = 0.0
    label = -1
    if HARD:
        label = tl.load(labels + row)
        loss += hard_weight * (h_norm - tl.load(student + label).to(tl.float32))
    soft = 0.0
    mean_slope = 0.0
    if SOFT and (KIND != 0 or not GRADED):
        for start in range(0, words, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            log_p = _load(student, offsets, words) * inverse_temperature - s_norm
            log_q = _load(teacher, offsets, teacher_words) * inverse_temperature - t_norm
            p, terms, slope = _terms(log_p, log_q, share, KIND)
            soft += tl.sum(terms, axis=0)
            mean_slope += tl.sum(p * slope, axis=0)
    if GRADED:
        for start in range(0, words, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            z = _load(student, offsets, words)
            gradient = tl.zeros([BLOCK], dtype=tl.float32)
            if SOFT:
                log_p = z * inverse_temperature - s_norm
                log_q = _load(teacher, offsets, teacher_words) * inverse_temperature - t_norm
                p, terms, slope = _terms(log_p, log_q, share, KIND)
                if KIND == 0:
                    soft += tl.sum(terms, axis=0)
                    gradient += soft_gradient * (p - tl.exp(log_q))
                else:
                    gradient += soft_gradient * p * (slope - mean_slope)
            if HARD:
                one_hot = tl.where(offsets == label, 1.0, 0.0)
                gradient += hard_weight * (tl.exp(z - h_norm) - one_hot)
            tl.store(student + offsets, gradient.to(student.dtype.element_ty), mask=offsets < words)
    tl.store(losses + row, loss + soft_loss * soft)
