"""A classifier on a frozen encoder: pooled hidden states, and a linear head."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from datadreamer_like.errors import DefinitionError

POOLINGS = ("mean", "first", "last")
"""How the hidden states of a text's tokens become one vector."""


class EmbeddingConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The encoder of an `EmbeddingForSequenceClassification`, and how its hidden states are pooled."""

    model_type = "datadreamer_embedding"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: str = "mean",
        normalize: bool = True,
        **options: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.pooling = pooling
        self.normalize = normalize
        super().__init__(**options)


class EmbeddingForSequenceClassification(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Classifies a text by a linear layer on the encoder's embedding of it, of length 1 if `normalize` is set."""

    config_class = EmbeddingConfig
    config: EmbeddingConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__(config)
        inner: Any = config.text_config
        self.encoder = transformers.AutoModel.from_config(inner)  # type: ignore[no-untyped-call]
        self.classifier = nn.Linear(inner.hidden_size, int(config.num_labels or 0))
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> Any:
        """Returns the encoder's token embedding."""
        return self.encoder.get_input_embeddings()

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        """Returns the texts' embeddings [batch, hidden]; other inputs are those of the encoder."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self._pooled(self.encoder(input_ids=input_ids, attention_mask=mask, **inputs), mask)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Returns logits [batch, classes], and the encoder's hidden states or attentions if they are asked for."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = self.encoder(input_ids=input_ids, attention_mask=mask, **inputs)
        logits = self.classifier(self._pooled(found, mask))
        return SequenceClassifierOutput(
            logits=logits,
            hidden_states=getattr(found, "hidden_states", None),
            attentions=getattr(found, "attentions", None),
        )

    def _pooled(self, found: Any, mask: Tensor) -> Tensor:
        pooled = pool(found.last_hidden_state, mask, self.config.pooling)
        return F.normalize(pooled, dim=-1) if self.config.normalize else pooled


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Returns one vector per text [batch, hidden] from the hidden states of its tokens [batch, seq, hidden].

    "mean" averages over the tokens, "first" takes the first one (BERT's [CLS]), "last" the last one that is not
    padding. `mask` is 0 for padding on the right [batch, seq].
    """
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
    if pooling == "mean":
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    raise DefinitionError(f'There is no pooling "{pooling}". There are: {", ".join(POOLINGS)}.')


AutoConfig.register(EmbeddingConfig.model_type, EmbeddingConfig)
AutoModelForSequenceClassification.register(EmbeddingConfig, EmbeddingForSequenceClassification)
