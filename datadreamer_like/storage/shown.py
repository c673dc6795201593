"""Texts from data as they are shown in tables, pictures, pages and cards: characters, never markup or control codes."""

from __future__ import annotations

import re

# Control codes but tabs and line ends, other line separators, and codes that reorder the text around them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_MARKUP = re.compile(r"([\\`*_\[\]<>|#~$])")


def clean(text: str) -> str:
    """Returns a text without control codes and half characters, which terminals obey, and XML and files refuse."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", plain).encode("utf-8", "replace").decode()


def one_line(text: str, most: int | None = None) -> str:
    """Returns a text on one line; of more than `most` characters, its start and end."""
    line = " ".join(clean(text).split())
    if most is None or len(line) <= most:
        return line
    half = (most - 1) // 2
    return f"{line[: most - 1 - half]}…{line[-half:]}"


def markdown(text: str) -> str:
    """Returns a text on one line, escaped for Markdown with HTML and formulas."""
    return _MARKUP.sub(r"\\\1", one_line(text).replace("&", "&amp;"))
