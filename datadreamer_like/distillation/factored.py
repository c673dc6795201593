"""Losses on the logits of language models that are never computed for a whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from datadreamer_like.kernels import fused_linear_divergence
from datadreamer_like.kernels.divergences import Divergence

from .losses import IGNORED_LABEL
from .outputs import Batch, Factors, Outputs, counted
from .teacher import device_of, eval_mode


def fused_loss(
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
) -> Tensor | None:
    """Returns `alpha T² D(q_T, p_T) + (1 - alpha) CE(labels, p)` from factors; None if it takes the logits.

    It takes them where one of the two has no factors, where other positions count for the labels than for the teacher,
    and for a reverse KL to a teacher that lacks tokens of the student; see `kernels.fused_linear_divergence`.
    """
    ours, theirs, mask = student.factors, None if teacher is None else teacher.factors, counted(batch)
    if ours is None or theirs is None or mask is None:
        return None
    labels = batch["labels"]
    if alpha < 1 and not torch.equal(labels != IGNORED_LABEL, mask):
        return None
    if kind == "reverse_kl" and len(theirs.weight) < len(ours.weight):
        return None
    return fused_linear_divergence(
        ours.states[mask], ours.weight, theirs.states[mask], theirs.weight, labels[mask] if alpha < 1 else None,
        kind=kind, temperature=temperature, alpha=alpha, beta=beta, skew=skew,
        student_bias=ours.bias, teacher_bias=theirs.bias,
    )  # fmt: skip


@contextmanager
def capture_factors(model: Any) -> Iterator[list[Factors]]:
    """Captures the factors of a model's logits in the block, in which it runs once and computes none of them.

    The model must pass `has_plain_head`. Its logits are those of no token.
    """
    states, found = list[Tensor](), list[Factors]()

    def cut(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states.append(inputs[0])
        return (inputs[0][:, :0],)

    def keep(layer: Any, inputs: Any, output: Tensor) -> None:
        found.append(Factors(states.pop().to(output.dtype), layer.weight, layer.bias))  # autocast decides the dtype

    layer = model.get_output_embeddings()
    handles = [layer.register_forward_pre_hook(cut), layer.register_forward_hook(keep)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def has_plain_head(model: Any) -> bool:
    """Whether a language model's logits are what one linear layer gives: not scaled, capped, or of quantized weights.

    The model runs on a few tokens, since no config says so for every architecture.
    """
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(layer) is not nn.Linear:
        return False
    given = list[Tensor]()
    ids = torch.arange(min(4, layer.out_features), device=device_of(model))[None]
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    handle = layer.register_forward_hook(lambda layer, inputs, output: given.append(output.clone()))
    try:
        with eval_mode(model):
            logits = model(**inputs).logits
    finally:
        handle.remove()
    return len(given) == 1 and torch.equal(given[0].to(logits.dtype), logits)
