"""A server that speaks OpenAI's chat protocol, described as data, and the rule for which server gets which key."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from datadreamer_like.errors import AuthenticationFailed, DefinitionError

logger = logging.getLogger("datadreamer_like")

NO_KEY = "none"
"""Sent as the key to servers that need none: some want the header all the same."""


@dataclass(frozen=True)
class Quirks:
    """How a server differs from the protocol.

    Attributes:
        limit_name: Parameter for `max_new_tokens`; the protocol's other name is tried if it is refused.
        several_answers: Whether `n` is supported; otherwise `n` answers take `n` requests.
        penalty_names: Parameters for `repetition_penalty`.
        logprobs_as_count: Whether `logprobs` is the number of log-probabilities, not a flag next to `top_logprobs`.
        refuses: Unsupported generation options, each with advice; refused before any request.
        drops: Unsupported parameters that are not essential; left out with a warning.
    """

    limit_name: str = "max_tokens"
    several_answers: bool = True
    penalty_names: tuple[str, ...] = ("repetition_penalty", "repeat_penalty")
    logprobs_as_count: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)
    drops: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Limits:
    """Default limits of a provider.

    Attributes:
        context_length: Tokens of a prompt and its answer; None if the server's list of models reports it.
        concurrency: Concurrent requests.
    """

    context_length: int | None = None
    concurrency: int = 32


@dataclass(frozen=True)
class Endpoint:
    """One provider.

    Attributes:
        name: Name of its class.
        base_url: Base URL for the SDK.
        key_variable: Environment variable of its key.
        quirks: How it differs from the protocol.
        prices: Its section in `prices.toml`, or None.
        limits: Its limits.
        url_variable: Environment variable with another address that may receive the key.
        models_url: Page about its models.
        terms_url: Page with its terms of use.
    """

    name: str
    base_url: str
    key_variable: str
    quirks: Quirks = field(default_factory=Quirks)
    prices: str | None = None
    limits: Limits = field(default_factory=Limits)
    url_variable: str | None = None
    models_url: str | None = None
    terms_url: str | None = None

    def serves(self, base_url: str) -> bool:
        """Whether an address is the provider's own server, regional ones included."""
        home, asked = urlsplit(self.base_url), urlsplit(base_url)
        host = asked.hostname or ""
        return asked.scheme == home.scheme and (host == home.hostname or host.endswith(f".{home.hostname}"))

    def address_in_use(self, given: str | None) -> str:
        """Returns the given address, the one from the environment, or the provider's own.

        Raises:
            DefinitionError: It does not start with http:// or https://.
        """
        from_environment = os.environ.get(self.url_variable) if self.url_variable else None
        base_url = given or from_environment or self.base_url
        if urlsplit(base_url).scheme not in ("http", "https"):
            shown = base_url.rpartition("@")[2].partition("?")[0]  # without user, password and query
            raise DefinitionError(
                f'base_url is {shown!r}; it must start with http:// or https://, as in "http://localhost:8080/v1".'
            )
        return base_url

    def owns_key_of(self, base_url: str) -> bool:
        """Whether the key in the environment may be sent to an address.

        It may be sent to the provider's own server and to the address in `url_variable`.
        """
        paired = os.environ.get(self.url_variable) if self.url_variable else None
        return self.serves(base_url) or (paired is not None and _origin(paired) == _origin(base_url))

    def key_for(self, base_url: str, given: str | None, model_name: str) -> str:
        """Returns the key to send to an address; `NO_KEY` for a server that is not the provider's.

        Raises:
            AuthenticationFailed: The provider's own server needs a key and there is none.
        """
        if given:
            return given
        key = os.environ.get(self.key_variable)
        if self.owns_key_of(base_url):
            if key:
                if not self.serves(base_url):
                    logger.info(
                        "%s is sent to %s, which %s names.",
                        self.key_variable,
                        shown_address(base_url),
                        self.url_variable,
                    )
                return key
            if self.serves(base_url):
                raise AuthenticationFailed(
                    f'There is no key for "{model_name}" at {shown_address(base_url)}. Set {self.key_variable} in the '
                    "environment, or pass api_key=..."
                )
        elif key:
            logger.info(
                "%s is not sent to %s: it belongs to %s. Pass api_key=... if the server wants a key.",
                self.key_variable, shown_address(base_url), urlsplit(self.base_url).hostname,
            )  # fmt: skip
        return NO_KEY


def shown_address(base_url: str) -> str:
    """Returns an address without its secrets: user, password and query."""
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def headers_without_ambient(
    variable: str, omitted: Any, authorization: tuple[str, str], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns headers that override those that an SDK reads from the environment for any server.

    Args:
        variable: The SDK's environment variable, with one `name: value` per line.
        omitted: The SDK's marker for a header to leave out.
        authorization: Name and value of the header with the key.
        given: The script's headers.
    """
    lines = os.environ.get(variable, "").split("\n")
    names = {line.partition(":")[0].strip() for line in lines if ":" in line}
    ambient = {name: omitted for name in names if name.lower() != authorization[0].lower()}
    return {**ambient, authorization[0]: authorization[1], **(given or {})} if names else dict(given or {})


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
