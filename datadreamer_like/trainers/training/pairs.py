"""Pairs of texts of one class or two, on which an encoder is trained by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from datadreamer_like.distillation import Objective, Outputs
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.tokens import padded_inputs
from datadreamer_like.errors import DefinitionError, LabelError
from datadreamer_like.evaluation.labels import LabelSet
from datadreamer_like.evaluation.tasks.classification import Classification
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Batch, Measure

Sampling = Literal["oversampling", "undersampling", "unique"]
"""How pairs are balanced; see `TrainSetFitClassifier.train`."""

Array = np.ndarray[Any, Any]

_MOST_PAIRS = 20_000_000


@dataclass(frozen=True)
class SameClass(Objective):
    """The squared error of the cosine of two texts: 1 for texts of one class, 0 for others."""

    teacher: ClassVar[None] = None  # type: ignore[misc]

    def loss(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Mapping[str, torch.Tensor],
        modules: nn.Module | None = None,
    ) -> torch.Tensor:
        """Returns the mean of `(cos - label)²` over the pairs."""
        assert student.logits is not None
        return F.mse_loss(student.logits, batch["labels"].to(student.logits.dtype))


class PairTask(Classification):
    """Pairs of texts; the logits of a pair are the cosine of its embeddings."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        super().__init__(tokenizer, LabelSet(("other", "same")), max_length, truncate=True, optional=False)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch of all first texts, then all second ones [2 batch, seq]; `labels` are [batch]."""
        ids = [row[name] for name in ("first", "second") for row in examples]
        return {
            **padded_inputs(ids, self.padding),
            "labels": torch.tensor([float(row["labels"]) for row in examples]),
            "rows": torch.tensor([row["row"] for row in examples]),
        }

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns the cosines [batch]."""
        first, second = model.embed(batch["input_ids"], batch["attention_mask"]).chunk(2)
        return Outputs(logits=F.cosine_similarity(first, second))

    def measure(self) -> Measure:
        """Returns a measure of nothing: the loss says all."""
        return _NoMeasure()


class _NoMeasure(Measure):
    def add(self, outputs: Outputs, batch: Batch) -> None:
        pass

    def join(self, other: Self) -> None:
        pass

    def result(self) -> dict[str, float]:
        return {}


class _Picked:
    """Some values of a field, by index."""

    def __init__(self, values: Any, chosen: Array) -> None:
        self.values, self.chosen = values, chosen

    def __getitem__(self, index: int) -> Any:
        return self.values[self.chosen[index]]


def pair_examples(
    rows: Examples, strategy: Sampling, partners: int | None, generator: np.random.Generator, where: str
) -> Examples:
    """Returns the pairs of tokenized rows as examples; see `make_pairs`."""
    labels = np.asarray(rows.fields["labels"])
    known = np.flatnonzero((labels.reshape(len(labels), -1) != IGNORED_LABEL).all(1))
    first, second, same = make_pairs(labels[known], strategy, partners, generator, where)
    first, second = known[first], known[second]
    fields: dict[str, Any] = {
        kind: _Picked(rows.fields["input_ids"], chosen) for kind, chosen in (("first", first), ("second", second))
    }
    lengths = np.maximum(rows.lengths[first], rows.lengths[second])
    return Examples({**fields, "labels": same.astype(np.float32)}, lengths)


def make_pairs(
    labels: Array, strategy: Sampling, partners: int | None, generator: np.random.Generator, where: str
) -> tuple[Array, Array, Array]:
    """Returns pairs of different rows: the index of each [pairs], and whether they share a class.

    `labels` are classes [rows], or 0 and 1 [rows, classes]. With `partners`, each row gets so many partners of one of
    its classes, if any has, and as many of others; else the pairs are all, balanced by `strategy`.

    Raises:
        LabelError: No two rows share a class, or all do. `where` is what the message calls the rows.
        DefinitionError: There are too many pairs.
    """
    several = labels.ndim > 1

    def shared(first: Array, second: Array) -> Array:
        if several:
            return np.asarray(((labels[first] > 0) & (labels[second] > 0)).any(-1))
        return np.asarray(labels[first] == labels[second])

    if partners is not None:
        first, second = _drawn(len(labels), shared, partners, generator)
    else:
        if len(labels) * (len(labels) - 1) // 2 > _MOST_PAIRS:
            raise DefinitionError(
                f"{where}: {len(labels):,} texts have over {_MOST_PAIRS:,} pairs. Pass num_iterations=20 to draw some "
                "for each text."
            )
        first, second = np.triu_indices(len(labels), k=1)
    same: Array = shared(first, second)
    positive, negative = np.flatnonzero(same), np.flatnonzero(~same)
    if not len(positive) or not len(negative):
        have = "all texts share a class" if len(positive) else "no two texts share a class"
        lacking = "another class" if len(positive) else "the same class"
        raise LabelError(f"{where}: {have}, so there are no pairs to compare. Add texts of {lacking}.")
    if partners is None and strategy != "unique":
        size = (max if strategy == "oversampling" else min)(len(positive), len(negative))
        positive, negative = (_resized(each, size, generator) for each in (positive, negative))
    chosen = np.concatenate([positive, negative])
    return first[chosen], second[chosen], same[chosen]


def _resized(chosen: Array, size: int, generator: np.random.Generator) -> Array:
    """Draws `size` of the values, each as often as the others, or once more."""
    rounds = [generator.permutation(chosen) for _ in range(-(-size // len(chosen)))]
    return np.concatenate(rounds)[:size]


def _drawn(
    rows: int, shared: Callable[[Array, Array], Array], partners: int, generator: np.random.Generator
) -> tuple[Array, Array]:
    first, second = [], []
    everyone = np.arange(rows)
    for row in range(rows):
        same = shared(np.full(rows, row), everyone)
        for group in (np.flatnonzero(same & (everyone != row)), np.flatnonzero(~same)):
            if len(group):
                chosen = _resized(group, partners, generator)
                first.append(np.full(len(chosen), row))
                second.append(chosen)
    return np.concatenate(first), np.concatenate(second)
