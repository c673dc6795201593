"""A provider as data: its address, the key that goes there, and how its servers differ from the protocol."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from datadreamer_like.errors import ArgumentTypeError, AuthenticationFailed, DefinitionError

from .tools import TOOL_CHOICES

logger = logging.getLogger("datadreamer_like")

_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Quirks:
    """How a server differs from the protocol."""

    # Parameter for `max_new_tokens`; the protocol's other name is tried if it is refused.
    limit_name: str = "max_tokens"
    # Parameters for `repetition_penalty`.
    penalty_names: tuple[str, ...] = ("repetition_penalty", "repeat_penalty")
    # Parameter for `seed`; None if there is none, so that `seed` only decides which cached answer is used.
    seed_name: str | None = "seed"
    # Whether a request may ask for several answers; else each takes a request of its own.
    takes_n: bool = True
    # Whether `logprobs` is the number of log-probabilities, not a flag next to `top_logprobs`.
    logprobs_as_count: bool = False
    # "json_object" if the server only guarantees JSON: the schema then becomes part of the prompt.
    response_format: Literal["json_schema", "json_object"] = "json_schema"
    # Whether completions with `echo` return the log-probabilities of a prompt, which scores are made of.
    echoes: bool = False
    # Tokens of the shortest prefix that is cached and then billed less; None if there is no such cache.
    cached_prefix: int | None = None
    # Whether an answer's usage has its cost in US dollars, as `cost`.
    reports_cost: bool = False
    # Whether the ids of calls in a conversation must be nine letters and digits.
    short_call_ids: bool = False
    # Fields of answers with calls that a conversation must have again.
    wants_back: frozenset[str] = frozenset()
    # What `tool_choice` may be; empty if there are no tools.
    tool_choices: frozenset[str] = TOOL_CHOICES
    # Unsupported generation options, each with advice; refused before any request.
    refuses: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoint:
    """One provider; its name is that of its class and, in lower case, of its section in `prices.toml`."""

    name: str
    base_url: str
    # Environment variable with the key; None for a server on this machine, which needs none and costs nothing.
    key_variable: str | None
    quirks: Quirks = field(default_factory=Quirks)
    # Tokens of a prompt and its answer; None if the server's list of models reports it.
    context_length: int | None = None
    # Environment variable with another address that may receive the key.
    url_variable: str | None = None
    # Further domains of the provider, whose hosts may receive the key.
    domains: tuple[str, ...] = ()
    # Pages about its models and its terms of use.
    model_card: str | None = None
    license: str | None = None

    def serves(self, base_url: str) -> bool:
        """Whether an address is the provider's own server, regional ones included."""
        home, asked = urlsplit(self.base_url), urlsplit(base_url)
        host = asked.hostname or ""
        if self.key_variable is None:
            return host in _THIS_MACHINE
        domains = (home.hostname or "", *self.domains)
        return asked.scheme == home.scheme and any(host == each or host.endswith(f".{each}") for each in domains)

    def address_in_use(self, given: str | None) -> str:
        """Returns the given address, the environment's, or the provider's own; refuses one without http:// or https://."""
        from_environment = os.environ.get(self.url_variable) if self.url_variable else None
        base_url = given or from_environment or self.base_url
        if not isinstance(base_url, str):
            raise ArgumentTypeError(f"base_url must be a text, not {type(base_url).__name__}.")
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
        """Returns the key to send to an address; "none" for a server that is not the provider's, which needs one."""
        if given:
            return given
        variable, address = self.key_variable, shown_address(base_url)
        if variable is None:
            return "none"  # some servers that need no key want the header all the same
        key = os.environ.get(variable)
        if not key or not self.owns_key_of(base_url):
            if self.serves(base_url):
                raise AuthenticationFailed(
                    f'There is no key for "{model_name}" at {address}. Set {variable} in the environment, or pass '
                    "api_key=..."
                )
            if key:
                message = "%s is not sent to %s: it belongs to %s. Pass api_key=... if the server wants a key."
                logger.info(message, variable, address, urlsplit(self.base_url).hostname)
            return "none"
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
