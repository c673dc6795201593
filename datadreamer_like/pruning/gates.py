"""The gates of coarse-to-fine pruning: how they are drawn, how they learn, and the layers that compute with them.

All state is in buffers of a module inside the model, so it is in a trainer's checkpoints. The gates are no parameters,
as they have an optimizer of their own: their learning rate is a thousand times that of the weights, and the trainer's
gradient clipping would let the Lagrangian's gradient, which depends on no data, drown that of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import (
    hard_concrete_keep_probability,
    hard_concrete_kept_value,
    hard_concrete_mask,
    hard_concrete_sample,
)

_BOUND = math.log(100)
"""log α stays within ± this, as in the authors' code."""
_START = 2.0
"""97 % of the gates are open. The authors start at the bound: gates then take long to follow the target, while the
multipliers grow, and much more than the target is removed before these come back."""
_PACE = 0.5
"""Learning rate of the multipliers, as a share of that of the gates, for the same reason."""
_DECAYS = (0.9, 0.999)


class Parts(NamedTuple):
    """A number for each gate, by what the gate is on: z, a probability, or 0 and 1.

    Attributes:
        hidden: [hidden size], of all layers.
        attentions: [layers], of whole attention layers.
        feed_forwards: [layers], of whole feed-forward layers.
        heads: [heads] of each layer.
        neurons: [intermediate size] of each layer.
    """

    hidden: Tensor
    attentions: Tensor
    feed_forwards: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]

    def weights(self, head_size: int) -> Tensor:
        """Returns how many weights of the layers are kept: those whose gates' product is 1; or their expectation."""
        kept = self.hidden.new_zeros(())
        for layer, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)):
            kept = kept + 4 * head_size * self.attentions[layer] * heads.sum()
            kept = kept + 2 * self.feed_forwards[layer] * neurons.sum()
        return kept * self.hidden.sum()


