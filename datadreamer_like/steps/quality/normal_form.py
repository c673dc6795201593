"""The form in which texts are compared."""

from __future__ import annotations

import unicodedata


def normalized(text: str) -> str:
    """Returns a text in NFKC form and one case, with single spaces."""
    composed = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(composed.casefold().split())
