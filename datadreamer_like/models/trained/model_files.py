"""The files in a model's folder: which are the model's own, what identifies them, and the card."""

from __future__ import annotations

import datetime
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from datadreamer_like.errors import StorageError
from datadreamer_like.graph import Card
from datadreamer_like.graph.card import CARD_NAME
from datadreamer_like.storage.digests import check_states, file_digest, file_states
from datadreamer_like.storage.folders import explained

from ..exports.report import EXPORT_NAME
from .config_faults import with_defaults

_CONFIG_NAME = "config.json"
_WEIGHTS = "weights"
"""Key of the weights' digests in a card's file."""
_CONFIG = "config"
"""Key of the values of `config.json` in a card's file."""
_NOT_VALUES = (
    "_name_or_path", "transformers_version", "use_cache", "gradient_checkpointing", "attn_implementation",
    "_attn_implementation_autoset",
)  # fmt: skip
"""Keys of `config.json` that decide no answer: where the model came from, speed and memory."""
_FORMER = {"torch_dtype": "dtype"}
"""Keys of earlier versions of transformers, and what they are called now."""


def model_files(folder: Path) -> list[Path]:
    """Returns the files that are needed to run the model, without its card and the report of an export."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in (CARD_NAME, EXPORT_NAME))


def model_folder(folder: Path) -> Path:
    """Returns where a saved model is: in the folder itself, or inside that of a trainer's or stage's result."""
    inner = folder / "model"
    return inner if (inner / _CONFIG_NAME).is_file() and not (folder / _CONFIG_NAME).is_file() else folder


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
    weights = file_states(folder, folder.rglob("*.safetensors"))
    content = {**card.to_json(), _WEIGHTS: weights, _CONFIG: _config_values(folder)}
    (folder / CARD_NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def check_saved_files(folder: Path) -> None:
    """Checks that weights and config in a model's folder are those that its card was written for, if it has one.

    Raises:
        StorageError: A file is missing, cut off, changed, or not readable for this user; or a value of `config.json` is
            another one.
    """
    saved: Any = {}
    with suppress(OSError, ValueError):  # a damaged card says nothing of the model
        saved = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
    if not isinstance(saved, dict):
        return
    advice = (
        "Make the model again, or restore the file: a finished run of a script makes again what it finds damaged. "
        f"To use the file as it is, delete {CARD_NAME}."
    )
    with explained("Reading a model", folder):
        check_states(folder, saved.get(_WEIGHTS) or {}, "it was saved", advice)
        before, now = saved.get(_CONFIG), _config_values(folder)
    if before is None or now is None:
        return
    # Cards of before have keys that do not count now.
    before = _counted(before)
    changed = _changed(before, now)
    if changed and (old_whole := with_defaults(before)) and (new_whole := with_defaults(now)):
        decisive = _changed(_counted(old_whole), _counted(new_whole))
        changed = ([key for key in changed if key in decisive] or changed) if decisive else []
    for key in changed:
        old, new = _said(before, key), _said(now, key)
        what = f'"{key}" was {old:.60} when the model was saved, and is {new:.60} now.'
        raise StorageError(f"{folder / _CONFIG_NAME}: {what} {advice}")


def _config_values(folder: Path) -> dict[str, Any] | None:
    """The values of a folder's `config.json`; None where there is none that can be read."""
    try:
        values = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return _counted(values) if isinstance(values, dict) else None


def _counted(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config that decide answers, by their keys of now."""
    return {_FORMER.get(key, key): value for key, value in values.items() if key not in _NOT_VALUES}


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys whose values differ, but for harmless ones."""
    keys = dict.fromkeys([*before, *now])
    return [key for key in keys if _said(before, key) != _said(now, key) and not _is_harmless(key, before, now)]


def _said(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], sort_keys=True, default=str) if key in values else "missing"


def _is_harmless(key: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether another value of a key leaves each answer what it was, but for the names of classes.

    Classes may be renamed, but not change places. A model that had no padding may get some. A language model with
    rotary positions masks it, so it may be any token; others count positions from it, or read the token before it.
    """
    old, new = before.get(key), now.get(key)
    if key == "id2label" and isinstance(old, dict) and isinstance(new, dict):
        renamed = {place for place in old if old[place] != new.get(place)}
        return old.keys() == new.keys() and not {new[place] for place in renamed} & {*old.values()}
    if key == "label2id":
        return new == {name: int(place) for place, name in (now.get("id2label") or {}).items()}
    if key == "pad_token_id":
        generates = all(str(each).endswith("ForCausalLM") for each in now.get("architectures") or [""])
        return old is None or (generates and bool({"rope_theta", "rope_parameters"} & now.keys()))
    return False


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
