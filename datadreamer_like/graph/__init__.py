"""The graph: session, node, fingerprint, card, progress, dataset and column.

It knows nodes and rows, never an LLM or a trainer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
