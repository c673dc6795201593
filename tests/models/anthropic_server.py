"""A small HTTP server that speaks the wire format of Anthropic's messages, in place of OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from flaky_server import FlakyServer, Reply

Behave = Callable[[dict[str, Any], int], Reply | dict[str, Any]]


def message(*content: dict[str, Any] | str, stop_reason: str = "end_turn", **fields: Any) -> dict[str, Any]:
    """Returns a message; a text stands for a text block."""
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]
    usage = {"input_tokens": 3, "output_tokens": 2, **fields.pop("usage", {})}
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": blocks,
        "stop_reason": stop_reason, "stop_sequence": None, "usage": usage, **fields,
    }  # fmt: skip


def tool_use(value: Any) -> dict[str, Any]:
    """Returns the block of a tool's use."""
    return {"type": "tool_use", "id": "toolu_1", "name": "answer", "input": value}


def error(status: int, kind: str, words: str, **headers: str) -> Reply:
    """Returns a refusal in the protocol's form."""
    body = {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_1"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body=json.dumps(body).encode(), headers=named)


class AnthropicServer(FlakyServer):
    """Serves `POST /v1/messages`; `behave` returns a message or a `Reply`."""

    def __init__(self, behave: Behave | None = None) -> None:
        said = behave or (lambda body, before: message(f"echo: {body['messages'][-1]['content']}"))

        def reply(body: dict[str, Any], before: int) -> Reply:
            answer = said(body, before)
            return answer if isinstance(answer, Reply) else Reply(body=json.dumps(answer).encode())

        super().__init__(reply)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"
