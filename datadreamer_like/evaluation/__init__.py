"""Measuring models: quality with intervals, timing, sizes. Trainers and stages count with the same metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
