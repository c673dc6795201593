"""The graph: session, node, fingerprint, card, progress, dataset and column.

It is independent of LLMs and trainers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
