"""What embedders behind a provider's API share: requests of several texts, tokens, and limits."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from datadreamer_like.errors import BadRequest, DefinitionError, MalformedAnswer, require_extra

from ..calls.budget import Ask, check_budget
from ..calls.grouped_engine import GroupAnswer, GroupedEngine
from ..calls.pipeline import Engine, Recorder
from ..known_options import option_names
from ..llms.client_checks import check_client_options
from ..llms.endpoint import shown_address
from ..llms.generation import Generation
from ..llms.openai_compatible import OpenAICompatible
from ..llms.prices import token_count
from ..task_models.task_model import Computed, TextOptions, TextRun
from .embedder import Embedder, Vector

_NO_LIMIT = 2**31 - 1
# English has about four characters per token; what is cut has to fit in other languages too.
_BYTES_A_TOKEN = 3


class Texts(NamedTuple):
    """The texts of one request, each after the instruction; a budget counts them like continuations of a prompt."""

    continuations: tuple[str, ...]
    prompt: str


class SendsTexts(OpenAICompatible):
    """The client, key, limits and errors of a provider, for requests for embeddings."""

    async def send(self, client: Any, parameters: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Sends one request."""
        reply = await client.embeddings.with_raw_response.create(**parameters)
        return reply.parse(), reply.headers

    def sharing_prefixes(self, ask: Ask) -> Ask:
        """Returns `ask`: there is no cache of prefixes."""
        return ask

    def leave_out(self, name: str, unsupported: bool, sent: Mapping[str, Any]) -> bool:
        """Returns False: vectors depend on all parameters."""
        return False


