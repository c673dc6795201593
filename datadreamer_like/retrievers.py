"""DataDreamer's name for the retrievers of `datadreamer_like.models`."""

from datadreamer_like.models import (
    BM25Retriever,
    CrossEncoderReranker,
    EmbeddingRetriever,
    HybridRetriever,
    LLMReranker,
    ParallelRetriever,
    Reranker,
    Retriever,
)

__all__ = [
    "BM25Retriever",
    "CrossEncoderReranker",
    "EmbeddingRetriever",
    "HybridRetriever",
    "LLMReranker",
    "ParallelRetriever",
    "Reranker",
    "Retriever",
]
