"""What a model computes for texts, in one shape for every runtime, and how far two runtimes are apart."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.distillation.tokens import NO_LIMIT, batch_of, max_tokens

MAX_TOKENS = 511
"""Texts are cut at this many tokens, or at one less than the model's own limit: llama.cpp adds one to each."""


@torch.no_grad()
def logits_for_texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Returns one row for each text, fp32 [texts, size]: a classifier's logits, or those of the last token.

    A model without a head gives the last token's hidden state. Texts are run one at a time, without padding.
    """
    takes = inspect.signature(model.forward).parameters
    limit = min((max_tokens(model.config, tokenizer) or NO_LIMIT) - 1, MAX_TOKENS)
    rows = []
    with eval_mode(model):
        for text in texts:
            batch = {name: value for name, value in batch_of(tokenizer, [text], limit).items() if name in takes}
            found = model(**{name: value.to(model.device) for name, value in batch.items()})
            values = found.logits if "logits" in found else found.last_hidden_state
            rows.append((values if values.dim() == 2 else values[:, -1])[0].float().cpu())
    return torch.stack(rows)


def distance(wanted: Tensor, found: Tensor, *, shifted: bool = False) -> float:
    """Returns the relative L2 distance of logits [texts, size]: ‖found − wanted‖ / ‖wanted‖; infinite for NaN.

    With `shifted`, a constant for each row does not count: a softmax ignores it, and some runtimes give
    log-probabilities.
    """
    if shifted:
        wanted, found = (each - each.mean(-1, keepdim=True) for each in (wanted, found))
    value = float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-12))
    return value if value == value else float("inf")
