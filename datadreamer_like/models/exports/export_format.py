"""The base of export formats: which models one can hold, how it is written, and what its runtime computes from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from datadreamer_like.errors import with_article
from datadreamer_like.formats import layouts
from datadreamer_like.formats.modules import stacked_experts

from ..trained.model_facts import task_of
from .int4 import Codes


@dataclass(frozen=True)
class ExportFormat(ABC):
    """A format in which another runtime loads a model; a frozen dataclass whose fields are the options of `export`.

    Attributes:
        name: What `export(format=...)` calls it.
        runtime: The runtime that loads it, for the report.
        modules: Modules to write and check it, which the extra "export" installs.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()

    @property
    def exact(self) -> bool:
        """Whether the runtime computes in fp32 with the weights as they are; sums may be in another order."""
        return False

    @abstractmethod
    def why_not(self, model: Any, tokenizer: Any) -> str | None:
        """Returns why the format cannot hold this unquantized model with these options; None if it can."""

    @abstractmethod
    def write(self, model: Any, tokenizer: Any, folder: Path, codes: Codes) -> None:
        """Writes the model into an empty folder; `model` is not changed.

        `codes` are layers whose 4-bit codes the weights of the model were decoded from, for formats that have such.
        """

    @abstractmethod
    def logits(self, folder: Path, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
        """Returns what the runtime computes from the written files: see `logits.logits_for_texts`.

        Raises:
            MethodMisfit: The runtime reads the texts as other tokens.
        """

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """The largest distance of the runtime's logits from the model's that rounding explains; more is a failure."""


def not_dense(model: Any) -> str | None:
    """Returns why no format of dense tensors and a plain config can hold a model; None if one can."""
    kinds = {entry["kind"] for entry in layouts(model)}
    if "widths" in kinds:
        others = '"safetensors"' if writes(model) else '"onnx" or "safetensors"'
        return (
            "its layers have different widths, since parts of them were removed, and its config.json can state one for "
            f"all layers. Export it as {others}."
        )
    return not_transformers(model)


def why_not_coded(model: Any) -> str | None:
    """Returns why layers of a model cannot be codes for other runtimes; None if they can."""
    if experts := stacked_experts(model):
        return (
            f'"{next(iter(experts))}" holds the weights of several experts, and only layers are coded. Export it as '
            '"safetensors".'
        )
    return None


def writes(model: Any) -> bool:
    """Whether a model is a language model, of which no format is a graph."""
    return task_of(model.config) in ("text-generation", "text2text-generation")


def not_transformers(model: Any) -> str | None:
    """Returns why a model is none that other runtimes know; None if it is one."""
    config = model.config
    if str(config.model_type).startswith("datadreamer_"):
        return f'it is {with_article(type(model))}, which only this package runs. Export it as "safetensors".'
    if getattr(config, "is_encoder_decoder", False):
        return 'it is an encoder-decoder, and only "safetensors" can hold those.'
    if hasattr(model, "peft_config"):
        return "it has adapters on its weights. Merge them first: model.merge_and_unload()."
    return None
