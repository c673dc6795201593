"""Losses from a few of a teacher's probabilities at each position, as stored by `StoredTeacher`.

Only the student's log-probabilities of the listed tokens, and of all others together, are computed: by a function with
its own gradient, a few rows at a time. It makes no tensor of the size of the logits but their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels.divergences import Divergence, check_divergence, divergence_of_rows

from .losses import IGNORED_LABEL, check_labels, mean_of

Tail = Literal["bucket", "drop", "renormalise"]
"""How the tokens that are not listed count; see `TopK`."""

Rule = Tail | Literal["sampled"]
"""How listed and other tokens count; see `sparse_divergence`."""

# Logits that are worked on at a time: on a CPU 1 MB in fp32, within the cache of a core; elsewhere few, large kernels.
_CHUNK_VALUES, _CHUNK_VALUES_GPU = 1 << 18, 1 << 26
_LEAST = -1e30  # of the other tokens' logits where there are none


@dataclass(frozen=True)
class SparseTargets:
    """A teacher's probabilities of a few tokens at each position.

    Attributes:
        ids: Their token ids, int64 [..., k].
        log_probs: Their natural log-probabilities [..., k]; -∞ where fewer than k are listed. At temperature 1, those
            of samples at the one of `temperatures`.
        rest: [..., temperatures]. The logarithm of `Σ q^(1/T)` over all other tokens for each T of `temperatures`; of
            samples: the logarithm of the least weight c of a token, see `Sampled`.
        rule: How the other tokens count, or "sampled".
        temperatures: Temperatures that a loss can have.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor
    rule: Rule
    temperatures: tuple[float, ...] = (1.0,)

    def at(self, positions: Callable[[Tensor], Tensor]) -> SparseTargets:
        """Returns the targets of the positions that `positions` returns for each tensor."""
        ids, log_probs, rest = positions(self.ids), positions(self.log_probs), positions(self.rest)
        return replace(self, ids=ids, log_probs=log_probs, rest=rest)


