"""Requests and tokens per time: the caps of the script, and the limits that a provider reports with its answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

logger = logging.getLogger("datadreamer_like")

_MINUTE = 60.0
# From this wait on, a limit is reported: a limit per day may be used up.
_LONG_WAIT_SECONDS = 30.0
# What a cap lets through at once, in seconds of its rate: timers are late by some milliseconds.
_BURST_SECONDS = 1.0
# Left in a provider's bucket, since its clock and ours differ.
_SPARE = 1.0
# Answers change what is left: they took fewer tokens than expected, and report limits.
_LOOK_AGAIN_SECONDS = 0.05


class Reported(NamedTuple):
    """A limit as a reply's headers report it; `reset` is in how many seconds nothing of it is used."""

    limit: float
    remaining: float
    reset: float


class Ticket(NamedTuple):
    """When a request was sent: the time, and what had been sent until then."""

    at: float
    requests: int
    tokens: int


@dataclass
class Charge:
    """The tokens that are counted for a call, until it is known how many it took."""

    tokens: int = 0


_charge: ContextVar[Charge | None] = ContextVar("datadreamer_like_charge", default=None)


class Bucket:
    """A token bucket: it holds at most `most`, and is filled with `rate` per second."""

    def __init__(self, most: float, rate: float) -> None:
        self.most, self.rate, self.level, self.at = most, rate, most, time.monotonic()

    @classmethod
    def per_minute(cls, most: float, smallest: float = 1.0) -> Bucket:
        """Returns one that lets no more than `most` through in any minute."""
        burst = max(smallest, most / _MINUTE * _BURST_SECONDS)
        return cls(burst, (most - burst + smallest) / _MINUTE)

    def level_at(self, now: float) -> float:
        """Returns what it holds."""
        return min(self.most, self.level + (now - self.at) * self.rate)

    def wait(self, cost: float, now: float) -> float:
        """Returns the seconds until `cost` may be taken, or all that it can hold."""
        short = min(cost, self.most) - self.level_at(now)
        if short <= 0:
            return 0.0
        return short / self.rate if self.rate > 0 else _LOOK_AGAIN_SECONDS

    def take(self, cost: float, now: float) -> None:
        """Takes an amount, also one that it does not hold: the next then waits longer."""
        self.level, self.at = self.level_at(now) - cost, now


class Pace:
    """Lets the requests to one model wait until they may be sent; shared by all its runs in this process.

    Times are monotonic, so a clock that is set changes nothing.

    Args:
        requests_per_minute: A cap on requests; None for none.
        tokens_per_minute: A cap on tokens of prompts and answers. A request counts with as many as it may take, until
            its answer says how many it took.
        name: Names the model in warnings.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None, name: str = "a model"
    ) -> None:
        self._caps = (
            None if requests_per_minute is None else Bucket.per_minute(requests_per_minute),
            None if tokens_per_minute is None else Bucket.per_minute(tokens_per_minute),
        )
        self._name = name
        self._most_tokens = tokens_per_minute  # None once it was warned of
        # By the name of the limit; with whether it counts tokens.
        self._reported: dict[str, tuple[Bucket, bool]] = {}
        self._sent = self._tokens = 0
        self._latest = 0
        self._paused_until = self._noted_until = float("-inf")
        self._lock = threading.Lock()
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are limited, so that they have to be estimated."""
        return self._caps[1] is not None or any(of_tokens for _, of_tokens in self._reported.values())

    async def turn(self, tokens: int = 0) -> Ticket:
        """Returns when a request, which may take so many tokens, may be sent; in the order of the calls."""
        if self._most_tokens is not None and tokens > self._most_tokens:
            logger.warning(
                "%s: a request may take %s tokens, its longest answer included, and tokens_per_minute is %s. Such a "
                "request is sent alone, and the next one waits, for minutes. Lower max_new_tokens, or raise the cap.",
                self._name, f"{tokens:,}", f"{self._most_tokens:,.0f}",
            )  # fmt: skip
            self._most_tokens = None
        turns = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        if turns.locked() or self._wait_or_take(tokens) > 0:
            async with turns:
                while (seconds := self._wait_or_take(tokens)) > 0:
                    self._note(seconds)
                    await asyncio.sleep(min(seconds, _LOOK_AGAIN_SECONDS))
        charge = _charge.get()
        if charge is not None:
            charge.tokens += tokens
        return Ticket(time.monotonic(), self._sent, self._tokens)

    def _note(self, seconds: float) -> None:
        now = time.monotonic()
        if seconds >= _LONG_WAIT_SECONDS and now >= self._noted_until:
            self._noted_until = now + seconds
            logger.warning("A rate limit lets the next request through in %s s; waiting.", f"{seconds:,.0f}")

    def pause(self, seconds: float) -> None:
        """Sends nothing for a time, as a provider's Retry-After asks."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def heard(self, limits: Mapping[str, Reported], ticket: Ticket) -> None:
        """Takes the limits that a reply to a request reports.

        What was sent after the request may not be counted in them, and what was renewed since is not.
        """
        now = time.monotonic()
        with self._lock:
            if ticket.requests < self._latest or not limits:
                return
            self._latest = ticket.requests
            for name, (limit, remaining, reset) in limits.items():
                of_tokens = "token" in name
                bucket, _ = self._reported.setdefault(name, (Bucket(limit, limit / _MINUTE), of_tokens))
                if reset > 0 and remaining < limit:
                    bucket.rate = (limit - remaining) / reset
                since = self._tokens - ticket.tokens if of_tokens else self._sent - ticket.requests
                bucket.most, bucket.at = limit, now
                bucket.level = min(limit, remaining + bucket.rate * (now - ticket.at) - since)

    def settling(self, ask: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Returns a function that replaces the tokens estimated for a call by those that its answer took."""
        if self._caps[1] is None:
            return ask

        async def ask_counted(request: Any) -> Any:
            with _charging() as charge:
                answer = await ask(request)
            used = answer.prompt_tokens + answer.completion_tokens
            if used and self._caps[1] is not None:
                with self._lock:
                    self._caps[1].take(used - charge.tokens, time.monotonic())
            return answer

        return ask_counted

    def _wait_or_take(self, tokens: int) -> float:
        """Takes a request out of all buckets and returns 0, or the seconds after which to try again."""
        with self._lock:
            now = time.monotonic()
            own, of_tokens = self._caps
            waits = [self._paused_until - now]
            if own is not None:
                waits.append(own.wait(1.0, now))
            if of_tokens is not None:
                waits.append(of_tokens.wait(tokens, now))
            for bucket, counts_tokens in self._reported.values():
                waits.append(bucket.wait(tokens if counts_tokens else 1.0 + _SPARE, now))
            if (seconds := max(waits)) > 0:
                return seconds
            if own is not None:
                own.take(1.0, now)
            if of_tokens is not None:
                of_tokens.take(tokens, now)
            for bucket, counts_tokens in self._reported.values():
                bucket.take(tokens if counts_tokens else 1.0, now)
            self._sent += 1
            self._tokens += tokens
            return 0.0


@contextmanager
def _charging() -> Iterator[Charge]:
    charge = Charge()
    token = _charge.set(charge)
    try:
        yield charge
    finally:
        _charge.reset(token)
