"""Coarse-to-fine pruning: layers, heads, neurons and hidden dimensions are removed together while the model learns."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from datadreamer_like.compression import Batches
from datadreamer_like.compression.method import already_quantized, check_share
from datadreamer_like.compression.while_training import check_training, train_on_batches
from datadreamer_like.distillation import ClosestLayers, Objective, Teacher
from datadreamer_like.errors import DefinitionError, check_number

from .encoders import Encoder, why_no_encoder
from .gates import gates_of
from .while_training import PrunesWhileTraining, why_unmaskable


@dataclass(frozen=True)
class Linear:
    """When a target sparsity rises during a training: linearly, in the first share of its steps.

    Attributes:
        rise: Share of the steps in which the target rises from 0.
        cooldown: Share of the steps after it is decided what is removed; the rest of the training makes up for it.

    Example:
        >>> schedule = Linear(rise=0.5, cooldown=0.25)
        >>> [round(schedule.sparsity(step, steps=8, final=0.8), 4) for step in range(7)]
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    """

    rise: float = 0.3
    cooldown: float = 0.4

    def __post_init__(self) -> None:
        for name in ("rise", "cooldown"):
            check_share(name, getattr(self, name))
        if self.rise + self.cooldown > 1:
            raise DefinitionError(
                f"rise={self.rise} and cooldown={self.cooldown} are shares of the training; together they must be at "
                "most 1."
            )

    def bounds(self, steps: int) -> tuple[int, int]:
        """Returns the first step, and the one after which it is decided what is removed."""
        return 0, max(1, round((1 - self.cooldown) * steps))

    def sparsity(self, step: int, steps: int, final: float) -> float:
        """Returns the target after optimizer step `step` of `steps`."""
        return final * min(1.0, step / max(1, round(self.rise * steps)))


@dataclass(frozen=True)
class CoarseToFine(PrunesWhileTraining):
    """Removes layers, heads, neurons and hidden dimensions of an encoder while it is distilled: a smaller dense model.

    Xia, Zhong and Chen 2022, "Structured Pruning Learns Compact and Accurate Models", arXiv:2204.00408 (CoFi). Gates
    are on each attention and feed-forward layer, each head, each neuron, and on each hidden dimension of all layers at
    once; a weight is kept if the product of its gates is. They are hard concrete, and learn with the weights; a
    Lagrangian holds their expected sparsity to a target that rises. When the schedule's `cooldown` begins, the gates
    are fixed, the least certain ones such that the target is met, and the rest is fine-tuning. At the end the gates
    are folded into the weights, and what they closed is cut out.

    Use it with a trainer: `Prune("...", model, CoarseToFine(0.6), retrain={...})`. Without an objective the model
    before pruning teaches it, by `distillation.ClosestLayers`. Train for some thousand steps. `apply` alone trains on
    the calibration batches in the same way.

    For BERT, RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT with a head for classes. The layers differ in their
    widths, which no config of transformers can state: the result loads with `import datadreamer_like.pruning`.

    Attributes:
        sparsity: Share of the weights of the linear layers in the blocks that is removed, in [0, 1).
        schedule: How the target rises, and when it is decided what is removed.
        gate_learning_rate: Of the gates; the Lagrangian's multipliers have half of it. None for the paper's 0.01, and
            more in a training of under 4,000 steps, in which gates could not close at that rate: 40 divided by the
            steps, up to 0.5.
        epochs: Passes over the calibration batches in `apply`; a trainer has its own.
        learning_rate: That of the weights in `apply`.
    """

    sparsity: float
    schedule: Linear = Linear()
    gate_learning_rate: float | None = None
    epochs: int = 10
    learning_rate: float = 5e-5

    kind = "pruning"
    needs_calibration = True
    needs_gradients = True
    states_widths = False
    papers = ("2204.00408",)

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        if not isinstance(self.schedule, Linear):
            raise DefinitionError(f"schedule is {self.schedule!r}; CoarseToFine needs one, such as pruning.Linear().")
        check_training(self.epochs, self.learning_rate)
        check_number(self.gate_learning_rate, "gate_learning_rate", over=True, optional=True)

    @classmethod
    def example(cls) -> Self:
        """Half of the weights."""
        return cls(sparsity=0.5, epochs=20, learning_rate=1e-3)

    def fits(self, model: nn.Module) -> str | None:
        """Encoders with a head for classes, neither quantized nor pruned."""
        return already_quantized(model) or why_unmaskable(model) or why_no_encoder(model)

    def objective(self, teacher: Teacher) -> Objective:
        """The teacher's predictions, and its hidden states by the closest layer."""
        return ClosestLayers(teacher)

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Trains on the calibration batches, taught by the model as it was, and prunes, in place."""
        train_on_batches(self, model, calibration, self.epochs, self.learning_rate)

    def begin(self, model: nn.Module) -> None:
        """Puts a gate on each part, all open; they are drawn until the model is put into evaluation mode."""
        encoder = Encoder(model)
        encoder.put(encoder.gates().eval())
        gates_of(model).train()

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Lets the gates learn until the schedule's last step of pruning, which decides which of them close."""
        gates, last = gates_of(model), self.schedule.bounds(steps)[1]
        if step < last:
            rate = self.gate_learning_rate or max(0.01, min(0.5, 40 / steps))
            gates.update(self.schedule.sparsity(step, steps, self.sparsity), rate)
        elif not gates.is_decided:
            gates.decide(self.sparsity)

    @torch.no_grad()
    def end(self, model: nn.Module) -> None:
        """Folds the gates into the weights, and cuts out what they closed."""
        gates = gates_of(model).eval()
        if not gates.is_decided:
            gates.decide(self.sparsity)
        gates.draw()
        found = float(gates.sparsity((gates.final > 0).double()))
        if abs(found - self.sparsity) > 0.01:
            logging.getLogger("datadreamer_like").warning(
                "%s removed %.3f of the weights: its gates left no finer choice.", self, found
            )
        encoder = Encoder(model)
        encoder.fold(gates)
        encoder.cut(gates)
