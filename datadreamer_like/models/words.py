"""The words of a text, for what counts words or compares texts by them."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
# Kana, Han characters and their extensions, kana of half width: scripts that are written without blanks.
_WITHOUT_BLANKS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_IS_WITHOUT_BLANKS = re.compile(f"[{_WITHOUT_BLANKS}]")
_WORD_OR_CHARACTER = re.compile(rf"(?=\w)[{_WITHOUT_BLANKS}]|[^\W{_WITHOUT_BLANKS}]+")


def words_of(text: str) -> list[str]:
    """Returns the runs of letters and digits of a text; each Chinese or Japanese character is a word of its own.

    Example:
        >>> words_of("It's 3 o'clock."), words_of("我有2只cats")
        (['It', 's', '3', 'o', 'clock'], ['我', '有', '2', '只', 'cats'])
    """
    if text.isascii() or not _IS_WITHOUT_BLANKS.search(text):
        return _WORD.findall(text)
    return _WORD_OR_CHARACTER.findall(text)
