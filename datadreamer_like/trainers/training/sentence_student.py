"""Embedders as students: loading them for training, and cutting their layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import MethodMisfit, require_extra
from datadreamer_like.pruning import Layers

require_extra("embed", "torch", "sentence_transformers", what="Training an embedder")

from sentence_transformers import SentenceTransformer  # noqa: E402

_FETCHED = {
    "revision": "revision",
    "token": "token",
    "cache_dir": "cache_folder",
    "local_files_only": "local_files_only",
}


def load_student(source: str, options: Mapping[str, Any]) -> SentenceTransformer:
    """Returns an embedder from a folder or the Hub, on the CPU; a plain encoder gets mean pooling.

    `options` are arguments of transformers' `from_pretrained`.

    Raises:
        MethodMisfit: It has no transformer, or is a GGUF file.
    """
    given = dict(options)
    if "gguf_file" in given:
        raise MethodMisfit(f"{source} holds a GGUF file, which sentence-transformers does not train. Choose a folder.")
    trust = bool(given.pop("trust_remote_code", False))
    fetched = {ours: given.pop(theirs) for theirs, ours in _FETCHED.items() if theirs in given}
    student = SentenceTransformer(source, device="cpu", trust_remote_code=trust, model_kwargs=given, **fetched)
    if student.transformers_model is None:
        raise MethodMisfit(f"{source} has no transformer, so it cannot be trained here. Choose a transformer encoder.")
    return student


def cut_layers(model: SentenceTransformer, keep: int | Sequence[int]) -> SentenceTransformer:
    """Returns a copy of an embedder with some of its layers; pooling and the later modules stay.

    `keep` is the number of layers, spread evenly from the first to the last, or their indices from 0: see
    `pruning.Layers`. The copy is a good start for a student of the embedder, which it becomes with
    `TrainSentenceTransformer(..., layers=keep).train_with_teacher(...)`.

    Raises:
        MethodMisfit: The model has no single list of layers, or not as many.
        DefinitionError: `keep` is below 1, or names a layer twice.

    Example:
        >>> small = cut_layers(SentenceTransformer("all-MiniLM-L6-v2"), keep=3)  # doctest: +SKIP
    """
    inner = model.transformers_model
    if inner is None:
        raise MethodMisfit(f"{type(model).__name__} has no transformer, so it has no layers to cut.")
    small = copy.deepcopy(model)
    small[0].model = Layers(keep if isinstance(keep, int) else tuple(keep)).apply(inner)
    return small
