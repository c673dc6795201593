"""Prefixes that many prompts share are sent once before the rest, where the provider bills cached tokens less."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

# In any language, so many characters are a token or more.
_CHARACTERS_A_TOKEN = 5
_MOST_PREFIXES = 100_000


class SharedPrefixes:
    """Holds requests back until the first one with their prefix is answered, and the provider has cached the prefix.

    That costs one round trip per prefix, once a run. Shorter prefixes are not held back.

    Args:
        ask: Sends a request.
        text_of: Returns the text that a request begins with; None if it has none.
        least: The shortest prefix that the provider caches, in tokens.
        leader: Which of the requests with a prefix the others wait for: 1 for the first, or 2 if only that one is
            marked, so that a single request costs no more.
        mark: Called before the leader is sent, with the prefix.
    """

    def __init__(
        self,
        ask: Callable[[Any], Awaitable[Any]],
        text_of: Callable[[Any], str | None],
        least: int,
        leader: int = 1,
        mark: Callable[[str], None] = lambda prefix: None,
    ) -> None:
        self._ask = ask
        self._text_of = text_of
        self._characters = least * _CHARACTERS_A_TOKEN
        self._leader = leader
        self._mark = mark
        self._seen: dict[int, int] = {}
        self._under_way: dict[int, asyncio.Event] = {}

    async def __call__(self, request: Any) -> Any:
        """Sends a request, after the one that leads."""
        text = self._text_of(request)
        if text is None or len(text) < self._characters:
            return await self._ask(request)
        key = hash(text[: self._characters])
        seen = self._seen.get(key, 0)
        if seen >= self._leader:
            if (leading := self._under_way.get(key)) is not None:
                await leading.wait()
            return await self._ask(request)
        if len(self._seen) >= _MOST_PREFIXES:  # prompts that share nothing
            self._seen.clear()
        self._seen[key] = seen + 1
        if seen + 1 < self._leader:
            return await self._ask(request)
        self._mark(text)
        leading = self._under_way[key] = asyncio.Event()
        try:
            return await self._ask(request)
        finally:
            leading.set()
            del self._under_way[key]
