"""Trainers: nodes that make models out of columns when their `train` is called."""

import lazy_loader

import datadreamer_like.models.quiet  # noqa: F401  # before transformers, whose imports log advice
from datadreamer_like.errors import require_extra

require_extra("train", "torch", "transformers", what="Working on models")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
