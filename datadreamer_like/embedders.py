"""DataDreamer's name for the embedders of `datadreamer_like.models`."""

from datadreamer_like.models import (
    Embedder,
    MistralAIEmbedder,
    OpenAIEmbedder,
    ParallelEmbedder,
    SentenceTransformersEmbedder,
    TogetherEmbedder,
)

__all__ = [
    "Embedder",
    "MistralAIEmbedder",
    "OpenAIEmbedder",
    "ParallelEmbedder",
    "SentenceTransformersEmbedder",
    "TogetherEmbedder",
]
