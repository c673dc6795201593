"""Errors of requests to the Hub: messages that say what to do, and retries of temporary ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from datadreamer_like.errors import DataDreamerError, HubError

# Base of all failed requests: a class of httpx or of httpx2, depending on the version of huggingface_hub.
RequestFailed: type[Exception] = HfHubHTTPError.__bases__[0]

WAITS = (0.5, 1.0, 2.0, 4.0)
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
CONFLICT = frozenset({409, 412})
LONGEST_WAIT = 60.0
TOKEN_HELP = (
    'Create a token at https://huggingface.co/settings/tokens, then run "hf auth login", set HF_TOKEN, or pass it'
)

Result = TypeVar("Result")


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns errors of calls to the Hub inside the block into a `HubError` that says what to do."""
    try:
        yield
    except DataDreamerError:
        raise
    except Exception as error:
        raise HubError(explanation(error, repo_id)) from error


def retried(call: Callable[[], Result], *, first: bool = False) -> Result:
    """Retries an idempotent request after temporary errors; if it is the `first`, not without any connection."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not is_temporary(error) or (first and status_of(error) is None):
                raise
            time.sleep(pause(error, wait))
    return call()


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status of a failed request; None if there was no response."""
    cause = _cause(error)
    return int(cause.response.status_code) if isinstance(cause, HfHubHTTPError) else None


def is_temporary(error: BaseException) -> bool:
    """Returns whether a retry of the request may succeed."""
    cause = _cause(error)
    if isinstance(cause, HfHubHTTPError):
        return status_of(cause) in TEMPORARY
    return isinstance(cause, RequestFailed)


def pause(error: BaseException, wait: float) -> float:
    """Returns the seconds to wait: the Hub's Retry-After if given, at least `wait`."""
    cause = _cause(error)
    asked = cause.response.headers.get("Retry-After", "") if isinstance(cause, HfHubHTTPError) else ""
    return min(max(float(asked), wait), LONGEST_WAIT) if asked.isdigit() else wait


def explanation(error: BaseException, repo_id: str) -> str:
    """Returns a message on a failed request about `repo_id`, and what to do."""
    cause = _cause(error)
    if isinstance(cause, OfflineModeIsEnabled):
        return f'"{repo_id}" cannot be published while HF_HUB_OFFLINE is set. Unset it and start again.'
    if isinstance(cause, HfHubHTTPError):
        return _status_explanation(cause, repo_id)
    if isinstance(cause, RequestFailed):
        return (
            f'The Hub cannot be reached to publish "{repo_id}" ({type(cause).__name__}: {cause}). '
            "Check the connection and, if set, HF_ENDPOINT, then publish again: nothing is sent twice."
        )
    return f'Publishing "{repo_id}" failed ({type(error).__name__}: {error}). Publish again, or see the cause above.'


def _status_explanation(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    said = f": {error.server_message}" if error.server_message else ""
    if isinstance(error, RepositoryNotFoundError):
        return (
            f'"{repo_id}" is not found on the Hub, or this token may not see it. '
            "Check the name, and that the token may write to this repository."
        )
    if status == 401:
        return f"The Hub does not accept this token: it is wrong, expired or revoked. {TOKEN_HELP} as token=."
    if status == 403:
        return (
            f'This token may not write to "{repo_id}"{said}. Publish under your own namespace, '
            "or create a token with write permission for it at https://huggingface.co/settings/tokens."
        )
    if status in CONFLICT:
        return f'"{repo_id}" was changed by someone else meanwhile{said}. Publish again to update the newer version.'
    if status == 429:
        return f'The Hub limits the rate of requests{said}. Wait a few minutes, then publish "{repo_id}" again.'
    if status >= 500:
        return (
            f'The Hub failed to answer about "{repo_id}" (HTTP {status}{said}). '
            "Publish again later: nothing is sent twice."
        )
    return f'The Hub rejects a request about "{repo_id}" (HTTP {status}{said}). Fix the cause, then publish again.'


def _cause(error: BaseException) -> BaseException:
    """Returns the failed request that caused an error; huggingface_hub wraps those of uploads."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (RequestFailed, OfflineModeIsEnabled)):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error
