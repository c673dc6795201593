"""Random generators seeded inside a block."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
import transformers


@contextlib.contextmanager
def forked_torch(seed: int) -> Iterator[None]:
    """Seeds torch's random generators inside the block, and restores their states afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all random generators inside the block, and restores their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with forked_torch(seed):
        transformers.set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
