"""Models on Hugging Face's servers: its router to providers, and dedicated endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from datadreamer_like.errors import DefinitionError

from .chat_template import AUTO, Auto
from .endpoint import Endpoint, Quirks
from .openai_compatible import OpenAICompatible

# Options of other providers, and what they are called here, as in DataDreamer.
_OTHER_NAMES = {
    "base_url": "endpoint", "api_key": "token", "tokenizer_revision": "revision",
    "tokenizer_trust_remote_code": "trust_remote_code",
}  # fmt: skip


class HFAPIEndpoint(OpenAICompatible):
    """A chat model on a dedicated endpoint of Hugging Face, or on one of its inference providers.

    The token is `HF_TOKEN`, or that of `hf auth login`; it is only sent to Hugging Face's own hosts.

    Args:
        endpoint: The address of a dedicated endpoint, or the id of a model that an inference provider serves, such as
            `"Qwen/Qwen3-32B"` or `"Qwen/Qwen3-32B:cheapest"`.
        model_name: The model's name at a dedicated endpoint; any name will do for one that runs
            text-generation-inference.
        chat_prompt_template, system_prompt: See `OpenAICompatible`.
        token: The token, instead of that in the environment.
        revision, trust_remote_code: Of the tokenizer, if `tokenizer_model_name` is given.
        retry_on_fail, cache_folder_path, **kwargs: See `OpenAICompatible`.

    Example:
        >>> HFAPIEndpoint("Qwen/Qwen3-32B").run(["Name three colours."])  # doctest: +SKIP
        ['Red, blue and green.']
    """

    endpoint = Endpoint(
        "HFAPIEndpoint",
        base_url="https://router.huggingface.co/v1",
        key_variable="HF_TOKEN",
        quirks=Quirks(penalty_names=("repetition_penalty",)),
        domains=("endpoints.huggingface.cloud",),
        license="https://huggingface.co/terms-of-service",
    )

    def __init__(
        self,
        endpoint: str,
        model_name: str | None = None,
        chat_prompt_template: str | Auto | None = AUTO,
        system_prompt: str | Auto | None = AUTO,
        token: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        for name in _OTHER_NAMES.keys() & kwargs.keys():
            raise DefinitionError(f'HFAPIEndpoint has no option "{name}"; it is "{_OTHER_NAMES[name]}" here.')
        base_url = None
        if "://" in endpoint:
            path = urlsplit(endpoint).path.rstrip("/")
            base_url = endpoint.rstrip("/") + ("" if path.endswith("/v1") else "/v1")
        super().__init__(
            (model_name or "tgi") if base_url else endpoint,
            chat_prompt_template,
            system_prompt,
            token,
            tokenizer_revision=revision,
            tokenizer_trust_remote_code=trust_remote_code,
            retry_on_fail=retry_on_fail,
            cache_folder_path=cache_folder_path,
            base_url=base_url,
            **kwargs,
        )

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), token="example-key")

    @property
    def model_card(self) -> str | None:
        """URL of the model's card on the Hub, if its name is an id there."""
        name = self.model_name.partition(":")[0]
        return f"https://huggingface.co/{name}" if name.count("/") == 1 else None

    def find_key(self) -> str | None:
        """Returns the token to send: the given one, `HF_TOKEN`, or that of `hf auth login`."""
        token = self._api_key
        if not token and self.endpoint.serves(self.base_url):
            from huggingface_hub import get_token

            token = get_token()
        return self.endpoint.key_for(self.base_url, token, self.model_name)
