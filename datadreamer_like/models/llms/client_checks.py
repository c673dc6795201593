"""Checks of what a script gives for the client of an SDK, and of requests that failed."""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
)

from ..known_options import options_of_run, refuse_unknown
from .generation import GenerationOptions

# Options of every SDK's client.
_CLIENT_OPTIONS = {
    "organization", "project", "default_headers", "default_query", "max_retries", "http_client", "azure_deployment",
    "azure_ad_token", "azure_ad_token_provider", "auth_token",
}  # fmt: skip

# Of an answer whose limit is the model's own, until it is known how many it took.
_USUAL_NEW_TOKENS = 512


def check_client_options(kind: type, sdk: str, options: Mapping[str, Any], of_run: type = GenerationOptions) -> None:
    """Refuses options that the clients of an SDK do not have, and headers that cannot be sent.

    `of_run` is the typed dictionary of the options that `run` of the class `kind` has.
    """
    unknown = sorted(options.keys() - _CLIENT_OPTIONS)
    if unknown:  # only then is the SDK imported here
        module = import_module(sdk.lower())
        clients = [getattr(module, name, None) for name in (sdk, f"Azure{sdk}")]
        known = {name for client in clients if client is not None for name in signature(client).parameters}
        refuse_unknown(kind, unknown, known, f"the client of {sdk}'s SDK", options_of_run(of_run))
    for name, value in (options.get("default_headers") or {}).items():
        if isinstance(value, str) and not fits_header(value):
            raise DefinitionError(
                f'The header "{name}" in default_headers has a line break or another character that headers cannot '
                "have. Remove it."
            )


def checked_name(model_name: object) -> str:
    """Returns the name of a model; refuses other values, and an empty text, as an unset variable gives it."""
    if not isinstance(model_name, str):
        raise ArgumentTypeError(f"model_name must be a text, not {type(model_name).__name__}.")
    if not model_name.strip():
        raise DefinitionError("model_name is empty; give the name that the provider has for the model.")
    return model_name


def checked_seconds(timeout: object) -> float:
    """Returns the seconds of a timeout; refuses other values."""
    if not isinstance(timeout, numbers.Real) or not 0 < float(timeout) < math.inf:
        raise DefinitionError(f"timeout cannot be {timeout!r}; expected a number of seconds above 0.")
    return float(timeout)


def checked_cap(name: str, cap: object) -> float | None:
    """Returns a cap per minute, or None for none; refuses other values."""
    if cap is None:
        return None
    if isinstance(cap, bool) or not isinstance(cap, numbers.Real) or not 1 <= float(cap) < math.inf:
        raise DefinitionError(f"{name} cannot be {cap!r}; expected a number of at least 1, or None for no cap.")
    return float(cap)


def most_tokens(sent: Mapping[str, Any]) -> int:
    """Returns about how many tokens a request may take: a prompt has one for four characters, an answer its limit.

    This is also how OpenAI counts a request against its limit of tokens.
    """
    prompt = next((sent[name] for name in ("messages", "input", "prompt") if name in sent), "")
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    new = next((sent[name] for name in limits if sent.get(name)), _USUAL_NEW_TOKENS)
    asked = len(str(prompt)) + (len(str(sent["tools"])) if sent.get("tools") else 0)
    return asked // 4 + int(new) * int(sent.get("n") or 1)


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


def checked_key(found: Any, model_name: str) -> str | None:
    """Returns a key without the blanks around it, or None for none; refuses what no key can be."""
    if found is None:
        return None
    if not isinstance(found, str):
        raise ArgumentTypeError(f"api_key must be a text, not {type(found).__name__}.")
    key = found.strip()  # a key read from a file ends with a line break
    if not key or not fits_header(key):
        raise AuthenticationFailed(
            f'The key for "{model_name}" is empty or has characters that no key has, such as a line break '
            "or a typographic quote. Pass the key alone."
        )
    return key


def without_ambient_headers(sdk: str, key: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a client's option that takes out the headers of a variable which the SDK sends to any server."""
    lines = os.environ.get(f"{sdk.upper()}_CUSTOM_HEADERS", "").split("\n")
    ambient = {line.partition(":")[0].strip() for line in lines if ":" in line}
    if not ambient:
        return {}
    omit = import_module(sdk.lower()).Omit()
    headers = {name: omit for name in ambient if key is None or name.lower() != "authorization"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return {"default_headers": {**headers, **(options.get("default_headers") or {})}}
