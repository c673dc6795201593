"""What the card of a base model says, as far as it is on this machine: nothing is fetched for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.MULTILINE | re.DOTALL)
_LICENSE = re.compile(r"^license:\s*[\"']?([\w.\-]+)", re.MULTILINE)


def hub_id(model_name: Any) -> str | None:
    """Returns a model's id on the Hub, None for a folder or an object."""
    if not isinstance(model_name, str) or Path(model_name).exists() or model_name.count("/") > 1:
        return None
    return model_name if re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", model_name) else None


def license_of(model_name: str, revision: str | None = None) -> str | None:
    """Returns the licence that a model's card states: in its folder, or in the Hub's cache on this machine."""
    readme: Any = Path(model_name) / "README.md"
    if hub_id(model_name) is not None:
        readme = try_to_load_from_cache(model_name, "README.md", revision=revision)
    if not isinstance(readme, str | Path) or not Path(readme).is_file():
        return None
    head = _FRONT_MATTER.match(Path(readme).read_text(encoding="utf-8", errors="replace"))
    found = _LICENSE.search(head[1]) if head else None
    return found[1] if found else None
