"""What models behind a provider's API share: keys, prices, clients, and requests."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property, partial
from importlib import import_module
from inspect import isawaitable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from datadreamer_like.errors import (
    BadRequest,
    DataDreamerError,
    DefinitionError,
    MalformedAnswer,
    RateLimited,
    RejectedAnswer,
    Unavailable,
    check_flag,
    require_extra,
)

from ..calls.allowance import retry_delay
from ..calls.batch_api import BatchAPI
from ..calls.batch_jobs import BatchJobs
from ..calls.budget import Ask, Purse, check_budget, sending, within_budget
from ..calls.pace import Pace, Ticket
from ..calls.pipeline import Engine, Recorder, answers_file
from ..calls.shared_prefix import SharedPrefixes
from .answer_text import answered_with_text
from .client_checks import (
    check_client_options,
    checked_cap,
    checked_key,
    checked_name,
    checked_seconds,
    most_tokens,
    unwritable_error,
    without_ambient_headers,
)
from .endpoint import Endpoint, Quirks, shown_address
from .generation import Answer, Generation, Sampling, start_of
from .llm import LLM
from .prices import Prices, given_prices, known_prices
from .provider_errors import provider_error, refused_parameter
from .rate_headers import reported_limits, retry_after
from .secrets import Secrets, hide_in_logs, secrets_in

T = TypeVar("T")

logger = logging.getLogger("datadreamer_like")

# Statuses of a server that wants fewer requests: of a rate limit, and of overload.
_TOO_MUCH = {429, 503, 529}


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
        prices: US dollars per million tokens, such as `{"input": 0.25, "output": 2.0}`; None for those in
            the session's prices file, else published ones.
        budget: The most that `run` may spend on this model in the folder of its answers, over all runs, such as
            "5 USD".
        requests_per_minute: A cap on the requests of this object, in this process, next to the limits that the provider
            reports.
        tokens_per_minute: A cap on the tokens of its prompts and answers. A request counts with its longest possible
            answer until it has one, so set `max_new_tokens`.
        batch: Send requests through the provider's batch API: answers come within a day, for about half the price.
            Answers are the same ones as without it. It needs a session, or `cache_folder_path`.
        **kwargs: Passed to the SDK's client.

    Raises:
        MissingExtra: The SDK is not installed.
        AuthenticationFailed: There is no key, and the server is the provider's own.
        DefinitionError: `base_url` is not a valid address, `prices` are malformed, `timeout` or a cap is not above 0,
            the SDK's client has no such option, there is a budget and no price, or `batch` and no batch API.
    """

    endpoint: ClassVar[Endpoint]

    sdk: ClassVar[str]
    """The SDK's client class; in lower case, the name of its package."""
    extra: ClassVar[str] = ""
    """The extra that installs the SDK, unless it has the package's name."""

    max_concurrency: int | None = 256
    takes_chat = takes_images = True  # whether this model takes images, its server says

    default_new_tokens: ClassVar[int | None] = None
    """The limit that is sent if `max_new_tokens` is None; None if none is."""

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
        budget: str | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        batch: bool = False,
        **kwargs: Any,
    ) -> None:
        require_extra(self.extra or self.sdk.lower(), self.sdk.lower(), what=type(self).__name__)
        super().__init__(cache_folder_path)
        self.model_name = checked_name(model_name)
        self.retry_on_fail = retry_on_fail
        self.system_prompt = system_prompt
        self.base_url = self.endpoint.address_in_use(base_url)
        self.tool_choices = self.quirks.tool_choices
        self.max_context_length = max_context_length
        self.timeout, self.kwargs = checked_seconds(timeout), kwargs
        check_client_options(type(self), self.sdk, kwargs)
        self.requests_per_minute = checked_cap("requests_per_minute", requests_per_minute)
        self.tokens_per_minute = checked_cap("tokens_per_minute", tokens_per_minute)
        if self.endpoint.key_variable is None:
            self.max_concurrency = None  # such a server has few slots
        provider, free = shown_address(self.base_url), None
        if self.endpoint.serves(self.base_url):
            self._source, provider = self.endpoint, self.endpoint.name.lower()
            free = Prices(0.0, 0.0) if self.endpoint.key_variable is None else None
        self.prices = given_prices(prices) or known_prices(provider, model_name) or free
        self._api_key = api_key
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}
        self._purses: dict[asyncio.AbstractEventLoop, Purse] = {}
        check_flag(batch, "batch")
        self.budget, self.batch = budget, batch
        if batch:
            if self.batch_api() is None:
                raise DefinitionError(f"{type(self).__name__} has no batch API. OpenAI, Anthropic and MistralAI do.")
            self.prices = self.prices and self.prices.in_batches()
        check_budget(self)
        # A missing key is an error now, not at the first request; and threads must find one pace.
        self.key, self.pace  # noqa: B018

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), api_key="example-key")

    # Overridden by providers.

    @property
    def quirks(self) -> Quirks:
        """How the server differs from the protocol."""
        return self.endpoint.quirks

    async def send(self, client: Any, parameters: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Sends one request with an asynchronous client of the SDK; returns the answer and the reply's headers."""
        raise NotImplementedError(f"{type(self).__name__} does not implement send.")

    def leave_out(self, name: str, unsupported: bool, sent: Mapping[str, Any]) -> bool:
        """Drops or replaces a parameter of the `sent` ones in later requests; returns False if answers depend on it.

        The server refused the parameter itself if it is `unsupported`, else only its value.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement leave_out.")

    def sharing_prefixes(self, ask: Ask) -> Ask:
        """Returns `ask`, or if the provider caches prefixes a function that lets the first request of one go ahead."""
        least = self.quirks.cached_prefix
        return ask if least is None else SharedPrefixes(ask, partial(start_of, self.system_prompt), least)

    def batch_api(self) -> BatchAPI | None:
        """Returns the provider's batch API; None if it has none."""
        return None

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
        if not self.uses_sdk_environment():
            options |= without_ambient_headers(self.sdk, self.key, self.kwargs)
        return options

    def make_client(self, prefix: str) -> Any:
        """Returns a client of the SDK: `prefix` is the start of its class's name, "" or "Async"."""
        sdk = self.sdk.lower()
        hide_in_logs(self.secrets, "aiohttp.client", "httpx", "httpx2", f"{sdk}._base_client")
        return getattr(import_module(sdk), prefix + self.sdk)(**self.client_options())

    # Budgets.

    @property
    def account(self) -> str:
        """What the costs of this model are counted under: its name and address."""
        return f'"{self.model_name}" at {shown_address(self.base_url)}'

    def within_budget(self, ask: Ask) -> Ask:
        """Returns `ask`, or if there is a budget a function that reserves the worst case of each request."""
        return within_budget(self.pace.settling(partial(answered_with_text, ask)), self)

    def purse(self) -> Purse:
        """Returns the budgets of the run whose event loop this is called in."""
        loop = asyncio.get_running_loop()
        if loop not in self._purses:
            self._purses[loop] = Purse(self)
        return self._purses[loop]

    # The engine.

    def engine(self, ask: Ask, recorder: Recorder[Any, Any, Any], run: Generation) -> Engine[Any, Any]:
        """Returns the engine of a run: that of concurrent requests, or that of batches."""
        api = self.batch_api() if self.batch else None
        if api is None:
            return super().engine(self.sharing_prefixes(ask), recorder, run)
        answers = answers_file(self)
        if not isinstance(answers, Path):
            raise DefinitionError(
                f"{self.display_name}: batch=True needs a folder that keeps the ids of its batches, so that none is "
                "paid for twice. Run it in a session with a folder, or pass cache_folder_path=..."
            )
        return BatchJobs(self, api, answers.with_suffix(".batches"), recorder, run)

    @cached_property
    def key(self) -> str | None:
        """The key in use; looked up again after unpickling, since keys are never written."""
        return checked_key(self.find_key(), self.model_name)

    @cached_property
    def pace(self) -> Pace:
        """Lets requests wait for the caps of the script and for the limits that the provider reports."""
        return Pace(self.requests_per_minute, self.tokens_per_minute, self.display_name)

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
            if getattr(sampling, name) not in (None, ()):
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
            # Not a part of the timeout.
            ticket = await self.pace.turn(most_tokens(sent) if self.pace.counts_tokens else 0)
            try:
                async with self.in_time():
                    with sending():
                        answer, headers = await self.send(client, sent)
                self.pace.heard(reported_limits(headers), ticket)
                return answer
            except Exception as error:
                self._slow_down(error, ticket)
                names = [name for name in sent if name not in ("model", "messages", "input", "extra_body")]
                refused = refused_parameter(error, [*names, *sent.get("extra_body", {})])
                if refused is not None and sent != before and self.leave_out(*refused, sent):
                    continue
                failure = self.error_of(error, refused)
                if isinstance(failure, MalformedAnswer | Unavailable | BadRequest) and not hasattr(error, "response"):
                    failure = unwritable_error(sent) or failure
            # Outside the handler: the SDK's exception quotes what the server said, the key perhaps, and the request.
            raise failure

    def _slow_down(self, error: Exception, ticket: Ticket) -> None:
        response = getattr(error, "response", None)
        if response is None or not hasattr(response, "headers"):
            return
        self.pace.heard(reported_limits(response.headers), ticket)
        if getattr(error, "status_code", None) in _TOO_MUCH:
            self.pace.pause(retry_after(response) or 0.0)

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
            time.sleep(retry_delay(tries, self.retry_seconds, getattr(failure, "retry_after", None)))
        raise AssertionError  # the loop has no end

    async def end_run(self) -> None:
        """Closes the client and the ledgers of the run's event loop."""
        purse = self._purses.pop(asyncio.get_running_loop(), None)
        if purse is not None:
            purse.close()
        client = self._clients.pop(asyncio.get_running_loop(), None)
        closing = client.close() if client is not None else None
        if isawaitable(closing):  # not that of boto3
            await closing

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
        live = ("key", "pace", "secrets", "client", "tokenizer")
        state = {name: value for name, value in self.__dict__.items() if name not in live}
        return {**state, "_api_key": None, "_clients": {}, "_purses": {}}
