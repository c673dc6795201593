"""Trainers: nodes that make models out of columns when their `train` is called."""

import logging

import lazy_loader

from datadreamer_like.errors import require_extra

# On a CPU its import logs advice on kernels; peft and transformers import it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
require_extra("train", "torch", "transformers", what="Working on models")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
