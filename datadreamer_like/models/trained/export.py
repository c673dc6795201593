"""Exports a trained model: one function per format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from datadreamer_like.errors import DefinitionError, StorageError, did_you_mean
from datadreamer_like.graph import Card
from datadreamer_like.storage.folders import explained, new_folder

from .model_files import CARD_NAME, write_card


class Exportable(Protocol):
    """The part of `TrainedModel` that an export needs."""

    path: str

    @property
    def card(self) -> Card:
        """Where the model came from."""

    @property
    def model(self) -> Any:
        """The transformers model."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""

    @staticmethod
    def save(model: Any, tokenizer: Any, folder: Any, card: Any = None) -> Any:
        """Writes a model and its tokenizer."""


def export_model(trained: Exportable, format: str, to: str | Path) -> Path:
    """Writes a model to a folder atomically; an earlier export there is replaced.

    Args:
        trained: The model.
        format: One of `EXPORTS`.
        to: The folder.

    Raises:
        DefinitionError: The format is unknown, or no folder is named.
        StorageError: The folder holds something else.
    """
    if format not in EXPORTS:
        raise DefinitionError(
            f'There is no export format "{format}". There are: {", ".join(EXPORTS)}.' + did_you_mean(format, EXPORTS)
        )
    if not str(to):
        raise DefinitionError("export needs the folder to write to: export(to=folder).")
    target = Path(to)
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / CARD_NAME).is_file())):
        raise StorageError(
            f"{target} exists already and is not an earlier export. Choose another folder, or remove it first."
        )
    fresh = target.with_name(f".{target.name}-new")
    shutil.rmtree(fresh, ignore_errors=True)
    with explained("Exporting a model", target):
        with new_folder(fresh) as draft:
            EXPORTS[format](trained, draft)
            write_card(draft, trained.card)
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    return target


def _safetensors(trained: Exportable, folder: Path) -> None:
    if Path(trained.path).is_dir():
        shutil.copytree(trained.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD_NAME))
    else:
        trained.save(trained.model, trained.tokenizer, folder)


EXPORTS: dict[str, Callable[[Exportable, Path], None]] = {"safetensors": _safetensors}
