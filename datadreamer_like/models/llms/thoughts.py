"""What a provider wants back with the calls of an answer: its thoughts, signed or encrypted, as it sent them.

A call carries them as `thought`, a JSON text of fields by their name, so that a column of calls does not change them.
Each API is sent only fields that come from its own form; those of another one are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from datadreamer_like.errors import BadRequest

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
        BadRequest: Its thought is not one that came with an answer.
    """
    thought = call.get("thought")
    if thought is None:
        return {}
    fields: Any = None
    if isinstance(thought, str):
        with suppress(ValueError):
            fields = json.loads(thought)
    blocks = [fields.get(form.field, []) for form in FORMS] if isinstance(fields, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(block, dict) for block in each) for each in blocks):
        raise BadRequest(
            f"The thought of a call in tool_calls is {thought!r:.200}, which no answer has. Pass the call on as it is "
            "in answer.tool_calls."
        )
    return dict(fields)


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
        text_of: The text in a block; another value for one without text.
    """

    field: str
    is_thought: Callable[[Block], bool]
    text_of: Callable[[Block], Any] = lambda block: block.get("text")

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
        if any(isinstance(block, Mapping) and self.is_thought(block) for block in said):
            before = [[] for _ in calls]  # given as the provider's own blocks
        if any(before) and self._text(block for blocks in before for block in blocks) == self._text(said):
            said = ()
        else:
            before = [[block for block in blocks if self.is_thought(block)] for blocks in before]
        first, *others = before
        made = [*first, *said, block_of(calls[0])]
        for blocks, call in zip(others, calls[1:], strict=True):
            made += [*blocks, block_of(call)]
        return made

    def _text(self, blocks: Iterable[Any]) -> str:
        texts = [self.text_of(block) for block in blocks if isinstance(block, Mapping)]
        return "".join(text for text in texts if isinstance(text, str)).strip()


ANTHROPIC = BlockForm("anthropic", lambda block: block.get("type") in ("thinking", "redacted_thinking"))
"""Anthropic's Messages API."""

CONVERSE = BlockForm("converse", lambda block: "reasoningContent" in block)
"""Bedrock's Converse API."""

RESPONSES = BlockForm(
    "responses",
    lambda item: item.get("type") == "reasoning" and bool(item.get("encrypted_content")),
    lambda item: _item_text(item.get("content")),
)
"""OpenAI's Responses API."""

FORMS = (ANTHROPIC, CONVERSE, RESPONSES)


def _item_text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
