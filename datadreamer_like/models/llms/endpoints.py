"""Providers with OpenAI's protocol that differ from it in data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..calls.batch_api import BatchAPI
from .endpoint import Endpoint, Quirks
from .openai_batches import MistralBatches
from .openai_compatible import OpenAICompatible

_NO_PENALTY = {"repetition_penalty": "Use presence_penalty or frequency_penalty."}
# AI21 and Cohere's compatibility API document `tools`, but no `tool_choice`; Ollama ignores it.
_ONLY_AUTO = frozenset({"auto"})
_NOT_BY_NAME = frozenset({"auto", "none", "required"})
_PLAIN = {**_NO_PENALTY, "logit_bias": "Leave it out.", "top_logprobs": "Leave it out, or use another provider."}


class Together(OpenAICompatible):
    """A chat model served by Together; its key is in `TOGETHER_API_KEY`. See `OpenAICompatible` for the arguments."""

    endpoint = Endpoint(
        "Together",
        base_url="https://api.together.xyz/v1",
        key_variable="TOGETHER_API_KEY",
        quirks=Quirks(penalty_names=("repetition_penalty",), logprobs_as_count=True, echoes=True),
        model_card="https://docs.together.ai/docs/serverless-models",
        license="https://www.together.ai/terms-of-service",
    )


class NamedModel(OpenAICompatible):
    """A chat model whose server needs only its name and a key, with DataDreamer's order of arguments.

    See `OpenAICompatible` for what they and `**kwargs` mean.
    """

    def __init__(
        self,
        model_name: str,
        api_key: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        *,
        base_url: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name,
            api_key=api_key,
            retry_on_fail=retry_on_fail,
            cache_folder_path=cache_folder_path,
            base_url=base_url,
            **kwargs,
        )


class MistralAI(NamedModel):
    """A chat model on Mistral's API; its key is in `MISTRAL_API_KEY`.

    The API has `presence_penalty` and `frequency_penalty`, but no `repetition_penalty`, `logit_bias` or
    log-probabilities.
    """

    endpoint = Endpoint(
        "MistralAI",
        base_url="https://api.mistral.ai/v1",
        key_variable="MISTRAL_API_KEY",
        quirks=Quirks(seed_name="random_seed", short_call_ids=True, refuses=_PLAIN),
        model_card="https://docs.mistral.ai/getting-started/models/models_overview/",
        license="https://mistral.ai/terms",
    )

    def batch_api(self) -> BatchAPI:
        """Returns Mistral's batch jobs."""
        return MistralBatches(self)


class Cohere(NamedModel):
    """A Command model on Cohere's compatibility API; its key is in `COHERE_API_KEY`.

    The API has no `n` (each answer takes a request), `repetition_penalty`, `logit_bias` or log-probabilities.
    """

    endpoint = Endpoint(
        "Cohere",
        base_url="https://api.cohere.ai/compatibility/v1",
        key_variable="COHERE_API_KEY",
        quirks=Quirks(takes_n=False, tool_choices=_ONLY_AUTO, refuses=_PLAIN),
        domains=("api.cohere.com",),
        model_card="https://docs.cohere.com/docs/models",
        license="https://cohere.com/terms-of-use",
    )


class AI21(NamedModel):
    """A Jamba model on AI21's API; its key is in `AI21_API_KEY`.

    The API guarantees JSON, but no schema: the schema becomes part of the prompt. It has no images, seed, penalties,
    `logit_bias` or log-probabilities.
    """

    takes_images = False

    endpoint = Endpoint(
        "AI21",
        base_url="https://api.ai21.com/studio/v1",
        key_variable="AI21_API_KEY",
        quirks=Quirks(
            seed_name=None,
            response_format="json_object",
            tool_choices=_ONLY_AUTO,
            refuses={**_PLAIN, "repetition_penalty": "Leave it out."},
        ),
        context_length=256_000,
        model_card="https://docs.ai21.com/docs/jamba-foundation-models",
        license="https://www.ai21.com/terms-of-use/",
    )


class DeepSeek(NamedModel):
    """A chat model on DeepSeek's API; its key is in `DEEPSEEK_API_KEY`.

    The API guarantees JSON, but no schema: the schema becomes part of the prompt. It has no images, `n` (each answer
    takes a request), seed, `repetition_penalty` or `logit_bias`. Its prices depend on the time of day, so the cost is
    unknown unless `prices` are given.
    """

    takes_images = False

    endpoint = Endpoint(
        "DeepSeek",
        base_url="https://api.deepseek.com",
        key_variable="DEEPSEEK_API_KEY",
        quirks=Quirks(
            seed_name=None,
            takes_n=False,
            response_format="json_object",
            cached_prefix=1_024,
            wants_back=frozenset({"reasoning_content"}),
            refuses={**_NO_PENALTY, "logit_bias": "Leave it out."},
        ),
        context_length=1_000_000,
        model_card="https://api-docs.deepseek.com/quick_start/pricing",
        license="https://cdn.deepseek.com/policies/en-US/deepseek-open-platform-terms-of-service.html",
    )


