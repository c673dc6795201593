"""How well a language model foresees texts, in measures by token and in one that all tokenizers share.

A tokenizer of fewer words cuts a text into more tokens, each easier to foresee, so losses and perplexities by token can
be compared only between models that share a tokenizer. The bits that a model needs for the text itself can always be:
all its tokens' losses together, over the bytes of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from datadreamer_like.report import Interval

from .bootstrap import Weights, paired_bootstrap

_LARGEST_EXPONENT = 700.0


def bits_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> float:
    """Returns the bits that a model needs for a byte of text: all losses together over all bytes.

    Args:
        nats: Loss of each text, summed over its tokens [rows].
        sizes: Bytes of each text in UTF-8 [rows].
    """
    return math.fsum(nats) / (sum(sizes) * math.log(2))


def token_loss(nats: Sequence[float], tokens: Sequence[int]) -> float:
    """Returns the mean loss of a token in nats: all losses together over all tokens, so that long texts count more."""
    return math.fsum(nats) / max(1, sum(tokens))


def perplexity(loss: float) -> float:
    """Returns the perplexity by token that a mean loss of a token stands for."""
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
    """Returns how many bits a byte another model needs more than a first one for the same texts; below 0 is better.

    Both are ratios of sums over the rows drawn, losses over bytes, so that a text counts by its length as it does in
    `bits_per_byte`. The interval is that of the paired bootstrap: see `evaluation.bootstrap.paired_bootstrap`.

    Args:
        first: Loss of each text in nats under the first model, summed over its tokens [rows].
        other: The same under the other model [rows].
        sizes: Bytes of each text [rows].
        resamples: How often rows are drawn anew.
        seed: Seed of the drawing.
        level: Share of the resamples that lie inside the interval.
    """
    more = (np.asarray(other, dtype=np.float64) - np.asarray(first, dtype=np.float64)) / math.log(2)
    lengths = np.asarray(sizes, dtype=np.float64)

    def differences(weights: Weights) -> dict[str, Weights]:
        # Rows of empty texts alone have no bytes to divide by.
        return {"bits_per_byte": weights @ more / np.maximum(weights @ lengths, 1.0)}

    found = paired_bootstrap(differences, np.ones(len(more)), resamples=resamples, seed=seed, level=level)
    return found["bits_per_byte"]
