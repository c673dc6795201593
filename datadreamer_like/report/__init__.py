"""Report: tables, plots and self-contained HTML pages. It knows numbers and words, never a model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
