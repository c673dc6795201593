"""The noise of NEFTune, in the embeddings that transformers does not look for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.neftune import neftune_post_forward_hook


@contextmanager
def noise_in_all_embeddings(model: nn.Module, alpha: float | None) -> Iterator[None]:
    """While it is open, the embeddings of an encoder and of its decoder add noise of strength `alpha` in training.

    The loop of transformers adds it in the embedding of the whole model, which an encoder-decoder, whose two halves
    have modules of their own with the same weight, never calls.

    Args:
        model: The model that is trained, also with an adapter or inside another.
        alpha: The strength, as of Jain et al. 2023 (https://arxiv.org/abs/2310.05914); None for no noise.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    whole: Any = parts[0] if parts else None
    if alpha is None or whole is None:
        yield
        return
    hooked = whole.get_input_embeddings()
    found: dict[int, Any] = {}
    for part in parts:
        try:
            embedding: Any = part.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # parts that take vectors
            continue
        weight = getattr(embedding, "weight", None)
        if embedding is not hooked and isinstance(weight, Tensor) and weight.dim() == 2:
            found[id(embedding)] = embedding
    handles = []
    for embedding in found.values():
        embedding.neftune_noise_alpha = alpha
        handles.append(embedding.register_forward_hook(neftune_post_forward_hook))
    try:
        yield
    finally:
        for embedding, handle in zip(found.values(), handles, strict=True):
            handle.remove()
            del embedding.neftune_noise_alpha
