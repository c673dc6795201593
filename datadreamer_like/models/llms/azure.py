"""OpenAI's models on Azure."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datadreamer_like.errors import DefinitionError, require_extra

from .endpoint import Quirks
from .openai import OpenAI


class Azure(OpenAI):
    """A deployment of a chat model on Azure OpenAI or Azure AI Foundry.

    Without `api_version`, requests go to Azure's v1 API, which has no versions; with it, to the older one, as with
    `OpenAI(..., api_version=...)`. `AZURE_OPENAI_API_KEY` is sent to Azure's domains and to the address in
    `AZURE_OPENAI_ENDPOINT`. What a deployment costs is unknown unless `prices` are given.

    Args:
        model_name: Name of the deployment.
        base_url: Address of the resource, such as `"https://NAME.openai.azure.com"`; by default
            `AZURE_OPENAI_ENDPOINT`.
        system_prompt, organization, api_key, api_version, **kwargs: See `OpenAI`. With `api_version`, `azure_ad_token`
            or `azure_ad_token_provider` replaces the key.

    Example:
        >>> llm = Azure("my-deployment", base_url="https://NAME.openai.azure.com", api_key="...")
        >>> llm.base_url
        'https://NAME.openai.azure.com/openai/v1'
    """

    endpoint = dataclasses.replace(
        OpenAI.endpoint,
        name="Azure",
        base_url="https://azure.com",
        key_variable="AZURE_OPENAI_API_KEY",
        url_variable="AZURE_OPENAI_ENDPOINT",
        domains=("azure.us", "azure.cn"),
        model_card="https://learn.microsoft.com/azure/ai-foundry/openai/concepts/models",
        license="https://www.microsoft.com/licensing/terms",
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
        **kwargs: Any,
    ) -> None:
        require_extra("openai", "openai", what="Azure")
        address = base_url or os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not address:
            raise DefinitionError(
                'Azure needs the address of your resource: pass base_url="https://NAME.openai.azure.com", or set '
                "AZURE_OPENAI_ENDPOINT."
            )
        tokens = {"azure_ad_token", "azure_ad_token_provider"} & kwargs.keys()
        if tokens and api_version is None:
            raise DefinitionError(f"{min(tokens)} needs api_version=..., such as the newest one of Azure's API.")
        if api_version is None and "/openai" not in urlsplit(address).path:
            address = f"{address.rstrip('/')}/openai/v1"
        super().__init__(
            model_name,
            system_prompt,
            organization,
            api_key,
            address,
            api_version,
            retry_on_fail,
            cache_folder_path,
            **kwargs,
        )

    @classmethod
    def example(cls, model: Any) -> Azure:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), api_key="example-key", base_url="https://example.openai.azure.com")

    @property
    def quirks(self) -> Quirks:
        """OpenAI's quirks."""
        return self.endpoint.quirks

    @property
    def is_azure(self) -> bool:
        """True."""
        return True
