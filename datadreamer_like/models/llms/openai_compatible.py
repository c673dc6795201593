"""Chat models on servers with OpenAI's protocol, through OpenAI's SDK."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from typing_extensions import Unpack

from datadreamer_like.errors import BadRequest, DefinitionError, MalformedAnswer, PromptTooLong, require_extra

from .chat_template import AUTO, Auto, checked, given_text
from .endpoint import Endpoint, Quirks, headers_without_ambient, shown_address
from .generation import Answer, GenerationOptions, Prompt, Request, Sampling
from .llm import LLM
from .openai_answer import read_answer, served_context_length
from .prices import Prices, given_prices, known_prices
from .provider_errors import provider_error, refused_parameter, request_error
from .schema import openai_response_format

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai import OpenAI as OpenAIClient
    from openai.types.chat import ChatCompletion

logger = logging.getLogger("datadreamer_like")

# What chat templates put around a message, with room to spare.
_TEMPLATE_TOKENS = 16
# Parameters that are left out, with a warning, for a model that does not support them.
_OPTIONAL = {"temperature", "top_p", "seed", "logit_bias", "stop", "presence_penalty", "frequency_penalty", "verbosity"}
_OTHER_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
# Service tiers with the published prices.
_STANDARD_TIERS = {None, "auto", "default", "standard"}


class OpenAIOptions(GenerationOptions, total=False):
    """Options of OpenAI's protocol in addition to the common ones."""

    presence_penalty: float
    frequency_penalty: float
    reasoning_effort: str
    verbosity: str
    service_tier: str
    response_format: Mapping[str, Any] | type[Any]
    extra_body: Mapping[str, Any]


