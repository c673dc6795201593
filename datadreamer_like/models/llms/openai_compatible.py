"""Chat models on servers with OpenAI's protocol: chat over `Wire`, all else through OpenAI's SDK."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import Unpack

from datadreamer_like.errors import (
    BadRequest,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    PromptTooLong,
    UnknownModel,
    require_extra,
)
from datadreamer_like.graph.session import not_in_plan
from datadreamer_like.graph.threads import Task

from .answer_text import answer_of
from .api_model import APIModel
from .chat_completion import finish_reason_of, in_order, logprobs_of, text_of, usage_of
from .chat_template import AUTO, Auto, checked, given_text, plain_prompt
from .endpoint import shown_address
from .generation import Answer, GenerationOptions, Prompt, Request, Sampling
from .prices import counted
from .provider_errors import ErrorInAnswer
from .received import Received
from .schema import openai_response_format, with_schema
from .scoring import Scored, ScoreRequest, echoed_scores
from .tool_messages import openai_choice, openai_messages, openai_tools, with_short_ids
from .wire import Fields, Wire, read_answer, read_models

logger = logging.getLogger("datadreamer_like")

# Parameters that are left out, with a warning, for a model that does not support them.
_OPTIONAL = {"temperature", "top_p", "seed", "logit_bias", "stop", "presence_penalty", "frequency_penalty", "verbosity"}
_OTHER_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
# What a server says that one request cost, unless it is a fault of it.
_MOST_DOLLARS = 10**6
# Service tiers with the published prices.
_STANDARD_TIERS = {None, "auto", "default", "standard"}


class OpenAIOptions(GenerationOptions, total=False):
    """Options of OpenAI's protocol in addition to the common ones."""

    presence_penalty: float
    frequency_penalty: float
    reasoning_effort: str
    verbosity: str
    service_tier: str
    user: str
    response_format: Mapping[str, Any] | type[Any]
    extra_body: Mapping[str, Any]


