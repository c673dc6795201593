"""The texts in a prompt: labels before them, and which of them a prompt shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def labelled(label: str, text: Any) -> str:
    """Puts a label before a text."""
    return f"{label} {text}" if label else str(text)


def shown_positions(
    prompts: Sequence[Any], texts: Sequence[Sequence[str]], positions: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Returns the positions of the texts that each prompt contains, which are the first of its candidate texts."""
    found = []
    for prompt, offered, rows in zip(prompts, texts, positions, strict=True):
        count = place = 0
        if isinstance(prompt, str):
            for text in offered:
                place = prompt.find(text, place) + len(text)
                if place < len(text):
                    break
                count += 1
        found.append(list(rows[:count]))
    return found
