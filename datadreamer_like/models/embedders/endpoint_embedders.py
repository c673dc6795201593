"""Embedders of providers with OpenAI's protocol, and of any server with it by its address."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..llms.endpoints import MistralAI, Together
from ..llms.openai import OpenAI
from .endpoint_embedder import EndpointEmbedder, SendsTexts

logger = logging.getLogger("datadreamer_like")


class OpenAITexts(SendsTexts, OpenAI):
    """What sends an `OpenAIEmbedder`'s texts."""


class TogetherTexts(SendsTexts, Together):
    """What sends a `TogetherEmbedder`'s texts."""


class MistralAITexts(SendsTexts, MistralAI):
    """What sends a `MistralAIEmbedder`'s texts."""


class OpenAIEmbedder(EndpointEmbedder):
    """An embedder on OpenAI's API, or on any server with its protocol by `base_url`.

    Tokens are counted with `tiktoken` if it is installed and has the model's vocabulary, else the server decides which
    texts are too long. Keys are sent as for `OpenAI`.

    Args:
        dimensions: Length of the vectors, for models that can shorten them; None for the model's own.
        model_name, organization, api_key, base_url, api_version, retry_on_fail, cache_folder_path: See `OpenAI`.
        **kwargs: See `EndpointEmbedder`.

    Example:
        >>> embedder = OpenAIEmbedder("text-embedding-3-small", dimensions=256)              # doctest: +SKIP
        >>> embedder.run(["A cat sat on the mat."])[0].shape                               # doctest: +SKIP
        (256,)
        >>> local = OpenAIEmbedder("any", base_url="http://localhost:8080/v1")             # doctest: +SKIP
    """

    api_class = OpenAITexts
    # Documented at https://platform.openai.com/docs/guides/embeddings; a request takes 2,048 texts and 300,000 tokens.
    known_dims = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
    known_lengths = dict.fromkeys(known_dims, 8_191)

    def __init__(
        self,
        model_name: str,
        dimensions: int | None = None,
        organization: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name,
            dimensions,
            api_key,
            retry_on_fail,
            cache_folder_path,
            organization=organization,
            base_url=base_url,
            api_version=api_version,
            **kwargs,
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer that was given, else tiktoken's vocabulary of the model, if it is here."""
        if self.api.tokenizer is not None or importlib.util.find_spec("tiktoken") is None:
            return self.api.tokenizer
        import tiktoken

        try:
            return tiktoken.encoding_for_model(self.model_name)
        except Exception as error:  # a model that it does not know, or a vocabulary that it cannot fetch
            logger.debug("%s: tiktoken has no vocabulary: %s", self.display_name, error)
            return None

    def encode(self, text: str) -> Sequence[int] | None:
        """Returns the token ids of a text; None without a tokenizer."""
        if self.tokenizer is None or self.tokenizer is self.api.tokenizer:
            return super().encode(text)
        tokens: list[int] = self.tokenizer.encode(text, disallowed_special=())
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of token ids."""
        if self.tokenizer is self.api.tokenizer:
            return super().decode(tokens)
        return str(self.tokenizer.decode(tokens))


class TogetherEmbedder(EndpointEmbedder):
    """An embedder served by Together; its key is in `TOGETHER_API_KEY`.

    Args:
        max_context_length: Maximum number of tokens of a text, if it is to be checked before texts are sent.
        warn_tokenizer_model_name, warn_max_context_length: Ignored; nothing is guessed that would need a warning.
        model_name, api_key, retry_on_fail, cache_folder_path: See `Together`.
        tokenizer_model_name, tokenizer_revision, tokenizer_trust_remote_code, **kwargs: See `EndpointEmbedder`.

    Example:
        >>> TogetherEmbedder("intfloat/multilingual-e5-large-instruct").run(["A cat."])    # doctest: +SKIP
        [array([0.01, ...], dtype=float32)]
    """

    api_class = TogetherTexts

    def __init__(
        self,
        model_name: str,
        api_key: str | None = None,
        max_context_length: int | None = None,
        tokenizer_model_name: str | None = None,
        tokenizer_revision: str | None = None,
        tokenizer_trust_remote_code: bool = False,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        warn_tokenizer_model_name: bool | None = True,
        warn_max_context_length: bool | None = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name,
            kwargs.pop("dimensions", None),
            api_key,
            retry_on_fail,
            cache_folder_path,
            max_context_length=max_context_length,
            tokenizer_model_name=tokenizer_model_name,
            tokenizer_revision=tokenizer_revision,
            tokenizer_trust_remote_code=tokenizer_trust_remote_code,
            **kwargs,
        )


class MistralAIEmbedder(EndpointEmbedder):
    """An embedder on Mistral's API; its key is in `MISTRAL_API_KEY`. See `EndpointEmbedder` for the arguments.

    Example:
        >>> MistralAIEmbedder("mistral-embed").run(["A cat sat on the mat."])[0].shape     # doctest: +SKIP
        (1024,)
    """

    api_class = MistralAITexts
    known_dims = {"mistral-embed": 1024}
    known_lengths = {"mistral-embed": 8_192}
    # All texts of a request together have to fit.
    tokens_a_request = 8_192
