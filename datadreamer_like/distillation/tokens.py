"""Texts as batches of token ids, for any tokenizer: also one without padding or end token, or texts of no token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .words import token_ids

NO_LIMIT = 10**9  # tokenizers without a limit have 10^30
TOKENS_IN_CACHE = 512
"""Tokens at once whose activations, of an encoder of usual width, mostly stay in the cache of one core of a CPU."""
# RoBERTa-style models number positions from the padding id.
_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet"}


def padding_id(tokenizer: Any) -> int:
    """Returns the token id to pad with: the tokenizer's own, else any, since padding is masked."""
    return _first(tokenizer, "pad", "eos", "unk")


def start_id(tokenizer: Any) -> int:
    """Returns the one token of a text that has none, since models need one: BOS, else EOS or another special token."""
    return _first(tokenizer, "bos", "eos", "cls", "sep", "unk", "pad")


def never_empty(ids: Sequence[list[int]], tokenizer: Any) -> list[list[int]]:
    """Returns token ids of texts, with `start_id` for texts without tokens."""
    return [row or [start_id(tokenizer)] for row in ids]


def padded(sequences: Sequence[Any], value: int, *, left: bool = False) -> Tensor:
    """Returns sequences of token ids as one tensor [batch, longest], padded on the right, or on the `left`."""
    longest = max(len(sequence) for sequence in sequences)
    result = np.full((len(sequences), longest), value, dtype=np.int64)
    for row, sequence in zip(result, sequences, strict=True):
        start = longest - len(sequence) if left else 0
        row[start : start + len(sequence)] = sequence
    return torch.from_numpy(result)


def padded_inputs(ids: Sequence[Any], padding: int, *, left: bool = False) -> dict[str, Tensor]:
    """Returns `input_ids` and `attention_mask` (0 for padding) [batch, longest] for sequences of token ids."""
    mask = padded([np.ones(len(sequence), dtype=np.int64) for sequence in ids], 0, left=left)
    return {"input_ids": padded(ids, padding, left=left), "attention_mask": mask}


def batch_of(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """Returns texts, cut at `max_length` tokens, as a batch of everything that the tokenizer gives a model.

    Padding is on the right, as in training: on the left it would move the positions of a text's tokens.
    """
    found = tokenizer(list(texts), truncation=True, max_length=max_length, verbose=False)
    for row, ids in enumerate(found["input_ids"]):
        if not ids:
            for name, values in found.items():
                values[row] = [start_id(tokenizer)] if name == "input_ids" else [int(name == "attention_mask")]
    fill = {"input_ids": padding_id(tokenizer), "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
    return {name: padded(values, fill.get(name, 0)) for name, values in found.items()}


def parts_in_cache(
    batch: Mapping[str, Tensor], device: torch.device
) -> Iterator[tuple[Sequence[int], Mapping[str, Tensor]]]:
    """Yields a batch padded on the right in parts that are computed fast on a device, each with the rows it has.

    On a CPU, rows of similar length are together, without padding that none of them needs, and at most
    `TOKENS_IN_CACHE` tokens a thread: what larger parts compute does not stay in the cache. Other devices take the
    batch as it is.
    """
    ids = batch["input_ids"]
    if device.type != "cpu":
        yield range(len(ids)), batch
        return
    lengths = batch.get("attention_mask", torch.ones_like(ids)).sum(1).clamp(min=1).tolist()
    left = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while left:
        longest = lengths[left[0]]
        count = max(1, TOKENS_IN_CACHE * torch.get_num_threads() // longest)
        rows, left = left[:count], left[count:]
        yield rows, {name: values[rows, :longest] for name, values in batch.items()}


def flat_batch_of(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
    """Returns texts, cut at `max_length` tokens, as `input_ids` [tokens] of all texts and their `offsets` [batch].

    For a tokenizer that adds no special tokens.
    """
    ids = never_empty([row[:max_length] for row in token_ids(tokenizer, texts)], tokenizer)
    starts = [0, *accumulate(map(len, ids))][: len(ids)]
    return {"input_ids": torch.tensor([*chain.from_iterable(ids)]), "offsets": torch.tensor(starts)}


def token_text(tokenizer: Any, token: int) -> str:
    """Returns the text of a token inside a text, with the blank before it, which some tokenizers drop at the start."""
    text, piece = str(tokenizer.decode([token])), tokenizer.convert_ids_to_tokens(token)
    return f" {text}" if str(piece).startswith("▁") and not text.startswith(" ") else text


def max_tokens(config: Any, tokenizer: Any) -> int | None:
    """Returns the smaller of the tokenizer's limit and the model's positions; None if neither is known."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and getattr(config, "model_type", None) in _POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    limits = (tokenizer.model_max_length, positions)
    return min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)


def _first(tokenizer: Any, *names: str) -> int:
    ids = [getattr(tokenizer, f"{name}_token_id", None) for name in names]
    return next((int(token) for token in ids if token is not None), 0)
