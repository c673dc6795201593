"""Divergence between two language models from their hidden states and output matrices, without their logits.

The logits of all tokens would take `tokens * vocabulary` numbers for each model, and several times that for the loss
and its gradients. Here a chunk of tokens at a time goes from hidden states to the loss and its gradients in the forward
pass, as in the chunked losses of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError, check_number

from .divergences import Divergence, How, check_alpha, check_divergence, divergence_of_rows

Backend = Literal["reference", "cpu", "triton"] | None

_IGNORED = -100
# Numbers of logits per model in a chunk: the largest that still leaves a matrix product efficient.
_CHUNK_NUMBERS = {"cpu": 1 << 22, "triton": 1 << 26}
_BLOCK_NUMBERS = 1 << 18


def fused_linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None = None,
    *,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    chunk: int | None = None,
    backend: Backend = None,
) -> Tensor:
    """Returns `alpha T² D(q_T, p_T) + (1 - alpha) CE(labels, p)`, a scalar: the mean over the tokens that count.

    `p` are the probabilities of the student, `softmax(student_hidden @ student_head.T + student_bias)`, `q` those of
    the teacher; for the divergences `D` see `distillation.divergence`. No gradient flows into the teacher. The ids are
    shared: a teacher with more of them is cut to the student's, and one with fewer gives the missing ones probability
    0.

    Args:
        student_hidden: [tokens, student_size], the states that enter the output matrix.
        student_head: [vocabulary, student_size].
        teacher_hidden: [tokens, teacher_size].
        teacher_head: [teacher_vocabulary, teacher_size].
        labels: [tokens], token ids; tokens labelled -100 are left out of both terms. None counts all tokens.
        kind: Name of the divergence.
        temperature: T, above 0.
        alpha: Weight of the divergence, from 0 to 1; below 1 the labels are needed.
        beta: β of "jsd".
        skew: λ of "skew_kl" and "skew_reverse_kl".
        student_bias: [vocabulary], if the output layer has one.
        teacher_bias: [teacher_vocabulary].
        chunk: Number of tokens in a chunk; None for about 2^22 logits (2^26 on a GPU).
        backend: "reference" computes all logits at once, in any dtype; "cpu" works in chunks, in plain PyTorch on any
            device; "triton" is a GPU kernel on the chunk's logits, which it replaces by their gradients. None chooses
            "triton" on a GPU if Triton is installed, and "cpu" elsewhere.

    Logits are in the dtype of the hidden states, under autocast in that of autocast, and the loss in fp32 (fp64 for
    fp64). The gradients are computed with the loss, so only one `backward` through it is possible.

    Raises:
        DefinitionError: Shapes do not fit, an option is out of range, or the backend is not available.

    Example:
        >>> hidden, head = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
        >>> loss = fused_linear_divergence(hidden, head, hidden.detach(), head)
        >>> round(loss.item(), 6)
        0.0
    """
    check_alpha(alpha)
    check_divergence(kind, temperature, beta, skew)
    check_number(chunk, "chunk", 1, whole=True, optional=True)
    _check_shapes(student_hidden, student_head, teacher_hidden, teacher_head, labels, student_bias, teacher_bias)
    if labels is None and alpha < 1:
        raise DefinitionError(f"alpha is {alpha}, so labels have weight {1 - alpha:g}, but are missing. Pass labels.")
    if labels is not None:
        _check_labels(labels, len(student_head))
        kept = labels != _IGNORED
        student_hidden, teacher_hidden, labels = student_hidden[kept], teacher_hidden[kept], labels[kept]
    words = student_head.shape[0]
    teacher_head = teacher_head[:words]
    teacher_bias = None if teacher_bias is None else teacher_bias[:words]
    how = How(kind, temperature, alpha, beta, skew, chunk, _backend(backend, student_hidden))
    teacher = [None if part is None else part.detach() for part in (teacher_hidden, teacher_head, teacher_bias)]
    if how.backend == "reference":
        logits = F.linear(student_hidden, student_head, student_bias)
        q = F.linear(teacher[0], teacher[1], teacher[2])  # type: ignore[arg-type]
        return loss_of_rows(logits, q, labels, how).sum() / max(1, len(logits))
    found: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
        student_hidden, student_head, student_bias, *teacher, labels, how
    )
    return found


def loss_of_rows(student: Tensor, teacher: Tensor, labels: Tensor | None, how: How) -> Tensor:
    """Returns the loss of each token [tokens] from the logits of both models [tokens, vocabulary]: the definition."""
    student, teacher = (part if part.dtype == torch.float64 else part.float() for part in (student, teacher))
    loss = student.new_zeros(len(student))
    if how.alpha > 0:
        log_p = F.log_softmax(student / how.temperature, dim=-1)
        log_q = F.log_softmax(teacher / how.temperature, dim=-1)
        log_q = F.pad(log_q, (0, student.shape[-1] - teacher.shape[-1]), value=-torch.inf)
        divergences = divergence_of_rows(log_p, log_q, how.kind, how.beta, how.skew)
        loss = loss + how.alpha * how.temperature**2 * divergences
    if how.alpha < 1 and labels is not None:
        loss = loss + (1 - how.alpha) * F.cross_entropy(student, labels, reduction="none")
    return loss


class _Fused(torch.autograd.Function):
    """Loss and gradients of all chunks in the forward pass; the backward pass scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        teacher_bias: Tensor | None,
        labels: Tensor | None,
        how: How,
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            student, teacher = _Head(head, bias, dtype), _Head(teacher_head, teacher_bias, dtype)
            wanted = tuple(ctx.needs_input_grad[:3])
            gradients = [
                torch.zeros_like(part) if part is not None and asked else None
                for part, asked in zip((hidden, head, bias), wanted, strict=True)
            ]
            size = how.chunk or max(64, _CHUNK_NUMBERS[how.backend] // len(head) // 64 * 64)
            scale = 1 / max(1, len(hidden))
            total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
            step = _triton_step() if how.backend == "triton" else _torch_step
            for start in range(0, len(hidden), size):
                rows = slice(start, start + size)
                states = hidden[rows].to(dtype)
                logits, q = student.logits(states), teacher.logits(teacher_hidden[rows].to(dtype))
                loss, gradient = step(logits, q, None if labels is None else labels[rows], how, any(wanted))
                total += loss.sum()
                if gradient is not None:
                    _add_gradients(gradients, gradient, states, student.weight, rows, scale)
        ctx.gradients = gradients
        return total * scale

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "fused_linear_divergence computes its gradients once: call backward once, without retain_graph."
            )
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(upstream.to(gradient.dtype))
        return (*gradients, None, None, None, None, None)


