"""Token ids of texts, by a table of words where a tokenizer reads each word on its own: many times as fast."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

_MOST_WORDS = 200_000
_WORDS_APART = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_CHARACTERS_APART = {None, "BertNormalizer", "Lowercase", "NFD", "StripAccents"}
_TABLES: WeakKeyDictionary[Any, WordTable] = WeakKeyDictionary()


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yields the token ids of each text, without special tokens and without cutting."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        flags = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        yield from tokenizer(list(texts), add_special_tokens=False, **flags)["input_ids"]
        return
    table = _TABLES.get(tokenizer)
    if table is None or table.backend is not backend:
        table = _TABLES[tokenizer] = WordTable(backend)
    yield from (table.ids(text) for text in texts)


class WordTable:
    """The token ids of words that were seen before.

    Most of a static model's time is spent on splitting words that it has split before. A BERT-style tokenizer splits
    texts at spaces first and then looks at each word alone, so that the ids of a text are those of its words. Others,
    such as byte-level ones, read the whole text.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._known: dict[str, list[int]] = {}
        self._whole = not _reads_words_apart(json.loads(backend.to_str()))

    def ids(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        if self._whole:
            return self._encoded(text)
        found: list[int] = []
        for word in text.split(" "):
            ids = self._known.get(word)
            if ids is None:
                if len(self._known) >= _MOST_WORDS:
                    self._known.clear()
                ids = self._known[word] = self._encoded(word)
            found += ids
        return found

    def _encoded(self, text: str) -> list[int]:
        self.backend.no_truncation()
        self.backend.no_padding()
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids


def _reads_words_apart(rules: dict[str, Any]) -> bool:
    """Whether a tokenizer, in its JSON form, gives the words of a text the ids that each has alone."""
    kind = (rules["pre_tokenizer"] or {}).get("type")
    normalizer = rules["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    plain = all(" " not in token["content"] for token in rules["added_tokens"])
    return kind in _WORDS_APART and plain and all(step.get("type") in _CHARACTERS_APART for step in steps)
