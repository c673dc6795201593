"""A small HTTP server that speaks the chat completions protocol, misbehaves as it is told, and counts what it sees."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Reply:
    """What the server does with one request."""

    text: str | None = "fine"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    seconds: float = 0.0
    drop: bool = False
    close: bool = False
    finish_reason: str = "stop"
    choices: int | None = None


def error(status: int, message: str, **fields: Any) -> Reply:
    """Returns a refusal in the protocol's form."""
    headers = fields.pop("headers", {})
    body = json.dumps({"error": {"message": message, "type": None, "param": None, "code": None, **fields}})
    return Reply(status=status, body=body.encode(), headers=headers)


class FlakyServer:
    """Serves in a thread; `behave` is given each request's JSON and how often the same one came before.

    Attributes:
        seen: Prompts to how often they were received.
        requests: Bodies of all requests, in order; `paths` and `headers` are theirs.
        models: The list of models; None for a server without one.
        most_at_once: Most requests that were under way at once.
    """

    def __init__(self, behave: Callable[[dict[str, Any], int], Reply] | None = None) -> None:
        self._behave = behave or (lambda body, before: Reply(f"echo: {prompt_of(body)}"))
        self.seen: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.models: list[dict[str, Any]] | bytes | None = []  # bytes: the whole reply
        self.headers: list[dict[str, str]] = []
        self.under_way = 0
        self.most_at_once = 0
        self._busy_seconds = 0.0
        self._changed_at = 0.0
        self._started_at: float | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def mean_at_once(self) -> float:
        """Returns the mean number of requests under way, from the first request's arrival until the last change."""
        assert self._started_at is not None
        return self._busy_seconds / (self._changed_at - self._started_at)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:]) if name
        }
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if head.startswith("GET"):
            given = self.models
            listed = given if isinstance(given, bytes) else json.dumps({"object": "list", "data": given}).encode()
            return await self._send(writer, Reply(status=404 if self.models is None else 200, body=listed), {})
        body = json.loads(raw)
        before = self.seen[prompt_of(body)]
        self.seen[prompt_of(body)] += 1
        self.requests.append(body)
        self.paths.append(head.split(" ")[1])
        self.headers.append(headers)
        self._count(+1)
        try:
            reply = self._behave(body, before)
            if reply.seconds:
                await self._sleep_while_connected(reply.seconds, reader)
            return await self._send(writer, reply, body)
        finally:
            self._count(-1)

    async def _sleep_while_connected(self, seconds: float, reader: asyncio.StreamReader) -> None:
        gone: Awaitable[bytes] = reader.read(1)
        try:
            await asyncio.wait_for(gone, seconds)
        except TimeoutError:
            return
        raise ConnectionError("the client has gone")

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply, request: dict[str, Any]) -> bool:
        if reply.drop:
            return False
        payload = reply.body if reply.body is not None else json.dumps(completion(reply, request)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(payload)), **reply.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode() + payload)
        await writer.drain()
        return not reply.close

    def _count(self, change: int) -> None:
        now = time.monotonic()
        if self._started_at is None:
            self._started_at = now
        else:
            self._busy_seconds += self.under_way * (now - self._changed_at)
        self._changed_at = now
        self.under_way += change
        self.most_at_once = max(self.most_at_once, self.under_way)


def prompt_of(body: dict[str, Any]) -> str:
    messages = body.get("messages") or body.get("input")
    if messages is None:
        return str(body["prompt"])
    if isinstance(messages[-1], str):  # texts to embed
        return str(messages)
    content = messages[-1]["content"]
    # Bedrock's messages always have blocks.
    return str(content[0].get("text") if isinstance(content, list) and "text" in content[0] else content)


def completion(reply: Reply, request: dict[str, Any]) -> dict[str, Any]:
    count = request.get("n") or 1
    count = count if reply.choices is None else reply.choices
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": index,
                "finish_reason": reply.finish_reason,
                "message": {"role": "assistant", "content": reply.text},
                "logprobs": None,
            }
            for index in range(count)
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
