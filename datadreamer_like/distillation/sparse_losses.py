"""Losses from a few of a teacher's probabilities at each position, as stored by `StoredTeacher`.

Only the student's log-probabilities of the listed tokens, and of all others together, are computed: by a function with
its own gradient, a few rows at a time. It makes no tensor of the size of the logits but their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels.divergences import Divergence, check_divergence, divergence_of_rows

Tail = Literal["bucket", "drop", "renormalise"]
"""How the tokens that are not listed count; see `TopK`."""

Rule = Tail | Literal["sampled"]
"""How listed and other tokens count; see `sparse_divergence`."""

# Logits that are worked on at a time: on a CPU 8 MB in fp32, about the size of a cache; elsewhere few, large kernels.
_CHUNK_VALUES, _CHUNK_VALUES_GPU = 1 << 21, 1 << 26


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
    check_divergence(kind, temperature, beta, skew)
    check_targets(targets.rule, targets.temperatures, temperature, kind)
    shape = student_logits.shape[:-1]
    if targets.ids.shape[:-1] != shape or (mask is not None and mask.shape != shape):
        raise DefinitionError(
            f"The student's logits cover positions of shape {tuple(shape)}, but the targets "
            f"{tuple(targets.ids.shape[:-1])}{'' if mask is None else f' and the mask {tuple(mask.shape)}'}. They must "
            "describe the same positions."
        )
    kept = torch.ones(shape, dtype=torch.bool, device=student_logits.device) if mask is None else mask.bool()
    rows = kept.flatten().nonzero()[:, 0]
    ids, log_q, rest = targets.ids[kept], targets.log_probs[kept], targets.rest[kept]
    precise = student_logits.dtype if student_logits.dtype == torch.float64 else torch.float32
    log_q, rest = log_q.to(precise), rest.to(precise)
    ids = torch.where(log_q.isneginf(), ids[:, :1], ids)  # an unused slot must not take a token from the others
    log_p, log_p_rest = _LogProbs.apply(  # type: ignore[no-untyped-call]
        student_logits.reshape(-1, student_logits.shape[-1]), rows, ids, log_q.isneginf(), temperature,
        targets.rule == "bucket",
    )  # fmt: skip
    if targets.rule == "sampled":
        unused = log_q.isneginf()
        weights = torch.maximum(log_q, rest).exp().masked_fill(unused, 0.0)
        return _mean((weights * (log_q - log_p).masked_fill(unused, 0.0)).sum(-1)) * temperature**2
    log_q = log_q / temperature
    if targets.rule == "renormalise":
        log_q = log_q - log_q.logsumexp(-1, keepdim=True)
        log_p = log_p.masked_fill(log_q.isneginf(), -math.inf)
        found = divergence_of_rows(log_p - log_p.logsumexp(-1, keepdim=True), log_q, kind, beta, skew)
        return _mean(found) * temperature**2
    log_q_rest = rest[:, [targets.temperatures.index(temperature)]]
    everything = torch.cat((log_q, log_q_rest), dim=-1).logsumexp(-1, keepdim=True)
    log_q, log_q_rest = log_q - everything, log_q_rest - everything
    log_p = log_p.masked_fill(log_q.isneginf(), -math.inf)
    if targets.rule == "bucket":
        log_q, log_p = torch.cat((log_q, log_q_rest), -1), torch.cat((log_p, log_p_rest[:, None]), -1)
    return _mean(divergence_of_rows(log_p, log_q, kind, beta, skew)) * temperature**2


def certain(labels: Tensor) -> SparseTargets:
    """Returns targets with all probability on labels [...]: their divergence is the cross-entropy, of less memory."""
    nothing = torch.zeros(*labels.shape, 1, device=labels.device)
    return SparseTargets(labels.clamp(min=0)[..., None], nothing, nothing, "sampled")


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
    """The student's log-probabilities of listed tokens [rows, k], and of all other tokens together [rows].

    Shapes: logits [positions, vocabulary], `rows` [rows] the positions that count, `ids` and `unused` [rows, k].
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Tensor, ids: Tensor, unused: Tensor, temperature: float, with_rest: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
        log_p = torch.empty(ids.shape, dtype=dtype, device=logits.device)
        log_rest, base = (torch.empty(len(rows), dtype=dtype, device=logits.device) for _ in range(2))
        for part in _parts(len(rows), logits):
            z_BV = _scaled(logits, rows[part], dtype, temperature)
            listed = z_BV.gather(1, ids[part])
            if with_rest:
                # The rest is summed by itself: 1 minus the listed ones would lose all digits of a small rest.
                base[part] = z_BV.scatter_(1, ids[part], -math.inf).logsumexp(-1)
                known = listed.masked_fill(unused[part], -math.inf).logsumexp(-1)
                total = torch.logaddexp(base[part], known)
                log_rest[part] = base[part] - total
            else:
                total = base[part] = z_BV.logsumexp(-1)
            log_p[part] = listed - total[:, None]
        ctx.save_for_backward(logits, rows, ids, unused, log_p, log_rest, base)
        ctx.temperature, ctx.with_rest = temperature, with_rest
        if not with_rest:
            ctx.mark_non_differentiable(log_rest)
        return log_p, log_rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_p: Tensor, grad_rest: Tensor) -> tuple[Tensor | None, ...]:
        logits, rows, ids, unused, log_p, log_rest, base = ctx.saved_tensors
        grad_p = grad_p.masked_fill(unused, 0.0)
        total = grad_p.sum(-1) + grad_rest if ctx.with_rest else grad_p.sum(-1)
        # d log p_i / d z_j = [i = j] - p_j; d log p_rest / d z_j = p_j / p_rest - p_j for the others.
        factor = (grad_rest - total * log_rest.exp() if ctx.with_rest else -total) / ctx.temperature
        found = torch.zeros_like(logits)
        for part in _parts(len(rows), logits):
            z_BV = _scaled(logits, rows[part], log_p.dtype, ctx.temperature)
            z_BV.sub_(base[part, None]).exp_().mul_(factor[part, None])
            if ctx.with_rest:  # the values of listed tokens are those of no probability, and may be infinite
                own = -total[part, None] * log_p[part].exp() / ctx.temperature
                z_BV.scatter_(1, ids[part], own)
            z_BV.scatter_add_(1, ids[part], grad_p[part] / ctx.temperature)
            found[rows[part]] = z_BV.to(found.dtype)
        return found, None, None, None, None, None


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(losses.numel(), 1)


def _parts(rows: int, logits: Tensor) -> Iterator[slice]:
    values = _CHUNK_VALUES if logits.device.type == "cpu" else _CHUNK_VALUES_GPU
    size = max(1, values // logits.shape[-1])
    return (slice(start, start + size) for start in range(0, rows, size))


def _scaled(logits: Tensor, rows: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    """Returns a copy of some rows of the logits, in the dtype of the computation, divided by the temperature."""
    found = logits[rows].to(dtype)
    return found if temperature == 1 else found.div_(temperature)