class EndpointEmbedder(Embedder):
    """An embedder on a server with OpenAI's protocol.

    Requests of `batch_size` texts are sent concurrently, with the retries, limits, budgets and errors of the provider's
    LLMs. A text that the server refuses fails its row alone. A subclass names the provider's class as `api_class`.

    Args:
        model_name: Name of the model.
        dimensions: Length of the vectors, for models that can shorten them.
        api_key, base_url, retry_on_fail, cache_folder_path, max_context_length: See `OpenAI`.
        tokenizer_model_name, tokenizer_revision, tokenizer_trust_remote_code: The Hugging Face tokenizer for counting
            tokens. Without one, texts that are too long are refused by the server; `truncate` cuts them to three bytes
            a token.
        **kwargs: `prices`, `budget`, `timeout`, and options of the SDK's client.
    """

    api_class: ClassVar[type[SendsTexts]]

    inputs_a_request: ClassVar[int] = 128
    """Texts of a request, if `batch_size` is not given."""

    tokens_a_request: ClassVar[int] = 100_000
    """The most tokens of all texts of a request."""

    known_dims: ClassVar[Mapping[str, int]] = {}
    known_lengths: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self,
        model_name: str,
        dimensions: int | None = None,
        api_key: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        require_extra("openai", "openai", what=type(self).__name__)
        super().__init__(model_name, cache_folder_path)
        whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
        if dimensions is not None and not (whole and dimensions > 0):
            raise DefinitionError(f"dimensions is {dimensions!r}; expected a whole number above 0, or None.")
        self.dimensions = dimensions
        if kwargs.pop("batch", False):
            raise DefinitionError(f"{type(self).__name__} sends no batches of a day. Leave out batch.")
        own = option_names(self.api_class)
        passed_on = {name: value for name, value in kwargs.items() if name not in own}
        check_client_options(type(self), self.api_class.sdk, passed_on, TextOptions)
        self.api = self.api_class(
            model_name,
            api_key=api_key,
            retry_on_fail=retry_on_fail,
            cache_folder_path=cache_folder_path,
            **kwargs,
        )
        self._source = self.api._source

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), api_key="example-key", max_context_length=512)

    def identity(self) -> dict[str, Any]:
        """Returns the server's address and the length of the vectors."""
        return {"base_url": shown_address(self.api.base_url), "dimensions": self.dimensions}

    @property
    def client(self) -> Any:
        """The SDK's client, for direct use."""
        return self.api.client

    def retry_wrapper(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of the `client`, again after a temporary failure."""
        return self.api.retry_wrapper(func, *args, **kwargs)

    @property
    def tokenizer_model_name(self) -> str | None:
        """The Hugging Face tokenizer that was given."""
        return self.api.tokenizer_model_name

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None."""
        return self.api.tokenizer

    def encode(self, text: str) -> Sequence[int] | None:
        """Returns the token ids of a text; None without a tokenizer."""
        return None if self.tokenizer is None else self.tokenizer(text, verbose=False)["input_ids"]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of token ids."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text; a conservative estimate without a tokenizer."""
        tokens = self.encode(value)
        return -(-len(value.encode("utf-8", "replace")) // _BYTES_A_TOKEN) if tokens is None else len(tokens)

    @property
    def model_max_length(self) -> int:
        """Maximum number of tokens of a text; a very large one if it is not known."""
        return self.api.max_context_length or self.known_lengths.get(self.model_name) or _NO_LIMIT

    @cached_property
    def dims(self) -> int:
        """Length of the vectors; for a model that is not known, that of a text's."""
        known = self.dimensions or self.known_dims.get(self.model_name)
        return known or len(self.run(["text"], on_error="raise")[0])

    def compute(self, texts: Sequence[str], *, instruction: str | None = None, **asks: Any) -> list[Vector]:
        """Embeds texts by one request; `run` sends several at once."""
        if check_budget(self.api):
            raise DefinitionError(f"{self.display_name} keeps its budget only in its own run. Use it alone.")
        shown = tuple(self._shown(text, instruction) for text in texts)
        response = self.api.retry_wrapper(self.api.client.embeddings.create, **self._parameters(shown))
        return self._vectors(response, len(shown))

    def engine(
        self, recorder: Recorder[str, str, Computed], run: TextRun, truncate: bool, asks: Mapping[str, Any]
    ) -> Engine[str, Computed]:
        """Returns the engine of a run: several requests at once, each of several texts."""
        instruction = asks.get("instruction")

        async def ask(texts: Texts) -> GroupAnswer[Computed]:
            rows = [self.checked(text, truncate, asks) for text in texts.continuations]
            good = [index for index, row in enumerate(rows) if row.error is None]
            shown = [self._shown(texts.continuations[index], instruction) for index in good]
            await self._embed([rows[index] for index in good], shown)
            costs = [row.cost for row in rows]
            cost = None if None in costs else sum(each for each in costs if each is not None)
            return GroupAnswer(rows, sum(row.prompt_tokens for row in rows if row.error is None), cost=cost)

        size = run.batch_size if run.batch_size != TextRun().batch_size else self.inputs_a_request
        at_once = self.api.default_concurrency
        given = Generation(concurrency=at_once)
        return GroupedEngine(
            lambda grouped: self.api.engine(ask, grouped, given),
            recorder,
            join=lambda texts: Texts(texts, instruction or ""),
            size=size,
            most=self.tokens_a_request * _BYTES_A_TOKEN,
            at_once=at_once,
        )

    async def _embed(self, rows: Sequence[Computed], texts: Sequence[str]) -> None:
        """Fills rows with the vectors of texts; a text that is refused fails its own row."""
        if not rows:
            return
        try:
            response = await self.api.request(lambda: self._parameters(texts))
            vectors = self._vectors(response, len(texts))
        except BadRequest as error:
            if len(rows) == 1:
                rows[0].error = error
                return
            half = len(rows) // 2
            await self._embed(rows[:half], texts[:half])
            await self._embed(rows[half:], texts[half:])
            return
        used = token_count(response.usage, "prompt_tokens") or token_count(response.usage, "total_tokens")
        prices = self.api.prices
        cost = prices.cost(used, 0) if prices is not None and used else None
        total = sum(row.prompt_tokens for row in rows) or 1
        left = used or total
        for row, vector in zip(rows, vectors, strict=True):
            self.fill(row, vector)
            row.cost = None if cost is None else cost / len(rows)
            share = min(left, round((used or total) * row.prompt_tokens / total))
            row.prompt_tokens, left = share, left - share
        rows[-1].prompt_tokens += left

    def _parameters(self, texts: Sequence[str]) -> dict[str, Any]:
        more = {} if self.dimensions is None else {"dimensions": self.dimensions}
        return {"model": self.model_name, "input": list(texts), "encoding_format": "float", **more}

    def _vectors(self, response: Any, count: int) -> list[Vector]:
        address = shown_address(self.api.base_url)
        try:
            found = sorted(response.data, key=lambda each: int(each.index))
            vectors = [_numbers(each.embedding) for each in found]
        except (AttributeError, TypeError, ValueError) as error:
            raise MalformedAnswer(f"{address} sent embeddings that cannot be read: {error}.") from error
        lengths = {len(vector) for vector in vectors}
        if len(vectors) != count or len(lengths) > 1 or 0 in lengths:
            raise MalformedAnswer(
                f"{address} sent {len(vectors)} vectors of {sorted(lengths)} numbers for {count} texts."
            )
        if self.dimensions is not None and lengths != {self.dimensions}:
            raise DefinitionError(
                f"{address} sent vectors of {lengths.pop()} numbers instead of {self.dimensions}: the model cannot "
                "shorten them. Leave out dimensions."
            )
        return vectors

    def _shown(self, text: str, instruction: str | None) -> str:
        """Returns what is sent of a text: after the instruction, and cut to the model's length."""
        shown, most = f"{instruction or ''}{text}", self.model_max_length
        if self.count_tokens(shown) <= most:
            return shown
        tokens = self.encode(shown)
        if tokens is None:
            return shown.encode("utf-8", "replace")[: most * _BYTES_A_TOKEN].decode("utf-8", "ignore")
        return self.decode(tokens[:most])

    def checked(self, text: object, truncate: bool, asks: Mapping[str, Any]) -> Computed:
        """Returns the result of a text before it is sent; without a tokenizer the server decides what is too long."""
        return super().checked(text, truncate or self.tokenizer is None, asks)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "tokenizer"}

    def unload_model(self) -> None:
        """Closes the client."""
        self.api.unload_model()


def _numbers(embedding: Any) -> Vector:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4").astype(np.float32)
    return np.asarray(embedding, dtype=np.float32).reshape(-1)
