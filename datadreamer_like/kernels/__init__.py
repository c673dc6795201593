"""Kernels: pure functions of tensors, each with a reference in plain PyTorch and possibly a faster implementation.

`backend="reference"`, `"cpu"` or `"triton"` forces one; None chooses the fastest available for the tensors. Arguments
that are out of range or do not fit together, and backends that are not available, raise `DefinitionError`.
"""

import lazy_loader

from datadreamer_like.errors import require_extra

require_extra("train", "torch", "transformers", what="Working on models")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
