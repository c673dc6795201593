"""`LlamaCPP` under the name and with the arguments that DataDreamer has for GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .chat_template import AUTO, Auto
from .llamacpp import LlamaCPP


class CTransformers(LlamaCPP):
    """DataDreamer's name for `LlamaCPP`, which runs the models: the package ctransformers cannot read today's files.

    Args:
        model_type: Ignored: a GGUF file names its architecture.
        max_context_length: `context_length` of `LlamaCPP`.
        model_name, model_file, chat_prompt_template, system_prompt, revision, threads: See `LlamaCPP`.
        gpu_layers, cache_folder_path, **kwargs: See `LlamaCPP`.
    """

    def __init__(
        self,
        model_name: str,
        model_type: str | None = None,
        model_file: str | None = None,
        max_context_length: int | None = None,
        chat_prompt_template: str | Auto | None = AUTO,
        system_prompt: str | Auto | None = AUTO,
        revision: str | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name,
            model_file,
            chat_prompt_template,
            system_prompt,
            max_context_length,
            threads=threads,
            gpu_layers=gpu_layers,
            revision=revision,
            cache_folder_path=cache_folder_path,
            **kwargs,
        )
