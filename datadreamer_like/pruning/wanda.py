"""Wanda: pruning by weights and activations."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from datadreamer_like.compression.calibration import Block, check_measured
from datadreamer_like.compression.method import check_patterns
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.kernels import wanda_mask

from .block_by_block import PrunesBlockByBlock
from .thresholds import Pattern, check_amount


@dataclass(frozen=True)
class Wanda(PrunesBlockByBlock):
    """Sets the weights to zero whose magnitude times the norm of their input is smallest; no weight is updated.

    Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695. The score
    of a weight is `|W_ij| * ||X_j||_2`, with the norm of input feature j over all calibration tokens that are not
    padding. Scores are compared within each output row. Blocks are pruned in order: a block is measured on what the
    pruned blocks before it put out, and inside a block every layer is measured before any is pruned.

    The linear layers inside the blocks are pruned; embeddings, heads, norms and biases are not. Any other module counts
    as one block, of all its linear layers but output heads. Some 128 sequences of calibration text are enough. The
    result is stored sparse, as `Magnitude`'s is; in memory it is dense.

    Attributes:
        sparsity: Share of each row that becomes zero, in [0, 1). Leave it out if a pattern is given.
        pattern: (n, m): of every m consecutive inputs n are kept, as in (2, 4).
        exclude: Patterns of module names that are never pruned, for instance ("*.down_proj",).
    """

    sparsity: float | None = None
    pattern: Pattern | None = None
    exclude: tuple[str, ...] = ()

    papers = ("2306.11695",)
    result_version = 2

    def __post_init__(self) -> None:
        check_patterns(self.exclude)
        object.__setattr__(self, "pattern", check_amount("Wanda", self.sparsity, self.pattern))

    @classmethod
    def example(cls) -> Self:
        """Half of each row."""
        return cls(sparsity=0.5)

    def prune(self, block: Block, layers: dict[str, nn.Module], sparse: Collection[str]) -> list[str]:
        """Measures every layer of the block, then prunes each."""
        squares = _sums_of_squares(block, layers)
        unreached = [name for name, total in squares.items() if not total.any()]
        for name, layer in layers.items():
            check_measured(squares[name], f'The inputs of "{name}"')
            if name in unreached:
                squares[name].fill_(1.0)
            weight = weight_of(layer)
            kept = wanda_mask(weight, squares[name].sqrt(), self.sparsity, pattern=self.pattern)
            weight.masked_fill_(~kept, 0.0)
        return unreached


def _sums_of_squares(block: Block, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Runs the block and sums the squares of each layer's input features: by name, fp32 [in]."""
    weights = {name: weight_of(layer) for name, layer in layers.items()}
    sums = {name: torch.zeros(weight.shape[1], device=weight.device) for name, weight in weights.items()}

    def add(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += block.tokens(inputs[0]).float().square().sum(0)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(add, name)))
        block.run()
    return sums
