"""Pruning: removes weights, heads, layers or vocabulary from a model.

A method is a frozen dataclass with its options. `apply(model, calibration)` returns a smaller copy, which loads with
transformers' `from_pretrained` if this package is imported; it needs no session and does not change the model.
"""

import lazy_loader

import datadreamer_like.formats  # noqa: F401  (so that a saved model loads after importing this room alone)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
