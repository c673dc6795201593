"""DataDreamer's name for the retrievers of `datadreamer_like.models`."""

from datadreamer_like.models import EmbeddingRetriever, Retriever

__all__ = ["EmbeddingRetriever", "Retriever"]
