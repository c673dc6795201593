"""What models behind a provider's API share: which key goes where, prices, clients, and requests."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    BadRequest,
    DataDreamerError,
    DefinitionError,
    MalformedAnswer,
    RateLimited,
    RejectedAnswer,
    Unavailable,
    require_extra,
)

from ..calls.concurrent_engine import retry_delay
from .client_checks import check_client_options, checked_seconds, fits_header, unwritable_error
from .generation import Answer, Sampling
from .llm import LLM
from .prices import Prices, given_prices, known_prices
from .provider_errors import provider_error, refused_parameter
from .secrets import Secrets, hide_in_logs, secrets_in

T = TypeVar("T")

logger = logging.getLogger("datadreamer_like")


@dataclass(frozen=True)
class Quirks:
    """How a server differs from the protocol."""

    # Parameter for `max_new_tokens`; the protocol's other name is tried if it is refused.
    limit_name: str = "max_tokens"
    # Parameters for `repetition_penalty`.
    penalty_names: tuple[str, ...] = ("repetition_penalty", "repeat_penalty")
    # Whether `logprobs` is the number of log-probabilities, not a flag next to `top_logprobs`.
    logprobs_as_count: bool = False
    # Unsupported generation options, each with advice; refused before any request.
    refuses: Mapping[str, str] = field(default_factory=dict)


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
        """Returns the given address, the environment's, or the provider's own; refuses one without http:// or https://."""
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
        """Returns the key to send to an address; "none" for a server that is not the provider's, which needs one."""
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
            return "none"  # some servers that need no key want the header all the same
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


