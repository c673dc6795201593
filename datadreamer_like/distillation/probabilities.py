"""Teachers of classes that are probabilities: a column of them, or any object that predicts them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    LabelError,
    did_you_mean,
    with_article,
)

# Rounded probabilities, such as 0.33, 0.33 and 0.33, count as a whole.
_SUM_TOLERANCE = 0.015
# Binary decisions are logits, which must be finite.
_SURE = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Probabilities:
    """A teacher whose probabilities are known: a column of them next to the texts, such as a label model's votes.

    Args:
        texts: The texts: a column, or a list. Rows with the same text have the mean of their probabilities.
        probabilities: For each text a mapping from classes to probabilities, where a class left out has 0, or a list of
            one probability per class. They are not negative and, unless `multi_label`, sum to 1.
        classes: The classes in the order of the lists; with mappings, by default all that occur, sorted.
        multi_label: Whether each probability is that of a separate yes-or-no decision.

    Raises:
        DefinitionError: Texts and probabilities differ in number, or the classes of lists are missing.
        DataError: A probability is missing, negative or not a number, or those of a row do not sum to 1.
        LabelError: A class is unknown.

    Example:
        >>> teacher = Probabilities(["good tea", "bad tea"], [{"pos": 0.9, "neg": 0.1}, {"neg": 1.0}])
        >>> teacher.classes
        ('neg', 'pos')
        >>> teacher.class_logits(["good tea"]).exp()
        tensor([[0.1000, 0.9000]])
    """

    result_version: ClassVar[int] = 1

    texts: Iterable[str]
    probabilities: Iterable[Any]
    classes: Sequence[str] | None = None
    multi_label: bool = False
    node: Any = field(init=False)
    """The step of the column, for the student's lineage."""
    _places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        node = getattr(self.probabilities, "step", None)
        texts, rows = list(self.texts), list(self.probabilities)
        if len(texts) != len(rows):
            raise DefinitionError(
                f"There are {len(texts):,} texts and {len(rows):,} rows of probabilities. Pass one row for each text."
            )
        classes = class_names_of(rows, self.classes, "probabilities")
        found = probability_rows(rows, classes, "probabilities", multi_label=self.multi_label)
        places: dict[str, int] = {}
        of_row = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
        sums = np.zeros((len(places), len(classes)))
        np.add.at(sums, of_row, found)
        means = sums / np.maximum(np.bincount(of_row, minlength=len(places)), 1)[:, None]
        for name, value in {
            "texts": tuple(places), "probabilities": means, "classes": tuple(classes), "node": node, "_places": places,
        }.items():  # fmt: skip
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Probabilities({len(self._places):,} texts, {len(self.classes or ())} classes)"

    def __fingerprint__(self) -> dict[str, Any]:
        """Texts, probabilities and classes, by content."""
        return {
            "class": type(self), "texts": self.texts, "probabilities": self.probabilities, "classes": self.classes,
            "multi_label": self.multi_label,
        }  # fmt: skip

    def class_logits(self, texts: Sequence[str]) -> Tensor:
        """Returns log-probabilities [texts, classes], of multi-label rows log-odds; `DataError` for another text."""
        for text in texts:
            if text not in self._places:
                raise DataError(
                    f"{self!r} has no probabilities of the text {text[:80]!r}. Pass those of all rows, also those of "
                    "the validation rows."
                )
        found = np.asarray(self.probabilities)[[self._places[text] for text in texts]]
        return logits_of_probabilities(found, self.multi_label)


