"""Distillation of self-attention: MiniLM's relations, and TinyBERT's attention scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError, MethodMisfit, check_number, check_sequence, did_you_mean

from .hidden_states import check_depths, check_layers, even_layers
from .losses import divergence
from .objectives import TeacherObjective
from .outputs import Batch, Outputs, Projections
from .projections import attention_layers

Relation = Literal["qk", "qq", "kk", "vv"]
"""Which two of queries, keys and values are compared between tokens."""


@dataclass(frozen=True)
class Relations(TeacherObjective):
    """Divergence of self-attention relations in one layer: MiniLM and MiniLMv2.

    A relation is `softmax(A Bᵀ / √d)` between the tokens of a text, for each head, where A and B are queries, keys or
    values and d is the features of a head. The loss is the sum over `kinds` of the mean over heads and tokens of
    `KL(teacher ‖ student)`. Hidden sizes may differ.

    - MiniLM (Wang et al. 2020, arXiv:2002.10957): `kinds=("qk", "vv")`, attention distributions and value relations of
      the last layers, by attention head: both models need the same number of heads.
    - MiniLMv2 (Wang et al. 2020, arXiv:2012.15828): `kinds=("qq", "kk", "vv"), heads=48`: the features of all heads are
      split again into `heads` relation heads. The paper takes an upper-middle layer of a large teacher:
      `layers=(12, 21)` of 24.

    Queries and keys are those before a rotary embedding, and scores are without a position bias. "qk" is therefore
    refused for models that have one: it would not be their attention. Student and teacher must read the same tokens, as
    encoders or both as causal models. Alone, it leaves a classifier's head untrained.

    Attributes:
        kinds: The relations.
        heads: Number of relation heads; None for the attention's own.
        layers: Layer of the student and layer of the teacher, counted from 1; None for the last of both.

    Example:
        `student.train(..., objective=Combined([Supervised(), Relations(teacher)], [1.0, 1.0]))`
    """

    kinds: Sequence[Relation] = ("qk", "vv")
    heads: int | None = None
    layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sequence(self.kinds, "kinds", 'relations, such as ("qk", "vv")')
        for kind in self.kinds:
            if kind not in get_args(Relation):
                raise DefinitionError(
                    f'There is no relation "{kind}".{did_you_mean(str(kind), get_args(Relation))} '
                    f"Choose some of {', '.join(get_args(Relation))}."
                )
        if not self.kinds:
            raise DefinitionError(f'kinds is {self.kinds!r}; it must be a list of relations, such as ("qk", "vv").')
        if self.heads is not None:
            check_number(self.heads, "heads", 1, whole=True)
        if self.layers is not None:
            check_sequence(self.layers, "layers", "two layers, of the student and of the teacher")
            check_layers(dict([self.layers]) if len(self.layers) == 2 else None, least=1)

    @property
    def wants(self) -> frozenset[str]:
        """Queries, keys and values."""
        return frozenset({"projections"})

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Checks that the two models can be compared; raises `MethodMisfit` if they cannot."""
        check_attentions_match(student, teacher, scores="qk" in self.kinds, heads=self.heads is None)
        if self.layers is not None:
            check_depths({self.layers[0]: self.layers[1]}, *_depths(student, teacher))
        for model in (student, teacher):
            layer = attention_layers(_a_model(model))[-1]
            for width in layer.widths:
                _check_split(width, self.heads, type(model).__name__)

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the sum of the relations' divergences."""
        ours, theirs = projections_of(student, "student"), projections_of(teacher, "teacher")
        layer, other = self.layers or (len(ours), len(theirs))
        check_depths({layer: other}, len(ours), len(theirs))
        pairs = ((ours[layer - 1], theirs[other - 1], kind) for kind in self.kinds)
        return torch.stack([self._divergence(*pair, student.mask) for pair in pairs]).sum()

    def _divergence(self, ours: Projections, theirs: Projections, kind: str, mask: Tensor | None) -> Tensor:
        a, b = (relation_scores(each, kind, self.heads) for each in (ours, theirs))
        if a.shape != b.shape:
            raise MethodMisfit(
                f"Relations of student and teacher have shapes {tuple(a.shape)} and {tuple(b.shape)}. Both must read "
                "the same tokens with the same number of heads; pass heads to split the features again."
            )
        allowed = attended(a, mask, ours.causal)
        a, b = (scores.masked_fill(~allowed, -math.inf) for scores in (a, b))
        tokens = None if mask is None else mask[:, None].expand(a.shape[:-1])
        return divergence(a, b, "forward_kl", mask=tokens)