class OpenAICompatible(LLM):
    """A chat model on a server with OpenAI's protocol.

    Requests are sent concurrently (`concurrency`), retried with backoff, and slowed down when the server asks for it.
    If `top_p` or `temperature` is 0, requests have `temperature=0`. A parameter that the model does not support
    (`temperature` for reasoning models) is left out from then on, with a warning, or ends the run if it is essential to
    the answer. If the server ignores `n`, the `n` answers are requested one by one.

    Args:
        model_name: The server's name of the model.
        chat_prompt_template: Only `AUTO`: the server applies the model's own template.
        system_prompt: Added to every prompt that does not have its own; `AUTO` and None add none.
        api_key: The key; by default from the provider's environment variable. Never written anywhere, not even into a
            pickle.
        max_context_length: The model's context window in tokens, if the server does not report it.
        tokenizer_model_name: Hugging Face tokenizer for counting tokens; None for an estimate.
        tokenizer_revision: Branch, tag or commit of the tokenizer.
        tokenizer_trust_remote_code: Whether code in the tokenizer's repository may run.
        retry_on_fail: False sends each request once.
        cache_folder_path: Folder for cached answers, instead of the session's.
        base_url: Another address of the provider, such as a proxy's. The key in the environment is not sent there.
        timeout: Seconds after which a request without an answer is retried.
        prices: US dollars per million tokens, such as `{"input": 0.25, "output": 2.0}`; None for published prices.
        **kwargs: Passed to the SDK's client.

    Raises:
        MissingExtra: The `openai` package is not installed.
        AuthenticationFailed: There is no key, and the server is the provider's own.
        DefinitionError: `base_url` is not a valid address, or `prices` are malformed.
    """

    endpoint: ClassVar[Endpoint]
    """The provider."""

    enforces_schemas = True

    extra_options: ClassVar[frozenset[str]] = frozenset(OpenAIOptions.__annotations__) - frozenset(
        GenerationOptions.__annotations__
    )

    def __init__(
        self,
        model_name: str,
        chat_prompt_template: str | Auto | None = AUTO,
        system_prompt: str | Auto | None = AUTO,
        api_key: str | None = None,
        max_context_length: int | None = None,
        tokenizer_model_name: str | None = None,
        tokenizer_revision: str | None = None,
        tokenizer_trust_remote_code: bool = False,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        *,
        base_url: str | None = None,
        timeout: float = 600.0,
        prices: Prices | Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        require_extra("openai", "openai", what=type(self).__name__)
        super().__init__(cache_folder_path)
        if chat_prompt_template is not AUTO:
            raise DefinitionError(
                f"{type(self).__name__} takes no chat_prompt_template but AUTO: the server applies the model's own. "
                "Put the text into the prompts, or into system_prompt."
            )
        self.model_name = model_name
        self.system_prompt = given_text(checked("system_prompt", system_prompt))
        self.base_url = self.endpoint.address_in_use(base_url)
        self.retry_on_fail = retry_on_fail
        self.max_context_length = self._context_length = max_context_length
        self.tokenizer_model_name = tokenizer_model_name
        self.tokenizer_revision = tokenizer_revision
        self.tokenizer_trust_remote_code = tokenizer_trust_remote_code
        self.timeout = timeout
        self.kwargs = kwargs
        self.prices = given_prices(prices)
        if self.prices is None and self.endpoint.prices and self.endpoint.serves(self.base_url):
            self.prices = known_prices(self.endpoint.prices, model_name)
        self.default_concurrency = self.endpoint.limits.concurrency
        self._api_key = api_key
        self._limit_name = self.quirks.limit_name
        self._refused: set[str] = set()
        self._one_by_one = not self.quirks.several_answers
        self._client: OpenAIClient | None = None
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}
        self.key  # noqa: B018  (a missing key is an error now, not at the first request)

    if TYPE_CHECKING:

        def run(self, prompts: Iterable[Prompt], **options: Unpack[OpenAIOptions]) -> Any:
            """See `LLM.run`."""

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), api_key="example-key")

    # Overridden by some providers.

    @property
    def quirks(self) -> Quirks:
        """How the server differs from the protocol."""
        return self.endpoint.quirks

    def find_key(self) -> str:
        """Returns the key to send.

        Raises:
            AuthenticationFailed: There is none, and the server needs one.
        """
        return self.endpoint.key_for(self.base_url, self._api_key, self.model_name)

    @cached_property
    def key(self) -> str:
        """The key in use; looked up again after unpickling, since keys are never written."""
        return self.find_key()

    def uses_sdk_environment(self) -> bool:
        """Whether the SDK's own environment variables (organization, project, headers) are meant for this server."""
        return False

    def make_client(self, kind: str) -> Any:
        """Returns a client of the SDK.

        Args:
            kind: "OpenAI" or "AsyncOpenAI".
        """
        import openai

        client = getattr(openai, kind)(base_url=self.base_url, **self.client_options())
        if not self.uses_sdk_environment():
            client.organization = self.client_options().get("organization")
            client.project = self.kwargs.get("project")
            client.admin_api_key = None
        return client

    def client_options(self) -> dict[str, Any]:
        """Returns the arguments of the SDK's clients."""
        options: dict[str, Any] = {"api_key": self.key, "timeout": self.timeout, "max_retries": 0, **self.kwargs}
        if not self.uses_sdk_environment():
            import openai

            options["default_headers"] = headers_without_ambient(
                "OPENAI_CUSTOM_HEADERS",
                openai.Omit(),
                ("Authorization", f"Bearer {self.key}"),
                self.kwargs.get("default_headers"),
            )
        return options

    # The engine.

    def identity(self) -> dict[str, Any]:
        """Returns the server's address and the system prompt."""
        return {"base_url": self._address, "system_prompt": self.system_prompt}

    def check(self, sampling: Sampling) -> None:
        """Refuses options that the provider does not support."""
        for name, advice in self.quirks.refuses.items():
            if getattr(sampling, name) is not None:
                raise DefinitionError(f"{self.endpoint.name}'s API has no {name}. {advice}")

    async def answer(self, request: Request) -> Answer:
        """Sends one chat completion request, or more if the server does not support `n`."""
        wanted = request.sampling.n
        at_once = 1 if self._one_by_one else wanted
        try:
            first = await self._complete(request, at_once, request.seed)
        except PromptTooLong:
            raise
        except BadRequest:
            if at_once == 1:
                raise
            # The server may refuse `n`: llama.cpp allows as many as it has slots, others only one.
            first = await self._complete(request, 1, request.seed)
        completions = [first]
        got = len(first.choices)
        if got < at_once and not self._one_by_one:
            self._one_by_one = True
            logger.info("%s does not return %s answers at once; they are requested one by one", self._address, wanted)
        while got < wanted:
            seed = request.seed + got if request.seed is not None else None
            completion = await self._complete(request, 1, seed)
            completions.append(completion)
            got += len(completion.choices)
        standard = request.sampling.extra.get("service_tier") in _STANDARD_TIERS
        return read_answer(completions, request.sampling, self._address, self.prices if standard else None)

    async def end_run(self) -> None:
        """Closes the client of the run's event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer `tokenizer_model_name`, or None."""
        if self.tokenizer_model_name is None:
            return None
        require_extra("train", "transformers", what="tokenizer_model_name")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.tokenizer_model_name,
            revision=self.tokenizer_revision,
            trust_remote_code=self.tokenizer_trust_remote_code,
        )

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text, counted by `tokenizer_model_name` or estimated conservatively."""
        if self.tokenizer is None:
            return super().count_tokens(value)
        return len(self.tokenizer(value, add_special_tokens=False, verbose=False)["input_ids"])

    def final_count_tokens(self, value: str) -> int:
        """Returns the count with the system prompt and the chat template."""
        return self.count_tokens(value) + self.count_tokens(self.system_prompt or "") + _TEMPLATE_TOKENS

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the maximum number of prompt tokens that leaves room for `max_new_tokens`.

        The context window is `max_context_length` if given, else the provider's smallest, else the one in the server's
        list of models (vLLM, llama.cpp and most hosted servers report it).
        """
        if self._context_length is None:
            self._context_length = self._default_context_length() or self._served_context_length()
        if self._context_length is None:
            return super().get_max_context_length(max_new_tokens)
        return self._context_length - (max_new_tokens or 0)

    @property
    def client(self) -> OpenAIClient:
        """The SDK's client, for direct use; `run` does not use it."""
        if self._client is None:
            self._client = self.make_client("OpenAI")
        return self._client

    @property
    def model_card(self) -> str | None:
        """Address of the provider's page about its models."""
        return self.endpoint.models_url if self.endpoint.serves(self.base_url) else None

    @property
    def license(self) -> str | None:
        """Address of the provider's terms of use."""
        return self.endpoint.terms_url if self.endpoint.serves(self.base_url) else None

    def unload_model(self) -> None:
        """Closes the client."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_api_key": None, "_client": None, "_clients": {}}
        for name in ("tokenizer", "key"):
            state.pop(name, None)
        return state

    @property
    def _address(self) -> str:
        return shown_address(self.base_url)

    async def _complete(self, request: Request, n: int, seed: int | None) -> ChatCompletion:
        # Connections belong to the event loop that opened them.
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self.make_client("AsyncOpenAI")
        while True:
            parameters = self._parameters(request.sampling, n, seed)
            messages: Any = request.messages(self.system_prompt)
            try:
                completion: ChatCompletion = await client.chat.completions.create(
                    model=self.model_name, messages=messages, **parameters
                )
                empty = not completion.choices
            except Exception as error:
                refused = refused_parameter(error, [*parameters, *parameters.get("extra_body", {})])
                if refused is not None and self._leaves_out(refused, parameters):
                    continue
                raise request_error(error, refused, self.model_name, self._address) from error
            if empty:
                raise MalformedAnswer(f"{self._address} sent an answer without choices.")
            return completion

    def _parameters(self, sampling: Sampling, n: int, seed: int | None) -> dict[str, Any]:
        top = sampling.top_logprobs
        by_count = self.quirks.logprobs_as_count
        # All servers accept temperature=0 for greedy decoding; some refuse top_p=0.
        parameters: dict[str, Any] = {
            "temperature": 0.0 if sampling.deterministic else sampling.temperature,
            "top_p": None if sampling.deterministic or sampling.top_p == 1.0 else sampling.top_p,
            "n": n if n > 1 else None,
            "seed": seed,
            "stop": list(sampling.stop) or None,
            "logit_bias": {str(token): bias for token, bias in (sampling.logit_bias or {}).items()} or None,
            "response_format": None if sampling.schema is None else openai_response_format(sampling.schema),
            "logprobs": None if top is None else max(1, top) if by_count else True,
            "top_logprobs": None if by_count else top or None,
            self._limit_name: sampling.max_new_tokens,
            **sampling.extra,
        }
        if sampling.repetition_penalty is not None:
            own = dict.fromkeys(self.quirks.penalty_names, sampling.repetition_penalty)
            parameters["extra_body"] = {**own, **parameters.get("extra_body", {})}
        for name in sorted(self.quirks.drops & {name for name, value in parameters.items() if value is not None}):
            if name not in self._refused:
                self._refused.add(name)
                logger.warning("%s does not support %s; it is left out.", self.endpoint.name, name)
        return {name: value for name, value in parameters.items() if value is not None and name not in self._refused}

    def _leaves_out(self, refused: tuple[str, bool], sent: Mapping[str, Any]) -> bool:
        """Drops or replaces a refused parameter in later requests; False if the answer depends on it."""
        name, unsupported = refused
        if not unsupported or name not in sent:
            return False
        if name in self._refused:
            # A concurrent request was refused for the same reason.
            return True
        if name == "n":
            self._one_by_one = True
        elif name in _OTHER_LIMIT:
            if _OTHER_LIMIT[name] in self._refused:
                return False
            self._limit_name = _OTHER_LIMIT[name]
        elif name in _OPTIONAL:
            logger.warning(
                "%s does not support %s=%r; it is left out, and the default applies.",
                self.display_name, name, sent[name],
            )  # fmt: skip
        else:
            return False
        self._refused.add(name)
        return True

    def _default_context_length(self) -> int | None:
        return self.endpoint.limits.context_length if self.endpoint.serves(self.base_url) else None

    def _served_context_length(self) -> int | None:
        try:
            models = list(self.client.models.list())
        except Exception as error:
            raise provider_error(error, self.model_name, self._address) from error
        return served_context_length(models, self.model_name)
