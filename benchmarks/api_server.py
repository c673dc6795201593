"""A server that behaves like a provider's API, for `api_saturation.py`: latency, a rate limit, faults, and counts.

It speaks OpenAI's chat completions on a plain `asyncio.Protocol`, so that the machine is left to the client. `GET
/setup?{...}` sets the behaviour of what follows (`Behaviour`) and clears the counts; `GET /counts` returns them.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import unquote

FAULTS = ("500", "dropped", "hung", "malformed", "empty", "null", "truncated")


@dataclass
class Behaviour:
    """What the server does from now on.

    Attributes:
        latency: Seconds until a reply.
        rate: Requests per second of a token bucket that holds one second's worth; None for no limit.
        headers: Whether replies have the provider's rate headers.
        faults: The share of replies of each of `FAULTS`.
        hung: Seconds until a hung reply.
    """

    latency: float = 0.0
    rate: float | None = None
    headers: bool = True
    faults: float = 0.0
    hung: float = 30.0


@dataclass
class Provider:
    """The state behind all connections."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    counts: Counter[str] = field(default_factory=Counter)
    level: float = 0.0
    at: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def set(self, behaviour: Behaviour) -> None:
        self.behaviour, self.counts, self.chance = behaviour, Counter(), random.Random(0)
        self.level, self.at = behaviour.rate or 0.0, time.monotonic()

    def admit(self) -> tuple[bool, str]:
        """Takes a request out of the bucket; returns whether it is admitted, and the rate headers."""
        rate = self.behaviour.rate
        if rate is None:
            return True, ""
        now = time.monotonic()
        self.level, self.at = min(rate, self.level + (now - self.at) * rate), now
        admitted = self.level >= 1.0
        if admitted:
            self.level -= 1.0
        headers = "" if admitted else f"retry-after-ms: {1e3 * (1.0 - self.level) / rate:.0f}\r\n"
        if not admitted:
            headers += f"retry-after: {max(1, round((1.0 - self.level) / rate))}\r\n"
        if self.behaviour.headers:
            headers += (
                f"x-ratelimit-limit-requests: {rate:.0f}\r\nx-ratelimit-remaining-requests: {int(self.level)}\r\n"
                f"x-ratelimit-reset-requests: {1e3 * (rate - self.level) / rate:.0f}ms\r\n"
            )
        return admitted, headers

    def fault(self) -> str | None:
        share = self.behaviour.faults
        place = int(self.chance.random() / share) if share else len(FAULTS)
        return FAULTS[place] if place < len(FAULTS) else None


def completion(text: str | None) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "bench",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 19,
                "completion_tokens": 10,
                "total_tokens": 29,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
            },
            "service_tier": "default",
        }
    ).encode()


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        start = lower.find(b"content-length:")
        length = int(lower[start + 15 :].split(b"\r", 1)[0]) if start >= 0 else 0
        if len(body) >= length:
            self.received = b""
            self.request(head, body)

    def request(self, head: bytes, body: bytes) -> None:
        provider = self.provider
        if head.startswith(b"GET"):
            path = head.split(b" ")[1].decode()
            if path.startswith("/setup"):
                provider.set(Behaviour(**json.loads(unquote(path.partition("?")[2]))))
            self.send("200 OK", json.dumps(provider.counts).encode())
            return
        provider.counts["requests"] += 1
        admitted, headers = provider.admit()
        if not admitted:
            provider.counts["rejected"] += 1
            self.send("429 Too Many Requests", b'{"error": {"message": "Rate limit reached."}}', headers)
            return
        text = f"echo: {json.loads(body)['messages'][-1]['content']}"
        fault = provider.fault()
        if fault is not None:
            provider.counts[fault] += 1
        wait = provider.behaviour.hung if fault == "hung" else provider.behaviour.latency
        asyncio.get_running_loop().call_later(wait, self.reply, text, fault, headers)

    def reply(self, text: str, fault: str | None, headers: str) -> None:
        if fault == "dropped":
            self.transport.close()
        elif fault == "500":
            self.send("500 Error", b'{"error": {"message": "The server had an error."}}', headers)
        elif fault == "malformed":
            self.send("200 OK", b'{"choices": [{"message": {"content": "half', headers)
        elif fault == "truncated":
            self.send("200 OK", completion(text), headers, cut=20)
        elif fault in ("empty", "null"):
            self.send("200 OK", completion("" if fault == "empty" else None), headers)
        else:
            self.send("200 OK", completion(text), headers)

    def send(self, status: str, body: bytes, headers: str = "", cut: int = 0) -> None:
        if self.transport.is_closing():
            return
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        self.transport.write(head.encode() + body[: len(body) - cut])
        if cut:
            self.transport.close()


async def serve() -> None:
    provider = Provider()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(provider), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # It ends with the process that started it.
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
