"""Backoff for busy providers: the number of concurrent requests, and delays before retries."""

from __future__ import annotations

import random

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 60.0


def retry_delay(tries: int, retry_after: float | None = None) -> float:
    """Returns the seconds to wait after the `tries`-th failure.

    Exponential backoff with full jitter, so that requests that failed together are not retried together. A Retry-After
    of the provider is the minimum, with up to a tenth added for the same reason.
    """
    if retry_after is not None:
        return retry_after * random.uniform(1.0, 1.1)
    return random.uniform(0.0, min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0**tries))


class Allowance:
    """The number of requests that may be in flight.

    Additive increase, multiplicative decrease, as in TCP (Chiu and Jain, 1989): halved when the provider reports too
    many requests, increased by one per round of successful requests.

    Args:
        most: The upper limit.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._allowed = float(most)
        self._halved_at = float("-inf")

    @property
    def allowed(self) -> int:
        """Requests that may be in flight now."""
        return int(self._allowed)

    def succeeded(self) -> None:
        """Records a successful request."""
        if self._allowed < self.most:
            self._allowed = min(float(self.most), self._allowed + 1.0 / self._allowed)

    def refused(self, sent_at: float, now: float) -> None:
        """Records a rate-limited request; ignored if it was sent before the last halving."""
        if sent_at >= self._halved_at:
            self._allowed = max(1.0, self._allowed / 2.0)
            self._halved_at = now
