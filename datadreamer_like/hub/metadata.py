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

from .licenses import LICENSES

TAG = "datadreamer-like"
SYNTHETIC_TAG = "synthetic"

# An absolute path inside a longer text; only its last part is published.
PATH_IN_TEXT = re.compile(r"(?<![\w.:/~-])(?:~?/|[A-Za-z]:\\)[^\s'\",;()]*[/\\]([^\s/\\'\",;()]+)")

SPECIAL_LANGUAGES = ("code", "multilingual")


def model_metadata(
    card: Card,
    *,
    task: str,
    library: str | None,
    adapter: bool,
    language: Sequence[str],
    is_synthetic: bool,
    on_hub: Callable[[str, str], bool],
) -> dict[str, Any]:
    """Returns the YAML of a model's card.

    Args:
        card: Origin of the model.
        task: The Hub's name of the task, such as `text-classification`.
        library: The Hub's name of the library that loads the model, if any.
        adapter: Whether the files are an adapter of the base model.
        language: ISO 639 codes.
        is_synthetic: Whether it was trained on synthetic data.
        on_hub: Returns whether a repository (`"model"` or `"dataset"`, id) exists on the Hub.

    Returns:
        Only keys that have a value.
    """
    base = base_model(card)
    if base is not None and not (_is_hub_id(base) and on_hub("model", base)):
        base = None
    return _present(
        language=_languages(language),
        license=_license(card),
        library_name=library,
        pipeline_tag=_task(task),
        base_model=base,
        base_model_relation=_relation(card, adapter) if base else None,
        datasets=_datasets(card, on_hub),
        tags=_tags(is_synthetic),
    )


def dataset_metadata(
    card: Card,
    *,
    rows: int,
    task_categories: Sequence[str],
    language: Sequence[str],
    is_synthetic: bool,
    on_hub: Callable[[str, str], bool],
) -> dict[str, Any]:
    """Returns the YAML of a dataset's card, without features and splits.

    Args:
        card: Origin of the dataset.
        rows: Rows in all splits.
        task_categories: The Hub's names of its tasks.
        language: ISO 639 codes.
        is_synthetic: Whether a model wrote some of its rows.
        on_hub: Returns whether a repository (`"model"` or `"dataset"`, id) exists on the Hub.

    Returns:
        Only keys that have a value.
    """
    return _present(
        pretty_name=card.name,
        language=_languages(language),
        license=_license(card),
        task_categories=[_task(task) for task in task_categories],
        size_categories=[_size(rows)],
        source_datasets=_datasets(card, on_hub),
        tags=_tags(is_synthetic),
    )


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


def _is_hub_id(name: str) -> bool:
    return is_valid_id(name) and not is_local(name)


def _datasets(card: Card, on_hub: Callable[[str, str], bool]) -> list[str]:
    return [name for name in stated(card.lineage(), "datasets") if _is_hub_id(name) and on_hub("dataset", name)]


def _license(card: Card) -> str | None:
    """Returns the only licence; `other` for several or unknown ones, which the text lists."""
    licenses = {re.sub(r"[\s_]+", "-", name.strip().lower()) for name in stated(card.lineage(), "licenses")}
    if not licenses:
        return None
    return licenses.pop() if len(licenses) == 1 and licenses <= LICENSES else "other"


def _relation(card: Card, adapter: bool) -> str:
    """Returns the relation of a model to its base model; one that was trained here is not merely quantized."""
    if adapter:
        return "adapter"
    trained = any(node.kind == "trainer" for node in card.lineage())
    return "quantized" if card.class_name == "Quantize" and not trained else "finetune"


def _tags(is_synthetic: bool) -> list[str]:
    return [TAG, SYNTHETIC_TAG] if is_synthetic else [TAG]


def _task(task: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", task):
        raise HubError(f'"{task}" is not the name of a task. The names are at https://huggingface.co/tasks.')
    return task


def _languages(language: Sequence[str]) -> list[str]:
    codes = [language] if isinstance(language, str) else list(language)
    for code in codes:
        if not re.fullmatch(r"[a-z]{2,3}", code) and code not in SPECIAL_LANGUAGES:
            raise HubError(
                f'"{code}" is not a language that the Hub knows. Give an ISO 639 code such as "en", or "multilingual".'
            )
    return codes


def _size(rows: int) -> str:
    limits = {"1K": 10**3, "10K": 10**4, "100K": 10**5, "1M": 10**6, "10M": 10**7, "100M": 10**8, "1B": 10**9}
    below = None
    for name, limit in {**limits, "10B": 10**10, "100B": 10**11, "1T": 10**12}.items():
        if rows < limit:
            return f"{below}<n<{name}" if below else f"n<{name}"
        below = name
    return "n>1T"


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}
