"""Chat models of OpenAI, Azure, and any server with OpenAI's protocol by its address."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from datadreamer_like.errors import ArgumentTypeError, AuthenticationFailed

from ..calls.batch_api import BatchAPI
from .endpoint import Endpoint, Quirks
from .openai_batches import OpenAIBatches
from .openai_compatible import OpenAICompatible
from .thoughts import CHAT_FIELDS

# What is known of a server that is given by its address alone.
_ANY_SERVER = Quirks(echoes=True, wants_back=CHAT_FIELDS)


class OpenAI(OpenAICompatible):
    """A chat model on OpenAI's API or any server with its protocol; see `OpenAICompatible` for retries and limits.

    `OPENAI_API_KEY` is sent to OpenAI's servers and to the address in `OPENAI_BASE_URL`; a server given only by
    `base_url` gets `api_key`, or no key. The log reports which key is sent where.

    Example:
        >>> llm = OpenAI("gpt-5-mini", system_prompt="Answer in one word.")    # doctest: +SKIP
        >>> llm.run(["The capital of France?"])                               # doctest: +SKIP
        ['Paris']
        >>> local = OpenAI("any", base_url="http://localhost:8080/v1")        # doctest: +SKIP

    Args:
        model_name: Name of the model, or a `TrainOpenAIFineTune`: the model that it made, with the trainer's address,
            key, system prompt and options of the client unless others are given.
        organization: OpenAI organization to bill.
        api_key: The key; by default `OPENAI_API_KEY`, or `AZURE_OPENAI_API_KEY` if `api_version` is given.
        base_url: The server's address, including `/v1`; by default `OPENAI_BASE_URL`, or OpenAI's own.
        api_version: Version of Azure's API; `base_url` is then an Azure endpoint. See also `Azure`.
        **kwargs: See `OpenAICompatible`, as for the other arguments.
    """

    endpoint = Endpoint(
        "OpenAI",
        base_url="https://api.openai.com/v1",
        key_variable="OPENAI_API_KEY",
        url_variable="OPENAI_BASE_URL",
        quirks=Quirks(
            # Newer models refuse `max_tokens`.
            limit_name="max_completion_tokens",
            # There is no `repetition_penalty`; DataDreamer sends it by this name.
            penalty_names=("presence_penalty",),
            cached_prefix=1_024,
        ),
        # The smallest among the models that are still served.
        context_length=128_000,
        model_card="https://platform.openai.com/docs/models",
        license="https://openai.com/policies",
    )

    def __init__(
        self,
        model_name: Any,
        system_prompt: str | None = None,
        organization: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        base = getattr(model_name, "llm", None)
        if isinstance(base, OpenAI):
            model_name = model_name.model
            system_prompt = base.system_prompt if system_prompt is None else system_prompt
            organization = organization or base.organization
            if base_url is None:
                base_url, api_version = base.base_url, api_version or base.api_version
                api_key = api_key or base._api_key
            inherited = {"timeout": base.timeout, "tokenizer_model_name": base.tokenizer_model_name, **base.kwargs}
            kwargs = {**inherited, **kwargs}
            kwargs.pop("organization", None)
        if not isinstance(model_name, str):
            raise ArgumentTypeError(
                f"model_name must be a text, or a TrainOpenAIFineTune, not {type(model_name).__name__}."
            )
        self.organization: str | None = organization
        self.api_version: str | None = api_version
        super().__init__(
            model_name,
            system_prompt=system_prompt,
            api_key=api_key,
            retry_on_fail=retry_on_fail,
            cache_folder_path=cache_folder_path,
            base_url=base_url,
            organization=organization,
            **kwargs,
        )

    @property
    def quirks(self) -> Quirks:
        """OpenAI's quirks at its own servers and Azure's, the protocol's defaults elsewhere."""
        own = self.is_azure or self.endpoint.serves(self.base_url)
        return self.endpoint.quirks if own else _ANY_SERVER

    def batch_api(self) -> BatchAPI | None:
        """Returns OpenAI's batches; None on Azure, whose batches need deployments of their own."""
        return None if self.is_azure else OpenAIBatches(self)

    @property
    def is_azure(self) -> bool:
        """Whether the server is Azure's, which has a key of its own."""
        return self.api_version is not None

    def find_key(self) -> str | None:
        """Returns OpenAI's key, or Azure's if `is_azure`; None for other credentials of Azure's."""
        if not self.is_azure or self._api_key:
            return super().find_key()
        if {"azure_ad_token", "azure_ad_token_provider"} & self.kwargs.keys():
            return None
        key = os.environ.get("AZURE_OPENAI_API_KEY")
        paired = os.environ.get("AZURE_OPENAI_ENDPOINT")
        host = urlsplit(self.base_url).hostname or ""
        azure = host.endswith((".azure.com", ".azure.us", ".azure.cn"))
        if key and (azure or (paired is not None and urlsplit(paired).hostname == host)):
            return key
        raise AuthenticationFailed(
            f'There is no key for "{self.model_name}" at {host}. Set AZURE_OPENAI_API_KEY in the environment (and '
            "AZURE_OPENAI_ENDPOINT, for a host outside Azure's domains), or pass api_key=..."
        )

    def client_options(self) -> dict[str, Any]:
        """Returns the arguments of the SDK's clients, for Azure if `api_version` is given."""
        options = super().client_options()
        if self.api_version is not None:
            options |= {"azure_endpoint": options.pop("base_url"), "api_version": self.api_version}
        return options

    @property
    def chat_path(self) -> str:
        """Where chat completions are; Azure's versioned API has them under the deployment."""
        versioned = self.api_version is not None and "/deployments" not in self.base_url
        return f"deployments/{quote(self.model_name, safe='')}/{super().chat_path}" if versioned else super().chat_path

    def make_client(self, prefix: str) -> Any:
        """Returns a client of the SDK, for Azure if `api_version` is given."""
        return super().make_client(prefix if self.api_version is None else f"{prefix}Azure")
