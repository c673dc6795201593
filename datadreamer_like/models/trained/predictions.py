"""What a classifier says of texts: labels, probabilities, and how certain it is; computed from its logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, StepOutputError

logger = logging.getLogger("datadreamer_like")

Array = np.ndarray[Any, np.dtype[np.float64]]

_SHOWN, _CLASSES_SHOWN = 3, 10


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions.

    Attributes:
        classes: The classes, in the order of the probabilities.
        labels: The most likely class of each text; for a multi-label model, the list of classes above 0.5.
        probabilities: Float array [texts, classes]; rows add up to 1, except for a multi-label model.
    """

    classes: list[str]
    labels: list[Any]
    probabilities: np.ndarray[Any, np.dtype[np.float32]]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Answers:
    """A classifier's answers to the texts that it is certain of, and its fallback's to the others.

    Attributes:
        labels: The label of each text; None for one that was handed over to no fallback.
        answered: Whether the model answered, bool array [texts].
        predictions: The model's predictions for all texts.
    """

    labels: list[Any]
    answered: np.ndarray[Any, np.dtype[np.bool_]]
    predictions: Predictions

    @property
    def coverage(self) -> float:
        """The share of texts that the model answered."""
        return float(self.answered.mean()) if len(self.answered) else 0.0

    @property
    def outside(self) -> list[int]:
        """The positions of the texts to which the fallback gave a label that is not one of the model's classes."""
        return outside_classes(self.labels, self.predictions.classes)

    def __len__(self) -> int:
        return len(self.labels)


def probabilities(logits: Array, multi_label: bool) -> Array:
    """Returns the probabilities of the classes [rows, classes]: softmax, or sigmoid for a multi-label model."""
    if multi_label:
        found: Array = 0.5 * (1 + np.tanh(0.5 * logits))
        return found
    shares: Array = np.exp(log_probabilities(logits))
    return shares


def log_probabilities(logits: Array) -> Array:
    """Returns the logarithms of softmax(logits) [rows, classes]."""
    if not len(logits):
        return logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def log_odds(logits: Array, multi_label: bool) -> Array:
    """Returns how certain a model is of its answer to each row [rows].

    That is the log-odds log(p / (1 - p)) of the most likely class, which unlike p do not saturate at 1; for a
    multi-label model those of the least certain of its decisions, one per class.
    """
    if multi_label:
        least: Array = np.abs(logits).min(axis=1)
        return least
    best = logits.argmax(axis=1)
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, best] = -np.inf
    most = others.max(axis=1)
    found: Array = logits[rows, best] - most - np.log(np.exp(others - most[:, None]).sum(axis=1))
    return found


def decisions(logits: Array, classes: Sequence[str], multi_label: bool) -> list[Any]:
    """Returns the most likely class of each row; for a multi-label model, the list of classes above 0.5."""
    if multi_label:
        return [[classes[index] for index in np.flatnonzero(row > 0).tolist()] for row in logits]
    return [classes[index] for index in logits.argmax(axis=1).tolist()] if len(logits) else []


def check_fallback(fallback: object) -> None:
    """Raises `ArgumentTypeError` unless a fallback is None or a function."""
    if fallback is not None and not callable(fallback):
        raise ArgumentTypeError(
            f"fallback must be a function of a list of texts that returns their labels, not {fallback!r:.100}."
        )


def hand_over(
    texts: Sequence[str],
    labels: Sequence[Any],
    answered: Sequence[bool] | np.ndarray[Any, np.dtype[np.bool_]],
    fallback: Callable[[list[str]], Sequence[Any]] | None,
) -> list[Any]:
    """Returns the labels of the texts that were answered, and the fallback's for the others; None without one.

    Raises:
        StepOutputError: The fallback returned no list, or another number of labels than it was given texts.
    """
    left = [index for index, sure in enumerate(answered) if not sure]
    given: list[Any] = [None] * len(left)
    if fallback is not None and left:
        returned: Any = fallback([texts[index] for index in left])
        if isinstance(returned, str | Mapping) or not isinstance(returned, Iterable):
            raise StepOutputError(
                f"fallback returned {returned!r:.100}; it must return a list with the label of each of the "
                f"{len(left)} texts that it is given."
            )
        given = list(returned)
        if len(given) != len(left):
            raise StepOutputError(f"fallback returned {len(given)} labels for {len(left)} texts. Return one for each.")
    found = list(labels)
    for index, label in zip(left, given, strict=True):
        found[index] = label
    return found


def outside_classes(labels: Sequence[Any], classes: Sequence[str]) -> list[int]:
    """Returns the positions of labels, or lists of them, that are not all classes; None is no label, and not found."""
    known = {*classes}

    def is_known(label: Any) -> bool:
        if isinstance(label, list | tuple):
            return all(isinstance(each, str) and each in known for each in label)
        return isinstance(label, str) and label in known

    return [row for row, label in enumerate(labels) if label is not None and not is_known(label)]


def warn_of_outside(labels: Sequence[Any], classes: Sequence[str], what: str) -> int:
    """Warns of labels of a fallback, named `what`, that are not classes, with the first rows; returns how many."""
    found = outside_classes(labels, classes)
    if found:
        first = ", ".join(f"{labels[row]!r:.60} in row {row}" for row in found[:_SHOWN])
        logger.warning(
            "%s: labels from the fallback that are not classes of the model: %s (%s%s). They are kept. Map the answers "
            "of the fallback to the classes (%s), or leave these rows out.", what, f"{len(found):,}", first,
            ", ..." if len(found) > _SHOWN else "",
            ", ".join([*classes[:_CLASSES_SHOWN], *["..."] * (len(classes) > _CLASSES_SHOWN)]),
        )  # fmt: skip
    return len(found)


def check_texts(texts: object) -> None:
    """Raises `ArgumentTypeError` if `texts` is one text, or not several of anything."""
    if isinstance(texts, str):
        raise ArgumentTypeError(f"texts is one text, {texts[:40]!r}; it must be a list of texts. Put it into a list.")
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise ArgumentTypeError(f"texts must be a list of texts, not {texts!r:.100}.")
