"""DataDreamer's name for the embedders of `datadreamer_like.models`."""

from datadreamer_like.models import Embedder, ParallelEmbedder, SentenceTransformersEmbedder

__all__ = ["Embedder", "ParallelEmbedder", "SentenceTransformersEmbedder"]
