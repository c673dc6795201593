"""The form in which texts are compared."""

from __future__ import annotations

from datadreamer_like.models.words import folded


def normalized(text: str) -> str:
    """Returns a text in NFKC form and one case, with single spaces."""
    return " ".join(folded(text).split())
