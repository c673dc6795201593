"""The values of a model's `config.json` when it was saved, which are on its card, and whether they are others now."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from datadreamer_like.errors import StorageError
from datadreamer_like.graph.card import CARD_NAME

from .config_faults import with_defaults

CONFIG_NAME = "config.json"
CONFIG = "config"
"""Key of the values of `config.json` in a card's file."""
_NOT_VALUES = (
    "_name_or_path", "transformers_version", "use_cache", "gradient_checkpointing", "attn_implementation",
    "_attn_implementation_autoset",
)  # fmt: skip
"""Keys of `config.json` that decide no answer: where the model came from, speed and memory."""
_FORMER = {"torch_dtype": "dtype"}
"""Keys of earlier versions of transformers, and what they are called now."""


def check_config(folder: Path, when: str, advice: str) -> bool:
    """Checks the values of `config.json` that decide answers; returns whether the folder's card has them.

    Raises:
        StorageError: One of them is another than it was, at the time that `when` names; the message ends with the
            advice.
    """
    before, now = saved_card(folder).get(CONFIG), config_values(folder)
    if not isinstance(before, dict) or now is None:
        return False
    # Cards of before have keys that do not count now.
    before = _counted(before)
    changed = _changed(before, now)
    if changed and (old_whole := with_defaults(before)) and (new_whole := with_defaults(now)):
        decisive = _changed(_counted(old_whole), _counted(new_whole))
        changed = ([key for key in changed if key in decisive] or changed) if decisive else []
    for key in changed:
        old, new = _said(before, key), _said(now, key)
        raise StorageError(f'{folder / CONFIG_NAME}: "{key}" was {old:.60} {when}, and is {new:.60} now. {advice}')
    return True


def saved_card(folder: Path) -> dict[str, Any]:
    """What the card's file in a folder says; nothing where there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        saved = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
        return saved if isinstance(saved, dict) else {}
    return {}


def config_values(folder: Path) -> dict[str, Any] | None:
    """The values of a folder's `config.json`; None where there is none that can be read."""
    try:
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
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
