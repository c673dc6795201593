"""Reads the rows that models are measured on: texts, prompts with answers, texts with label names."""

from __future__ import annotations

from collections.abc import Iterator

from datadreamer_like.graph.output import Column

from .columns import check_text, read_rows
from .labels import class_names, label_name

NAMES = ("inputs", "labels")
"""Argument names of a comparison's two columns, for messages."""


def read_texts(column: Column, name: str) -> Iterator[str]:
    """Yields the texts of a column.

    Args:
        column: The column.
        name: Name of the argument, for messages.

    Raises:
        DataError: A text is None.
        ArgumentTypeError: A value is not a text.
        EmptyDataset: There are no rows.
    """
    start = 0
    for part in read_rows({name: column}):
        for row, (text,) in enumerate(part, start):
            yield check_text(text, name, row)
        start += len(part)


def read_prompts(inputs: Column, labels: Column) -> tuple[list[str], list[str]]:
    """Reads prompts and their answers.

    Raises:
        DataError: A value is missing.
        ArgumentTypeError: A prompt or an answer is not a text.
        EmptyDataset: There are no rows.
    """
    prompts: list[str] = []
    answers: list[str] = []
    for part in read_rows(dict(zip(NAMES, (inputs, labels), strict=True))):
        for prompt, answer in part:
            prompts.append(check_text(prompt, NAMES[0], len(prompts)))
            answers.append(check_text(answer, NAMES[1], len(answers)))
    return prompts, answers


def read_labelled(inputs: Column, labels: Column) -> tuple[list[str], list[str]]:
    """Reads texts and the names of their labels.

    Raises:
        DataError: A value is missing.
        ArgumentTypeError: A text is something else.
        LabelError: A value cannot be a label.
        EmptyDataset: There are no rows.
    """
    texts: list[str] = []
    names: list[str] = []
    naming = class_names(labels)
    for part in read_rows(dict(zip(NAMES, (inputs, labels), strict=True))):
        for text, label in part:
            texts.append(check_text(text, NAMES[0], len(texts)))
            names.append(label_name(label, NAMES[1], len(names), naming))
    return texts, names
