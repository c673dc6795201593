"""How a prompt is dressed for a chat model: by the model's own template, by a given one, or not at all."""

from __future__ import annotations

import enum
import re
from typing import Final, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DefinitionError


class Auto(enum.Enum):
    """The type of `AUTO`: the model's own choice."""

    AUTO = "auto"

    def __repr__(self) -> str:
        return "AUTO"


AUTO: Final = Auto.AUTO
"""Take what the model brings: its chat template, its default system prompt."""

AutoText: TypeAlias = str | Auto | None
"""A text, `AUTO` for the model's own, or None for none."""

_HOLE = re.compile(r"\{\{\s*(prompt|system_prompt)\s*\}\}")


def is_text_template(template: AutoText) -> bool:
    """Whether a template has a `{{prompt}}` hole, in place of Jinja code that loops over messages."""
    return isinstance(template, str) and any(hole[1] == "prompt" for hole in _HOLE.finditer(template))


def fill(template: str, prompt: str, system_prompt: str | None) -> str:
    """Fills the holes `{{prompt}}` and `{{system_prompt}}`; braces inside the prompt stay as they are.

    Example:
        >>> fill("{{system_prompt}} Q: {{prompt}} A:", "2 + 2?", "Be brief.")
        'Be brief. Q: 2 + 2? A:'
    """
    values = {"prompt": prompt, "system_prompt": system_prompt or ""}
    return _HOLE.sub(lambda hole: values[hole[1]], template)


def split_text_template(template: str) -> list[str]:
    """Cuts a text template into literal parts and the placeholders `{{prompt}}` and `{{system_prompt}}`.

    Example:
        >>> split_text_template("Q: {{ prompt }} A:")
        ['Q: ', '{{prompt}}', ' A:']
    """
    parts = _HOLE.split(template)
    return [f"{{{{{part}}}}}" if index % 2 else part for index, part in enumerate(parts)]


def checked(name: str, value: object) -> AutoText:
    """Returns an argument that may be a text, `AUTO` or None.

    Raises:
        ArgumentTypeError: It is anything else.
    """
    if value is None or isinstance(value, str | Auto):
        return value
    raise ArgumentTypeError(f"{name} must be a text, AUTO or None, not {type(value).__name__}.")


def checked_template(value: object) -> AutoText:
    """Returns a chat prompt template that has a place for the prompt.

    Raises:
        ArgumentTypeError: It is no text, `AUTO` or None.
        DefinitionError: It would say the same whatever the prompt, so that nothing of it reached the model.
    """
    template = checked("chat_prompt_template", value)
    if isinstance(template, str) and not is_text_template(template) and "messages" not in template:
        raise DefinitionError(
            f"chat_prompt_template {template[:80]!r} has no place for the prompt. Put {{{{prompt}}}} into it, write "
            "Jinja code over `messages`, or pass None for the bare prompt."
        )
    return template


def given_text(value: AutoText) -> str | None:
    """Returns the text that the user gave; None where the choice is the model's."""
    return value if isinstance(value, str) else None
