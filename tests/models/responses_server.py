"""A small HTTP server that speaks the wire format of OpenAI's Responses API."""

from __future__ import annotations

import json
from typing import Any

from flaky_server import FlakyServer, Reply


def response(text: str | None = "fine", **fields: Any) -> Reply:
    """A response in the API's form, with a reasoning item before the message."""
    parts = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], **fields.pop("part", {})}]
    output = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I think."}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": parts},
    ]
    body = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": output,
        "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [],
        "usage": {
            "input_tokens": 7, "output_tokens": 5, "total_tokens": 12,
            "input_tokens_details": {"cached_tokens": 4}, "output_tokens_details": {"reasoning_tokens": 3},
        },
        **fields,
    }  # fmt: skip
    return Reply(body=json.dumps(body).encode())


class ResponsesServer(FlakyServer):
    """Serves `POST /v1/responses`."""

    def __init__(self, behave: Any = None) -> None:
        super().__init__(behave or (lambda body, before: response()))
