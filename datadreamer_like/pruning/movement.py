"""Movement pruning: removes the weights that training moves towards zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from datadreamer_like.compression import Batches
from datadreamer_like.compression.method import already_quantized, check_patterns, check_share
from datadreamer_like.compression.while_training import check_training, train_on_batches
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats.modules import block_linears, linears

from .retraining import Cubic
from .thresholds import smallest
from .while_training import PrunesWhileTraining, ScoredMask, masked, put_masks, why_unmaskable


@dataclass(frozen=True)
class Movement(PrunesWhileTraining):
    """Learns during fine-tuning which weights to keep: those that training moves away from zero.

    Sanh, Wolf and Rush 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683. Each weight has a
    score, from 0. A layer computes with the weights of the highest scores; the scores' gradients go straight through
    the choice, `∂L/∂S = ∂L/∂W' * W`, also those of removed weights, which may come back. The share that is kept falls
    by a cubic `schedule`. At 10 % and less of an encoder's weights this is far better than magnitude, more so with a
    distillation objective.

    Use it with a trainer: `Prune("...", model, Movement(0.9), retrain={...})`, where the objective, the learning rate
    and the number of epochs are the trainer's. The scores have the weights' learning rate; with Adam their order, which
    is all that counts, does not depend on it. `apply` alone trains on the calibration batches, without a teacher.

    The linear layers inside the blocks are pruned, or all of a model without blocks; embeddings, heads, norms and
    biases are not, and embeddings are frozen, as in the paper.

    Attributes:
        sparsity: Share of each layer's weights that becomes zero, in [0, 1).
        schedule: How the share rises during training.
        exclude: Patterns of module names that are never pruned.
        epochs: Passes over the calibration batches in `apply`; a trainer has its own.
        learning_rate: That of `apply`.
    """

    sparsity: float
    schedule: Cubic = Cubic()
    exclude: tuple[str, ...] = ()
    epochs: int = 3
    learning_rate: float = 5e-5

    kind = "pruning"
    needs_calibration = True
    needs_gradients = True
    layer_by_layer = True
    papers = ("2005.07683",)
    result_version = 2

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_patterns(self.exclude)
        if not isinstance(self.schedule, Cubic):
            raise DefinitionError(f"schedule is {self.schedule!r}; Movement needs one, such as pruning.Cubic().")
        check_training(self.epochs, self.learning_rate)

    @classmethod
    def example(cls) -> Self:
        """Half of each layer."""
        return cls(sparsity=0.5, learning_rate=1e-3)

    def fits(self, model: nn.Module) -> str | None:
        """Any model with plain linear layers, neither quantized nor sparse."""
        if reason := already_quantized(model) or why_unmaskable(model):
            return reason
        return None if self._layers(model) else "it has no linear layers that this method may prune."

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Trains on the calibration batches, and prunes, in place."""
        train_on_batches(self, model, calibration, self.epochs, self.learning_rate)

    def begin(self, model: nn.Module) -> None:
        """Gives each weight a score, and freezes the embeddings."""
        put_masks(model, [f"{name}.weight" for name in self._layers(model)], ScoredMask)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.weight.requires_grad:
                module.weight.requires_grad_(False)
                module.learns_again = True  # type: ignore[assignment]

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Chooses the weights of the highest scores in each layer anew, as many as the schedule says."""
        if self.schedule.is_due(step, steps):
            share = self.schedule.sparsity(step, steps, self.sparsity)
            for each in masked(model):
                (drop,) = smallest([cast(Tensor, each.mask.scores)], share)
                each.mask.mask.copy_(~drop)

    def end(self, model: nn.Module) -> None:
        """Takes the scores off, and lets the embeddings learn that did before."""
        super().end(model)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and vars(module).pop("learns_again", False):
                module.weight.requires_grad_(True)

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return block_linears(model, self.exclude) or linears(model, self.exclude)