class Gates(nn.Module):
    """The hard concrete gates of an encoder, with the multipliers of the Lagrangian.

    Args:
        hidden: Hidden size.
        head_size: Features of one head.
        heads: Number of heads of each layer.
        neurons: Intermediate size of each layer.

    Attributes:
        z: The gates of the forward pass at hand; `draw` sets them.
        open_layers: Whether each attention layer, and each feed-forward layer, has a gate above 0 in this pass.
    """

    log_alpha: Tensor
    multipliers: Tensor
    moments: Tensor
    counts: Tensor
    final: Tensor

    def __init__(self, hidden: int, head_size: int, heads: Sequence[int], neurons: Sequence[int]) -> None:
        super().__init__()
        self.head_size = head_size
        self._sizes = [hidden, len(heads), len(heads), *heads, *neurons]
        count = sum(self._sizes)
        self.register_buffer("log_alpha", torch.full((count,), _START))
        self.register_buffer("multipliers", torch.zeros(2))
        self.register_buffer("moments", torch.zeros(2, count + 2))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))  # passes drawn, and updates
        self.register_buffer("final", torch.full((count,), -1.0))  # z, once it is decided
        self._learning: Tensor | None = None

    def parts(self, values: Tensor) -> Parts:
        """Splits a number for each gate, [gates]."""
        hidden, attentions, feed_forwards, *others = torch.split(values, self._sizes)
        layers = len(others) // 2
        return Parts(hidden, attentions, feed_forwards, others[:layers], others[layers:])

    def sparsity(self, values: Tensor) -> Tensor:
        """Returns the share of the layers' weights that is removed: by masks, or expected by probabilities."""
        everything = self.parts(torch.ones_like(values)).weights(self.head_size)
        return 1 - self.parts(values).weights(self.head_size) / everything

    @property
    def is_decided(self) -> bool:
        """Whether it is decided what is removed."""
        return bool(self.final[0] >= 0)

    def draw(self) -> None:
        """Sets the gates of a forward pass: drawn in training, as they would be at the end in evaluation.

        Random numbers depend on the number of draws alone, so a resumed training draws the same.
        """
        if self.is_decided:
            values = self.final
        elif self.training:
            if self._learning is None:
                self._learning = self.log_alpha.detach().clone().requires_grad_()
            generator = torch.Generator().manual_seed(int(self.counts[0]))
            uniform = torch.rand(self.log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
            values = hard_concrete_sample(self._learning, uniform.to(self.log_alpha))
            self.counts[0] += 1
        else:
            values = self.masks()
        self.z = self.parts(values)
        self.open_layers: tuple[list[bool], list[bool]] = (
            (self.z.attentions > 0).tolist(),
            (self.z.feed_forwards > 0).tolist(),
        )

    def masks(self) -> Tensor:
        """Returns the gates without chance, each group by `hard_concrete_mask`: [gates]. At least one dimension stays.

        A group is a layer's heads or neurons, the hidden dimensions, or one layer by itself.
        """
        found = self.parts(self.log_alpha)
        layers = [each for part in (found.attentions, found.feed_forwards) for each in torch.split(part, 1)]
        masks = torch.cat([hard_concrete_mask(each) for each in (found.hidden, *layers, *found.heads, *found.neurons)])
        if not masks[: self._sizes[0]].any():
            best = found.hidden.argmax()
            masks[best] = hard_concrete_kept_value(self.log_alpha[best])
        return masks

    def update(self, target: float, learning_rate: float) -> None:
        """Steps log α by the gradients since the last update and the Lagrangian's, down, and the multipliers up.

        The Lagrangian is `λ₁ (ŝ - t) + λ₂ (ŝ - t)²` with the expected sparsity ŝ and the target t; both steps are
        Adam's. `learning_rate` is that of the gates.
        """
        learning, self._learning = self._learning, None
        free, multipliers = self.log_alpha.detach().requires_grad_(), self.multipliers.detach().requires_grad_()
        with torch.enable_grad():
            gap = self.sparsity(hard_concrete_keep_probability(free)) - target
            lagrangian = multipliers[0] * gap + multipliers[1] * gap.square()
            of_gates, of_multipliers = torch.autograd.grad(lagrangian, (free, multipliers))
        if learning is not None and learning.grad is not None:
            of_gates = of_gates + learning.grad
        gradient = torch.cat([of_gates, -of_multipliers])
        self.counts[1] += 1
        for moment, power, decay in zip(self.moments, (gradient, gradient.square()), _DECAYS, strict=True):
            moment.lerp_(power, 1 - decay)
        first, second = (
            moment / (1 - decay ** int(self.counts[1])) for moment, decay in zip(self.moments, _DECAYS, strict=True)
        )
        change = learning_rate * first / (second.sqrt() + 1e-8)
        self.log_alpha.sub_(change[:-2]).clamp_(-_BOUND, _BOUND)
        self.multipliers.sub_(_PACE * change[-2:])

    def decide(self, target: float) -> None:
        """Decides what is removed: `masks`, changed where the target asks for it.

        With too few hidden dimensions it could not be met, so that the most certain closed ones open again; rounding
        whole layers may miss it by far: they do too if that comes closer. Then the least certain neurons close, or the
        most certain closed ones open, until the target is met; where there are too few, heads do.
        """
        values = self.masks()
        wanted = (1 - target) * self._kept(torch.ones_like(values))
        self._open_dimensions(values, math.ceil((1 - target) * self._sizes[0] - 1e-6))
        self._open_layers(values, wanted)
        found, scores = self.parts(values), self.parts(self.log_alpha)  # views, so that changes reach `values`
        hidden = int((found.hidden > 0).sum())
        for kind, size in (("neurons", 2 * hidden), ("heads", 4 * self.head_size * hidden), ("neurons", 2 * hidden)):
            surplus = (self._kept(values) - wanted) / size
            if kind == "heads":  # one too many, which the neurons then make up for
                few = abs(surplus * size) <= 2 * hidden
                surplus = 0 if few else math.copysign(math.ceil(abs(surplus)), surplus)
            layers = found.feed_forwards if kind == "neurons" else found.attentions
            units = [each for each, gate in zip(getattr(found, kind), layers.tolist(), strict=True) if gate > 0]
            ranks = [each for each, gate in zip(getattr(scores, kind), layers.tolist(), strict=True) if gate > 0]
            if units:
                self._change(units, ranks, round(surplus))
        self.final.copy_(values)
        self.draw()

    def _kept(self, values: Tensor) -> float:
        return float(self.parts((values > 0).double()).weights(self.head_size))

    def _open_dimensions(self, values: Tensor, least: int) -> None:
        z, rank = self.parts(values).hidden, self.parts(self.log_alpha).hidden
        self._change([z], [rank], min(0, int((z > 0).sum()) - least))

    def _open_layers(self, values: Tensor, wanted: float) -> None:
        hidden, attentions, feed_forwards, *_ = self._sizes
        layers = slice(hidden, hidden + attentions + feed_forwards)
        certain = self.log_alpha[layers].argsort(stable=True, descending=True) + hidden
        for layer in certain[values[certain] == 0].tolist():
            capacity, opened = values.clone(), values.clone()
            capacity[layers.stop :] = 1.0
            opened[layer] = hard_concrete_kept_value(self.log_alpha[layer])
            kept = self._kept(values)
            if self._kept(capacity) >= wanted and wanted - kept < (self._kept(opened) - kept) / 2:
                break
            values.copy_(opened)

    @staticmethod
    def _change(units: list[Tensor], ranks: list[Tensor], surplus: int) -> None:
        """Closes the `surplus` least certain open gates, or opens the most certain closed ones if it is negative."""
        z, rank = torch.cat(units), torch.cat(ranks)
        if surplus > 0:
            lowest = [int(unit) for unit in rank.argsort(stable=True) if z[unit] > 0]
            z[lowest[:surplus]] = 0.0
        elif surplus < 0:
            highest = [int(unit) for unit in rank.argsort(stable=True, descending=True) if z[unit] == 0]
            z[highest[:-surplus]] = hard_concrete_kept_value(rank[highest[:-surplus]])
        for unit, part in zip(units, torch.split(z, [len(unit) for unit in units]), strict=True):
            unit.copy_(part)


class GatedOutput(nn.Module):
    """Multiplies the weight [hidden, in] or bias [hidden] of a layer's output projection by its gates.

    A parametrization (`torch.nn.utils.parametrize`), so that taking it off leaves the product.
    """

    def __init__(self, gates: Gates, layer: int, is_attention: bool) -> None:
        super().__init__()
        self._gates = (gates,)  # in a tuple, as it is a part of the model elsewhere
        self.layer, self.is_attention = layer, is_attention

    def forward(self, values: Tensor) -> Tensor:
        """Returns the products."""
        (gates,) = self._gates
        z = gates.z
        rows = z.hidden * (z.attentions if self.is_attention else z.feed_forwards)[self.layer]
        if values.dim() == 1:
            return values * rows.to(values.dtype)
        inputs = z.heads[self.layer].repeat_interleave(gates.head_size) if self.is_attention else z.neurons[self.layer]
        return values * inputs.to(values.dtype) * rows.to(values.dtype)[:, None]


class GatedNorm(nn.LayerNorm):
    """A layer norm over the hidden dimensions whose gates are above 0; the others are 0 in its input and output.

    Where the gate of the layer before it is 0, the norm does nothing either, so that the layer is gone. The one of the
    embeddings has no layer before it: it draws the gates for the whole pass, and applies them to its input.
    """

    def __init__(self, norm: nn.LayerNorm, gates: Gates, layer: int | None, is_attention: bool = False) -> None:
        with torch.device("meta"):
            super().__init__(norm.normalized_shape, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self._gates = (gates,)
        self.layer, self.is_attention = layer, is_attention

    def forward(self, input: Tensor) -> Tensor:
        """Returns [..., hidden] of the same shape."""
        (gates,) = self._gates
        if self.layer is None:
            _refuse_scaled_gradients(gates, input)
            gates.draw()
            input = input * gates.z.hidden.to(input.dtype)
        elif not gates.open_layers[0 if self.is_attention else 1][self.layer]:
            return input
        z = gates.z.hidden
        kept, exact = (z > 0).to(self.weight.dtype), input.to(torch.promote_types(input.dtype, self.weight.dtype))
        centred = (exact - exact.sum(-1, keepdim=True) / kept.sum()) * kept
        scale = torch.rsqrt(centred.square().sum(-1, keepdim=True) / kept.sum() + self.eps)
        return (centred * scale * self.weight + self.bias) * z.to(self.weight.dtype)

    def plain(self) -> nn.LayerNorm:
        """Returns a layer norm of all dimensions that gives the same on the kept ones, once the others are gone."""
        (gates,) = self._gates
        norm = nn.LayerNorm(self.normalized_shape, self.eps, device="meta")
        z = gates.z.hidden.detach().to(self.weight.dtype)
        norm.weight, norm.bias = nn.Parameter(self.weight.detach() * z), nn.Parameter(self.bias.detach() * z)
        return norm


def _refuse_scaled_gradients(gates: Gates, x: Tensor) -> None:
    device: Any = x.device.type
    if gates.training and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        raise DefinitionError(
            "Coarse-to-fine pruning adds gradients of its own to those of the loss, which fp16 scales. Train in bf16, "
            "or in full precision."
        )


def gates_of(model: nn.Module) -> Gates:
    """Returns the gates in a model."""
    return cast(Gates, model.get_submodule("coarse_to_fine"))
