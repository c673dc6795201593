# ruff: noqa: TID253  (loaded only by models that have loaded torch)
"""Log-probabilities of given texts after prompts, by a transformers model that computes each prompt once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datadreamer_like.distillation.tokens import padded, padded_inputs, padding_id

# Continuations computed at once: each has a copy of its prompt's keys and values.
_ROWS = 64
_NONE = -100


@torch.inference_mode()
def score(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Returns the log-probability of each continuation of each prompt, all as token ids, none of them empty."""
    batch = padded_inputs(prompts, padding_id(tokenizer), left=not model.config.is_encoder_decoder)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    pairs = [(row, ids) for row, own in enumerate(continuations) for ids in own]
    score_pairs = _after_encoder if model.config.is_encoder_decoder else _after_prompt
    found = score_pairs(model, batch, pairs, padding_id(tokenizer))
    ends = torch.tensor([len(own) for own in continuations]).cumsum(0).tolist()
    return [found[end - len(own) : end] for own, end in zip(continuations, ends, strict=True)]


def _after_prompt(
    model: Any, batch: dict[str, Tensor], pairs: Sequence[tuple[int, Sequence[int]]], padding: int
) -> list[float]:
    mask = batch["attention_mask"]
    prompt = model(**batch, **_positions(model, mask), use_cache=True, **_last_logits(model))
    first = prompt.logits[:, -1].float().log_softmax(-1)
    found: list[float] = first[[row for row, _ in pairs], [ids[0] for _, ids in pairs]].tolist()
    longer = [index for index, (_, ids) in enumerate(pairs) if len(ids) > 1]
    for start in range(0, len(longer), _ROWS):
        part = longer[start : start + _ROWS]
        rows = torch.tensor([pairs[index][0] for index in part], device=mask.device)
        tails = [pairs[index][1] for index in part]
        ids = padded([tail[:-1] for tail in tails], padding).to(mask.device)
        wanted = padded([tail[1:] for tail in tails], _NONE).to(mask.device)
        cache = copy.deepcopy(prompt.past_key_values)
        cache.batch_select_indices(rows)
        whole = torch.cat([mask[rows], (wanted != _NONE).to(mask.dtype)], dim=1)
        places = {name: value[:, mask.shape[1] :] for name, value in _positions(model, whole).items()}
        logits = model(input_ids=ids, attention_mask=whole, past_key_values=cache, use_cache=True, **places).logits
        for index, more in zip(part, _sums(logits, wanted), strict=True):
            found[index] += more
    return found


def _after_encoder(
    model: Any, batch: dict[str, Tensor], pairs: Sequence[tuple[int, Sequence[int]]], padding: int
) -> list[float]:
    encoded = model.get_encoder()(**batch).last_hidden_state
    start = int(model.config.decoder_start_token_id)
    found: list[float] = []
    for begin in range(0, len(pairs), _ROWS):
        part = pairs[begin : begin + _ROWS]
        rows = torch.tensor([row for row, _ in part], device=encoded.device)
        wanted = padded([ids for _, ids in part], _NONE).to(encoded.device)
        logits = model(
            encoder_outputs=(encoded[rows],),
            attention_mask=batch["attention_mask"][rows],
            decoder_input_ids=padded([[start, *ids[:-1]] for _, ids in part], padding).to(encoded.device),
        ).logits
        found += _sums(logits, wanted)
    return found


def _sums(logits: Tensor, wanted: Tensor) -> list[float]:
    """Sums of the log-probabilities of the wanted tokens [rows, seq]."""
    logprobs = logits.float().log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    sums: list[float] = logprobs.masked_fill(wanted == _NONE, 0.0).double().sum(-1).tolist()
    return sums


def _positions(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """Positions that do not count the padding on the left, for models that take them."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}


def _last_logits(model: Any) -> dict[str, Any]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
