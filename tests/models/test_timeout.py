"""`timeout` is the time until the whole answer, whatever a server sends in the meantime."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like.errors import Unavailable
from datadreamer_like.models import Anthropic, OpenAI

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def _slow(first: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(first)
        while True:
            if select.select([connection], [], [], 0.1)[0] and not connection.recv(65_536):
                return  # the client has closed it
            connection.sendall(piece)

    return serve


SERVERS = {
    "nothing": _slow(b"", b""),
    "headers, one by one": _slow(b"HTTP/1.1 200 OK\r\n", b"x-wait: 1\r\n"),
    "headers only": _slow(HEAD + b"content-length: 99\r\n\r\n", b""),
    "spaces": _slow(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a body, byte by byte": _slow(HEAD + b"content-length: 99999\r\n\r\n", b"x"),
    "comments of a stream": _slow(HEAD.replace(b"json", b"event-stream") + b"\r\n", b": wait\n\n"),
}


@contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    def quietly(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            serve(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=quietly, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # Ends `accept`, which could otherwise go on with the next socket that has this one's number.
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("sends", SERVERS)
@pytest.mark.parametrize("kind", [OpenAI, Anthropic])
def test_a_request_ends_after_its_timeout(kind: Any, sends: str, tmp_path: Path) -> None:
    with served(SERVERS[sends]) as url:
        llm = kind("m", base_url=url, api_key="k", timeout=0.6, retry_on_fail=False, cache_folder_path=tmp_path)
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"within 0\.6 s|[Tt]imed out"):
            llm.run(["one"])
        assert time.monotonic() - started < 5


def test_the_list_of_models_is_not_waited_for_longer(tmp_path: Path) -> None:
    with served(SERVERS["spaces"]) as url:
        llm = OpenAI("m", base_url=url, api_key="k", timeout=0.6, cache_folder_path=tmp_path)
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"within 0\.6 s"):
            llm.get_max_context_length(10)
        assert time.monotonic() - started < 5
