"""Providers with OpenAI's protocol that differ from it in data alone."""

from __future__ import annotations

from .endpoint import Endpoint, Quirks
from .openai_compatible import OpenAICompatible


class Together(OpenAICompatible):
    """A chat model served by Together; its key is in `TOGETHER_API_KEY`. See `OpenAICompatible` for the arguments."""

    endpoint = Endpoint(
        "Together",
        base_url="https://api.together.xyz/v1",
        key_variable="TOGETHER_API_KEY",
        quirks=Quirks(penalty_names=("repetition_penalty",), logprobs_as_count=True),
        model_card="https://docs.together.ai/docs/serverless-models",
        license="https://www.together.ai/terms-of-service",
    )
