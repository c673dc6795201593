"""LayerByLayer: each block learns to put out with rounded weights what it put out with its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from datadreamer_like.compression import Batches
from datadreamer_like.compression.calibration import Block, walk_blocks
from datadreamer_like.compression.zeros import masks
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats.modules import stacks

from .weights import GroupQuantization
from .while_training import grouped_product, put_in, take_out

logger = logging.getLogger("datadreamer_like")


@dataclass(frozen=True)
class LayerByLayer(GroupQuantization):
    """Weights in few bits, trained one block at a time to give the block's own outputs: layer-by-layer distillation.

    Yao et al. 2022, "ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers",
    arXiv:2206.01861. Block k gets the outputs of the quantized blocks before it; its weights, rounded in each forward
    pass with straight-through gradients, minimise the mean squared difference to what the block gives for the same
    inputs with its original weights. Only one block's gradients and optimizer state are in memory, and any unlabelled
    text serves. A block whose loss does not fall keeps its rounded weights.

    The grid is that of `AbsMax(bits, granularity=group_size)`, where the training starts. Weights and biases of the
    linear layers learn; activations are not rounded, so this saves bytes, not time.

    Attributes:
        bits: 2 to 8.
        group_size: Inputs that share a scale, at a cost of 16 bits a group.
        steps: Optimizer steps for each block, a calibration batch each.
        learning_rate: That of Adam at the start; it falls linearly to zero.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).
    """

    steps: int = 100
    learning_rate: float = 1e-4

    needs_calibration = True
    needs_gradients = True
    papers = ("2206.01861",)
    result_version = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        is_rate = isinstance(self.learning_rate, int | float) and 0 < self.learning_rate < float("inf")
        if type(self.steps) is not int or self.steps < 1 or not is_rate:
            raise DefinitionError(
                f"steps={self.steps!r} and learning_rate={self.learning_rate!r} must be a number of steps and above 0."
            )

    @classmethod
    def example(cls) -> Self:
        """A few steps."""
        return cls(steps=5, group_size=16, learning_rate=1e-3)

    def fits(self, model: nn.Module) -> str | None:
        """A transformers model whose blocks have linear layers that are not quantized yet and share no weight."""
        if not stacks(model):
            return "it has no list of blocks to train one after the other. Use quantization.GPTQ."
        return super().fits(model)

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Quantizes the blocks in order, in place."""
        chosen = self.chosen(model)
        learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
        parameters, kept = dict(model.named_parameters()), masks(model)
        pruned = {id(parameters[name]): ~mask for name, mask in kept.items()}
        model.requires_grad_(False)
        for block in walk_blocks(model, calibration, self):
            layers = {block.path(name): module for name, module in block.own(chosen).items()}
            if not layers:
                continue
            with torch.no_grad():
                targets = list(block.outputs())
            put_in(block.module, layers, partial(grouped_product, bits=self.bits, group_size=self.group_size))
            before, after = self._train(block, targets, [p for m in layers.values() for p in m.parameters()], pruned)
            logger.info("%s: the loss of %s was %.3g, and is %.3g", type(self).__name__, block.name, before, after)
            for name, layer in take_out(block.module).items():
                block.module.set_submodule(name, self.coded(name, layer))
        self.record(model, chosen)
        for parameter, learns in learning.items():
            parameter.requires_grad_(learns)

    def _train(
        self, block: Block, targets: list[Tensor], weights: list[nn.Parameter], pruned: Mapping[int, Tensor]
    ) -> tuple[float, float]:
        """Trains weights of a block in place; returns its loss before and after. `pruned` ones, by id, stay zero."""
        start = [weight.detach().clone() for weight in weights]
        before = after = _loss(block, targets)
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(weights, self.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.steps)
        for loss in _losses(block, targets, self.steps):
            torch.autograd.backward(loss)
            optimizer.step()
            for weight in weights:
                if id(weight) in pruned:
                    weight.data.masked_fill_(pruned[id(weight)], 0.0)
            optimizer.zero_grad()
            schedule.step()
        for weight in weights:
            weight.requires_grad_(False)
        after = _loss(block, targets)
        if not after < before:
            after = before
            for weight, value in zip(weights, start, strict=True):
                weight.data.copy_(value)
        return before, after


def _losses(block: Block, targets: list[Tensor], steps: int) -> Iterator[Tensor]:
    """Yields the mean squared difference to the targets, of one batch after the other, without padding."""
    done = 0
    while done < steps:
        for target, output in zip(targets, block.outputs(), strict=True):
            yield (block.tokens(output) - block.tokens(target)).float().square().mean()
            done += 1
            if done == steps:
                return


@torch.no_grad()
def _loss(block: Block, targets: list[Tensor]) -> float:
    return sum(float(loss) for loss in _losses(block, targets, len(targets))) / len(targets)
