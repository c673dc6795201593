"""Requests that must not be sent twice, although the process may be killed, or the connection lost, at any moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def sent_once(
    state: dict[str, Any],
    what: str,
    find: Callable[[], Any],
    send: Callable[[], Any],
    retry: Callable[[Callable[[], Any]], Any],
    save: Callable[[], None],
) -> str:
    """Returns the id of what a request makes at a server; sends the request if it was not sent before.

    That it is sent is saved before, and the id as soon as it is known. If the response to an earlier request is lost,
    the server is searched for what it made before the request is sent again.

    Args:
        state: What is saved: its "begun" is a list of what was sent, its "ids" the ids by `what`.
        what: Names the request in `state`.
        find: Searches the server; returns what has an `id`, or None.
        send: Sends the request; returns what has an `id`.
        retry: Calls a function, again after a temporary failure.
        save: Writes `state`.
    """
    if what not in state["ids"]:

        def attempt() -> Any:
            if what in state["begun"]:  # by an earlier run, or an attempt whose response was lost
                made = find()
                if made is not None:
                    return made
            else:
                state["begun"].append(what)
                save()
            return send()

        state["ids"][what] = retry(attempt).id
        save()
    found: str = state["ids"][what]
    return found
