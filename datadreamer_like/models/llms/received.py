"""What rows of several requests have received, so that none of it is paid for twice."""

from __future__ import annotations

from typing import Any

from .generation import Request

_MOST_ROWS = 10_000


class Received:
    """The replies to rows whose `n` answers take a request each; one that fails is sent again alone.

    Rows that failed for good stay, so that no other request gets their replies, until there are too many.
    """

    def __init__(self) -> None:
        # The request is kept since its id may be used again when it is gone.
        self._rows: dict[int, tuple[Request, list[Any]]] = {}

    def of(self, request: Request) -> list[Any]:
        """Returns the list of a row's replies, to which further ones are added."""
        if request.sampling.n == 1:
            return []
        if len(self._rows) >= _MOST_ROWS:
            self._rows.pop(next(iter(self._rows)), None)
        return self._rows.setdefault(id(request), (request, []))[1]

    def done(self, request: Request) -> None:
        """Forgets a row: it has all its replies."""
        self._rows.pop(id(request), None)

    def __reduce__(self) -> Any:
        return Received, ()
