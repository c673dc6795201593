"""Checks of what a script gives for the client of an SDK, and of requests that failed."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from datadreamer_like.errors import BadRequest, DefinitionError, did_you_mean

# Options of every SDK's client.
_CLIENT_OPTIONS = {
    "organization", "project", "default_headers", "default_query", "max_retries", "http_client", "azure_deployment",
    "azure_ad_token", "azure_ad_token_provider", "auth_token",
}  # fmt: skip


def check_client_options(name_of_class: str, sdk: str, options: Mapping[str, Any]) -> None:
    """Refuses options that the clients of an SDK do not have, and headers that cannot be sent."""
    unknown = sorted(options.keys() - _CLIENT_OPTIONS)
    if unknown:  # only then is the SDK imported here
        module = import_module(sdk.lower())
        clients = [getattr(module, name, None) for name in (sdk, f"Azure{sdk}")]
        known = {name for client in clients if client is not None for name in signature(client).parameters}
        for name in unknown:
            if name not in known:
                raise DefinitionError(
                    f'{name_of_class} has no option "{name}", nor has the client of {sdk}\'s SDK.'
                    f"{did_you_mean(name, known)}"
                )
    for name, value in (options.get("default_headers") or {}).items():
        if isinstance(value, str) and not fits_header(value):
            raise DefinitionError(
                f'The header "{name}" in default_headers has a line break or another character that headers cannot '
                "have. Remove it."
            )


def checked_seconds(timeout: object) -> float:
    """Returns the seconds of a timeout; refuses other values."""
    if not isinstance(timeout, numbers.Real) or not 0 < float(timeout) < math.inf:
        raise DefinitionError(f"timeout cannot be {timeout!r}; expected a number of seconds above 0.")
    return float(timeout)


def fits_header(value: str) -> bool:
    """Whether a header can have this value."""
    return value.isascii() and value.replace("\t", " ").isprintable()


def unwritable_error(sent: Mapping[str, Any]) -> Exception | None:
    """Returns the error for a request that cannot be written: about its row, or about an option of all rows."""
    for name, value in sent.items():
        try:
            json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            why = str(error)[:500]
            if name in ("messages", "system", "input"):
                return BadRequest(f"The prompt is not valid text, so it cannot be sent: {why}.")
            return DefinitionError(f'"{name}" cannot be sent to a server: {why}.')
    return None
