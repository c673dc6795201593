"""Pruning of attention heads by their importance for the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.calibration import as_list, loss_on
from datadreamer_like.compression.method import already_quantized, check_share
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats import add_layout
from datadreamer_like.formats.modules import ATTENTIONS
from datadreamer_like.formats.modules import attentions as find_attentions

from .attention import Attention, attentions


@dataclass(frozen=True)
class Heads(CompressionMethod):
    """Removes the least important attention heads; their weights are deleted, not zeroed.

    Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019, arXiv:1905.10650. A head's importance
    is the expected magnitude of the loss's gradient with respect to a gate on the head, `E |Att_h(x)^T dL/dAtt_h(x)|`,
    over the calibration examples, divided by the l2 norm of its layer's importances. The least important heads of all
    layers are removed in steps, and importances are measured again after each step.

    With grouped queries, a key/value head is scored and removed together with the query heads that share it. A layer
    that loses all its heads only adds its output bias. For batches without labels see `loss_on`.

    Attributes:
        sparsity: Share of the model's heads (or groups) to remove, in [0, 1).
        step: Share of the heads to remove between two measurements.
        at_least: Minimum number of heads (or groups) in every layer.
    """

    sparsity: float
    step: float = 0.1
    at_least: int = 0

    kind = "pruning"
    needs_calibration = True
    needs_gradients = True
    papers = ("1905.10650",)

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        if not 0 < self.step <= 1 or self.at_least < 0:
            raise DefinitionError(
                f"step={self.step} must be a share above 0 and up to 1, at_least={self.at_least} a count from 0."
            )

    @classmethod
    def example(cls) -> Self:
        """Half of all heads."""
        return cls(sparsity=0.5)

    def fits(self, model: nn.Module) -> str | None:
        """Unquantized encoders and decoders with a known attention class."""
        config = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
            return "it has cross-attention, whose heads this method cannot remove. Use pruning.Magnitude or Layers."
        if reason := already_quantized(model):
            return reason
        groups = [attention.groups for attention in attentions(model)]
        if not groups:
            known = sorted(name.removesuffix("Attention") for name, form in ATTENTIONS.items() if not form.fixed)
            fixed = next((form.fixed for _, form in find_attentions(model)), "it has no attention of a supported class")
            return f"{fixed}. Heads can be removed from {', '.join(known)}."
        spare = sum(max(0, count - self.at_least) for count in groups)
        if round(self.sparsity * sum(groups)) > spare:
            return f"at_least={self.at_least} in each layer leaves {spare} of {sum(groups)} heads to remove."
        return None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Removes heads in place, step by step."""
        batches = as_list(calibration, self)
        found = list(attentions(model))
        total = sum(attention.groups for attention in found)
        left, stride = round(self.sparsity * total), max(1, round(self.step * total))
        while left > 0:
            drop = self._least_important(importance(model, found, batches), min(stride, left))
            for attention, groups in zip(found, drop, strict=True):
                if groups:
                    attention.remove(groups)
            left -= sum(len(groups) for groups in drop)
        changes = {name: change for attention in found for name, change in attention.changes.items()}
        if changes:
            add_layout(model, {"kind": "widths", "modules": changes})

    def _least_important(self, scores: list[torch.Tensor], count: int) -> list[list[int]]:
        ranked = sorted(
            (score / float(layer.norm().clamp_min(1e-30)), index, group)
            for index, layer in enumerate(scores)
            for group, score in enumerate(layer.tolist())
        )
        drop: list[list[int]] = [[] for _ in scores]
        for _, index, group in ranked:
            if sum(map(len, drop)) < count and len(scores[index]) - len(drop[index]) > self.at_least:
                drop[index].append(group)
        return drop


def importance(model: nn.Module, found: list[Attention], batches: Batches) -> list[torch.Tensor]:
    """Measures the importance of each group of heads, without normalisation.

    Args:
        model: The model; dropout is off meanwhile.
        found: Its attentions, from `attentions(model)`.
        batches: Calibration batches.

    Returns:
        For each attention, float32 [groups]: `E |Att_h(x)^T dL/dAtt_h(x)|` over the examples.
    """
    totals = [torch.zeros(attention.groups) for attention in found]
    examples = 0
    alive = [index for index, attention in enumerate(found) if attention.groups]
    with eval_mode(model), torch.enable_grad(), _contexts([found[index] for index in alive]) as contexts:
        for batch in batches:
            contexts.clear()
            loss = loss_on(model, batch)
            inputs = [contexts[found[index].name] for index in alive]
            # If the model's head reads an earlier layer, the gradient of the last layers is zero.
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
            size = inputs[0].shape[0]
            examples += size
            for index, context, gradient in zip(alive, inputs, gradients, strict=True):
                # The loss is a mean over the batch, so the gradient of one example is `size` times larger.
                product = (context.detach().float() * gradient.float()).view(
                    size, -1, found[index].groups, found[index].group_size
                )
                totals[index] += size * product.sum((1, 3)).abs().sum(0).cpu()
    return [total / max(1, examples) for total in totals]


@contextmanager
def _contexts(found: list[Attention]) -> Iterator[dict[str, torch.Tensor]]:
    """Captures the output of each attention's heads during a forward pass: [batch, seq, features], with gradient."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def collect(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            context = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            seen[name] = context
            return (context, *inputs[1:])

        return collect

    handles = [attention.output.register_forward_pre_hook(hook(attention.name)) for attention in found]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
