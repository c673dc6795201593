"""Distillation: loss functions on tensors, objectives for trainers, and teachers.

The losses are pure functions that need no session; the objectives are frozen dataclasses with their options. Both raise
`DefinitionError` for options out of range.
"""

import lazy_loader

from datadreamer_like.errors import require_extra

require_extra("train", "torch", "transformers", what="Working on models")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
