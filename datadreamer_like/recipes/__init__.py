"""Recipes: pipelines of papers, composed of public steps, trainers and stages.

A recipe runs when it is constructed, in a session. It keeps no state of its own: all it makes are cached nodes, so a
killed script goes on where it was, and a finished one does no work.
"""

import lazy_loader

from datadreamer_like.errors import require_extra

require_extra("train", "torch", "transformers", what="Working on models")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
