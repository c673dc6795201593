"""A classifier on static embeddings: the mean of a text's token vectors, and a light head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class StaticConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes of a `StaticForSequenceClassification`."""

    model_type = "datadreamer_static"

    def __init__(
        self, vocab_size: int = 0, dimensions: int = 256, hidden_units: int = 0, dropout: float = 0.0, **options: Any
    ) -> None:
        self.vocab_size = vocab_size
        self.dimensions = dimensions
        self.hidden_units = hidden_units
        self.dropout = dropout
        super().__init__(**options)


class StaticForSequenceClassification(PreTrainedModel):
    """Classifies a text by the mean of its tokens' static embeddings.

    Joulin et al. 2016, arXiv:1607.01759; with vectors as in model2vec (Tulkens and van Dongen 2024) as the start. The
    weight of a token is part of its vector. With `hidden_units` in the config there is one hidden layer before the
    logits. Tokens have no order and no context, so a batch needs no padding: pass `input_ids` of all texts in a row,
    with `offsets`.
    """

    config_class = StaticConfig
    config: StaticConfig
    base_model_prefix = "static"
    flat_inputs = True
    """Whether `input_ids` may be flat, with `offsets`; such batches are made faster."""

    def __init__(self, config: StaticConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.dimensions)
        width, classes = config.hidden_units or config.dimensions, int(config.num_labels or 0)
        self.hidden = nn.Linear(config.dimensions, width) if config.hidden_units else None
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, classes)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding."""
        self.embedding = value  # type: ignore[assignment]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, offsets: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Returns logits [batch, classes].

        Args:
            input_ids: Token ids [batch, seq]; with `offsets`, those of all texts [tokens].
            attention_mask: 0 for padding [batch, seq].
            offsets: Where each text begins in `input_ids` [batch].
        """
        if offsets is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            lengths = mask.sum(1)
            input_ids, offsets = input_ids[mask.bool()], lengths.cumsum(0) - lengths
        if type(self.embedding) is nn.Embedding:
            hidden = F.embedding_bag(input_ids, self.embedding.weight, offsets, mode="mean")
        else:  # a quantized one has no plain weight
            ends = torch.cat([offsets, offsets.new_tensor([len(input_ids)])])
            hidden = torch.segment_reduce(self.embedding(input_ids), "mean", offsets=ends)
        if self.hidden is not None:
            hidden = F.gelu(self.hidden(self.dropout(hidden)))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(hidden)))


def token_vectors(vectors: Tensor, dimensions: int, counts: Sequence[int]) -> Tensor:
    """Returns static embeddings [tokens, dimensions] for an encoder's output vectors of single tokens [tokens, hidden].

    Their principal components, weighted by smooth inverse frequency `a / (a + p)`, with a = 0.001 and p the token's
    share of the corpus (Arora, Liang and Ma 2017), and scaled to a mean length of 1. `counts` has each token's number
    of occurrences. If the vectors have fewer components, the rest are zeros.
    """
    centred = vectors.double() - vectors.double().mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    found = centred @ directions[:dimensions].T
    shares = torch.tensor(counts, dtype=torch.float64)
    shares = (shares / shares.sum().clamp(min=1))[:, None]
    found *= 1e-3 / (1e-3 + shares)
    found /= found.norm(dim=1).mean().clamp(min=1e-12)
    return F.pad(found, (0, dimensions - found.shape[1])).float()


AutoConfig.register(StaticConfig.model_type, StaticConfig)
AutoModelForSequenceClassification.register(StaticConfig, StaticForSequenceClassification)
