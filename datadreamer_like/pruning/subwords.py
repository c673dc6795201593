"""The vocabulary of a `tokenizers` tokenizer: what its tokens are built from, and how to remove some.

It works on the library's JSON form, which describes the tokenizer completely.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel


class Subwords:
    """The vocabulary and rules of a WordPiece, BPE or Unigram tokenizer, which is copied, not changed."""

    def __init__(self, backend: Tokenizer) -> None:
        self._json: dict[str, Any] = json.loads(backend.to_str())
        self._model: dict[str, Any] = self._json["model"]
        plain = {**self._json, "padding": None, "truncation": None}
        self._encoder = Tokenizer.from_str(json.dumps(plain))
        vocab = self._model["vocab"]
        # Added tokens are not in it unless the model has them too.
        self._ids: dict[str, int] = (
            {piece: index for index, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
        )
        self._pieces = {token: piece for piece, token in self._ids.items()}
        merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in self._model.get("merges", []))
        self._ranks = {(first, second): rank for rank, (first, second) in enumerate(merges)}

    def misfit(self) -> str | None:
        """The reason why this tokenizer cannot be trimmed, or None."""
        kind = self._model["type"]
        if kind not in ("WordPiece", "BPE", "Unigram"):
            return f"its tokenizer is a {kind}; WordPiece, BPE and Unigram can be trimmed."
        if kind == "BPE" and (self._model.get("continuing_subword_prefix") or self._model.get("end_of_word_suffix")):
            return (
                "its tokenizer is a BPE that marks pieces by prefix or suffix, whose merges this method cannot follow."
            )
        return None

    def encode(self, texts: list[str]) -> Iterable[list[int]]:
        """The ids of each text with special tokens, without padding or truncation."""
        return (encoding.ids for encoding in self._encoder.encode_batch(texts))

    def always_needed(self) -> set[int]:
        """Tokens that the tokenizer always needs: added tokens, the unknown token, and byte fallback tokens."""
        needed = {token["id"] for token in self._json["added_tokens"]} | self._ids_of([self._model.get("unk_token")])
        if self._model.get("unk_id") is not None:
            needed.add(self._model["unk_id"])
        if self._model.get("byte_fallback"):
            needed |= self._ids_of(f"<0x{byte:02X}>" for byte in range(256))
        if '"ByteLevel"' in json.dumps([self._json["pre_tokenizer"], self._json["normalizer"]]):
            needed |= self._ids_of(ByteLevel.alphabet())
        return needed

    def parts(self, token: int) -> set[int]:
        """The token, and the tokens from which the tokenizer builds or spells it."""
        piece = self._pieces.get(token)
        if piece is None:
            return {token}
        if self._model["type"] == "BPE":
            return {token} | self._ids_of(self._built_from(piece))
        prefix = self._model.get("continuing_subword_prefix", "")
        letters = piece.removeprefix(prefix)
        return {token} | self._ids_of([*letters, *(prefix + letter for letter in letters)])

    def _built_from(self, piece: str) -> set[str]:
        """All intermediate pieces of the byte-pair merges that build this one.

        Inside a longer word the same merges happen in the same order, as none of them crosses the piece's border.
        """
        symbols, seen = list(piece), set(piece)
        while len(symbols) > 1:
            pairs = enumerate(pairwise(symbols))
            rank, index = min((self._ranks.get(pair, len(self._ranks)), index) for index, pair in pairs)
            if rank == len(self._ranks):
                break
            symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
            seen.add(symbols[index])
        return seen

    def _ids_of(self, pieces: Iterable[str | None]) -> set[int]:
        return {self._ids[piece] for piece in pieces if piece in self._ids}

    def trimmed(self, new_id: Mapping[int, int]) -> Tokenizer:
        """Returns the tokenizer with only the tokens that have a new id, by old id."""
        result = copy.deepcopy(self._json)
        model = result["model"]
        if isinstance(model["vocab"], list):
            model["vocab"] = [entry for token, entry in enumerate(model["vocab"]) if token in new_id]
            if model.get("unk_id") is not None:
                model["unk_id"] = new_id[model["unk_id"]]
        else:
            model["vocab"] = {piece: new_id[token] for piece, token in self._ids.items() if token in new_id}
        if "merges" in model:
            vocab = model["vocab"]
            model["merges"] = [
                [first, second]
                for first, second in self._ranks
                if first in vocab and second in vocab and first + second in vocab
            ]
        for token in result["added_tokens"]:
            token["id"] = new_id[token["id"]]
        if result["padding"] is not None:
            result["padding"]["pad_id"] = new_id[result["padding"]["pad_id"]]
        for part in _post_processors(result["post_processor"]):
            for name in ("sep", "cls"):
                if name in part:
                    part[name][1] = new_id[part[name][1]]
            for special in part.get("special_tokens", {}).values():
                special["ids"] = [new_id[token] for token in special["ids"]]
        return Tokenizer.from_str(json.dumps(result))


def _post_processors(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    inner = part.get("processors")
    return [part] if inner is None else [leaf for one in inner for leaf in _post_processors(one)]
