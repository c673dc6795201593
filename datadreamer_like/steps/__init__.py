"""Steps: nodes that make datasets: sources, prompts, embeddings and retrieval, operations, and your own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
