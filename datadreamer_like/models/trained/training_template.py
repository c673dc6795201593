"""How a language model was taught to be asked: what its trainer put around each prompt, as its card remembers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from datadreamer_like.graph import Card

from ..llms.chat_template import AUTO, AutoText, given_text
from .export import CARD_NAME

_TEMPLATE = "Chat prompt template"
_SYSTEM = "System prompt"
_BARE = "none, the bare prompt"


class Dressing(NamedTuple):
    """What stands around a prompt; AUTO is the tokenizer's own template, if there is one."""

    chat_prompt_template: AutoText = AUTO
    system_prompt: AutoText = AUTO


def note_dressing(card: Card, dressing: Dressing) -> None:
    """Writes on a trainer's card what stood around the prompts, unless that was the tokenizer's own template."""
    if dressing.chat_prompt_template is not AUTO:
        card.facts[_TEMPLATE] = given_text(dressing.chat_prompt_template) or _BARE
    system_prompt = given_text(dressing.system_prompt)
    if system_prompt is not None:
        card.facts[_SYSTEM] = system_prompt


def dressing_on(card: Card) -> Dressing:
    """Reads from a model's card how its trainer dressed prompts; a stage's model is asked as the one it came from."""
    current: Card | None = card
    while current is not None and current.kind != "trainer":
        current = next((parent for parent in current.parents if parent.kind != "step"), None)
    if current is None:
        return Dressing()
    template = current.facts.get(_TEMPLATE)
    return Dressing(
        AUTO if template is None else None if template == _BARE else template, current.facts.get(_SYSTEM, AUTO)
    )


def training_template(folder: Path) -> Dressing:
    """Reads it from the card in a model's folder; all is AUTO where there is none."""
    try:
        return dressing_on(Card.from_json(json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError):
        return Dressing()
