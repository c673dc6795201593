"""A small HTTP server that speaks the embeddings API of OpenAI's protocol."""

from __future__ import annotations

import json
from typing import Any

from flaky_server import FlakyServer, Reply


def vector_of(text: str, dims: int) -> list[float]:
    return [float(len(text)), float(sum(map(ord, text)) % 97), *[1.0] * (dims - 2)]


def embeddings(texts: list[str], dims: int, **changed: Any) -> Reply:
    """A response in the protocol's form; a text has as many tokens as characters."""
    data = [{"object": "embedding", "index": i, "embedding": vector_of(text, dims)} for i, text in enumerate(texts)]
    tokens = sum(map(len, texts))
    body = {
        "object": "list", "data": data[::-1], "model": "m", "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **changed,
    }  # fmt: skip
    return Reply(body=json.dumps(body).encode())


class EmbeddingServer(FlakyServer):
    """Serves `POST /v1/embeddings`; `behave` is given the texts and the number of requests before."""

    def __init__(self, behave: Any = None) -> None:
        def reply(body: dict[str, Any], before: int) -> Reply:
            assert body["encoding_format"] == "float"
            found = None if behave is None else behave(body["input"], len(self.requests) - 1)
            return found or embeddings(body["input"], body.get("dimensions", 4))

        super().__init__(reply)
