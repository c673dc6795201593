"""The YAML block of a card, with values that the Hub's validation accepts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from datadreamer_like.errors import HubError
from datadreamer_like.graph.card import Card

OnHub = Callable[[str, str], bool]
"""Returns whether a repository, of a kind and with an id, exists on the Hub."""

TAG = "datadreamer-like"
SYNTHETIC_TAG = "synthetic"

# An absolute path inside a longer text; only its last part is published.
PATH_IN_TEXT = re.compile(r"(?<![\w.:/~-])(?:~?/|[A-Za-z]:\\)[^\s'\",;()]*[/\\]([^\s/\\'\",;()]+)")

# https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl
odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib
"""
LICENSES = frozenset(_LICENSES.split())

SPECIAL_LANGUAGES = ("code", "multilingual")


def card_metadata(card: Card, language: Sequence[str], is_synthetic: bool | None, **own: Any) -> dict[str, Any]:
    """Returns the keys of a card that have a value.

    `language` holds ISO 639 codes; if `is_synthetic` is None, the card decides; `own` is of `model_keys` or
    `dataset_keys`.
    """
    codes = [language] if isinstance(language, str) else list(language)
    for code in codes:
        if not re.fullmatch(r"[a-z]{2,3}", code) and code not in SPECIAL_LANGUAGES:
            raise HubError(
                f'"{code}" is not a language that the Hub knows. Give an ISO 639 code such as "en", or "multilingual".'
            )
    synthetic = card.is_synthetic() if is_synthetic is None else is_synthetic
    tags = [TAG, SYNTHETIC_TAG] if synthetic else [TAG]
    values = {"language": codes, "license": _license(card), **own, "tags": tags}
    return {name: value for name, value in values.items() if value}


def model_keys(card: Card, task: str, library: str | None, adapter: bool, on_hub: OnHub) -> dict[str, Any]:
    """Returns the keys of a model's card; `adapter` says whether the files are an adapter of the base model."""
    base = base_model(card)
    if base is not None and not on_hub("model", base):
        base = None
    trained = any(node.kind == "trainer" for node in card.lineage())
    # A model that was trained here is not merely quantized.
    relation = "adapter" if adapter else "quantized" if card.class_name == "Quantize" and not trained else "finetune"
    return {
        "library_name": library,
        "pipeline_tag": _task(task),
        "base_model": base,
        "base_model_relation": relation if base else None,
        "datasets": _datasets(card, on_hub),
    }


def dataset_keys(card: Card, rows: int, task_categories: Sequence[str], on_hub: OnHub) -> dict[str, Any]:
    """Returns the keys of a dataset's card, without features and splits."""
    return {
        "pretty_name": card.name,
        "task_categories": [_task(task) for task in task_categories],
        "size_categories": [_size(rows)],
        "source_datasets": _datasets(card, on_hub),
    }


def base_model(card: Card) -> str | None:
    """Returns the name of a published model's base model, as in the script.

    A stage inherits the base model of its input; None with several inputs, since a teacher is not a base model.
    """
    if card.base_model and not is_local(card.base_model):
        return card.base_model
    models = [parent for parent in card.parents if parent.kind != "step"]
    if card.kind == "stage" and len(models) == 1:
        return base_model(models[0])
    return None


def is_local(name: str) -> bool:
    """Returns whether a model's or dataset's name is a local path."""
    if "://" in name:
        return False
    if name.startswith((".", "/", "~")) or name.endswith("/") or re.match(r"([A-Za-z]:)?[^\s\\]*\\", name):
        return True
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def public_name(name: str) -> str:
    """Returns a name without local folders, logins or signed queries, for publication."""
    if is_local(name):
        last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
        return f"{last or 'folder'} (local)"
    if "://" in name:
        url = urlsplit(name)
        return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return PATH_IN_TEXT.sub(r"\1 (local)", name)


def stated(cards: Iterable[Card], attribute: str) -> list[str]:
    """Collects a list attribute over a lineage, each value once, in order."""
    return list(dict.fromkeys(value for card in cards for value in getattr(card, attribute) if value))


def is_valid_id(name: str) -> bool:
    """Returns whether a name is valid on the Hub, as `name` or `namespace/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _datasets(card: Card, on_hub: OnHub) -> list[str]:
    return [name for name in stated(card.lineage(), "datasets") if on_hub("dataset", name)]


def _license(card: Card) -> str | None:
    """Returns the only licence; `other` for several or unknown ones, which the text lists."""
    licenses = {re.sub(r"[\s_]+", "-", name.strip().lower()) for name in stated(card.lineage(), "licenses")}
    if not licenses:
        return None
    return licenses.pop() if len(licenses) == 1 and licenses <= LICENSES else "other"


def _task(task: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", task):
        raise HubError(f'"{task}" is not the name of a task. The names are at https://huggingface.co/tasks.')
    return task


def _size(rows: int) -> str:
    """Returns the Hub's name of a size: between two powers of ten."""
    limits = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    place = len(str(rows)) - 3
    if place <= 0:
        return f"n<{limits[0]}"
    return f"{limits[place - 1]}<n<{limits[place]}" if place < len(limits) else f"n>{limits[-1]}"