class Groq(NamedModel):
    """An open model on Groq's API; its key is in `GROQ_API_KEY`.

    The API has no `n` (each answer takes a request), `repetition_penalty`, `logit_bias` or log-probabilities.
    """

    endpoint = Endpoint(
        "Groq",
        base_url="https://api.groq.com/openai/v1",
        key_variable="GROQ_API_KEY",
        quirks=Quirks(limit_name="max_completion_tokens", takes_n=False, refuses=_PLAIN),
        model_card="https://console.groq.com/docs/models",
        license="https://groq.com/terms-of-use",
    )


class OpenRouter(NamedModel):
    """A model of any provider behind OpenRouter; its key is in `OPENROUTER_API_KEY`.

    `model_name` is `"vendor/model"`. Which options have an effect depends on the model. The API has no `n`: each answer
    takes a request. The cost of an answer is the one that OpenRouter reports.
    """

    endpoint = Endpoint(
        "OpenRouter",
        base_url="https://openrouter.ai/api/v1",
        key_variable="OPENROUTER_API_KEY",
        quirks=Quirks(
            penalty_names=("repetition_penalty",),
            takes_n=False,
            reports_cost=True,
            wants_back=frozenset({"reasoning_details"}),
        ),
        model_card="https://openrouter.ai/models",
        license="https://openrouter.ai/terms",
    )


class GoogleAIStudio(NamedModel):
    """A Gemini model on Google AI Studio's API; its key is in `GEMINI_API_KEY`.

    The API has no seed, `repetition_penalty`, `logit_bias` or log-probabilities.
    """

    endpoint = Endpoint(
        "GoogleAIStudio",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_variable="GEMINI_API_KEY",
        quirks=Quirks(seed_name=None, wants_back=frozenset({"extra_content"}), refuses=_PLAIN),
        context_length=1_000_000,
        model_card="https://ai.google.dev/gemini-api/docs/models",
        license="https://ai.google.dev/gemini-api/terms",
    )


class Ollama(NamedModel):
    """A model on Ollama's server, by default on this machine, where it needs no key and costs nothing.

    The server has no `n` (each answer takes a request), `repetition_penalty` or `logit_bias`.

    Example:
        >>> Ollama("qwen3:4b").run(["Name three colours."])  # doctest: +SKIP
        ['Red, blue and green.']
        >>> Ollama("qwen3:4b", base_url="http://gpu-box:11434/v1", prices={"input": 0, "output": 0}).base_url
        'http://gpu-box:11434/v1'
    """

    endpoint = Endpoint(
        "Ollama",
        base_url="http://localhost:11434/v1",
        key_variable=None,
        quirks=Quirks(
            takes_n=False,
            tool_choices=_ONLY_AUTO,
            refuses={"logit_bias": "Leave it out.", "repetition_penalty": "Set repeat_penalty in the Modelfile."},
        ),
        model_card="https://ollama.com/library",
    )


class VLLMServer(NamedModel):
    """A model on vLLM's server, by default on this machine, where it costs nothing.

    Start it with `vllm serve MODEL`, and for tools with `--enable-auto-tool-choice --tool-call-parser ...`. Pass the
    `api_key` that it was started with, if any. See `VLLM` for vLLM in this process.
    """

    endpoint = Endpoint(
        "VLLMServer",
        base_url="http://localhost:8000/v1",
        key_variable=None,
        quirks=Quirks(penalty_names=("repetition_penalty",), echoes=True),
        model_card="https://docs.vllm.ai/en/stable/models/supported_models/",
    )


class LlamaCPPServer(NamedModel):
    """A model on llama.cpp's server, by default on this machine, where it costs nothing.

    Start it with `llama-server -m FILE.gguf`; it serves that one model for any `model_name`. See `LlamaCPP` for
    llama.cpp in this process.
    """

    endpoint = Endpoint(
        "LlamaCPPServer",
        base_url="http://localhost:8080/v1",
        key_variable=None,
        quirks=Quirks(penalty_names=("repeat_penalty",), tool_choices=_NOT_BY_NAME),
        model_card="https://github.com/ggml-org/llama.cpp",
    )


class LMStudio(NamedModel):
    """A model on LM Studio's server, by default on this machine, where it needs no key and costs nothing.

    The server has no `n` (each answer takes a request) and no log-probabilities.
    """

    endpoint = Endpoint(
        "LMStudio",
        base_url="http://localhost:1234/v1",
        key_variable=None,
        quirks=Quirks(
            penalty_names=("repeat_penalty",),
            takes_n=False,
            tool_choices=_NOT_BY_NAME,
            refuses={"top_logprobs": "Use LlamaCPPServer."},
        ),
        model_card="https://lmstudio.ai/models",
    )
