"""OpenAI's chat models, and those of every server that speaks the same protocol, through OpenAI's own SDK."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from typing_extensions import Unpack

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    PromptTooLong,
    require_extra,
)

from .generation import Answer, GenerationOptions, Prompt, Request, Sampling
from .llm import LLM
from .openai_answer import read_answer
from .openai_errors import model_error, refused_parameter

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai import OpenAI as OpenAIClient
    from openai.types.chat import ChatCompletion

logger = logging.getLogger("datadreamer_like")

_OPENAI_URL = "https://api.openai.com/v1"
# Of OpenAI's models that are still served, none has less.
_OPENAI_CONTEXT_LENGTH = 128_000
# What chat templates put around a message, with room to spare.
_TEMPLATE_TOKENS = 16
# Parameters that may be left out for a model that does not take them, with a warning: the answer is still one.
_OPTIONAL = {"temperature", "top_p", "seed", "logit_bias", "stop", "presence_penalty", "frequency_penalty", "verbosity"}


class OpenAIOptions(GenerationOptions, total=False):
    """Options that OpenAI's API knows beside the common ones."""

    presence_penalty: float
    frequency_penalty: float
    reasoning_effort: str
    verbosity: str
    service_tier: str
    extra_body: Mapping[str, Any]


class OpenAI(LLM):
    """A chat model behind OpenAI's API, or behind any server that speaks its protocol.

    Requests are sent many at once (`concurrency`), retried with backoff, and slowed down as the server asks. Where
    `top_p` or `temperature` is 0, the request asks for `temperature=0`. A parameter that the server says its model
    does not take (as reasoning models do with `temperature`) is left out from then on, with a warning; `n` answers
    from a server that ignores `n` are asked for one by one.

    Example:
        >>> llm = OpenAI("gpt-5-mini", system_prompt="Answer in one word.")    # doctest: +SKIP
        >>> llm.run(["The capital of France?"])                               # doctest: +SKIP
        ['Paris']
        >>> local = OpenAI("any", base_url="http://localhost:8080/v1")        # doctest: +SKIP

    Args:
        model_name: The model, as the server calls it.
        system_prompt: Put before every prompt that does not bring its own.
        organization: OpenAI organization to bill.
        api_key: The key; `OPENAI_API_KEY` unless given. Never written anywhere, not even into a pickle.
        base_url: The server, up to and with `/v1`; `OPENAI_BASE_URL`, or OpenAI's own unless given.
        api_version: Version of Azure's API; `base_url` is an Azure endpoint then.
        retry_on_fail: False sends each request once.
        cache_folder_path: Folder for the answers, in place of the session's.
        max_context_length: The model's context window in tokens, where the server does not say.
        timeout: Seconds after which a request without an answer is given up and retried.
        **kwargs: Passed to the SDK's client.

    Raises:
        MissingExtra: The `openai` package is not installed.
        AuthenticationFailed: There is no key, and the server is OpenAI's own.
        DefinitionError: `base_url` is no address of a server.
    """

    enforces_schemas: ClassVar[bool] = True
    extra_options: ClassVar[frozenset[str]] = frozenset(OpenAIOptions.__annotations__) - frozenset(
        GenerationOptions.__annotations__
    )

    def __init__(
        self,
        model_name: str,
        system_prompt: str | None = None,
        organization: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        *,
        max_context_length: int | None = None,
        timeout: float = 600.0,
        **kwargs: Any,
    ) -> None:
        require_extra("openai", "openai", what=type(self).__name__)
        super().__init__(cache_folder_path)
        self.model_name = model_name
        self.system_prompt = system_prompt
        self.organization = organization
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_URL
        self.api_version = api_version
        self.retry_on_fail = retry_on_fail
        self.max_context_length = self._context_length = max_context_length
        self.timeout = timeout
        self.kwargs = kwargs
        self._api_key = api_key
        # OpenAI's newer models refuse the older name; many other servers know the older name only.
        self._limit_name = "max_completion_tokens" if self._is_openai else "max_tokens"
        self._refused: set[str] = set()
        self._one_by_one = False
        self._client: OpenAIClient | None = None
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}
        self._check_address()
        self._key()

    if TYPE_CHECKING:

        def run(self, prompts: Iterable[Prompt], **options: Unpack[OpenAIOptions]) -> Any:
            """See `LLM.run`."""

    def identity(self) -> dict[str, Any]:
        """Returns the server's address and the system prompt."""
        return {"base_url": self._address, "system_prompt": self.system_prompt}

    def check(self, sampling: Sampling) -> None:
        """Refuses what OpenAI's own API does not have."""
        if sampling.repetition_penalty is not None and self._is_openai:
            raise DefinitionError(
                "OpenAI's API has no repetition_penalty. Use presence_penalty or frequency_penalty, or leave it out."
            )

    async def answer(self, request: Request) -> Answer:
        """Sends one chat completion; more than one where the server does not honour `n`."""
        wanted = request.sampling.n
        at_once = 1 if self._one_by_one else wanted
        try:
            first = await self._complete(request, at_once, request.seed)
        except PromptTooLong:
            raise
        except BadRequest:
            if at_once == 1:
                raise
            # It may be the number that is refused: llama.cpp takes as many as it has slots, others take one.
            first = await self._complete(request, 1, request.seed)
        completions = [first]
        got = len(first.choices)
        if got < at_once and not self._one_by_one:
            self._one_by_one = True
            logger.info("%s does not give %s answers at once; they are asked for one by one", self._address, wanted)
        while got < wanted:
            seed = request.seed + got if request.seed is not None else None
            completion = await self._complete(request, 1, seed)
            completions.append(completion)
            got += len(completion.choices)
        return read_answer(completions, request.sampling, self._address)

    async def end_run(self) -> None:
        """Closes the client of the run's event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def count_tokens(self, value: str) -> int:
        """Returns a cautious estimate: the tokenizers of these models are not at hand offline."""
        return super().count_tokens(value)

    def final_count_tokens(self, value: str) -> int:
        """Returns the estimate with the system prompt and the chat template."""
        return self.count_tokens(value) + self.count_tokens(self.system_prompt or "") + _TEMPLATE_TOKENS

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the room for a prompt: of `max_context_length` if given, or of what the server says of its model.

        vLLM, llama.cpp and most hosted servers say it in their list of models; OpenAI does not, and is taken to have
        128,000 tokens, as its smallest current model has.
        """
        if self._context_length is None:
            self._context_length = _OPENAI_CONTEXT_LENGTH if self._is_openai else self._served_context_length()
        if self._context_length is None:
            return super().get_max_context_length(max_new_tokens)
        return self._context_length - (max_new_tokens or 0)

    @property
    def client(self) -> OpenAIClient:
        """The SDK's client, for requests of your own; `run` does not use it."""
        if self._client is None:
            import openai

            if self.api_version is not None:
                self._client = openai.AzureOpenAI(azure_endpoint=self.base_url, **self._client_options())
            else:
                self._client = openai.OpenAI(base_url=self.base_url, **self._client_options())
        return self._client

    @property
    def model_card(self) -> str | None:
        """Address of the model's card."""
        return "https://platform.openai.com/docs/models" if self._is_openai else None

    @property
    def license(self) -> str | None:
        """Where the terms of use stand."""
        return "https://openai.com/policies" if self._is_openai else None

    def unload_model(self) -> None:
        """Closes the client."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_api_key": None, "_client": None, "_clients": {}}

    @property
    def _is_openai(self) -> bool:
        return urlsplit(self.base_url).hostname == urlsplit(_OPENAI_URL).hostname

    @property
    def _address(self) -> str:
        """The server's address without what may be secret in it: user, password and query."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    def _check_address(self) -> None:
        if urlsplit(self.base_url).scheme not in ("http", "https"):
            shown = self.base_url.rpartition("@")[2].partition("?")[0]  # what may be secret stays out
            raise DefinitionError(
                f'base_url is {shown!r}; it must start with http:// or https://, as in "http://localhost:8080/v1".'
            )

    def _key(self) -> str:
        key = self._api_key or os.environ.get("OPENAI_API_KEY")
        if key:
            return key
        if self._is_openai or self.api_version is not None:
            raise AuthenticationFailed(
                f'There is no key for "{self.model_name}" at {self._address}. Set OPENAI_API_KEY in the environment, '
                "or pass api_key=..."
            )
        # Servers that need no key still want a header.
        return "none"

    def _client_options(self) -> dict[str, Any]:
        options = {"api_key": self._key(), "organization": self.organization, "timeout": self.timeout, "max_retries": 0}
        if self.api_version is not None:
            options["api_version"] = self.api_version
        return {**options, **self.kwargs}

    def _loop_client(self) -> AsyncOpenAI:
        # Connections belong to the event loop that opened them.
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            import openai

            if self.api_version is not None:
                client = openai.AsyncAzureOpenAI(azure_endpoint=self.base_url, **self._client_options())
            else:
                client = openai.AsyncOpenAI(base_url=self.base_url, **self._client_options())
            self._clients[loop] = client
        return client

    async def _complete(self, request: Request, n: int, seed: int | None) -> ChatCompletion:
        client = self._loop_client()
        while True:
            parameters = self._parameters(request, n, seed)
            try:
                completion: ChatCompletion = await client.chat.completions.create(**parameters)
                if not completion.choices:
                    raise MalformedAnswer(f"{self._address} sent an answer without choices.")
            except ModelError:
                raise
            except Exception as error:
                if self._learn(refused_parameter(error), parameters):
                    continue
                raise model_error(error, self.model_name, self._address) from error
            return completion

    def _parameters(self, request: Request, n: int, seed: int | None) -> dict[str, Any]:
        sampling = request.sampling
        # Greedy is temperature 0 everywhere, while some servers refuse top_p = 0.
        parameters: dict[str, Any] = {
            "temperature": 0.0 if sampling.deterministic else sampling.temperature,
            "top_p": None if sampling.deterministic or sampling.top_p == 1.0 else sampling.top_p,
            "n": n if n > 1 else None,
            "seed": seed,
            "stop": list(sampling.stop) or None,
            "logit_bias": {str(token): bias for token, bias in (sampling.logit_bias or {}).items()} or None,
            "response_format": sampling.response_format,
            "logprobs": True if sampling.top_logprobs is not None else None,
            "top_logprobs": sampling.top_logprobs or None,
            self._limit_name: sampling.max_new_tokens,
            **sampling.extra,
        }
        if sampling.repetition_penalty is not None:
            # The two names that servers have for it.
            penalty = sampling.repetition_penalty
            own = {"repetition_penalty": penalty, "repeat_penalty": penalty}
            parameters["extra_body"] = {**own, **parameters.get("extra_body", {})}
        parameters = {
            name: value for name, value in parameters.items() if value is not None and name not in self._refused
        }
        return {"model": self.model_name, "messages": request.messages(self.system_prompt), **parameters}

    def _learn(self, refused: str | None, sent: Mapping[str, Any]) -> bool:
        """Changes how requests are made after the server has refused a parameter; False when nothing can be done."""
        if refused is None or refused not in sent:
            return False
        if refused in self._refused:
            # Another request has learnt it while this one was under way.
            return True
        other_name = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(refused)
        if other_name is not None:
            if other_name in self._refused:
                return False
            self._limit_name = other_name
        elif refused not in _OPTIONAL:
            return False
        else:
            logger.warning(
                "%s does not take %s=%r; it is left out, and its default holds.",
                self.display_name, refused, sent[refused],
            )  # fmt: skip
        self._refused.add(refused)
        return True

    def _served_context_length(self) -> int | None:
        try:
            models = list(self.client.models.list())
        except Exception as error:
            raise model_error(error, self.model_name, self._address) from error
        named = [model for model in models if model.id == self.model_name] or (models if len(models) == 1 else [])
        for model in named:
            facts: dict[str, Any] = model.to_dict()
            facts.update(facts.get("meta") or {})
            for name in ("max_model_len", "n_ctx", "context_length", "context_window"):
                if isinstance(facts.get(name), int):
                    return int(facts[name])
        return None
