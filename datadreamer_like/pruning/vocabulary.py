"""Trims the vocabulary to the tokens of a corpus; embeddings are half of a small encoder."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import PreTrainedModel

from datadreamer_like.compression import CompressionMethod, Corpus
from datadreamer_like.compression.method import already_quantized
from datadreamer_like.errors import DataError, EmptyDataset, MethodMisfit, check_number, with_article
from datadreamer_like.formats.modules import token_embeddings


@dataclass(frozen=True)
class Vocabulary(CompressionMethod):
    """Keeps the tokens that a corpus uses, in the embedding, the output head and the tokenizer.

    Special tokens are always kept, and with each token those that the tokenizer needs to build it: the merges that lead
    to it (BPE), its characters (WordPiece, Unigram), the bytes (byte-level or byte fallback). Text of kept tokens is
    tokenized as before, with ids in the same order and equal logits; other text is split into shorter kept pieces, or
    becomes the unknown token if there are none. What the chat template writes around messages is kept like the corpus.
    Token ids in the generation config move too; sequences with a removed token leave lists such as `bad_words_ids`. The
    saved model and tokenizer load in plain transformers.

    Attributes:
        size: Maximum number of tokens, special ones included; the most frequent are kept. None keeps all that occur.

    Example:
        `small, trimmed = Vocabulary(size=8000).apply(model, texts, tokenizer=tokenizer)`
    """

    size: int | None = None

    kind = "pruning"
    needs_calibration = True
    changes_tokenizer = True
    result_version = 2

    def __post_init__(self) -> None:
        check_number(self.size, "size", 1, whole=True, optional=True)

    def fits(self, model: nn.Module) -> str | None:
        """Transformers models with a token embedding that is not shared with another stack."""
        if reason := already_quantized(model):
            return reason
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            return "it has an encoder and a decoder that may share embeddings. Use pruning.Magnitude."
        if not isinstance(model, PreTrainedModel) or not token_embeddings(model):
            return "it has no plain token embedding (nn.Embedding) to take rows from."
        return None

    def fits_tokenizer(self, model: nn.Module, tokenizer: Any) -> str | None:
        """Tokenizers of the `tokenizers` library."""
        embedding = cast(Any, model).get_input_embeddings()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return f"its tokenizer, {type(tokenizer).__name__}, is not one of the `tokenizers` library."
        if max(backend.get_vocab().values()) >= embedding.num_embeddings:
            return f"its tokenizer has ids beyond the {embedding.num_embeddings} rows of the embedding."
        return Subwords(backend).misfit()

    def change(self, model: nn.Module, calibration: Corpus) -> None:
        """Trims model and tokenizer in place."""
        tokenizer, rows = calibration.tokenizer, cast(Any, model).get_input_embeddings().num_embeddings
        subwords = Subwords(tokenizer.backend_tokenizer)
        special = {token for _, _, ids in _token_ids(model) for token in ids if 0 <= token < rows}
        for ids in subwords.encode(_around_messages(tokenizer)):
            special |= set().union(*map(subwords.parts, ids))
        kept = self._choose(subwords, calibration.texts, special)
        new_id = {old: new for new, old in enumerate(kept)}
        _trim_model(model, kept, new_id)
        tokenizer._tokenizer = subwords.trimmed(new_id)

    def _choose(self, subwords: Subwords, corpus: Iterable[str], special: set[int]) -> list[int]:
        counts = _count(subwords, corpus)
        kept = subwords.always_needed() | special
        if self.size is not None and len(kept) > self.size:
            raise MethodMisfit(
                f"size={self.size} is too small: special and fallback tokens alone, with those of the chat template, "
                f"are {len(kept)}. Choose a larger size."
            )
        for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            added = subwords.parts(token) - kept
            if self.size is None or len(kept) + len(added) <= self.size:
                kept |= added
        return sorted(kept)


def _count(subwords: Subwords, corpus: Iterable[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    texts = _checked(corpus)
    while batch := list(islice(texts, 1000)):
        for ids in subwords.encode(batch):
            counts.update(ids)
    if not counts:
        raise EmptyDataset("Vocabulary got no text to count tokens in. Pass the texts that the model will see.")
    return counts


def _around_messages(tokenizer: Any) -> list[str]:
    """What a chat template writes for messages of each role that it takes, without any text in them."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    found = []
    for roles in (["user"], ["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant", "tool"]):
        messages = [{"role": role, "content": ""} for role in roles]
        for more in (False, True):
            # Templates refuse roles that they do not have, by errors of many classes.
            with suppress(Exception):
                found.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=more))
    return found


