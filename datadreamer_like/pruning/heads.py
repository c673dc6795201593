"""Pruning of attention heads by their importance for the loss.

Heads are removed by narrowing an attention's projections (`structure`). The table of module names by architecture is in
`formats.modules`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.calibration import as_list, check_measured, loss_on
from datadreamer_like.compression.method import already_quantized, check_share
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import check_number
from datadreamer_like.formats.modules import ATTENTIONS

from .structure import Attention, attentions, record


@dataclass(frozen=True)
class Heads(CompressionMethod):
    """Removes the least important attention heads; their weights are deleted, not zeroed.

    Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019, arXiv:1905.10650. A head's importance
    is the expected magnitude of the loss's gradient with respect to a gate on the head, `E |Att_h(x)^T dL/dAtt_h(x)|`,
    over the calibration examples, divided by the l2 norm of its layer's importances. The least important heads of all
    layers are removed in steps, and importances are measured again after each step.

    With grouped queries, a key/value head is scored and removed together with the query heads that share it. A layer
    that loses all its heads only adds its output bias; T5's first ones keep one, as they compute the position bias. For
    batches without labels see `loss_on`.

    Layers end up with different numbers of heads, which no config can say: what is saved loads in transformers after
    `import datadreamer_like.pruning`, not in vLLM or llama.cpp. For these use `Width`, with one number for all layers.

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
    states_widths = False
    papers = ("1905.10650",)
    result_version = 2

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_number(self.step, "step", 0, 1, over=True)
        check_number(self.at_least, "at_least", 0, whole=True)

    @classmethod
    def example(cls) -> Self:
        """Half of all heads."""
        return cls(sparsity=0.5)

    def fits(self, model: nn.Module) -> str | None:
        """Unquantized encoders, decoders and encoder-decoders with a known attention class."""
        if getattr(getattr(model, "config", None), "add_cross_attention", False):
            return "it is a decoder with added cross-attention, whose heads this method cannot remove."
        if reason := already_quantized(model):
            return reason
        found = list(attentions(model))
        if not found:
            known = ", ".join(sorted(name.removesuffix("Attention") for name in ATTENTIONS))
            return f"it has no attention of a supported class. Heads can be removed from {known}."
        total = sum(attention.groups for attention in found)
        spare = sum(max(0, attention.groups - self._stay(attention)) for attention in found)
        if round(self.sparsity * total) > spare:
            return f"at_least={self.at_least} in each layer leaves {spare} of {total} heads to remove."
        return None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Removes heads in place, step by step."""
        batches = as_list(calibration, model, self)
        found = list(attentions(model))
        total = sum(attention.groups for attention in found)
        left, stride = round(self.sparsity * total), max(1, round(self.step * total))
        while left > 0:
            drop = self._least_important(found, importance(model, found, batches), min(stride, left))
            for attention, groups in zip(found, drop, strict=True):
                if groups:
                    attention.remove(groups)
            left -= sum(len(groups) for groups in drop)
        record(model, found)

    def _stay(self, attention: Attention) -> int:
        return max(self.at_least, attention.at_least)

    def _least_important(self, found: list[Attention], scores: list[Tensor], count: int) -> list[list[int]]:
        ranked = sorted(
            (score / float(layer.norm().clamp_min(1e-30)), index, group)
            for index, layer in enumerate(scores)
            for group, score in enumerate(layer.tolist())
        )
        drop: list[list[int]] = [[] for _ in scores]
        for _, index, group in ranked:
            if sum(map(len, drop)) < count and len(scores[index]) - len(drop[index]) > self._stay(found[index]):
                drop[index].append(group)
        return drop


def importance(model: nn.Module, found: list[Attention], batches: Batches) -> list[Tensor]:
    """Measures `E |Att_h(x)^T dL/dAtt_h(x)|` over the examples, without dropout: fp32 [groups] of each attention."""
    totals = [torch.zeros(attention.groups) for attention in found]
    examples = 0
    alive = [(attention, total) for attention, total in zip(found, totals, strict=True) if attention.groups]
    # Outputs of each attention's heads in a forward pass: [batch, seq, features], with gradient.
    contexts: dict[str, Tensor] = {}

    def collect(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        contexts[name] = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
        return (contexts[name], *inputs[1:])

    with eval_mode(model), torch.enable_grad(), ExitStack() as hooks:
        for attention, _ in alive:
            hooks.enter_context(attention.output.register_forward_pre_hook(partial(collect, attention.name)))
        for batch in batches:
            loss = loss_on(model, batch)
            check_measured(loss, "The losses")
            inputs = [contexts.pop(attention.name) for attention, _ in alive]
            # If the model's head reads an earlier layer, the gradient of the last layers is zero.
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
            size = inputs[0].shape[0]
            examples += size
            for (attention, total), context, gradient in zip(alive, inputs, gradients, strict=True):
                product = context.detach().float() * gradient.float()
                scores = product.view(size, -1, attention.groups, attention.group_size).sum((1, 3))
                # The loss is a mean over the batch, so the gradient of one example is `size` times larger.
                total += size * scores.abs().sum(0).cpu()
    for attention, total in alive:
        check_measured(total, f'The gradients of the heads of "{attention.name}"')
    return [total / max(1, examples) for total in totals]
