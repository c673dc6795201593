"""Distillation of hidden states: the student's layers imitate the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError, MethodMisfit, did_you_mean

from .objectives import TeacherObjective
from .outputs import Batch, Outputs, WeightedMean
from .signals import Hidden, Signals

Distance = Literal["mse", "cosine"]


@dataclass(frozen=True)
class HiddenStates(TeacherObjective):
    """The distance between hidden states of student and teacher, averaged over layers and tokens.

    `mse` is the mean over tokens and dimensions of `(h W - t)²`, as in TinyBERT (Jiao et al. 2019, arXiv:1909.10351);
    `cosine` the mean over tokens of `1 - cos(h W, t)`, as in DistilBERT for its last layer (Sanh et al. 2019,
    arXiv:1910.01108). If the hidden sizes differ, a projection `W`, shared by all layers, is trained with the student
    and discarded afterwards. Student and teacher must read the same tokens. A classifier's rows need no labels if the
    teacher is one too: its classes become the student's. Alone, it leaves a classifier's head untrained, so it is
    usually combined: `Combined([SoftTargets(teacher), HiddenStates(teacher)], weights=[1.0, 1.0])`.

    The teacher needs no head otherwise. `layers` maps student layers to teacher layers; 0 is the embeddings. None
    spreads the teacher's layers evenly: layer m of M imitates layer m N / M of N, rounded.

    Example:
        `student.train(..., objective=HiddenStates(teacher, distance="cosine", layers={3: 12}))`
    """

    distance: Distance = "mse"
    layers: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in get_args(Distance):
            raise DefinitionError(
                f'distance "{self.distance}" is unknown.{did_you_mean(str(self.distance), get_args(Distance))} '
                f"Choose one of {', '.join(get_args(Distance))}."
            )
        if self.layers is not None:
            check_layers(self.layers)

    @property
    def wants(self) -> frozenset[str]:
        """Hidden states."""
        return frozenset({"hidden_states"})

    def check_signals(self, signals: Sequence[Signals], student: nn.Module, teacher: nn.Module) -> None:
        """Refuses hidden states that lack a layer which the loss reads."""
        depth, teacher_depth = self.check_depths(student, teacher)
        layers = even_layers(depth, teacher_depth) if self.layers is None else self.layers
        stored = {layer for each in signals if isinstance(each, Hidden) for layer in each.layers}
        if beyond := sorted(layer for layer in stored if layer > teacher_depth):
            raise MethodMisfit(
                f"The StoredTeacher keeps layer {beyond[0]}, and the teacher has {teacher_depth} layers. Leave it out."
            )
        if missing := sorted({*layers.values()} - stored):
            raise MethodMisfit(
                f"HiddenStates reads the teacher's layers {', '.join(map(str, sorted({*layers.values()})))}, and its "
                f"StoredTeacher keeps {', '.join(map(str, sorted(stored))) or 'none'}. Store "
                f"{', '.join(map(str, missing))} too: Hidden(layers=[...])."
            )

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module | None:
        """Returns the projection from the student's hidden size to the teacher's; None if they are equal.

        Raises `MethodMisfit` if a model has no hidden states, only one is an encoder-decoder, or a layer is missing.
        """
        self.check_depths(student, teacher)
        (width, _, _), (wanted, _, _) = _shape(student), _shape(teacher)
        return None if width == wanted else nn.Linear(width, wanted, bias=False)

    def check_depths(self, student: nn.Module, teacher: nn.Module | None) -> tuple[int, int]:
        """Returns the numbers of layers of two models; `MethodMisfit` if there are none, or one in `layers` is missing.

        Only the models' configs are read.
        """
        (_, depth, kind), (_, teacher_depth, teacher_kind) = _shape(student), _shape(teacher)
        if kind != teacher_kind:
            raise MethodMisfit(
                f"{type(student).__name__} and its teacher, {type(teacher).__name__}, share no hidden states: one is "
                "an encoder-decoder and the other is not. Choose a teacher of the student's kind."
            )
        check_depths(self.layers or {}, depth, teacher_depth)
        return depth, teacher_depth

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the mean distance over the mapped layers."""
        ours, theirs = states_of(student, "student"), states_of(teacher, "teacher")
        depths = len(ours) - 1, len(theirs) - 1
        layers = even_layers(*depths) if self.layers is None else self.layers
        check_depths(layers, *depths)
        losses = [self._distance(ours[layer], theirs[other], student.mask, modules) for layer, other in layers.items()]
        return torch.stack(losses).mean()

    def means(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        modules: nn.Module | None = None,
        *,
        all_labelled: bool = False,
    ) -> list[WeightedMean]:
        """Returns the loss and the number of tokens."""
        loss = self.loss(student, teacher, batch, modules)
        first = states_of(student, "student")[0]
        tokens = torch.tensor(first.shape[:-1].numel()) if student.mask is None else student.mask.sum()
        return [WeightedMean(loss, tokens)]

    def _distance(self, ours: Tensor, theirs: Tensor, mask: Tensor | None, projection: nn.Module | None) -> Tensor:
        if ours.shape[:-1] != theirs.shape[:-1]:
            raise MethodMisfit(
                f"Student and teacher share no hidden states: they have positions of shape {tuple(ours.shape[:-1])} "
                f"and {tuple(theirs.shape[:-1])} for the same batch. Both must read the same tokens."
            )
        if mask is not None:
            ours, theirs = ours[mask.bool()], theirs[mask.bool()]
        ours = ours if projection is None else projection(ours)
        if ours.shape[-1] != theirs.shape[-1]:
            raise DefinitionError(
                f"The student's hidden states have {ours.shape[-1]} dimensions and the teacher's {theirs.shape[-1]}. "
                "Pass what `modules(student, teacher)` returned, which projects them."
            )
        ours, theirs = ours.float(), theirs.detach().float()
        if self.distance == "mse":
            return F.mse_loss(ours, theirs)
        return (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()


def check_layers(layers: object, least: int = 0) -> None:
    """Raises `DefinitionError` if an option does not map layers to layers, counted from `least`."""
    numbers = sum(layers.items(), ()) if isinstance(layers, Mapping) else ()
    if not numbers or not all(type(each) is int and each >= least for each in numbers):
        zero = " (0 is the embeddings)" if least == 0 else ""
        raise DefinitionError(
            f"layers is {layers!r}; it must map layers of the student to layers of the teacher, counted from 1{zero}, "
            "such as {1: 3, 2: 6}."
        )


def check_depths(layers: Mapping[int, int], depth: int, teacher_depth: int) -> None:
    """Raises `MethodMisfit` if student or teacher, which have so many layers, lacks one of those mapped."""
    for layer, other in layers.items():
        if layer > depth or other > teacher_depth:
            raise MethodMisfit(
                f"layers maps {layer} to {other}, but the student has {depth} layers and the teacher {teacher_depth}. "
                "Choose others, or leave layers out."
            )


def even_layers(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Maps student layers to evenly spaced teacher layers, the last to the last.

    Example:
        >>> even_layers(4, 12)
        {1: 3, 2: 6, 3: 9, 4: 12}
        >>> even_layers(2, 3)
        {1: 2, 2: 3}
    """
    doubled = 2 * student_layers
    return {m: (2 * m * teacher_layers + student_layers) // doubled for m in range(1, student_layers + 1)}


def _shape(model: Any) -> tuple[int, int, bool]:
    """Hidden size, number of layers (the decoder's in an encoder-decoder), and whether it is an encoder-decoder."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    is_encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    names = ["num_decoder_layers", "decoder_layers"] if is_encoder_decoder else []
    depth = next((found for name in [*names, "num_hidden_layers"] if (found := getattr(config, name, None))), None)
    width = getattr(config, "hidden_size", None)
    if width is None or depth is None:
        raise MethodMisfit(
            f"{getattr(model, 'name', type(model).__name__)} shares no hidden states: its config has no hidden_size or "
            "num_hidden_layers. "
            "Choose a transformer, or learn from the teacher's logits: SoftTargets(teacher)."
        )
    return int(width), int(depth), is_encoder_decoder


def states_of(outputs: Outputs | None, role: str) -> tuple[Tensor, ...]:
    """Returns the hidden states of a student or teacher, its `role`; `MethodMisfit` if there are none."""
    if outputs is None or not outputs.hidden_states:
        raise MethodMisfit(f"The {role} gives no hidden states. Choose a transformer, or another objective.")
    return outputs.hidden_states
