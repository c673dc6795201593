"""How many requests may be in flight, and how long a failed one waits."""

from __future__ import annotations

import random

_LONGEST_RETRY_SECONDS = 60.0
# A server that fails this share of its requests is overloaded; a few failures come from anywhere.
_MANY_FAILURES = 0.2
# Latencies that are this many times the best ones come from a queue in the server, which more requests lengthen.
_QUEUEING = 1.5
# Up to this many times the best ones they do not.
_AS_QUICK = 1.1


class Allowance:
    """The number of requests that may be in flight, `allowed`, up to `most`.

    Additive increase, multiplicative decrease, as in TCP (Chiu and Jain, 1989): halved when the provider reports too
    many requests, or fails more than a fifth of them. It doubles per round of successful requests until the first
    halving ("slow start", Jacobson, 1988), then it grows by one per round, and in either case only as long as answers
    do not take longer (as TCP Vegas does: Brakmo and Peterson, 1995). Where as many requests were answered quickly
    before, answers that take longer are longer themselves, and are the new measure.

    Args:
        most: The upper bound.
        start: The number at first.
    """

    def __init__(self, most: int, start: int | None = None) -> None:
        self.most = most
        self.allowed = min(most, start or most)
        # Whether successes change nothing: it starts at its bound, and nothing has failed.
        self.is_full = self.allowed == most
        self._exact = float(self.allowed)
        self._halved_at = float("-inf")
        self._failed = 0.0
        self._slow_start = True
        # Of the best round, and of the last one.
        self._best = self._latency = float("inf")
        # The most requests at once whose answers were as quick as the best ones.
        self._quick_at = 0
        self._begin_round()

    def _begin_round(self) -> None:
        self._at_first, self._answers, self._seconds = self.allowed, 0, 0.0

    def succeeded(self, seconds: float = 0.0) -> None:
        """Records a successful request, which took this long."""
        if self._failed:
            self._failed -= self._failed / max(10.0, self._exact)
        if self.allowed < self.most and self._latency <= _QUEUEING * self._best:
            self._exact = min(float(self.most), self._exact + (1.0 if self._slow_start else 1.0 / self._exact))
            self.allowed = int(self._exact)
        # Means of rounds: single latencies vary with the lengths of the answers.
        self._answers += 1
        self._seconds += seconds
        if self._answers >= self._at_first:
            self._latency = self._seconds / self._answers
            if self._at_first <= self._quick_at:
                self._best = self._latency
            self._best = min(self._best, self._latency)
            if self._latency <= _AS_QUICK * self._best:
                self._quick_at = max(self._quick_at, self._at_first)
            if self._latency > _QUEUEING * self._best and self.allowed > self._at_first:
                # The requests that were added wait in the server.
                self._exact, self.allowed, self._slow_start = float(self._at_first), self._at_first, False
            self._begin_round()

    def refused(self, sent_at: float, now: float) -> None:
        """Records a rate-limited request; ignored if it was sent before the last halving."""
        self.is_full = False
        if sent_at >= self._halved_at:
            self._exact = max(1.0, self._exact / 2.0)
            self.allowed = int(self._exact)
            self._halved_at = now
            self._slow_start, self._failed = False, 0.0
            self._begin_round()

    def failed(self, sent_at: float, now: float) -> None:
        """Records a request that the server did not answer; many of them count as one that is rate-limited."""
        self.is_full = False
        self._failed += (1.0 - self._failed) / max(10.0, self._exact)
        if self._failed > _MANY_FAILURES:
            self.refused(sent_at, now)


def retry_delay(tries: int, first: float, retry_after: float | None = None) -> float:
    """Returns the seconds to wait after the `tries`-th failure; `first` is the mean after the first one.

    Exponential backoff with full jitter, so that requests that failed together are not retried together. A Retry-After
    of the provider is the minimum, with up to a tenth added for the same reason.
    """
    if retry_after is not None:
        return retry_after * random.uniform(1.0, 1.1)
    return random.uniform(0.0, min(_LONGEST_RETRY_SECONDS, first * 2.0**tries))
