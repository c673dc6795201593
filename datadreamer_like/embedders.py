"""DataDreamer's name for the embedders of `datadreamer_like.models`."""

from datadreamer_like.models import (
    Embedder,
    EndpointEmbedder,
    MistralAIEmbedder,
    OpenAIEmbedder,
    ParallelEmbedder,
    SentenceTransformersEmbedder,
    TogetherEmbedder,
)

__all__ = [
    "Embedder",
    "EndpointEmbedder",
    "MistralAIEmbedder",
    "OpenAIEmbedder",
    "ParallelEmbedder",
    "SentenceTransformersEmbedder",
    "TogetherEmbedder",
]
