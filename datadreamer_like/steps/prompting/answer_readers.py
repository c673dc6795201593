"""Readers of an LLM's judgement: yes or no, a number, one of two candidates. None if it cannot be read."""

from __future__ import annotations

import re

_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL | re.IGNORECASE)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_CONCLUSION = re.compile(r"\b(?:answer|verdict|conclusion|judgment|judgement)\b(?: is)?\W*(yes|no)\b", re.IGNORECASE)
_NUMBER = r"[-+−]?\d+(?:,\d{3})*(?:\.\d+|,\d+)?(?!\d)"
_OUT_OF = re.compile(rf"({_NUMBER})\s*(?:/|out of)\s*\d+", re.IGNORECASE)
_RATED = re.compile(rf"\b(?:score|rating|rate|rank|grade|answer)\b[^\d\n+−-]{{0,30}}({_NUMBER})", re.IGNORECASE)
_SCALE = re.compile(r"\b(?:from\s+|between\s+|of\s+)?\d+\s*(?:-|–|to|and)\s*\d+\b", re.IGNORECASE)
_PRAISE = (
    r"\W+(?:is|wins|seems|has)\b(?:(?!\bnot\b)[^.\n]){0,20}?"
    r"\b(?:better|best|preferred|preferable|superior|stronger|more|winner)\b"
)
_ANY_NUMBER = re.compile(f"({_NUMBER})")


def read_yes_or_no(text: object) -> bool | None:
    """Reads yes or no: the first word of the text, the only one of the two in it, or its conclusion.

    Example:
        >>> read_yes_or_no("**Yes**, it is."), read_yes_or_no("I would say no."), read_yes_or_no("Perhaps.")
        (True, False, None)
    """
    if isinstance(text, bool):
        return text
    said = _without_thoughts(text).lower()
    words = _YES_NO.findall(said)
    if len(set(words)) == 1 or re.match(r"\W*(yes|no)\b", said):
        return bool(words[0] == "yes")
    conclusions = _CONCLUSION.findall(said)
    return conclusions[-1] == "yes" if conclusions else None


def read_number(text: object) -> float | None:
    """Reads a score: a number at the start of the text, one labelled as a score or given as "x out of y", or the first.

    Example:
        >>> read_number("8/10"), read_number("On a scale of 1 to 10, I give it a 7."), read_number("good")
        (8.0, 7.0, None)
    """
    if isinstance(text, int | float):
        return float(text)
    said = _without_thoughts(text)
    start = re.match(rf"[\s*_`\"'(\[]*({_NUMBER})(?!\s*(?:-|–|to\b)\s*\d)", said)
    if start is not None:
        return _float(start.group(1))
    without_scale = _SCALE.sub(" ", said)
    found = _RATED.search(without_scale) or _OUT_OF.search(without_scale) or _ANY_NUMBER.search(without_scale)
    return None if found is None else _float(found.group(1))


def read_winner(text: object, a_label: str, b_label: str) -> str | None:
    """Reads which of two candidates an answer prefers, by their labels in the prompt: `"a"` or `"b"`.

    Example:
        >>> read_winner("Response B is better.", "Response A:", "Response B:"), read_winner("Both.", "A:", "B:")
        ('b', None)
    """
    said = _without_thoughts(text)
    if said.strip().lower() in ("a", "b"):
        return said.strip().lower()
    full = {"a": _full_name(a_label), "b": _full_name(b_label)}
    short = {"a": _short_name(a_label), "b": _short_name(b_label)}
    for names in (full, short):
        mentioned = [side for side, name in names.items() if name and re.search(name, said)]
        if len(mentioned) == 1:
            return mentioned[0]
        praised = [side for side, name in names.items() if name and re.search(name + _PRAISE, said)]
        if len(praised) == 1:
            return praised[0]
        if mentioned:
            alone = [side for side, name in names.items() if name and re.match(rf"\W*{name}\s*(?:[^\w\s]|\Z)", said)]
            return alone[0] if len(alone) == 1 else None
    return None


def _without_thoughts(text: object) -> str:
    return _THOUGHTS.sub("", text) if isinstance(text, str) else ""


def _full_name(label: str) -> str | None:
    name = label.strip().rstrip(":").strip()
    return rf"(?<!\w)(?i:{re.escape(name)})(?!\w)" if name else None


def _short_name(label: str) -> str | None:
    last = label.strip().rstrip(":").strip().rpartition(" ")[2]
    if len(last) != 1:
        return None
    # "A" before a word is an article, unless the word is a verb.
    article = r"(?!\s+(?!is\b|wins\b|has\b)[a-z])" if last == "A" else ""
    return rf"(?<!\w){re.escape(last)}(?!\w){article}"


def _float(number: str) -> float:
    plain = number.replace("−", "-")
    if re.fullmatch(r"[-+]?\d+(,\d{3})+(\.\d+)?", plain):
        return float(plain.replace(",", ""))
    return float(plain.replace(",", "."))
