"""A small HTTP server that speaks the wire format of Bedrock's Converse API."""

from __future__ import annotations

import json
from typing import Any

from flaky_server import FlakyServer, Reply


def said(*content: dict[str, Any], stop: str = "end_turn", **usage: int) -> Reply:
    """Returns an answer with these blocks."""
    body = {
        "output": {"message": {"role": "assistant", "content": list(content)}},
        "stopReason": stop,
        "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5, **usage},
        "metrics": {"latencyMs": 1},
    }
    return Reply(body=json.dumps(body).encode())


def refused(status: int, code: str, message: str, **headers: str) -> Reply:
    """Returns a refusal in the protocol's form."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(
        status=status, body=json.dumps({"message": message}).encode(), headers={"x-amzn-errortype": code, **named}
    )


class BedrockServer(FlakyServer):
    """Serves `POST /model/MODEL/converse`."""

    def __init__(self, behave: Any = None) -> None:
        super().__init__(behave or (lambda body, before: said({"text": "fine"})))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"
