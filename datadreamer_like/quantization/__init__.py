"""Quantization: weights and activations in few bits.

A method is a frozen object with its options. `apply(model)` returns a quantized copy and leaves the model that it was
given alone; it needs no session. What is saved with `save_pretrained` loads again with transformers' own
`from_pretrained` once this package is imported.
"""

import lazy_loader

import datadreamer_like.formats  # noqa: F401  (so that a saved model loads after importing this room alone)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
