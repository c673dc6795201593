"""Trims the vocabulary to the tokens of a corpus; embeddings are half of a small encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from datadreamer_like.compression import CompressionMethod, Corpus
from datadreamer_like.compression.method import already_quantized
from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats.modules import token_embeddings

from .subwords import Subwords


@dataclass(frozen=True)
class Vocabulary(CompressionMethod):
    """Keeps the tokens that a corpus uses, in the embedding, the output head and the tokenizer.

    Special tokens are always kept, and with each token those that the tokenizer needs to build it: the merges that lead
    to it (BPE), its characters (WordPiece, Unigram), the bytes (byte-level or byte fallback). Text of kept tokens is
    tokenized as before, with ids in the same order and equal logits; other text is split into shorter kept pieces, or
    becomes the unknown token if there are none. The saved model and tokenizer load in plain transformers.

    Attributes:
        size: Maximum number of tokens, special ones included; the most frequent are kept. None keeps all that occur.

    Example:
        `small, trimmed = Vocabulary(size=8000).apply(model, texts, tokenizer=tokenizer)`
    """

    size: int | None = None

    kind = "pruning"
    needs_calibration = True
    changes_tokenizer = True

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise DefinitionError(f"size={self.size} must be a number of tokens from 1, or None.")

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
        tokenizer = calibration.tokenizer
        subwords = Subwords(tokenizer.backend_tokenizer)
        kept = self._choose(subwords, calibration.texts, _special_ids(model))
        new_id = {old: new for new, old in enumerate(kept)}
        _trim_model(model, kept, new_id)
        tokenizer._tokenizer = subwords.trimmed(new_id)

    def _choose(self, subwords: Subwords, corpus: Iterable[str], special: set[int]) -> list[int]:
        counts = _count(subwords, corpus)
        kept = subwords.always_needed() | special
        if self.size is not None and len(kept) > self.size:
            raise MethodMisfit(
                f"size={self.size} is too small: the special and fallback tokens alone are {len(kept)}. "
                "Choose a larger size."
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


def _checked(corpus: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(corpus):
        if not isinstance(text, str):
            raise DataError(f"Calibration text {index} is {type(text).__name__}, not a text. Filter it out first.")
        yield text


def _configs(model: Any) -> list[Any]:
    configs = model.config, model.config.get_text_config(), getattr(model, "generation_config", None)
    return list({id(config): config for config in configs if config is not None}.values())


def _token_ids(config: Any) -> dict[str, int | list[int]]:
    return {
        name: value
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_ids")) and isinstance(value, int | list)
    }


def _special_ids(model: nn.Module) -> set[int]:
    rows = cast(Any, model).get_input_embeddings().num_embeddings
    found: set[int] = set()
    for config in _configs(model):
        for value in _token_ids(config).values():
            found.update(value if isinstance(value, list) else [value])
    return {token for token in found if 0 <= token < rows}


def _trim_model(model: Any, kept: list[int], new_id: dict[int, int]) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    _refuse_moved_padding(model, embedding, new_id)
    padding = embedding.padding_idx
    rows = torch.tensor(kept, device=embedding.weight.device)
    tensors = [embedding.weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    for tensor in {id(tensor): tensor for tensor in tensors if tensor is not None}.values():
        # Move the kept rows to the front; resizing then removes the rest and keeps weights tied.
        tensor[: len(kept)] = tensor[rows].clone()
    model.resize_token_embeddings(len(kept))
    model.get_input_embeddings().padding_idx = None if padding is None else new_id.get(padding)
    for config in _configs(model):
        for name, value in _token_ids(config).items():
            moved = [new_id.get(token, token) for token in (value if isinstance(value, list) else [value])]
            setattr(config, name, moved if isinstance(value, list) else moved[0])


def _refuse_moved_padding(model: nn.Module, embedding: nn.Embedding, new_id: dict[int, int]) -> None:
    # RoBERTa numbers positions from the id of the padding token.
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not embedding and module.padding_idx:
            old = module.padding_idx
            if new_id.get(old, old) != old:
                raise MethodMisfit(
                    f"{type(model).__name__} counts positions from its padding token's id, {old}, which would become "
                    f"{new_id[old]}, as tokens before it are removed. Use a tokenizer whose special tokens come first."
                )
