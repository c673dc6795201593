"""What a provider wants back with the calls of an answer: its thoughts, signed or encrypted, as it sent them.

A call carries them as `thought`, a JSON text of fields by their name, so that a column of calls does not change them.
Each API is sent only fields that come from its own form; those of another one are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tools import ToolCall

Block = Mapping[str, Any]

CALL_FIELD = "extra_content"
"""Field of a call, in OpenAI's chat completions, that has the signature of Gemini's thoughts."""

MESSAGE_FIELDS = ("reasoning_content", "reasoning_details")
"""Fields of a message with calls, in OpenAI's chat completions: DeepSeek's thoughts, and OpenRouter's."""

CHAT_FIELDS = frozenset({CALL_FIELD, *MESSAGE_FIELDS})
"""Fields in which servers with OpenAI's protocol send thoughts that they want back."""


def thought_of(fields: Mapping[str, Any]) -> str | None:
    """Returns the `thought` of a call with these fields; None if none has a value."""
    sent = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(sent, ensure_ascii=False) if sent else None


def thought_fields(call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields in the `thought` of a call; none if it has no thought.

    Raises:
        ValueError: Its thought is not the text of a JSON object.
    """
    thought = call.get("thought")
    if thought is None:
        return {}
    fields = json.loads(thought) if isinstance(thought, str) else None
    if not isinstance(fields, dict):
        raise ValueError("its thought is not a JSON object as a text")
    return fields


def chat_thoughts(message: Mapping[str, Any], names: Collection[str]) -> list[str | None]:
    """Returns the `thought` of each call of a message of OpenAI's chat completions.

    Args:
        message: The message; the first call has its own fields.
        names: Those of `CHAT_FIELDS` that its server wants back.
    """
    found: list[dict[str, Any]] = [
        {CALL_FIELD: call.get(CALL_FIELD)} if CALL_FIELD in names else {} for call in message.get("tool_calls") or ()
    ]
    if found:
        found[0] |= {name: message.get(name) for name in MESSAGE_FIELDS if name in names}
    return [thought_of(fields) for fields in found]


@dataclass(frozen=True)
class BlockForm:
    """How an API writes an answer as blocks, of which some are thoughts and some calls.

    Attributes:
        field: The field of a call's `thought` that holds the blocks before the call.
        is_thought: Whether a block is a thought that the provider wants back.
        text_of: The text in a block; "" for one without text.
    """

    field: str
    is_thought: Callable[[Block], bool]
    text_of: Callable[[Block], str] = lambda block: block.get("text") or ""

    def thoughts(self, blocks: Iterable[Block], is_call: Callable[[Block], bool]) -> list[str | None]:
        """Returns the `thought` of each call: all blocks between it and the call before it, if there is a thought."""
        found: list[str | None] = []
        before: list[Block] = []
        for block in blocks:
            if not is_call(block):
                before.append(block)
                continue
            found.append(thought_of({self.field: before}) if any(map(self.is_thought, before)) else None)
            before = []
        return found

    def turn(
        self, said: Sequence[Any], calls: Sequence[ToolCall], block_of: Callable[[ToolCall], dict[str, Any]]
    ) -> list[Any]:
        """Returns the blocks of an assistant's message: its text and its calls, with the thoughts where they were.

        If `said` has another text than came with the thoughts, it is sent after the first of them.
        """
        before: list[list[Any]] = [thought_fields(call).get(self.field) or [] for call in calls]
        if any(self.is_thought(block) for block in said):
            before = [[] for _ in calls]  # given as the provider's own blocks
        text = "".join(self.text_of(block) for blocks in before for block in blocks)
        if any(before) and text.strip() == "".join(map(self.text_of, said)).strip():
            said = ()
        else:
            before = [[block for block in blocks if self.is_thought(block)] for blocks in before]
        first, *others = before
        made = [*first, *said, block_of(calls[0])]
        for blocks, call in zip(others, calls[1:], strict=True):
            made += [*blocks, block_of(call)]
        return made


ANTHROPIC = BlockForm("anthropic", lambda block: block.get("type") in ("thinking", "redacted_thinking"))
"""Anthropic's Messages API."""

CONVERSE = BlockForm("converse", lambda block: "reasoningContent" in block)
"""Bedrock's Converse API."""

RESPONSES = BlockForm(
    "responses",
    lambda item: item.get("type") == "reasoning" and bool(item.get("encrypted_content")),
    lambda item: (
        "".join(part.get("text") or "" for part in item["content"])
        if isinstance(item.get("content"), list)
        else item.get("content") or ""
    ),
)
"""OpenAI's Responses API."""
