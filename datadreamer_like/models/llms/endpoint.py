"""A server that speaks OpenAI's chat protocol, described as data, and the rule for which server gets which key."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from datadreamer_like.errors import AuthenticationFailed, DefinitionError

logger = logging.getLogger("datadreamer_like")

NO_KEY = "none"
"""Sent as the key to servers that need none: some want the header all the same."""


@dataclass(frozen=True)
class Quirks:
    """How a server differs from the protocol."""

    # Parameter for `max_new_tokens`; the protocol's other name is tried if it is refused.
    limit_name: str = "max_tokens"
    # Whether `n` is supported; otherwise `n` answers take `n` requests.
    several_answers: bool = True
    # Parameters for `repetition_penalty`.
    penalty_names: tuple[str, ...] = ("repetition_penalty", "repeat_penalty")
    # Whether `logprobs` is the number of log-probabilities, not a flag next to `top_logprobs`.
    logprobs_as_count: bool = False
    # Unsupported generation options, each with advice; refused before any request.
    refuses: Mapping[str, str] = field(default_factory=dict)
    # Unsupported parameters that are not essential; left out with a warning.
    drops: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Endpoint:
    """One provider; its name is that of its class and, in lower case, of its section in `prices.toml`."""

    name: str
    base_url: str
    key_variable: str
    quirks: Quirks = field(default_factory=Quirks)
    # Tokens of a prompt and its answer; None if the server's list of models reports it.
    context_length: int | None = None
    # Environment variable with another address that may receive the key.
    url_variable: str | None = None
    # Pages about its models and its terms of use.
    model_card: str | None = None
    license: str | None = None

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
        """Whether the key in the environment may be sent to an address: the provider's, or that in `url_variable`."""
        paired = os.environ.get(self.url_variable) if self.url_variable else None
        return self.serves(base_url) or (paired is not None and _origin(paired) == _origin(base_url))

    def key_for(self, base_url: str, given: str | None, model_name: str) -> str:
        """Returns the key to send to an address; `NO_KEY` for a server that is not the provider's.

        Raises:
            AuthenticationFailed: The provider's own server needs a key and there is none.
        """
        if given:
            return given
        key, variable, address = os.environ.get(self.key_variable), self.key_variable, shown_address(base_url)
        if not key or not self.owns_key_of(base_url):
            if self.serves(base_url):
                raise AuthenticationFailed(
                    f'There is no key for "{model_name}" at {address}. Set {variable} in the environment, or pass '
                    "api_key=..."
                )
            if key:
                message = "%s is not sent to %s: it belongs to %s. Pass api_key=... if the server wants a key."
                logger.info(message, variable, address, urlsplit(self.base_url).hostname)
            return NO_KEY
        if not self.serves(base_url):
            logger.info("%s is sent to %s, which %s names.", variable, address, self.url_variable)
        return key


def shown_address(base_url: str) -> str:
    """Returns an address without its secrets: user, password and query."""
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
