"""The base of all compression methods, their calibration data, and the block-by-block walk through a model.

The methods themselves are in `pruning` and `quantization`.
"""

import lazy_loader

import datadreamer_like.formats  # noqa: F401  (so that a saved model loads after importing this room alone)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
