"""What users test their own scripts with: fake, recorded and faulty models, without network or key."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