class APIModel(LLM):
    """A model behind a provider's API, called with the provider's SDK.

    A subclass writes `answer`, which calls `request`, and the two methods that `request` calls: `send`, `leave_out`.

    Args:
        api_key: The key; by default from the provider's environment variable. Never written anywhere, not even into a
            pickle.
        retry_on_fail: False sends each request once.
        cache_folder_path: Folder for cached answers, instead of the session's.
        system_prompt: Added to every prompt that does not have its own.
        base_url: Another address of the API, such as a proxy's. The key in the environment is not sent there, unless
            the environment names that address too.
        max_context_length: The model's context window in tokens.
        timeout: Seconds until a request must have its whole answer; after that it is sent again.
        prices: US dollars per million tokens, such as `{"input": 0.25, "output": 2.0}`; None for published prices.
        **kwargs: Passed to the SDK's client.

    Raises:
        MissingExtra: The SDK is not installed.
        AuthenticationFailed: There is no key, and the server is the provider's own.
        DefinitionError: `base_url` is not a valid address, `prices` are malformed, `timeout` is not above 0, or the
            SDK's client has no such option.
    """

    endpoint: ClassVar[Endpoint]

    sdk: ClassVar[str]
    """The SDK's client class; in lower case, the name of its package and of the extra that installs it."""

    enforces_schemas = True

    def __init__(
        self,
        model_name: str,
        api_key: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        *,
        system_prompt: str | None = None,
        base_url: str | None = None,
        max_context_length: int | None = None,
        timeout: float = 600.0,
        prices: Prices | Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        require_extra(self.sdk.lower(), self.sdk.lower(), what=type(self).__name__)
        super().__init__(cache_folder_path)
        self.model_name = model_name
        self.retry_on_fail = retry_on_fail
        self.system_prompt = system_prompt
        self.base_url = self.endpoint.address_in_use(base_url)
        self.max_context_length = max_context_length
        self.timeout = checked_seconds(timeout)
        self.kwargs = kwargs
        check_client_options(type(self).__name__, self.sdk, kwargs)
        self.prices = given_prices(prices)
        if self.endpoint.serves(self.base_url):
            self._source = self.endpoint
            self.prices = self.prices or known_prices(self.endpoint.name.lower(), model_name)
        self._api_key = api_key
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}
        self.key  # noqa: B018  (a missing key is an error now, not at the first request)

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), api_key="example-key")

    # Overridden by providers.

    @property
    def quirks(self) -> Quirks:
        """How the server differs from the protocol."""
        return self.endpoint.quirks

    async def before_sending(self) -> None:
        """Waits until a request may be sent; this is not part of its `timeout`."""

    async def send(self, client: Any, parameters: dict[str, Any]) -> Any:
        """Sends one request with an asynchronous client of the SDK."""
        raise NotImplementedError(f"{type(self).__name__} does not implement send.")

    def leave_out(self, name: str, unsupported: bool, sent: Mapping[str, Any]) -> bool:
        """Drops or replaces a parameter of the `sent` ones in later requests; returns False if answers depend on it.

        The server refused the parameter itself if it is `unsupported`, else only its value.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement leave_out.")

    def find_key(self) -> str | None:
        """Returns the key to send; None if the SDK's client has other credentials. A missing key is an error."""
        return self.endpoint.key_for(self.base_url, self._api_key, self.model_name)

    def uses_sdk_environment(self) -> bool:
        """Whether the SDK's own environment variables (organization, project, headers) are meant for this server."""
        return self.sdk == self.endpoint.name and self.endpoint.owns_key_of(self.base_url)

    def client_options(self) -> dict[str, Any]:
        """Returns the arguments of the SDK's clients."""
        options = {"base_url": self.base_url, "timeout": self.timeout, "max_retries": 0, **self.kwargs}
        if self.key is not None:
            options["api_key"] = self.key
        # The SDK sends the headers in this variable to any server.
        lines = os.environ.get(f"{self.sdk.upper()}_CUSTOM_HEADERS", "").split("\n")
        ambient = {line.partition(":")[0].strip() for line in lines if ":" in line}
        if ambient and not self.uses_sdk_environment():
            omit = import_module(self.sdk.lower()).Omit()
            headers = {name: omit for name in ambient if self.key is None or name.lower() != "authorization"}
            if self.key is not None:
                headers["Authorization"] = f"Bearer {self.key}"
            options["default_headers"] = {**headers, **(self.kwargs.get("default_headers") or {})}
        return options

    def make_client(self, prefix: str) -> Any:
        """Returns a client of the SDK: `prefix` is the start of its class's name, "" or "Async"."""
        sdk = self.sdk.lower()
        hide_in_logs(self.secrets, "httpx", "httpx2", f"{sdk}._base_client")
        return getattr(import_module(sdk), prefix + self.sdk)(**self.client_options())

    # The engine.

    @cached_property
    def key(self) -> str | None:
        """The key in use; looked up again after unpickling, since keys are never written."""
        found: Any = self.find_key()
        if found is None:
            return None
        if not isinstance(found, str):
            raise ArgumentTypeError(f"api_key must be a text, not {type(found).__name__}.")
        key = found.strip()  # a key read from a file ends with a line break
        if not key or not fits_header(key):
            raise AuthenticationFailed(
                f'The key for "{self.model_name}" is empty or has characters that no key has, such as a line break '
                "or a typographic quote. Pass the key alone."
            )
        return key

    @cached_property
    def secrets(self) -> Secrets:
        """What must not be in any text: the key, and what else the client sends to identify itself."""
        ambient = os.environ.get(f"{self.sdk.upper()}_CUSTOM_HEADERS", "").split("\n")
        headers = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in ambient)}
        return Secrets([self.key, *secrets_in(self.base_url, {**self.kwargs, "ambient": headers})])

    @cached_property
    def client(self) -> Any:
        """The SDK's client, for direct use; `run` does not use it."""
        return self.make_client("")

    def identity(self) -> dict[str, Any]:
        """Returns the server's address and the system prompt."""
        return {"base_url": shown_address(self.base_url), "system_prompt": self.system_prompt}

    def check(self, sampling: Sampling) -> None:
        """Refuses options that the provider does not support."""
        for name, advice in self.quirks.refuses.items():
            if getattr(sampling, name) is not None:
                raise DefinitionError(f"{self.endpoint.name}'s API has no {name}. {advice}")
        for token, bias in (sampling.logit_bias or {}).items():
            if not -100 <= bias <= 100:
                raise DefinitionError(f"logit_bias of the token {token} cannot be {bias}; APIs take -100 to 100.")

    async def request(self, parameters: Callable[[], dict[str, Any]]) -> Any:
        """Sends a request, if necessary again, with the `parameters()` that have not been refused so far.

        Raises:
            ModelError: The request failed.
            DefinitionError: A parameter was refused that every request has and an answer depends on.
        """
        # Connections belong to the event loop that opened them.
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            try:
                client = self._clients[loop] = self.make_client("Async")
            except Exception as raised:
                words = self.secrets.taken_out_of(str(raised))
                failure: Exception = DefinitionError(f"{self.display_name}: its client cannot be made: {words}")
            if client is None:
                raise failure
        sent: dict[str, Any] = {}
        while True:
            before, sent = sent, parameters()
            await self.before_sending()
            try:
                async with self.in_time():
                    return await self.send(client, sent)
            except Exception as error:
                names = [name for name in sent if name not in ("model", "messages", "extra_body")]
                refused = refused_parameter(error, [*names, *sent.get("extra_body", {})])
                if refused is not None and sent != before and self.leave_out(*refused, sent):
                    continue
                failure = self.error_of(error, refused)
                if isinstance(failure, MalformedAnswer | Unavailable | BadRequest) and not hasattr(error, "response"):
                    failure = unwritable_error(sent) or failure
            # Outside the handler: the SDK's exception quotes what the server said, the key perhaps, and the request.
            raise failure

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Ends the block after `timeout`; the SDK's own timeout starts again with each byte that arrives."""
        try:
            async with asyncio.timeout(self.timeout) as limit:
                yield
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"there was no whole answer within {self.timeout:g} s") from error
            raise

    def error_of(self, error: Exception, refused: tuple[str, bool] | None = None) -> Exception:
        """Returns this package's error for an exception of the SDK, without secrets; see `provider_error`."""
        if isinstance(error, DataDreamerError):
            return error
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", self.secrets.taken_out_of("".join(traceback.format_exception(error))))
        return provider_error(error, self.model_name, shown_address(self.base_url), refused, self.secrets)

    def without_secrets(self, answer: Answer) -> Answer:
        """Returns an answer whose error, which may quote a server's refusal, has no secrets."""
        if answer.error is not None and not isinstance(answer.error, RejectedAnswer):
            answer.error.args = (self.secrets.taken_out_of(str(answer.error)),)
        return answer

    def retry_wrapper(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls a function of the `client`, again after a temporary failure, as `run` does its requests.

        Raises:
            ModelError: The last attempt failed.
        """
        for tries in itertools.count(1):
            try:
                return func(*args, **kwargs)
            except Exception as error:
                failure = self.error_of(error)
            temporary = isinstance(failure, RateLimited | Unavailable | MalformedAnswer)
            if not temporary or tries >= self.max_tries or not self.retry_on_fail:
                raise failure
            time.sleep(retry_delay(tries, getattr(failure, "retry_after", None)))
        raise AssertionError  # the loop has no end

    async def end_run(self) -> None:
        """Closes the client of the run's event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def final_count_tokens(self, value: str) -> int:
        """Returns the count with the system prompt and the chat template."""
        # Chat templates put fewer tokens than that around a message.
        return self.count_tokens(value) + self.count_tokens(self.system_prompt or "") + 16

    def unload_model(self) -> None:
        """Closes the client."""
        client = self.__dict__.pop("client", None)
        if client is not None:
            client.close()

    def __getstate__(self) -> dict[str, Any]:
        live = ("key", "secrets", "client", "tokenizer")
        state = {name: value for name, value in self.__dict__.items() if name not in live}
        return {**state, "_api_key": None, "_clients": {}}