def sparse_divergence(
    student_logits: Tensor,
    targets: SparseTargets,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    mask: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's distribution from a teacher's sparse targets, times T².

    `student_logits` are [..., vocabulary], `mask` is [...]; kinds and options are those of `divergence`. What the
    tokens that are not listed add depends on `targets.rule`:

    | rule | loss | compared with `divergence` |
    | --- | --- | --- |
    | bucket | all other tokens are one class | a lower bound of every kind |
    | drop | the sum over the listed tokens alone; `forward_kl` only | biased, and no bound |
    | renormalise | both sides' probabilities, rescaled to sum to 1 over the listed tokens | biased, and no bound |
    | sampled | `Σ w (log q - log p)`, see `Sampled`; `forward_kl` only | unbiased, as is its gradient |

    Example:
        >>> half = torch.tensor([[0.5]]).log()
        >>> targets = SparseTargets(ids=torch.tensor([[2]]), log_probs=half, rest=half, rule="bucket")
        >>> round(sparse_divergence(torch.zeros(1, 4), targets).item(), 4)  # KL((0.5, 0.5) ‖ (0.25, 0.75))
        0.1438

    Raises:
        DefinitionError: An option is out of range, shapes do not fit, or the targets do not have this temperature or
            kind.
    """
    return sparse_and_label_loss(student_logits, targets, None, kind, temperature, beta, skew, mask)[0]


def sparse_and_label_loss(
    student_logits: Tensor,
    targets: SparseTargets,
    labels: Tensor | None,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns `sparse_divergence`, and the cross-entropy with labels, for which the logits are not read again.

    `labels` are [...], -100 for none; those of positions that the mask does not keep are left out.
    """
    check_divergence(kind, temperature, beta, skew)
    check_targets(targets.rule, targets.temperatures, temperature, kind)
    shape = student_logits.shape[:-1]
    others = {"the targets": targets.ids[..., 0], "the labels": labels, "the mask": mask}
    for what, other in others.items():
        if other is not None and other.shape != shape:
            raise DefinitionError(
                f"The student's logits cover positions of shape {tuple(shape)}, but {what} {tuple(other.shape)}. They "
                "must describe the same positions."
            )
    kept = torch.ones(shape, dtype=torch.bool, device=student_logits.device) if mask is None else mask.bool()
    rows = None if kept.all() else kept.flatten().nonzero()[:, 0]
    ids, log_q, rest = targets.ids[kept], targets.log_probs[kept], targets.rest[kept]
    precise = student_logits.dtype if student_logits.dtype == torch.float64 else torch.float32
    log_q, rest = log_q.to(precise), rest.to(precise)
    unused = log_q.isneginf()
    ids = torch.where(unused, ids[:, :1], ids)  # an unused slot must not take a token from the others
    vocabulary = student_logits.shape[-1]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise DefinitionError(
            f"The targets list token {int(ids.max() if ids.min() >= 0 else ids.min())}, and the student's logits have "
            f"{vocabulary:,} tokens, numbered from 0. Store the signals for the student's vocabulary."
        )
    own = None if labels is None else labels[kept]
    if own is not None:
        check_labels(own[own != IGNORED_LABEL], vocabulary)
    log_p, log_p_rest, log_p_label = _LogProbs.apply(  # type: ignore[no-untyped-call]
        student_logits.reshape(-1, student_logits.shape[-1]), rows, ids, unused, None if own is None else
        own.clamp(min=0), temperature, targets.rule == "bucket",
    )  # fmt: skip
    hard = log_p_label.new_zeros(()) if own is None else -mean_of(log_p_label[own >= 0])
    if targets.rule == "sampled":
        weights = torch.maximum(log_q, rest).exp().masked_fill(unused, 0.0)
        return mean_of((weights * (log_q - log_p).masked_fill(unused, 0.0)).sum(-1)) * temperature**2, hard
    log_q = log_q / temperature
    log_p = log_p.masked_fill(unused, -math.inf)
    if targets.rule == "renormalise":
        log_q = log_q - log_q.logsumexp(-1, keepdim=True)
        found = divergence_of_rows(log_p - log_p.logsumexp(-1, keepdim=True), log_q, kind, beta, skew)
        return mean_of(found) * temperature**2, hard
    log_q_rest = rest[:, [targets.temperatures.index(temperature)]]
    everything = torch.cat((log_q, log_q_rest), dim=-1).logsumexp(-1, keepdim=True)
    log_q, log_q_rest = log_q - everything, log_q_rest - everything
    if targets.rule == "bucket":
        log_q, log_p = torch.cat((log_q, log_q_rest), -1), torch.cat((log_p, log_p_rest[:, None]), -1)
    return mean_of(divergence_of_rows(log_p, log_q, kind, beta, skew)) * temperature**2, hard


def check_targets(rule: str, temperatures: Sequence[float], temperature: float, kind: str = "forward_kl") -> None:
    """Raises `DefinitionError` if targets stored under a rule do not give a divergence at a temperature."""
    if kind != "forward_kl" and rule in ("drop", "sampled"):
        how = 'TopK(tail="bucket"), or kind="forward_kl"'
        raise DefinitionError(f'Stored targets of the rule "{rule}" give the forward KL only, not {kind}. Use {how}.')
    if temperature not in temperatures and rule != "renormalise":
        known = ", ".join(f"{value:g}" for value in temperatures)
        how = "Sampled(temperature=...)" if rule == "sampled" else "TopK(temperatures=[...])"
        raise DefinitionError(
            f"The loss has the temperature {temperature:g}, and the teacher's signals were stored for {known}. Use one "
            f"of these, or store it too: {how}."
        )


class _LogProbs(torch.autograd.Function):
    """The student's log-probabilities: of listed tokens [rows, k], of all others together, and of labels at T = 1.

    Shapes: logits [positions, vocabulary], `rows` [rows] the positions that count, None for all, which copies less,
    `ids` and `unused` [rows, k], labels [rows] or None. Where the others are wanted they are summed by themselves: 1
    minus the listed ones would lose all digits of a small rest. Exponentials of the higher temperature serve T = 1 and
    T, as their powers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Tensor | None,
        ids: Tensor,
        unused: Tensor,
        labels: Tensor | None,
        temperature: float,
        with_rest: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
        shared = temperature if labels is None else max(1.0, temperature)
        listed = torch.empty(ids.shape, dtype=dtype, device=logits.device)
        top, others, others_1, label = (torch.zeros(len(ids), dtype=dtype, device=logits.device) for _ in range(4))
        for part in _parts(len(ids), logits):
            z_BV = _rows_of(logits, rows, part).to(dtype, copy=True)
            listed[part] = z_BV.gather(1, ids[part])
            if labels is not None:
                label[part] = z_BV.gather(1, labels[part, None])[:, 0]
            if with_rest:
                z_BV.scatter_(1, ids[part], -math.inf)
            top[part] = z_BV.amax(-1).clamp(min=_LEAST)
            _relative(z_BV, top[part], shared)
            others[part] = _power(z_BV, shared / temperature).sum(-1)
            if labels is not None:
                others_1[part] = _power(z_BV, shared).sum(-1) if temperature != 1 else others[part]
        known = listed.masked_fill(unused, -math.inf)

        def total_at(sums: Tensor, t: float) -> Tensor:
            base = sums.log() + top / t
            return torch.logaddexp(base, (known / t).logsumexp(-1)) if with_rest else base

        total = total_at(others, temperature)
        log_p, log_rest = listed / temperature - total[:, None], others.log() + top / temperature - total
        total_1 = total_at(others_1, 1.0) if labels is not None else total
        log_label = label - total_1
        ctx.save_for_backward(logits, rows, ids, unused, labels, listed, top, total, total_1, log_rest)
        ctx.temperature, ctx.shared, ctx.with_rest = temperature, shared, with_rest
        if not with_rest:
            ctx.mark_non_differentiable(log_rest)
        if labels is None:
            ctx.mark_non_differentiable(log_label)
        return log_p, log_rest, log_label

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_p: Tensor, grad_rest: Tensor, grad_label: Tensor) -> tuple[Tensor | None, ...]:
        logits, rows, ids, unused, labels, listed, top, total, total_1, log_rest = ctx.saved_tensors
        temperature, shared = ctx.temperature, ctx.shared
        grad_p = grad_p.masked_fill(unused, 0.0) / temperature
        grad_rest = grad_rest / temperature if ctx.with_rest else torch.zeros_like(total)
        # d log p_i / d z_j = ([i = j] - p_j) / T; d log p_rest / d z_j = (p_j / p_rest - p_j) / T for the others.
        all_p = -(grad_p.sum(-1) + grad_rest)
        factor = (grad_rest + all_p * log_rest.exp()) * (top / temperature - total - log_rest).exp()
        factor = factor.masked_fill(log_rest.isneginf(), 0.0)  # no others, or only such of probability 0
        factor_1 = -grad_label * (top - total_1).exp()
        own = all_p[:, None] * (listed / temperature - total[:, None]).exp()
        if labels is not None:
            own -= grad_label[:, None] * (listed - total_1[:, None]).exp()
        found = torch.empty_like(logits) if rows is None else torch.zeros_like(logits)
        for part in _parts(len(ids), logits):
            z_BV = _rows_of(logits, rows, part).to(total.dtype, copy=True)
            _relative(z_BV, top[part], shared)
            if labels is None or temperature == 1:
                z_BV.mul_((factor if labels is None else factor + factor_1)[part, None])
            else:  # of the exponents shared / T and shared one is 1
                exponent, high, low = (
                    (shared, factor_1, factor) if temperature > 1 else (1 / temperature, factor, factor_1)
                )
                z_BV.mul_((_power(z_BV, exponent - 1) * high[part, None]).add_(low[part, None]))
            if ctx.with_rest:  # relative to the others, the listed tokens are of any size
                z_BV.scatter_(1, ids[part], own[part])
            z_BV.scatter_add_(1, ids[part], grad_p[part])
            if labels is not None:
                z_BV.scatter_add_(1, labels[part, None], grad_label[part, None])
            if rows is None:
                found[part] = z_BV
            else:
                found.index_copy_(0, rows[part], z_BV.to(found.dtype))
        return found, None, None, None, None, None, None


def _parts(rows: int, logits: Tensor) -> Iterator[slice]:
    values = _CHUNK_VALUES if logits.device.type == "cpu" else _CHUNK_VALUES_GPU
    size = max(1, values // logits.shape[-1])
    return (slice(start, start + size) for start in range(0, rows, size))


def _relative(logits: Tensor, top: Tensor, temperature: float) -> None:
    """Replaces logits by `exp((logits - top) / T)`, in place."""
    logits.sub_(top[:, None])
    if temperature != 1:
        logits.mul_(1 / temperature)
    logits.exp_()


def _rows_of(logits: Tensor, rows: Tensor | None, part: slice) -> Tensor:
    return logits[part] if rows is None else logits.index_select(0, rows[part])


def _power(values: Tensor, exponent: float) -> Tensor:
    if exponent == 4:  # not among those that pow computes by multiplication
        return values.square().square_()
    return values if exponent == 1 else values.pow(exponent)
