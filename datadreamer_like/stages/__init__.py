"""Stages: nodes that take models. Some make a smaller model, others compare several.

A stage runs when it is constructed, like a step; one that makes a model can be used like a trained model.
"""

import lazy_loader

from datadreamer_like.errors import require_extra

require_extra("train", "torch", "transformers", what="Working on models")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
