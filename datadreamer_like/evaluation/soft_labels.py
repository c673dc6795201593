"""Labels that are probabilities of classes, and the weights of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.probabilities import class_names_of, probability_rows
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, LabelError, did_you_mean
from datadreamer_like.graph.output import Column

from .columns import read_rows
from .labels import LabelSet, class_names

ClassWeights = Mapping[Any, float] | Literal["balanced"] | None
"""Weights of classes in a loss: by class, where a class left out has 1; or "balanced", by their frequency."""

FloatArray = np.ndarray[Any, np.dtype[np.float32]]


def is_soft(column: Column) -> bool:
    """Whether a column has probabilities of classes: lists of decimal numbers, or mappings from class to number."""
    kind = column.rows.schema.field(0).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return bool(pa.types.is_floating(kind.value_type))
    return bool(pa.types.is_struct(kind))


def soft_classes(column: Column, where: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the classes of a soft column: `classes`, in the order of its lists, or the keys of its mappings, sorted.

    Raises:
        DefinitionError: Lists have no `classes`, or there are fewer than two.
    """
    kind = column.rows.schema.field(0).type
    if pa.types.is_struct(kind):
        return tuple(class_names_of([dict.fromkeys(each.name for each in kind)], classes, where))
    return tuple(class_names_of([[0.0]], classes, where))


def soft_labels(
    rows: Sequence[Any], classes: Sequence[str], labels: LabelSet, where: str, start: int = 0
) -> tuple[np.ndarray[Any, Any], FloatArray]:
    """Returns the labels of rows of probabilities, as of `LabelSet.targets`, and the probabilities [rows, classes].

    The label is the likeliest class; with `labels.multi`, the classes above one half. Both are -100 for None. `classes`
    are those of the rows, as of `soft_classes`; see `probability_rows` for `where`, `start` and the errors.
    """
    lost = [name for name in classes if name not in labels.label2id]
    if lost:
        raise LabelError(
            f'{where} has probabilities of the class "{lost[0]}", which is not one of the {len(labels)} classes to '
            f"learn: {', '.join(labels.names[:20])}.{did_you_mean(lost[0], labels.names)}"
        )
    own = {name: place for place, name in enumerate(classes)}
    given = [index for index, row in enumerate(rows) if row is not None]
    found = np.full((len(rows), len(labels)), IGNORED_LABEL, dtype=np.float32)
    found[given] = 0.0
    for index in given:
        places = [labels.label2id[name] for name in own]
        found[index, places] = probability_rows([rows[index]], own, where, start + index, multi_label=labels.multi)[0]
    has_label = found[:, :1] != IGNORED_LABEL
    hard: np.ndarray[Any, Any] = (found > 0.5).astype(np.float32) if labels.multi else found.argmax(1)[:, None]
    hard = np.where(has_label, hard, hard.dtype.type(IGNORED_LABEL))
    return (hard if labels.multi else hard[:, 0]), found


def checked_weights(weights: object, what: str) -> None:
    """Checks the argument `class_weights` of a call named `what`.

    Raises:
        ArgumentTypeError: It is neither a mapping, "balanced" nor None.
        DefinitionError: A weight is negative or not finite, or all are 0.
    """
    if weights is None or weights == "balanced":
        return
    if not isinstance(weights, Mapping):
        raise ArgumentTypeError(
            f'{what}: class_weights must be "balanced" or a mapping from class to weight, not {weights!r}.'
        )
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise DefinitionError(f"{what}: the class weight of {name!r} is {weight!r}; it must be 0 or more.")
    if weights and not any(weights.values()):
        raise DefinitionError(f"{what}: all class_weights are 0, so nothing would be learned.")


def weights_of_classes(
    weights: ClassWeights, labels: LabelSet, column: Column, classes: Sequence[str], where: str
) -> FloatArray | None:
    """Returns the weights [classes] of a loss; None for none.

    "balanced" is `rows / (number of classes · rows of the class)`, of mean 1 over the rows; for multi-label rows the
    weight of a yes, `rows without the class / rows with it`. A class without rows has 1. `column` are the labels of the
    training rows, called `where`, and `classes` those of a soft column.

    Raises:
        LabelError: A weight is given for an unknown class.
    """
    if weights is None:
        return None
    found = np.ones(len(labels), dtype=np.float32)
    if isinstance(weights, Mapping):
        for name, weight in weights.items():
            if str(name) not in labels.label2id:
                raise LabelError(
                    f'class_weights has the class "{name}", which is not one of the {len(labels)} classes: '
                    f"{', '.join(labels.names[:20])}.{did_you_mean(str(name), labels.names)}"
                )
            found[labels.label2id[str(name)]] = weight
        return found
    rows, counts, start = 0.0, np.zeros(len(labels)), 0
    naming = class_names(column)
    for part in read_rows({where: column}, labels=where, optional=True):
        values = [value for (value,) in part]
        if classes:
            _, shares = soft_labels(values, classes, labels, where, start)
        else:
            targets = labels.targets(values, where, start, naming)
            known = targets[(targets != IGNORED_LABEL).reshape(len(targets), -1).all(1)]
            shares = known if labels.multi else np.eye(len(labels), dtype=np.float32)[known]
        shares = shares[shares[:, 0] != IGNORED_LABEL] if len(shares) else shares
        rows, counts, start = rows + len(shares), counts + shares.sum(0), start + len(part)
    present = counts > 0
    scale = (rows - counts) if labels.multi else np.full(len(labels), rows / len(labels))
    found[present] = scale[present] / counts[present]
    return found


def loss_targets(probabilities: FloatArray, weights: FloatArray | None, smoothing: float, multi: bool) -> FloatArray:
    """Returns targets of `target_loss`: probabilities [rows, classes], smoothed and weighted; [..., 2] if `multi`.

    A smoothed distribution is `(1 - ε) q + ε u`, with `u` the uniform one (Szegedy et al. 2015, arXiv:1512.00567); of
    multi-label rows each decision is smoothed. A class weight multiplies the term of its class, of multi-label rows
    that of a yes.
    """
    soft = probabilities * (1 - smoothing) + smoothing / (2 if multi else probabilities.shape[-1])
    scaled = soft if weights is None else soft * weights
    found: FloatArray = (np.stack([scaled, 1 - soft], axis=-1) if multi else scaled).astype(np.float32)
    return found
