"""The README.md in an adapter's folder: what the adapter is, and code that loads it on its base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import DataDreamerError
from datadreamer_like.graph.card import Card
from datadreamer_like.hub.card import fence
from datadreamer_like.hub.loading import load_adapter, repr_of
from datadreamer_like.models.trained.model_facts import imports_of, task_of
from datadreamer_like.storage.folders import system_errors
from datadreamer_like.storage.shown import markdown

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def write_adapter_readme(
    folder: Path,
    base: str,
    card: Card,
    config: PretrainedConfig,
    task: str | None,
    options_of: Callable[[PretrainedConfig], Mapping[str, Any]],
) -> None:
    """Replaces the README.md that peft writes, which is a form to fill in.

    Args:
        folder: The adapter's.
        base: Folder or Hub id of its base model.
        card: The trainer's.
        config: That of the saved model.
        task: What the Hub calls its task; None for that of its config.
        options_of: Returns the arguments with which the base model is loaded, or raises if there are none that do.
    """
    try:
        load = load_adapter('"."', repr_of(base), task or task_of(config), options_of(config))
        imports = "".join(f"import {module}\n" for module in imports_of(config))
        use = f"In this folder, this code loads both:\n\n{fence(imports + load, 'python')}"
    except DataDreamerError:
        use = "It fits only that model as it was loaded for the training, which takes more than an argument."
    loaded = card.facts.get("Base Model of the Adapter")
    about = (
        f"Trained by the {card.kind} “{markdown(card.name)}” (`{card.class_name}`) on the model {markdown(base)}"
        f"{f', {markdown(loaded)}' if loaded else ''}. It works only with that one. The trainer's own result, and "
        "what its `export` writes, is the whole model, with the adapter merged into its weights."
    )
    front = f"---\nbase_model: {repr_of(base)}\nlibrary_name: peft\n---"
    text = "\n\n".join([front, f"# Adapter of {markdown(card.name)}", about, use, "Made with datadreamer-like."])
    with system_errors():
        (folder / "README.md").write_text(f"{text}\n", encoding="utf-8", errors="replace")
