"""The words of a text, for what counts words or compares texts by them."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_WORD = re.compile(r"\w+")
# Kana, Han characters and their extensions, kana of half width: scripts that are written without blanks.
_WITHOUT_BLANKS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_IS_WITHOUT_BLANKS = re.compile(f"[{_WITHOUT_BLANKS}]")
# Behind these planes there are no marks. Variation selectors choose a picture, such as that of an emoji.
_PLANES, _SELECTORS = range(0x300, 0x20000), range(0xFE00, 0xFE10)


def words_of(text: str) -> list[str]:
    """Returns the runs of letters and digits of a text; each Chinese or Japanese character is a word of its own.

    Marks that belong to a letter, such as the vowels of Devanagari or an accent of its own, are part of its word.

    Example:
        >>> words_of("It's 3 o'clock."), words_of("我有2只cats"), words_of("हिन्दी में")
        (['It', 's', '3', 'o', 'clock'], ['我', '有', '2', '只', 'cats'], ['हिन्दी', 'में'])
    """
    if text.isascii():
        return _WORD.findall(text)
    marks, word, word_or_character = _patterns()
    if _IS_WITHOUT_BLANKS.search(text):
        return word_or_character.findall(text)
    return (word if marks.search(text) else _WORD).findall(text)


def folded(text: str) -> str:
    """Returns a text in Unicode's NFKC form and without case, so that spellings of one word are the same.

    The Turkish İ is an i like any other, which Unicode would give a second dot.
    """
    if text.isascii():
        return text.casefold()
    return unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i")


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Returns patterns of marks, of words, and of words where some scripts have no blanks."""
    codes = (code for code in _PLANES if code not in _SELECTORS and unicodedata.category(chr(code)) in ("Mn", "Mc"))
    marks = "".join(chr(code) for code in codes if not _IS_WITHOUT_BLANKS.match(chr(code)))
    letters = rf"[^\W{_WITHOUT_BLANKS}]"
    return (
        re.compile(f"[{marks}]"),
        re.compile(rf"\w[\w{marks}]*"),
        re.compile(rf"(?=\w)[{_WITHOUT_BLANKS}]|{letters}(?:{letters}|[{marks}])*"),
    )
