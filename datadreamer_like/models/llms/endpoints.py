"""Providers with OpenAI's protocol: each is a table entry from which its class is made."""

from __future__ import annotations

from .endpoint import Endpoint, Quirks
from .openai_compatible import OpenAICompatible


def provider(endpoint: Endpoint) -> type[OpenAICompatible]:
    """Returns the class of a provider's models.

    The class is one of this module under the endpoint's name, so that it can be imported and pickled: assign it to a
    variable of that name, and add the name to `models/__init__.pyi`.
    """
    _, _, common = (OpenAICompatible.__doc__ or "").partition("\n\n")
    return type(
        endpoint.name,
        (OpenAICompatible,),
        {
            "__module__": __name__,
            "__qualname__": endpoint.name,
            "__doc__": f"A chat model served by {endpoint.name}; its key is in `{endpoint.key_variable}`.\n\n{common}",
            "endpoint": endpoint,
        },
    )


Together = provider(
    Endpoint(
        "Together",
        base_url="https://api.together.xyz/v1",
        key_variable="TOGETHER_API_KEY",
        quirks=Quirks(penalty_names=("repetition_penalty",), logprobs_as_count=True),
        model_card="https://docs.together.ai/docs/serverless-models",
        license="https://www.together.ai/terms-of-service",
    )
)
