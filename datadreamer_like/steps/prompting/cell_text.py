"""A cell as a part of a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_TURN = {"role", "content"}


def cell_text(value: Any, default: Callable[[Any], Any] = str) -> str:
    """Returns a cell as text in a prompt, never as Python code.

    Chat messages of texts alone are lines of `role: content`, other lists and mappings are JSON. `default` makes a
    value of objects that JSON does not have.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple | dict):
        return str(value)
    if isinstance(value, list | tuple) and value and all(map(_is_turn, value)):
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    return json.dumps(value, ensure_ascii=False, default=default)


def _is_turn(value: Any) -> bool:
    """Whether a value is a chat message with a text and nothing else; columns of structures fill fields with None."""
    given = {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else {}
    return given.keys() == _TURN and all(isinstance(part, str) for part in given.values())