class _Head:
    """An output layer in the dtype of the computation."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states.detach(), self.weight, self.bias)


def _add_gradients(
    gradients: list[Tensor | None], gradient: Tensor, states: Tensor, weight: Tensor, rows: slice, scale: float
) -> None:
    """Adds a chunk's gradients, from that of its logits [chunk, vocabulary], which is not divided by the tokens yet."""
    of_hidden, of_head, of_bias = gradients
    if of_hidden is not None:
        of_hidden[rows] = (gradient @ weight).mul_(scale).to(of_hidden.dtype)
    if of_head is not None and of_head.dtype == gradient.dtype:
        of_head.addmm_(gradient.T, states.detach(), alpha=scale)
    elif of_head is not None:
        of_head.add_((gradient.T @ states.detach()).to(of_head.dtype), alpha=scale)
    if of_bias is not None:
        of_bias.add_(gradient.sum(0, dtype=torch.promote_types(gradient.dtype, torch.float32)).mul_(scale))


def _torch_step(
    logits: Tensor, teacher: Tensor, labels: Tensor | None, how: How, graded: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss of each row, and the gradient of their sum for the logits, which it overwrites.

    It takes a few rows at a time, so that the intermediate results of an element-wise operation stay in the cache.
    """
    size = max(1, _BLOCK_NUMBERS // logits.shape[-1])
    losses = []
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        block = logits[rows], teacher[rows], None if labels is None else labels[rows], how
        loss, gradient = _loss_and_slope(*block)
        if not bool(loss.isfinite().all()):  # probabilities of 0, which the definition treats with care
            loss, gradient = _by_autograd(*block)
        losses.append(loss)
        if graded:
            logits[rows] = gradient
    return torch.cat(losses), logits if graded else None


def _by_autograd(student: Tensor, teacher: Tensor, labels: Tensor | None, how: How) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        student = student.detach().requires_grad_()
        loss = loss_of_rows(student, teacher, labels, how)
        return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


def _loss_and_slope(student: Tensor, teacher: Tensor, labels: Tensor | None, how: How) -> tuple[Tensor, Tensor]:
    """Returns the loss of each row, and its derivative for the student's logits; see `triton` for the formulas."""
    z, t = (part if part.dtype == torch.float64 else part.float() for part in (student, teacher))
    loss, gradient = z.new_zeros(len(z)), torch.zeros_like(z)
    if how.alpha > 0:
        log_p, log_q = ((part / how.temperature).log_softmax(-1) for part in (z, t))
        log_q = F.pad(log_q, (0, z.shape[-1] - t.shape[-1]), value=-torch.inf)
        divergence, slope = _divergence_and_slope(log_p, log_q, how)
        loss += how.alpha * how.temperature**2 * divergence
        gradient += slope.mul_(how.alpha * how.temperature)
    if how.alpha < 1 and labels is not None:
        log_p = z.log_softmax(-1)
        places = labels[:, None]
        loss -= (1 - how.alpha) * log_p.gather(1, places)[:, 0]
        gradient += log_p.exp_().mul_(1 - how.alpha)
        gradient.scatter_add_(1, places, gradient.new_full(places.shape, how.alpha - 1))
    return loss, gradient


def _divergence_and_slope(log_p: Tensor, log_q: Tensor, how: How) -> tuple[Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    share = how.beta if how.kind == "jsd" else how.skew
    if how.kind == "forward_kl":
        return (log_q.sub_(log_p).mul_(q)).sum(-1), p.sub_(q)
    if how.kind == "reverse_kl":
        slope = log_p.sub_(log_q)
        terms = found = (p * slope).sum(-1)
    else:
        first, second = (p, q) if how.kind == "skew_reverse_kl" else (q, p)
        mixture = (share * first).add_(second, alpha=1 - share)
        log_m = mixture.clamp_(min=torch.finfo(p.dtype).tiny).log()
        if how.kind == "jsd":
            slope = log_p.sub_(log_m).mul_(1 - share)
            terms = (p * slope).sum(-1)
            found = terms + share * log_q.sub_(log_m).mul_(q).sum(-1)
        elif how.kind == "skew_kl":
            found = log_q.sub_(log_m).mul_(q).sum(-1)
            slope = q.div_(mixture).mul_(share - 1)
            terms = (p * slope).sum(-1)
        else:
            slope = log_p.sub_(log_m)
            found = (p * slope).sum(-1)
            slope -= share * (p / mixture)
            terms = (p * slope).sum(-1)
    return found, slope.sub_(terms[:, None]).mul_(p)


def _triton_step() -> Any:
    from .triton.fused_linear_divergence import divergence_and_gradient

    return divergence_and_gradient


def _backend(backend: Backend, hidden: Tensor) -> Literal["reference", "cpu", "triton"]:
    if backend not in (None, "reference", "cpu", "triton"):
        raise DefinitionError(
            f'fused_linear_divergence has no backend "{backend}". Choose "reference", "cpu" or "triton".'
        )
    runs_triton = find_spec("triton") is not None and hidden.dtype != torch.float64
    if backend is None:
        return "triton" if hidden.is_cuda and runs_triton else "cpu"
    if backend == "triton" and not runs_triton:
        raise DefinitionError(
            'backend="triton" needs the package triton, and hidden states of at most 32 bits. Choose "cpu".'
        )
    if backend == "triton" and not hidden.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise DefinitionError(
            f'backend="triton" takes tensors on a GPU, and these are on {hidden.device}. Choose "cpu".'
        )
    return backend


def _check_labels(labels: Tensor, words: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DefinitionError(f"labels are of type {labels.dtype}; they must be token ids, whole numbers.")
    outside = (labels != _IGNORED) & ((labels < 0) | (labels >= words))
    if outside.any():
        raise DefinitionError(
            f"labels have {labels[outside][0].item()}; the {words:,} tokens are numbered from 0, and -100 is for none."
        )


def _check_shapes(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
) -> None:
    tokens = len(hidden)
    fits = all(part.dim() == 2 for part in (hidden, head, teacher_hidden, teacher_head))
    fits = fits and hidden.shape[1] == head.shape[1] and teacher_hidden.shape[1] == teacher_head.shape[1]
    fits = fits and len(teacher_hidden) == tokens and (labels is None or labels.shape == (tokens,))
    fits = fits and (bias is None or bias.shape == (len(head),))
    if not fits or (teacher_bias is not None and teacher_bias.shape != (len(teacher_head),)):
        shapes = {
            "student_hidden": hidden, "student_head": head, "teacher_hidden": teacher_hidden,
            "teacher_head": teacher_head, "labels": labels, "student_bias": bias, "teacher_bias": teacher_bias,
        }  # fmt: skip
        listed = ", ".join(f"{name} {list(part.shape)}" for name, part in shapes.items() if part is not None)
        raise DefinitionError(
            "fused_linear_divergence takes hidden states [tokens, size] and output matrices [vocabulary, size] of both "
            f"models, and labels [tokens], got {listed}."
        )
