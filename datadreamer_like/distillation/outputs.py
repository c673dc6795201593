"""What models give an objective for a batch: logits, states and the positions that count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError

from .losses import IGNORED_LABEL
from .sparse_losses import SparseTargets

Batch = Mapping[str, Tensor]

_CHUNK_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Projections:
    """Queries, keys and values of one attention, as its projections give them, before any rotary embedding.

    Each is [batch, heads, seq, head size]; keys and values may have fewer heads (grouped-query attention). In a
    `causal` attention a token attends to itself and earlier ones.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    causal: bool = False


@dataclass(frozen=True)
class Factors:
    """Logits that are not computed: states [..., size] and the output layer [classes, size] that makes logits of them.

    The layer may have a `bias` [classes]. Logits are in the dtype of the states.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def logits(self) -> Tensor:
        """Returns the logits [..., classes] of all states."""
        bias = None if self.bias is None else self.bias.to(self.states.dtype)
        return F.linear(self.states, self.weight.to(self.states.dtype), bias)

    def logits_by_part(self, kept: Tensor) -> Iterator[Tensor]:
        """Yields the logits [some, classes] of the states that the mask `kept` [...] keeps, one after another."""
        states, size = self.states[kept], max(1, _CHUNK_NUMBERS // len(self.weight))
        for start in range(0, max(1, len(states)), size):
            yield replace(self, states=states[start : start + size]).logits()


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for one batch, computed or stored; fields that no objective needs are None.

    Attributes:
        logits: [..., classes], at the positions of the batch's `labels` [...].
        hidden_states: Of the embeddings and of each layer, [batch, seq, hidden].
        attentions: Attention weights of each layer, [batch, heads, seq, seq].
        projections: Queries, keys and values of each layer's attention.
        mask: Bool [batch, seq], False for padding in the three above.
        positions: Bool [batch, seq of the logits], the positions of `logits` that count; None for the batch's `mask`.
            A teacher that reads its own tokens has its own.
        targets: Of a stored teacher, instead of its logits: a few of its probabilities at each of their positions.
        factors: Of a language model, instead of its logits; see `Objective.takes_factors`.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    projections: tuple[Projections, ...] | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    targets: SparseTargets | None = None
    factors: Factors | None = None

    @property
    def classes(self) -> int:
        """Number of classes or tokens of the logits."""
        return logits_of(self, "model").shape[-1] if self.factors is None else len(self.factors.weight)

    def at(self, positions: Callable[[Tensor], Tensor]) -> Outputs:
        """Returns the outputs with the logits, states of factors and targets that `positions` returns for them."""
        logits = None if self.logits is None else positions(self.logits)
        factors = None if self.factors is None else replace(self.factors, states=positions(self.factors.states))
        targets = None if self.targets is None else self.targets.at(positions)
        return replace(self, logits=logits, factors=factors, targets=targets)


class WeightedMean(NamedTuple):
    """A part of a loss, a scalar that is a mean, and the weight of what it is the mean over, such as their number."""

    value: Tensor
    weight: Tensor


def logits_of(outputs: Outputs | None, role: str) -> Tensor:
    """Returns the logits of a student or teacher, its `role`; `DefinitionError` if there are none."""
    if outputs is not None and outputs.logits is None and outputs.factors is not None:
        return outputs.factors.logits()
    if outputs is None or outputs.logits is None:
        raise DefinitionError(f"The {role}'s outputs have no logits. Pass Outputs(logits=...).")
    return outputs.logits


def only_at(
    kept: Tensor | None, student: Outputs, teacher: Outputs | None, batch: Batch
) -> tuple[Outputs, Outputs | None, Batch]:
    """Returns outputs and batch with the positions that the mask `kept` [...] keeps, if the student has factors.

    Logits that are computed from factors are then those of the positions that carry loss. Else returns all as it is.
    """
    if kept is None or student.factors is None:
        return student, teacher, batch
    cut = {"labels": batch["labels"][kept]}
    if "mask" in batch:
        cut["mask"] = batch["mask"][kept]
    taught = None if teacher is None else teacher.at(lambda part: part[kept])
    return student.at(lambda part: part[kept]), taught, cut


def counted(batch: Batch) -> Tensor | None:
    """Returns the positions that count: the batch's mask, or the positions with labels."""
    labels = batch.get("labels")
    if "mask" in batch or labels is None:
        return batch["mask"].bool() if "mask" in batch else None
    return None if labels.is_floating_point() else labels != IGNORED_LABEL


def labels_of(batch: Batch) -> Tensor:
    """Returns the labels of a batch; `DefinitionError` if there are none."""
    if "labels" not in batch:
        raise DefinitionError(
            f"The loss reads labels, and the batch has {', '.join(map(repr, batch)) or 'nothing'}. Pass "
            f'{{"labels": ...}}, with {IGNORED_LABEL} where there is no label, or choose an objective without, such as '
            "SoftTargets(teacher, alpha=1.0)."
        )
    return batch["labels"]


def number_of_positions(batch: Batch) -> Tensor:
    """Returns the number of positions of a batch that count; of rows, if it does not say which do."""
    kept = counted(batch)
    return torch.tensor(len(batch["labels" if "labels" in batch else "rows"])) if kept is None else kept.sum()


def number_of_labels(batch: Batch) -> Tensor:
    """Returns the number of positions of a batch that have a label, or several."""
    labelled = batch["labels"] != IGNORED_LABEL
    return (labelled.any(-1) if batch["labels"].is_floating_point() else labelled).sum()


def questions(batch: Batch) -> Tensor | None:
    """Returns multi-label targets, which make each class a binary decision, without missing values; None for others."""
    labels = batch.get("labels")
    return None if labels is None or not labels.is_floating_point() else labels.clamp(min=0)