@dataclass(frozen=True)
class AttentionScores(TeacherObjective):
    """Mean squared distance of attention scores before the softmax, `Q Kᵀ / √d`, averaged over layers and heads.

    TinyBERT's attention loss (Jiao et al. 2019, arXiv:1909.10351); `TinyBERT` has all of its losses. Only pairs of
    tokens count of which neither is padding, and which the model lets attend. Student and teacher need the same number
    of heads. Models with a rotary embedding or a position bias are refused, since their scores have more parts.

    Attributes:
        layers: Maps layers of the student to layers of the teacher, counted from 1; None as in `HiddenStates`.
    """

    layers: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            check_layers(self.layers, least=1)

    @property
    def wants(self) -> frozenset[str]:
        """Queries, keys and values."""
        return frozenset({"projections"})

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Checks that the two models can be compared; raises `MethodMisfit` if they cannot."""
        check_attentions_match(student, teacher, scores=True, heads=True)
        check_depths(self.layers or {}, *_depths(student, teacher))

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the mean distance over the mapped layers."""
        ours, theirs = projections_of(student, "student"), projections_of(teacher, "teacher")
        layers = even_layers(len(ours), len(theirs)) if self.layers is None else self.layers
        check_depths(layers, len(ours), len(theirs))
        losses = []
        for layer, other in layers.items():
            a, b = (relation_scores(each, "qk") for each in (ours[layer - 1], theirs[other - 1]))
            if a.shape != b.shape:
                raise MethodMisfit(
                    f"Attention scores of student and teacher have shapes {tuple(a.shape)} and {tuple(b.shape)}. Both "
                    "must read the same tokens with the same number of heads."
                )
            counts = attended(a, student.mask, ours[layer - 1].causal)
            if student.mask is not None:
                counts = counts & student.mask[:, None, :, None].bool()
            counts = counts.expand(a.shape)
            losses.append(F.mse_loss(a[counts].float(), b[counts].detach().float()))
        return torch.stack(losses).mean()


def relation_scores(layer: Projections, kind: str, heads: int | None = None) -> Tensor:
    """Returns `A Bᵀ / √d` [batch, heads, seq, seq] of two of "q", "k" and "v", for each head.

    With `heads` the features of all heads are split again into that many; without, heads of keys and values that
    several queries share are repeated.
    """
    parts = {"q": layer.queries, "k": layer.keys, "v": layer.values}
    sides = []
    for part in (parts[name] for name in kind):
        if heads is None:
            sides.append(part.repeat_interleave(layer.queries.shape[1] // part.shape[1], dim=1))
        else:
            batch, own, size, width = part.shape
            _check_split(own * width, heads, "a model")
            sides.append(part.transpose(1, 2).reshape(batch, size, heads, -1).transpose(1, 2))
    return sides[0] @ sides[1].transpose(-1, -2) / math.sqrt(sides[0].shape[-1])


def _check_split(width: int, heads: int | None, whose: str) -> None:
    if heads is not None and width % heads:
        raise MethodMisfit(
            f"heads is {heads}, which does not divide the {width} features of the attention of {whose}. Choose a "
            "divisor of both models' features."
        )


def attended(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Returns which tokens others may attend to, as a bool that broadcasts to `scores` [batch, heads, seq, seq]."""
    size = scores.shape[-1]
    allowed = torch.ones(1, 1, size, size, dtype=torch.bool, device=scores.device)
    if causal:
        allowed = allowed.tril()
    return allowed if mask is None else allowed & mask[:, None, None, :].bool()


def check_attentions_match(student: nn.Module, teacher: nn.Module | None, *, scores: bool, heads: bool) -> None:
    """Raises `MethodMisfit` if the attentions of two models differ in what is compared.

    `scores` are those of queries with keys; `heads` says that heads are compared one by one.
    """
    ours, theirs = attention_layers(student), attention_layers(_a_model(teacher))
    if ours[0].causal != theirs[0].causal:
        raise MethodMisfit(
            f"One of {type(student).__name__} and its teacher, {type(teacher).__name__}, is causal and the other reads "
            "texts as a whole, so that their attentions differ. Choose a teacher of the student's kind."
        )
    for model, layers in ((student, ours), (teacher, theirs)):
        if scores and layers[0].form.positions:
            kinds = {"rotary": "a rotary embedding", "bias": "a position bias"}
            raise MethodMisfit(
                f"The attention scores of {type(model).__name__} depend on {kinds[layers[0].form.positions]}, which "
                'queries and keys do not have. Compare Relations(teacher, kinds=("qq", "kk", "vv")), or hidden states.'
            )
    counts = ours[-1].heads, theirs[-1].heads
    if heads and counts[0] != counts[1]:
        raise MethodMisfit(
            f"The student has {counts[0]} attention heads and its teacher {counts[1]}. Choose a student with as many, "
            'or split the features again: Relations(teacher, kinds=("qq", "kk", "vv"), heads=...).'
        )


def _depths(student: nn.Module, teacher: nn.Module | None) -> tuple[int, int]:
    return len(attention_layers(student)), len(attention_layers(_a_model(teacher)))


def projections_of(outputs: Outputs | None, role: str) -> tuple[Projections, ...]:
    """Returns the projections of a student or teacher, its `role`; `MethodMisfit` if there are none."""
    if outputs is None or not outputs.projections:
        raise MethodMisfit(f"The {role} gives no queries, keys and values. Choose a transformer, or another objective.")
    return outputs.projections


def _a_model(model: nn.Module | None) -> nn.Module:
    if model is None:
        raise MethodMisfit("The teacher gives no queries, keys and values, because it is not run on the batches.")
    return model
