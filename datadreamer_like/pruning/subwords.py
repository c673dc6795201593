"""The vocabulary of a `tokenizers` tokenizer: what its tokens are built from, and how to remove some.

It works on the library's JSON form, which describes the tokenizer completely.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

_BYTES = 256


class Subwords:
    """The vocabulary and rules of a WordPiece, BPE or Unigram tokenizer.

    Args:
        backend: The tokenizer; it is copied, not changed.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._json: dict[str, Any] = json.loads(backend.to_str())
        self._model: dict[str, Any] = self._json["model"]
        plain = {**self._json, "padding": None, "truncation": None}
        self._encoder = Tokenizer.from_str(json.dumps(plain))

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

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each token of the model; added tokens are not in it unless the model has them too."""
        vocab = self._model["vocab"]
        return {piece: index for index, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {token: piece for piece, token in self.ids.items()}

    @cached_property
    def _merges(self) -> list[tuple[str, str]]:
        merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in self._model.get("merges", []))
        return [(first, second) for first, second in merges]

    @cached_property
    def _rank(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self._merges)}

    def always_needed(self) -> set[int]:
        """Tokens that the tokenizer always needs: added tokens, the unknown token, and byte fallback tokens."""
        needed = {token["id"] for token in self._json["added_tokens"]}
        unknown = self._model.get("unk_token")
        if unknown is not None and unknown in self.ids:
            needed.add(self.ids[unknown])
        if self._model.get("unk_id") is not None:
            needed.add(self._model["unk_id"])
        if self._model.get("byte_fallback"):
            needed.update(self._ids_of(f"<0x{byte:02X}>" for byte in range(_BYTES)))
        if '"ByteLevel"' in json.dumps([self._json["pre_tokenizer"], self._json["normalizer"]]):
            needed.update(self._ids_of(_byte_characters()))
        return needed

    def parts(self, token: int) -> set[int]:
        """The token, and the tokens from which the tokenizer builds or spells it."""
        piece = self._pieces.get(token)
        if piece is None:
            return {token}
        if self._model["type"] == "BPE":
            return {token} | self._ids_of(self._built_from(piece))
        prefix = self._model.get("continuing_subword_prefix", "")
        letters = piece.removeprefix(prefix) if prefix else piece
        return {token} | self._ids_of([*letters, *(prefix + letter for letter in letters)])

    def _built_from(self, piece: str) -> set[str]:
        """All intermediate pieces of the byte-pair merges that build this one.

        Inside a longer word the same merges happen in the same order, as none of them crosses the piece's border.
        """
        symbols, seen = list(piece), set(piece)
        while len(symbols) > 1:
            pairs = enumerate(pairwise(symbols))
            rank, index = min((self._rank.get(pair, len(self._rank)), index) for index, pair in pairs)
            if rank == len(self._rank):
                break
            symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
            seen.add(symbols[index])
        return seen

    def _ids_of(self, pieces: Iterable[str]) -> set[int]:
        return {self.ids[piece] for piece in pieces if piece in self.ids}

    def trimmed(self, new_id: Mapping[int, int]) -> str:
        """Returns the tokenizer with only these tokens, under new ids, as JSON for `Tokenizer.from_str`.

        Args:
            new_id: New id of each token that stays, by old id.
        """
        result: dict[str, Any] = json.loads(json.dumps(self._json))
        model = result["model"]
        if isinstance(model["vocab"], list):
            model["vocab"] = [entry for token, entry in enumerate(model["vocab"]) if token in new_id]
            if model.get("unk_id") is not None:
                model["unk_id"] = new_id[model["unk_id"]]
        else:
            model["vocab"] = {piece: new_id[token] for piece, token in self.ids.items() if token in new_id}
        if "merges" in model:
            vocab = model["vocab"]
            model["merges"] = [
                [first, second]
                for first, second in self._merges
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
        return json.dumps(result)


def _post_processors(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    inner = part.get("processors")
    return [part] if inner is None else [leaf for one in inner for leaf in _post_processors(one)]


def _byte_characters() -> list[str]:
    """The characters that represent the 256 bytes in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(_BYTES + index) for index in range(len(others))]