class OpenAICompatible(APIModel):
    """A chat model on a server with OpenAI's protocol.

    Requests are sent concurrently (`concurrency`), retried with backoff, and slowed down when the server asks for it.
    If `top_p` or `temperature` is 0, requests have `temperature=0`. A parameter that the model does not support
    (`temperature` for reasoning models) is left out from then on, with a warning, or ends the run if it is essential to
    the answer. If the server ignores `n`, the `n` answers are requested one by one. At providers that bill cached
    prefixes less, the first request of a long prefix that prompts share is answered before the others are sent.

    Args:
        chat_prompt_template: Only `AUTO`: the server applies the model's own template.
        system_prompt: Added to every prompt that does not have its own; `AUTO` and None add none.
        max_context_length: The model's context window in tokens, if the server does not report it.
        tokenizer_model_name: Hugging Face tokenizer for counting tokens; None for an estimate.
        tokenizer_revision, tokenizer_trust_remote_code: As for `AutoTokenizer.from_pretrained`.
        model_name, api_key, retry_on_fail, cache_folder_path, base_url, timeout, prices: See `APIModel`.
        **kwargs: Passed to the SDK's client.
    """

    sdk = "OpenAI"
    extra_options = frozenset(OpenAIOptions.__annotations__) - frozenset(GenerationOptions.__annotations__)

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
        **kwargs: Any,
    ) -> None:
        if chat_prompt_template is not AUTO:
            raise DefinitionError(
                f"{type(self).__name__} takes no chat_prompt_template but AUTO: the server applies the model's own. "
                "Put the text into the prompts, or into system_prompt."
            )
        require_extra(self.extra or "openai", "openai", "aiohttp", what=type(self).__name__)
        super().__init__(
            model_name,
            api_key,
            retry_on_fail,
            cache_folder_path,
            system_prompt=given_text(checked("system_prompt", system_prompt)),
            base_url=base_url,
            max_context_length=max_context_length,
            **kwargs,
        )
        self.tokenizer_model_name = tokenizer_model_name
        self.tokenizer_revision = tokenizer_revision
        self.tokenizer_trust_remote_code = tokenizer_trust_remote_code
        self._limit_name = self.quirks.limit_name
        self._refused: set[str] = set()
        self._one_by_one = not self.quirks.takes_n
        self._received = Received()
        self._wires: dict[asyncio.AbstractEventLoop, Wire | None] = {}

    if TYPE_CHECKING:

        def run(self, prompts: Iterable[Prompt], **options: Unpack[OpenAIOptions]) -> Any:
            """See `LLM.run`."""

    def translated(self, options: GenerationOptions) -> GenerationOptions:
        """Takes `logprobs` of the protocol: True is `top_logprobs=0`, unless that is given."""
        given: dict[str, Any] = dict(options)
        if given.pop("logprobs", None) and given.get("top_logprobs") is None:
            given["top_logprobs"] = 0
        return cast("GenerationOptions", given)

    @property
    def chat_path(self) -> str:
        """Where chat completions are, relative to the address of the SDK's client."""
        return "chat/completions"

    def make_client(self, prefix: str) -> Any:
        """Returns a client of the SDK, without an organization from the environment that belongs to OpenAI."""
        client = super().make_client(prefix)
        if not self.uses_sdk_environment():
            client.organization, client.project = self.kwargs.get("organization"), self.kwargs.get("project")
            client.admin_api_key = None
        return client

    async def answer(self, request: Request) -> Answer:
        """Sends one chat completion request, or more if the server does not support `n`."""
        completions: list[Fields] = self._received.of(request)
        while (got := sum(len(completion.choices) for completion in completions)) < request.sampling.n:
            at_once = 1 if self._one_by_one else request.sampling.n - got
            seed = request.seed + got if request.seed is not None else None
            try:
                completion = await self._complete(request, at_once, seed)
            except BadRequest as error:
                if at_once == 1 or isinstance(error, PromptTooLong):
                    raise
                # The server may refuse `n`: llama.cpp allows as many as it has slots, others only one.
                completion = await self._complete(request, 1, seed)
            completions.append(completion)
            if len(completion.choices) < at_once and not self._one_by_one:
                self._one_by_one = True
                logger.info("%s does not return several answers at once; they are requested singly", self.display_name)
        self._received.done(request)
        return self.answer_from(completions, request.sampling)

    def answer_from(self, completions: Sequence[Fields], sampling: Sampling) -> Answer:
        """Returns the answer whose `n` texts are in completions."""
        choices = [choice for completion in completions for choice in in_order(completion)][: sampling.n]
        shaped = sampling.schema is not None
        try:
            texts = [text_of(choice, shaped, self.quirks.wants_back) for choice in choices]
            logprobs = [logprobs_of(choice) for choice in choices] if sampling.top_logprobs is not None else None
        except (AttributeError, TypeError, ValueError) as error:
            address = shown_address(self.base_url)
            raise MalformedAnswer(f"{address} sent an answer that cannot be read: {error}.") from error
        reasons = [finish_reason_of(choice) for choice in choices]
        prices = self.prices if sampling.extra.get("service_tier") in _STANDARD_TIERS else None
        tokens = counted([usage_of(completion) for completion in completions], prices)
        reported = [getattr(completion.usage, "cost", None) for completion in completions]
        costs = [float(cost) for cost in reported if isinstance(cost, int | float) and 0 <= cost < _MOST_DOLLARS]
        if self.quirks.reports_cost and len(costs) == len(reported):
            tokens["cost"] = sum(costs)
        return self.without_secrets(answer_of(texts, finish_reasons=reasons, logprobs=logprobs, **tokens))

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer `tokenizer_model_name`, or None."""
        if self.tokenizer_model_name is None:
            return None
        require_extra("train", "transformers", what="tokenizer_model_name")
        from transformers import AutoTokenizer

        options = {"revision": self.tokenizer_revision, "trust_remote_code": self.tokenizer_trust_remote_code}
        return AutoTokenizer.from_pretrained(self.tokenizer_model_name, **options)

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text, counted by `tokenizer_model_name` or estimated conservatively."""
        if self.tokenizer is None:
            return super().count_tokens(value)
        return len(self.tokenizer(value, add_special_tokens=False, verbose=False)["input_ids"])

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the maximum number of prompt tokens that leaves room for `max_new_tokens`.

        The window is `max_context_length` if given, else the provider's smallest, else the one in the list of models.
        """
        length = self.max_context_length or self._known_context_length
        return super().get_max_context_length(max_new_tokens) if length is None else length - (max_new_tokens or 0)

    @cached_property
    def _known_context_length(self) -> int | None:
        if self.endpoint.context_length is not None and self.endpoint.serves(self.base_url):
            return self.endpoint.context_length
        not_in_plan("the length of the context from the server")
        # In a thread, since there may be a running loop here, and the SDK's other client has no limit for the whole.
        models: list[Fields] = Task(lambda: asyncio.run(self._listed_models()), "datadreamer_like-models").result()
        for model in [each for each in models if each.id == self.model_name] or (models if len(models) == 1 else []):
            facts = {**model, **(model.meta or {})}
            for name in ("max_model_len", "n_ctx", "context_length", "context_window", "max_context_length"):
                if isinstance(facts.get(name), int):
                    return int(facts[name])
        return None

    async def _listed_models(self) -> list[Fields]:
        try:
            async with self.in_time(), self.make_client("Async") as client:
                return read_models((await client.models.with_raw_response.list()).http_response.text)
        except Exception as error:
            failure = self.error_of(error)
        if not isinstance(failure, UnknownModel):
            raise failure
        return []  # the server has no such list

    async def send(self, client: Any, parameters: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Sends one request; an answer without choices is malformed."""
        if "prompt" in parameters:
            return await client.completions.create(**parameters), {}
        completion: Fields | None = None
        loop = asyncio.get_running_loop()
        if loop not in self._wires:
            self._wires[loop] = Wire(client) if Wire.suits(self.base_url, self.kwargs) else None
        wire = self._wires[loop]
        if wire is not None:
            completion, headers = await wire.post(self.chat_path, parameters)
        if completion is None:
            reply = await client.chat.completions.with_raw_response.create(**parameters)
            completion, headers = read_answer(reply.http_response.text), reply.headers
        choices: list[Any] = completion.choices or []
        said = completion.error or next((choice.error for choice in choices if isinstance(choice, Fields)), None)
        if not choices or said:
            raise ErrorInAnswer(said)
        return completion, headers

    async def end_run(self) -> None:
        """Closes the connections of the run's event loop."""
        wire = self._wires.pop(asyncio.get_running_loop(), None)
        if wire is not None:
            await wire.close()
        await super().end_run()

    def check_scoring(self) -> None:
        """Refuses providers that are known to return no log-probabilities of a prompt, and batches."""
        if self.batch:
            raise DefinitionError("Scores are not sent in batches. Make another model without batch=True for them.")
        if not self.quirks.echoes:
            raise DefinitionError(
                f"{self.display_name} gives no log-probabilities of given texts: {self.endpoint.name}'s servers do not "
                "return those of a prompt. Use LlamaCPP, HFTransformers or VLLMServer."
            )

    @property
    def scores_chat(self) -> bool:
        """False: scores are those of plain texts, after the system prompt, if any, and a blank line."""
        return False

    async def score_one(self, request: ScoreRequest) -> Scored:
        """Scores all continuations by one request for completions with `echo`, which returns a prompt's tokens."""
        if not isinstance(request.prompt, str):
            raise BadRequest("A chat cannot be scored through this API, which has no chat template. Pass a text.")
        prompt = plain_prompt(None, request.prompt, self.system_prompt)
        texts = [prompt + continuation for continuation in request.continuations]
        # Some servers refuse max_tokens=0; the token that they write is left out.
        parameters = {
            "model": self.model_name, "prompt": texts, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0.0,
        }  # fmt: skip
        completion = await self.request(lambda: parameters)
        try:
            choices = sorted(completion.choices, key=lambda choice: int(choice.index))
            pairs = list(zip(choices, texts, strict=True))
            found = [echoed_scores(choice, prompt, text) for choice, text in pairs]
        except ModelError:
            raise
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            address = shown_address(self.base_url)
            raise MalformedAnswer(f"{address} sent log-probabilities that cannot be read: {error}.") from error
        if None in found:
            raise DefinitionError(
                f"{shown_address(self.base_url)} returns no log-probabilities of a prompt's tokens (completions with "
                "echo), so it cannot score texts. Use vLLM's server, LlamaCPP or HFTransformers."
            )
        values = [each for each in found if each is not None]
        tokens = counted([usage_of(completion)], self.prices)
        return Scored(
            tuple(logprob for logprob, _ in values),
            tuple(count for _, count in values),
            tokens["prompt_tokens"],
            tokens["completion_tokens"],
            tokens["cost"],
        )

    async def _complete(self, request: Request, n: int, seed: int | None) -> Fields:
        completion: Fields = await self.request(lambda: self.parameters(request, n, seed))
        return completion

    @property
    def one_by_one(self) -> bool:
        """Whether each of `n` answers takes a request, as far as known."""
        return self._one_by_one

    def parameters(self, request: Request, n: int, seed: int | None) -> dict[str, Any]:
        """Returns the parameters of a request for `n` answers."""
        messages = request.messages(self.system_prompt)
        if not isinstance(request.prompt, str):
            messages = openai_messages(messages, thoughts=self.quirks.wants_back)
            messages = with_short_ids(messages) if self.quirks.short_call_ids else messages
        if request.sampling.schema is not None and self.quirks.response_format == "json_object":
            messages = with_schema(messages, request.sampling.schema)
        parameters = {"model": self.model_name, "messages": messages, **self._parameters(request.sampling, n, seed)}
        if request.tools:
            parameters["tools"] = openai_tools(request.tools)
            if request.sampling.tool_choice is not None:
                parameters["tool_choice"] = openai_choice(request.sampling.tool_choice)
        return parameters

    def _parameters(self, sampling: Sampling, n: int, seed: int | None) -> dict[str, Any]:
        top = sampling.top_logprobs
        by_count = self.quirks.logprobs_as_count
        # All servers accept temperature=0 for greedy decoding; some refuse top_p=0.
        parameters: dict[str, Any] = {
            "temperature": 0.0 if sampling.deterministic else sampling.temperature,
            "top_p": None if sampling.deterministic or sampling.top_p == 1.0 else sampling.top_p,
            "n": n if n > 1 else None,
            "seed": seed if self.quirks.seed_name == "seed" else None,
            "stop": list(sampling.stop) or None,
            "logit_bias": {str(token): bias for token, bias in (sampling.logit_bias or {}).items()} or None,
            "response_format": self._response_format(sampling.schema),
            "logprobs": None if top is None else max(1, top) if by_count else True,
            "top_logprobs": None if by_count else top or None,
            self._limit_name: sampling.max_new_tokens,
            **sampling.extra,
        }
        # Those that the SDK does not know.
        own: dict[str, Any] = {}
        if sampling.repetition_penalty is not None:
            own |= dict.fromkeys(self.quirks.penalty_names, sampling.repetition_penalty)
        if seed is not None and self.quirks.seed_name not in ("seed", None):
            own[str(self.quirks.seed_name)] = seed
        if own:
            parameters["extra_body"] = {**own, **parameters.get("extra_body", {})}
        return self.not_refused(parameters)

    def not_refused(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that have a value and that the server has not refused so far."""
        return {name: value for name, value in parameters.items() if value is not None and name not in self._refused}

    def _response_format(self, schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        only_json = self.quirks.response_format == "json_object"
        return {"type": "json_object"} if only_json else openai_response_format(schema)

    def leave_out(self, name: str, unsupported: bool, sent: Mapping[str, Any]) -> bool:
        """Drops an optional parameter, or replaces `n` or the limit of new tokens."""
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
            warning = "%s does not support %s=%r; it is left out, and the default applies."
            logger.warning(warning, self.display_name, name, sent[name])
        else:
            return False
        self._refused.add(name)
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_wires": {}}
