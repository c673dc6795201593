"""The rows that models are compared on: read, checked, and labels brought to the names that models use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datadreamer_like.errors import LabelError, MethodMisfit, did_you_mean
from datadreamer_like.models.trained_model import TrainedModel
from datadreamer_like.trainers.columns import Column, check_text, read_pairs
from datadreamer_like.trainers.labels import class_names


def read_rows(inputs: Column, labels: Column) -> tuple[list[str], list[str]]:
    """Reads texts and the names of their labels.

    Raises:
        DataError: A value is missing.
        ArgumentTypeError: A text is something else.
        LabelError: A label is something that no label can be.
        EmptyDataset: There are no rows.
    """
    naming = class_names(labels)
    texts: list[str] = []
    names: list[str] = []
    for pairs in read_pairs(inputs, labels, ("inputs", "labels")):
        for text, label in pairs:
            texts.append(check_text(text, "inputs", len(texts)))
            names.append(_name(label, len(names), naming))
    return texts, names


def check_models(models: Sequence[TrainedModel], names: Sequence[str], labels: Sequence[str]) -> None:
    """Refuses models that cannot be compared on these labels; no model is loaded for that.

    Raises:
        MethodMisfit: One of them is no classifier of one label a text.
        LabelError: One of them does not know one of the labels.
    """
    first_rows = {label: row for row, label in reversed(list(enumerate(labels)))}
    for model, name in zip(models, names, strict=True):
        if model.task != "text-classification" or model.is_multi_label:
            does = "gives several labels a text" if model.task == "text-classification" else f"does {model.task}"
            raise MethodMisfit(f"{name} {does}; only classifiers of one label a text are compared. Leave it out.")
        known = model.labels
        for label, row in sorted(first_rows.items(), key=lambda item: item[1]):
            if label not in known:
                raise LabelError(
                    f'Row {row} has the label "{label}", which {name} does not know; its labels are '
                    f"{', '.join(known)}.{did_you_mean(label, known)} Mend the label, filter such rows out, or leave "
                    "the model out."
                )


def _name(label: Any, row: int, naming: tuple[str, ...] | None) -> str:
    if not isinstance(label, str | int):
        raise LabelError(f"labels holds {label!r} in row {row}; a label is a text, a whole number, or True or False.")
    if naming and not isinstance(label, str | bool):
        if not 0 <= label < len(naming):
            raise LabelError(f"labels has {label} in row {row}; its {len(naming)} classes are numbered from 0.")
        return naming[label]
    return str(label)
