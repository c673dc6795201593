"""The rows that stages read: texts, and texts with the names of their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datadreamer_like.errors import DataError, EmptyDataset, LabelError
from datadreamer_like.trainers.training.columns import Column, check_text, read_pairs
from datadreamer_like.trainers.training.labels import class_names

NAMES = ("inputs", "labels")
"""What the two columns of a comparison are called, for messages."""


def read_texts(column: Column, name: str) -> Iterator[str]:
    """Yields the texts of a column.

    Args:
        column: The column.
        name: What the argument is called, for messages.

    Raises:
        DataError: One of them is None.
        ArgumentTypeError: One of them is something else.
        EmptyDataset: There are none.
    """
    row = -1
    for row, text in enumerate(column.values()):
        if text is None:
            raise DataError(
                f'{name}, "{column.column_names[0]}" of "{column.step.name}", is None in row {row}. '
                "Filter such rows out first."
            )
        yield check_text(text, name, row)
    if row < 0:
        raise EmptyDataset(
            f'{name}, "{column.column_names[0]}" of "{column.step.name}", has no rows. '
            "Look at what the steps before it keep: step.head()."
        )


def read_prompts(inputs: Column, labels: Column) -> tuple[list[str], list[str]]:
    """Reads prompts and their answers.

    Raises:
        DataError: A value is missing.
        ArgumentTypeError: A prompt or an answer is no text.
        EmptyDataset: There are no rows.
    """
    prompts: list[str] = []
    answers: list[str] = []
    for pairs in read_pairs(inputs, labels, NAMES):
        for prompt, answer in pairs:
            prompts.append(check_text(prompt, NAMES[0], len(prompts)))
            answers.append(check_text(answer, NAMES[1], len(answers)))
    return prompts, answers


def read_labelled(inputs: Column, labels: Column) -> tuple[list[str], list[str]]:
    """Reads texts and the names of their labels.

    Raises:
        DataError: A value is missing.
        ArgumentTypeError: A text is something else.
        LabelError: A label is something that no label can be.
        EmptyDataset: There are no rows.
    """
    texts: list[str] = []
    names: list[str] = []
    naming = class_names(labels)
    for pairs in read_pairs(inputs, labels, NAMES):
        for text, label in pairs:
            texts.append(check_text(text, NAMES[0], len(texts)))
            names.append(_name(label, len(names), naming))
    return texts, names


def _name(label: Any, row: int, naming: tuple[str, ...] | None) -> str:
    if not isinstance(label, str | int):
        raise LabelError(f"labels holds {label!r} in row {row}; a label is a text, a whole number, or True or False.")
    if naming and not isinstance(label, str | bool):
        if not 0 <= label < len(naming):
            raise LabelError(f"labels has {label} in row {row}; its {len(naming)} classes are numbered from 0.")
        return naming[label]
    return str(label)