def _checked(corpus: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(corpus):
        if not isinstance(text, str):
            raise DataError(f"Calibration text {index} is {type(text).__name__}, not a text. Filter it out first.")
        yield text


def _token_ids(model: Any) -> list[tuple[Any, str, list[int]]]:
    """Token ids in the model's configs: the config, the attribute, and its value or values."""
    configs = model.config, model.config.get_text_config(), getattr(model, "generation_config", None)
    return [
        (config, name, value if isinstance(value, list) else [value])
        for config in {id(config): config for config in configs if config is not None}.values()
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_ids")) and isinstance(value, int | list)
    ]


def _trim_model(model: Any, kept: list[int], new_id: dict[int, int]) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    _refuse_moved_padding(model, embedding, new_id)
    padding = embedding.padding_idx
    rows = torch.tensor(kept, device=embedding.weight.device)
    tensors = [embedding.weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    moved_tensors = {id(tensor): tensor for tensor in tensors if tensor is not None}
    before = {name: tensor.shape for name, tensor in model.named_parameters() if id(tensor) not in moved_tensors}
    for tensor in moved_tensors.values():
        # Move the kept rows to the front; resizing then removes the rest and keeps weights tied.
        tensor[: len(kept)] = tensor[rows].clone()
    model.resize_token_embeddings(len(kept))
    after = dict(model.named_parameters())
    if other := next((name for name, shape in before.items() if name in after and after[name].shape != shape), None):
        raise MethodMisfit(
            f'Vocabulary does not fit {type(model).__name__}: "{other}" also has a part for each token, which this '
            "method does not know."
        )
    model.get_input_embeddings().padding_idx = None if padding is None else new_id.get(padding)
    for config, name, ids in _token_ids(model):
        moved = [new_id.get(token, token) for token in ids]
        setattr(config, name, moved if isinstance(getattr(config, name), list) else moved[0])
    _move_lists(getattr(model, "generation_config", None), new_id)


def _move_lists(config: Any, new_id: Mapping[int, int]) -> None:
    """Moves the token ids that steer a generation; what names a removed token, which never comes up, is left out."""
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if tokens := getattr(config, name, None):
            setattr(config, name, [new_id[token] for token in tokens if token in new_id] or None)
    if words := getattr(config, "bad_words_ids", None):
        found = [[new_id[token] for token in word] for word in words if new_id.keys() >= set(word)]
        config.bad_words_ids = found or None
    if biases := getattr(config, "sequence_bias", None):
        pairs = biases.items() if isinstance(biases, dict) else biases
        moved = [[[new_id[t] for t in tokens], bias] for tokens, bias in pairs if new_id.keys() >= set(tokens)]
        config.sequence_bias = moved or None


def _refuse_moved_padding(model: nn.Module, embedding: nn.Embedding, new_id: dict[int, int]) -> None:
    # RoBERTa numbers positions from the id of the padding token.
    others = [other for other in model.modules() if isinstance(other, nn.Embedding) and other is not embedding]
    for old in [other.padding_idx for other in others if other.padding_idx]:
        if new_id.get(old, old) != old:
            raise MethodMisfit(
                f"{type(model).__name__} counts positions from its padding token's id, {old}, which would become "
                f"{new_id[old]}, as tokens before it are removed. Use a tokenizer whose special tokens come first."
            )


class Subwords:
    """The vocabulary and rules of a WordPiece, BPE or Unigram tokenizer, from a copy of its complete JSON form."""

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
            return f"its tokenizer is {with_article(kind)}; WordPiece, BPE and Unigram can be trimmed."
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
