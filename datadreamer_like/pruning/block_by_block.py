"""Pruning a model in the order of its blocks: the base of methods that measure activations to do so."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection

from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.calibration import Block, walk_blocks, warn_of_unreached
from datadreamer_like.compression.method import ONE_LAYER, already_quantized, why_shared
from datadreamer_like.formats import mark_sparse
from datadreamer_like.formats.modules import inner_linears, weight_of
from datadreamer_like.formats.sparse import sparse_names

from .thresholds import Pattern, why_indivisible


class PrunesBlockByBlock(CompressionMethod):
    """Base of methods that prune the linear layers inside the blocks, each on what the pruned blocks before it put out.

    A model without a list of blocks counts as one block: all its layers but output heads are measured as they were.

    A subclass is a dataclass with `pattern` and `exclude` that implements `prune`.
    """

    kind = "pruning"
    needs_calibration = True
    layer_by_layer = True
    pattern: Pattern | None
    exclude: tuple[str, ...]

    @abstractmethod
    def prune(self, block: Block, layers: dict[str, nn.Module], sparse: Collection[str]) -> list[str]:
        """Sets weights of the block's layers, given by their names in the model, to zero, in place.

        The zeros of those in `sparse`, which were pruned before, must stay. Returns the layers that no calibration
        token reached, which are pruned by magnitude.
        """

    def fits(self, model: nn.Module) -> str | None:
        """Any model with plain linear layers, in its blocks if it has some, unquantized and none of them shared."""
        if reason := already_quantized(model):
            return reason
        found = inner_linears(model, self.exclude)
        if not found:
            return "it has no linear layers that this method may prune."
        if "" in found:
            return ONE_LAYER
        weights = {name: weight_of(layer) for name, layer in found.items()}
        return why_shared(model, found) or why_indivisible(weights, self.pattern)

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Prunes the blocks in order, in place."""
        chosen = inner_linears(model, self.exclude)
        sparse = {name.removesuffix(".weight") for name in sparse_names(model)}
        unreached: list[str] = []
        for block in walk_blocks(model, calibration, self):
            unreached += self.prune(block, block.own(chosen), sparse)
        warn_of_unreached(self, unreached, "their weights are pruned by magnitude")
        mark_sparse(model, [f"{name}.weight" for name in chosen])
