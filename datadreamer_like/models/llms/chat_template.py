"""Prompt templates for chat models: the model's own, a given one, or none."""

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
"""Use the model's own chat template or default system prompt."""

AutoText: TypeAlias = str | Auto | None
"""A text, `AUTO` for the model's own, or None for none."""

_PLACEHOLDER = re.compile(r"\{\{\s*(prompt|system_prompt)\s*\}\}")


def is_text_template(template: AutoText) -> bool:
    """Whether a template is a text with a `{{prompt}}` placeholder, not Jinja code over `messages`."""
    return isinstance(template, str) and any(match[1] == "prompt" for match in _PLACEHOLDER.finditer(template))


def plain_prompt(template: AutoText, prompt: str, system_prompt: str | None) -> str:
    """Returns a prompt in its text template, whose braces alone count, or after the system prompt without one."""
    if not isinstance(template, str):
        return f"{system_prompt}\n\n{prompt}" if system_prompt else prompt
    values = {"prompt": prompt, "system_prompt": system_prompt or ""}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def split_text_template(template: str) -> list[str]:
    """Splits a text template at its placeholders: "Q: {{ prompt }} A:" gives "Q: ", "{{prompt}}" and " A:"."""
    parts = _PLACEHOLDER.split(template)
    return [f"{{{{{part}}}}}" if index % 2 else part for index, part in enumerate(parts)]


def checked(name: str, value: object) -> AutoText:
    """Returns the argument; raises `ArgumentTypeError` if it is not a text, `AUTO` or None."""
    if value is None or isinstance(value, str | Auto):
        return value
    raise ArgumentTypeError(f"{name} must be a text, AUTO or None, not {type(value).__name__}.")


def checked_template(value: object) -> AutoText:
    """Returns the chat prompt template; refuses one without a placeholder, as the prompt would not reach the model."""
    template = checked("chat_prompt_template", value)
    if isinstance(template, str) and not is_text_template(template) and "messages" not in template:
        raise DefinitionError(
            f"chat_prompt_template {template[:80]!r} has no place for the prompt. Put {{{{prompt}}}} into it, write "
            "Jinja code over `messages`, or pass None for the bare prompt."
        )
    return template


def given_text(value: AutoText) -> str | None:
    """Returns the user's text; None for AUTO and None."""
    return value if isinstance(value, str) else None