@dataclass(frozen=True, eq=False)
class Predictor:
    """A teacher that is any object with `predict_proba(texts)`: a scikit-learn pipeline, a label model, your own.

    Args:
        model: The object; `predict_proba(list of texts)` returns probabilities [texts, classes]. What decides them must
            be in its attributes, or in its `__fingerprint__`.
        classes: The classes in the order of the columns; by default the model's `classes_`.
        multi_label: Whether each probability is that of a separate yes-or-no decision.

    Raises:
        ArgumentTypeError: The object has no `predict_proba`.
        DefinitionError: The classes are unknown.

    Example:
        `SoftTargets(Predictor(make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)))`
    """

    result_version: ClassVar[int] = 1

    model: Any
    classes: Sequence[str] | None = None
    multi_label: bool = False

    def __post_init__(self) -> None:
        if not callable(getattr(self.model, "predict_proba", None)):
            raise ArgumentTypeError(
                f"{with_article(type(self.model), 'A')} has no predict_proba(texts), so it gives no probabilities. "
                "Pass a classifier such as a scikit-learn pipeline over texts."
            )
        names = self.classes if self.classes is not None else getattr(self.model, "classes_", None)
        if names is None:
            raise DefinitionError(
                f"The classes of {type(self.model).__name__} are unknown. Pass classes=[...], in the order of its "
                "probabilities."
            )
        object.__setattr__(self, "classes", tuple(str(name) for name in names))

    def class_logits(self, texts: Sequence[str]) -> Tensor:
        """Returns log-probabilities [texts, classes], of multi-label rows log-odds; errors as in `Probabilities`."""
        rows = list(self.model.predict_proba(list(texts)))
        if len(rows) != len(texts):
            raise DataError(f"predict_proba returned {len(rows):,} rows for {len(texts):,} texts; expected one each.")
        label2id = {name: place for place, name in enumerate(self.classes or ())}
        found = probability_rows(rows, label2id, "predict_proba", multi_label=self.multi_label)
        return logits_of_probabilities(found, self.multi_label)


def class_names_of(rows: Iterable[Any], classes: Sequence[str] | None, where: str) -> dict[str, int]:
    """Returns the classes of rows of probabilities and their positions; see `Probabilities` for the errors."""
    if classes is None:
        found: set[str] = set()
        for index, row in enumerate(rows):
            if row is None:
                raise DataError(
                    f"{where} is None in row {index}, such as that of a text without votes. Filter such rows out first."
                )
            if not isinstance(row, Mapping):
                raise DefinitionError(
                    f'{where} are lists of numbers, whose classes are unknown. Pass classes=["...", ...] in their '
                    'order, or mappings such as {"positive": 0.9, "negative": 0.1}.'
                )
            found.update(map(str, row))
        classes = sorted(found)
    names = [str(name) for name in classes]
    if len(set(names)) < len(names) or len(names) < 2:
        raise DefinitionError(f"The classes of {where} are {names}; there must be two or more, all of them different.")
    return {name: place for place, name in enumerate(names)}


def probability_rows(
    rows: Sequence[Any], classes: Mapping[str, int], where: str, start: int = 0, *, multi_label: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns rows of probabilities, lists or mappings, as one array [rows, classes] whose rows sum to 1.

    `where`, the argument's name, and `start`, the number of the first row, are for messages.

    Raises:
        DataError: A value is missing, negative, above 1 or not a number, a list has another length than the classes,
            or the sum of a row is not 1; with `multi_label` it may be any.
        LabelError: A class is unknown.
    """
    found = np.zeros((len(rows), len(classes)))
    for index, row in enumerate(rows):
        here = f"{where} has {_shown(row)} in row {start + index}"
        if isinstance(row, Mapping):
            for name, value in row.items():
                if str(name) not in classes:
                    listed = ", ".join([*list(classes)[:20], *(["..."] if len(classes) > 20 else [])])
                    raise LabelError(
                        f'{here}: "{name}" is not one of the {len(classes)} classes: {listed}.'
                        f"{did_you_mean(str(name), classes)}"
                    )
                found[index, classes[str(name)]] = _number(0.0 if value is None else value, here)
        else:
            values = list(row) if isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) else None
            if values is None or len(values) != len(classes):
                raise DataError(f"{here}; it must have one probability for each of the {len(classes)} classes.")
            found[index] = [_number(value, here) for value in values]
        total = found[index].sum()
        if not multi_label and abs(total - 1) > _SUM_TOLERANCE:
            advice = "Divide them by their sum" if total else "Filter such rows out"
            raise DataError(
                f"{here}, whose sum is {total:.4g}; the probabilities of a row must sum to 1. {advice}, or pass "
                "multi_label=True if each class is a separate decision."
            )
        if not multi_label:
            found[index] /= total
    return found


def logits_of_probabilities(probabilities: np.ndarray[Any, Any], multi_label: bool) -> Tensor:
    """Returns logits of probabilities [rows, classes], fp32: their logarithm, or the log-odds of binary decisions."""
    found = torch.from_numpy(np.asarray(probabilities, dtype=np.float64))
    return (torch.logit(found, eps=_SURE) if multi_label else found.log()).float()


def _number(value: Any, here: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{here}; a probability must be a number.") from None
    if not 0 <= number <= 1 + _SUM_TOLERANCE or math.isnan(number):
        raise DataError(f"{here}; a probability must be from 0 to 1.")
    return min(number, 1.0)


def _shown(row: Any) -> str:
    shown = repr(row)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
