"""The files in a model's folder: which are the model's own, what identifies them, and the card."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.graph import Card
from datadreamer_like.graph.card import CARD_NAME
from datadreamer_like.storage.digests import check_states, file_digest, file_states
from datadreamer_like.storage.folders import explained

from ..exports.report import EXPORT_NAME, check_export
from .saved_config import CONFIG, CONFIG_NAME, check_config, config_values, saved_card

_WEIGHTS = "weights"
"""Key of the digests in a card's file: of the weights, and of what decides how texts are read."""
_DECIDE = (
    "*.safetensors", "*.onnx", "*.gguf", "tokenizer.json", "tokenizer_config.json", "vocab.*", "merges.txt", "*.model",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "*/config.json",
)  # fmt: skip
"""Files whose content decides answers: weights, the tokenizer, and how an embedder pools."""


def model_files(folder: Path) -> list[Path]:
    """Returns the files that are needed to run the model, without its card and the report of an export."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in (CARD_NAME, EXPORT_NAME))


def model_folder(folder: Path) -> Path:
    """Returns where a saved model is: in the folder itself, or inside that of a trainer's or stage's result."""
    inner = folder / "model"
    return inner if (inner / CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file() else folder


def files_identity(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """Returns names and digests of a model's files: what decides its answers."""
    return "model files", [(file.relative_to(folder).as_posix(), file_digest(file)) for file in model_files(folder)]


def read_card(folder: Path) -> Card | None:
    """Reads the card in a model's folder; None where there is none."""
    saved = folder / CARD_NAME
    return Card.from_json(json.loads(saved.read_text(encoding="utf-8"))) if saved.is_file() else None


def write_card(folder: Path, card: Card) -> None:
    """Writes a card with its lineage into a model's folder, and what `check_saved_files` compares."""
    card.created = card.created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    files = {file for pattern in _DECIDE for file in folder.rglob(pattern) if file != folder / CONFIG_NAME}
    content = {**card.to_json(), _WEIGHTS: file_states(folder, files), CONFIG: config_values(folder)}
    (folder / CARD_NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def check_saved_files(folder: Path) -> None:
    """Checks that a model's folder is as its card was written for it, if it has one, or the report of an export.

    Compared are weights, the tokenizer's files, those of an embedder's modules, and the values of `config.json`.

    Raises:
        StorageError: A file is missing, cut off, changed, or not readable for this user; or a value of `config.json` is
            another one.
    """
    advice = (
        "Make the model again, or restore the file: a finished run of a script makes again what it finds damaged. "
        f"To use the file as it is, delete {CARD_NAME}."
    )
    with explained("Reading a model", folder):
        check_states(folder, saved_card(folder).get(_WEIGHTS) or {}, "it was saved", advice)
        check_config(folder, "when the model was saved", advice)
        check_export(folder)


def check_publishable(path: Path) -> None:
    """Checks that a model can be published: it is a folder, which is as it was saved; see `check_saved_files`.

    Raises:
        MethodMisfit: It is a single file, such as a GGUF file.
    """
    if path.is_file():
        raise MethodMisfit(
            f"{path} is a single file, and a model is published as a folder with its config and tokenizer. Upload the "
            f"file itself: `hf upload OWNER/NAME {path}`; LlamaCPP loads a repository that holds one by its name."
        )
    check_saved_files(path)


def damage_of(folder: Path) -> str | None:
    """Returns which file of a model cannot be read, and why; None if all can."""
    for file in model_files(folder):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(file, framework="np"):
                    pass
        except Exception as error:  # those of the library are of no class of their own
            return f"{file} is damaged ({error})"
    return None
