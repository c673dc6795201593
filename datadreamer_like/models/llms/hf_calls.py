"""Calls of tools in the texts of models that transformers runs, read by what the tokenizer itself knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError

from .answer_text import AnswerText, answer_text
from .tool_calls import openai_calls, tool_call
from .tool_messages import openai_tools
from .tools import Tool


def check_parses_calls(llm: Any) -> None:
    """Refuses tools if the chat template has no place for them, or the tokenizer cannot read the calls."""
    template = llm.tokenizer.chat_template if llm.takes_chat else None
    if template is None or "tools" not in str(template):
        raise DefinitionError(
            f"{llm.display_name} takes no tools: its chat template has no place for them. Use another model, or a "
            "template with tools."
        )
    if getattr(llm.tokenizer, "response_template", None) is None:
        raise DefinitionError(
            f"{llm.display_name} takes no tools: its tokenizer has no response_template, by which calls are read from "
            f"its texts. Pass {type(llm).__name__}(..., response_template={{...}}), or serve the model (VLLMServer, "
            "LlamaCPP)."
        )
    try:
        llm.tokenizer.parse_response("", prefix="")
    except Exception as error:
        raise DefinitionError(
            f"{llm.display_name}: transformers cannot use the response_template: {error!r:.300}"
        ) from error


def checked_response_template(given: object) -> dict[str, Any] | None:
    """Returns a response template; raises `ArgumentTypeError` for what is no dictionary."""
    if given is None or isinstance(given, Mapping):
        return None if given is None else dict(given)
    raise ArgumentTypeError(f"response_template must be a dictionary or None, not {given!r:.200}.")


class CallReader:
    """Reads answers to one prompt with tools from token ids, by the tokenizer's `response_template`."""

    def __init__(self, tokenizer: Any, prompt: str, tools: Sequence[Tool]) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._tools = openai_tools(tools)

    def read(self, ids: Sequence[int], text: str, finish_reason: str) -> AnswerText:
        """Returns the answer in a text's ids; one that cannot be parsed has a call without a name."""
        return self.read_text(self._tokenizer.decode(ids, skip_special_tokens=False), text, finish_reason)

    def read_text(self, written: str, text: str, finish_reason: str) -> AnswerText:
        """Returns the answer in what a model wrote with special tokens; `text` is the same without them."""
        try:
            message = self._tokenizer.parse_response(written, prefix=self._prompt, tools=self._tools)
            calls = openai_calls(message)
        except (ValueError, TypeError, AttributeError):
            # A call without a name is rejected, and its text shown to the model.
            return answer_text(None, finish_reason, calls=[tool_call(None, "", text)])
        if not calls:
            return answer_text(text, finish_reason)
        thoughts = message.get("thinking") or message.get("reasoning_content")
        # Only whole calls are found, also in a text that was cut off.
        return answer_text(message.get("content"), None, reasoning=thoughts, calls=calls)
