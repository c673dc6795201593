"""How to behave towards a busy provider: how many requests at once, and how long to wait before trying again."""

from __future__ import annotations

import random

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 60.0


def retry_delay(tries: int, retry_after: float | None = None) -> float:
    """Returns the seconds to wait after the `tries`-th failure.

    Exponential backoff with full jitter, so that requests that failed together do not come back together; what the
    provider asks for with Retry-After is kept at least, with up to a tenth more for the same reason.
    """
    if retry_after is not None:
        return retry_after * random.uniform(1.0, 1.1)
    return random.uniform(0.0, min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0**tries))


class Allowance:
    """How many requests may be under way at once.

    Additive increase, multiplicative decrease, as TCP does (Chiu and Jain, 1989): halved when the provider says that
    there are too many, raised by one for each round of requests that went well.

    Args:
        most: Never more than this many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._allowed = float(most)
        self._halved_at = float("-inf")

    @property
    def allowed(self) -> int:
        """Requests that may be under way now."""
        return int(self._allowed)

    def went_well(self) -> None:
        """Notes an answer."""
        if self._allowed < self.most:
            self._allowed = min(float(self.most), self._allowed + 1.0 / self._allowed)

    def refused(self, sent_at: float, now: float) -> None:
        """Notes that a request sent at `sent_at` was one too many; those sent before the last halving say no news."""
        if sent_at >= self._halved_at:
            self._allowed = max(1.0, self._allowed / 2.0)
            self._halved_at = now
