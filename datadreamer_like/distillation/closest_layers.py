"""Distillation of a model whose layers are being removed: each teacher layer teaches the closest layer that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels.divergences import check_alpha, check_temperature

from .hidden_states import HiddenStates, even_layers, states_of
from .losses import soft_target_loss
from .objectives import TeacherObjective
from .outputs import Batch, Outputs, counted, logits_of, questions


@dataclass(frozen=True)
class ClosestLayers(TeacherObjective):
    """Predictions of the teacher, and hidden states by a layer map that is chosen anew for each batch.

    Xia, Zhong and Chen 2022, "Structured Pruning Learns Compact and Accurate Models", arXiv:2204.00408 (CoFi). With
    teacher layers i and the map m: `(1 - weight) T² KL(q_T ‖ p_T) + weight Σ_i MSE(W H_m(i), H'_i)`, where m(i) is the
    student layer with the least MSE, of those that are left: a layer that returns its input was removed. W, shared by
    all layers, starts as the identity and is discarded afterwards. Made for `pruning.CoarseToFine`, whose objective it
    is by default. Rows need no labels.

    Attributes:
        temperature: T, above 0.
        weight: Weight of the hidden states, from 0 to 1.
        layers: Teacher layers that teach, from 1; None for four of them, evenly spaced.
        in_order: Whether later teacher layers must choose later student layers, which helps on small data.

    Example:
        `student.train(..., objective=ClosestLayers(teacher))`
    """

    temperature: float = 2.0
    weight: float = 0.9
    layers: tuple[int, ...] | None = None
    in_order: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_alpha(self.weight)
        if self.layers is not None:
            layers = self.layers if isinstance(self.layers, Sequence) else ()
            if not layers or any(type(each) is not int or each < 1 for each in layers):
                raise DefinitionError(f"layers is {self.layers!r}; it must be layers of the teacher, such as (3, 6).")
            object.__setattr__(self, "layers", tuple(sorted(set(layers))))

    @property
    def wants(self) -> frozenset[str]:
        """Logits and hidden states."""
        return frozenset({"logits", "hidden_states"})

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module | None:
        """Returns W; raises `MethodMisfit` if the models cannot be compared."""
        layers = None if self.layers is None else dict.fromkeys((1,), max(self.layers))
        projection = HiddenStates(self.teacher, layers=layers).modules(student, teacher)
        if projection is None:
            config: Any = student.config
            size = config.get_text_config().hidden_size
            projection = nn.Linear(size, size, bias=False)
            nn.init.eye_(projection.weight)
        return projection

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the weighted sum of both parts."""
        logits = logits_of(student, "student"), logits_of(teacher, "teacher")
        mask = counted(batch)
        soft = soft_target_loss(*logits, questions(batch), temperature=self.temperature, alpha=1.0, mask=mask)
        if not self.weight:
            return soft
        ours, theirs = states_of(student, "student"), states_of(teacher, "teacher")
        depth = len(theirs) - 1
        layers = even_layers(min(4, depth), depth).values() if self.layers is None else self.layers
        left = [layer for layer in range(1, len(ours)) if not torch.equal(ours[layer], ours[layer - 1])]
        left = left or [len(ours) - 1]

        def error(state: Tensor, target: Tensor) -> Tensor:
            if student.mask is not None:
                state, target = state[student.mask], target[student.mask]
            if modules is not None:
                state = modules(state.to(next(modules.parameters()).dtype))
            return F.mse_loss(state.float(), target.detach().float())

        with torch.no_grad():
            errors = {i: {m: float(error(ours[m], theirs[i])) for m in left} for i in layers}
        distances = [error(ours[m], theirs[i]) for i, m in layer_map(errors, self.in_order).items()]
        return (1 - self.weight) * soft + self.weight * torch.stack(distances).sum()


def layer_map(errors: dict[int, dict[int, float]], in_order: bool) -> dict[int, int]:
    """Maps teacher layers to the student layers of least error, given `errors[teacher layer][student layer]`.

    In order, the last teacher layer chooses first, and each one before it among the student layers before its choice;
    where none is left, it takes the same.

    Example:
        >>> errors = {1: {1: 0.3, 2: 0.1}, 2: {1: 0.4, 2: 0.2}}
        >>> layer_map(errors, in_order=False), layer_map(errors, in_order=True)
        ({1: 2, 2: 2}, {1: 1, 2: 2})
    """
    chosen: dict[int, int] = {}
    last: int | None = None
    for teacher_layer in sorted(errors, reverse=True):
        found = errors[teacher_layer]
        allowed = [layer for layer in found if not in_order or last is None or layer < last]
        last = min(allowed, key=lambda layer: (found[layer], layer)) if allowed else last
        assert last is not None
        chosen[teacher_layer] = last
    return dict(sorted(chosen.items()))
