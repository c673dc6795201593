"""SparseGPT: one-shot pruning that updates the remaining weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from datadreamer_like.compression.calibration import Block
from datadreamer_like.compression.hessian import check_damping, input_hessians, inverse_factor
from datadreamer_like.compression.method import check_patterns
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.kernels import nm_mask

from .block_by_block import PrunesBlockByBlock
from .thresholds import Pattern, check_amount, smallest


@dataclass(frozen=True)
class SparseGPT(PrunesBlockByBlock):
    """Sets weights to zero that matter least for a layer's output, and updates the others to make up for them.

    Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    arXiv:2301.00774. Weight j of a row costs `w_j² / U_jj²` of the layer's squared output error, with `H⁻¹ = UᵀU` for
    the Hessian `H = (2/n) XᵀX` of the layer's inputs. Columns are pruned in order; the error of each is made up for by
    the weights to its right. Blocks of the model are pruned in order, each on what the pruned ones before it put out.

    The linear layers inside the blocks are pruned; embeddings, heads, norms and biases are not. Any other module counts
    as one block, of all its linear layers but output heads. Some 128 sequences of calibration text are enough. The
    result is stored sparse, as `Magnitude`'s is; in memory it is dense. Weights that were pruned before stay zero.

    Attributes:
        sparsity: Share of each layer that becomes zero, in [0, 1): `round(sparsity * n)` of the n weights in every
            `block` of columns, with one threshold for all rows. Leave it out if a pattern is given.
        pattern: (n, m): of every m consecutive inputs n are kept, as in (2, 4), chosen when the columns before them
            are done.
        block: Columns whose weights are chosen together, and whose errors reach the columns after them together.
        damping: Share of the Hessian's mean diagonal that is added to it; see `compression.hessian`.
        exclude: Patterns of module names that are never pruned, for instance ("*.down_proj",).
    """

    sparsity: float | None = None
    pattern: Pattern | None = None
    block: int = 128
    damping: float = 0.01
    exclude: tuple[str, ...] = ()

    papers = ("2301.00774",)
    result_version = 2

    def __post_init__(self) -> None:
        check_patterns(self.exclude)
        object.__setattr__(self, "pattern", check_amount("SparseGPT", self.sparsity, self.pattern))
        if type(self.block) is not int or self.block < 1:
            raise DefinitionError(f"block is {self.block!r}; it must be a number of columns, such as 128.")
        if self.pattern is not None and self.block % self.pattern[1]:
            raise DefinitionError(
                f"block={self.block} is not a multiple of {self.pattern[1]}, the length of the pattern. "
                f"Pass block={max(1, round(128 / self.pattern[1])) * self.pattern[1]}."
            )
        check_damping(self.damping)

    @classmethod
    def example(cls) -> Self:
        """Half of each layer."""
        return cls(sparsity=0.5)

    def prune(self, block: Block, layers: dict[str, nn.Module], sparse: Collection[str]) -> list[str]:
        """Measures every layer of the block, then prunes each."""
        hessians = input_hessians(block, layers)
        unreached = [name for name, hessian in hessians.items() if not hessian.any()]
        for name, layer in layers.items():
            weight = weight_of(layer)
            weight.copy_(self.pruned(weight, hessians.pop(name), weight == 0 if name in sparse else None))
        return unreached

    def pruned(self, weight: Tensor, hessian: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Returns the pruned and updated weight [out, in], fp32, for the Hessian of its inputs [in, in].

        Weights in `zeros`, bool [out, in], stay zero and count as removed.
        """
        weight = weight.detach().float().clone()
        zeros = torch.zeros_like(weight, dtype=torch.bool) if zeros is None else zeros
        if not hessian.any():  # an expert that no token reached: nothing to go by but magnitudes
            hessian = torch.eye(len(hessian), device=hessian.device)
        weight[:, hessian.diagonal() == 0] = 0.0
        factor = inverse_factor(hessian, self.damping)
        for start in range(0, weight.shape[1], self.block):
            end = min(start + self.block, weight.shape[1])
            part, inverse, gone = weight[:, start:end], factor[start:end, start:end], zeros[:, start:end]
            errors = torch.empty_like(part)
            cost = inverse.diagonal().square()
            if self.sparsity is not None:
                # Updates may have moved removed weights away from zero.
                (drop,) = smallest([(part.square() / cost).masked_fill(gone, -1.0)], self.sparsity)
                drop |= gone
            else:
                drop = gone.clone()
            for column in range(end - start):
                if self.pattern is not None and column % self.pattern[1] == 0:
                    group = slice(column, column + self.pattern[1])
                    scores = (part[:, group].square() / cost[group]).masked_fill(gone[:, group], -1.0)
                    drop[:, group] |= ~nm_mask(scores, self.pattern)
                dropped = drop[:, column]
                errors[:, column] = torch.where(dropped, part[:, column], 0.0) / inverse[column, column]
                part[:, column:].addr_(errors[:, column], inverse[column, column:], alpha=-1)
                part[:, column].masked_fill_(dropped, 0.0)  # exactly, where the update leaves a rounding error
            weight[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
        return weight
