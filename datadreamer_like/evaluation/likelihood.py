"""Likelihood metrics of language models: loss and perplexity per token, and bits per byte.

A smaller vocabulary splits a text into more tokens, each easier to predict, so losses and perplexities per token can be
compared only between models that share a tokenizer. Bits per byte can always be compared: the losses of all tokens,
over the bytes of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from datadreamer_like.report import Interval

from .bootstrap import Weights, paired_bootstrap

_LARGEST_EXPONENT = 700.0


def bits_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> float:
    """Returns the bits per byte of text: the sum of all losses over the sum of all bytes.

    Args:
        nats: Loss of each text, summed over its tokens [rows].
        sizes: Bytes of each text in UTF-8 [rows].
    """
    return math.fsum(nats) / (sum(sizes) * math.log(2))


def token_loss(nats: Sequence[float], tokens: Sequence[int]) -> float:
    """Returns the mean loss per token in nats, over all tokens of all texts."""
    return math.fsum(nats) / max(1, sum(tokens))


def perplexity(loss: float) -> float:
    """Returns the perplexity for a mean loss per token in nats."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


def paired_bits_per_byte(
    first: Sequence[float],
    other: Sequence[float],
    sizes: Sequence[int],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns the difference in bits per byte between two models on the same texts, `other - first`.

    Each text counts by its length, as in `bits_per_byte`. For the interval see
    `evaluation.bootstrap.paired_bootstrap`.

    Args:
        first: Loss of each text in nats under the first model, summed over its tokens [rows].
        other: The same under the other model [rows].
        sizes: Bytes of each text [rows].
        resamples: Number of resamples.
        seed: Seed of the resampling.
        level: Confidence level of the interval.
    """
    more = (np.asarray(other, dtype=np.float64) - np.asarray(first, dtype=np.float64)) / math.log(2)
    lengths = np.asarray(sizes, dtype=np.float64)

    def differences(weights: Weights) -> dict[str, Weights]:
        # A resample of empty texts only has 0 bytes.
        return {"bits_per_byte": weights @ more / np.maximum(weights @ lengths, 1.0)}

    found = paired_bootstrap(differences, np.ones(len(more)), resamples=resamples, seed=seed, level=level)
    return found["bits_per_byte"]
