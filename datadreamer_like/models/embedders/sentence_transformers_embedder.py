"""Embedders that run in this process with sentence-transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datadreamer_like.errors import require_extra

from ..trained.sentence_transformers_model import (
    SentenceTransformersModel,
    check_graph_embedder,
    refuse_unknown_kwargs,
)
from .embedder import Embedder, Vector

if TYPE_CHECKING:
    import torch


class SentenceTransformersEmbedder(Embedder, SentenceTransformersModel):
    """A sentence-transformers model, or a plain encoder with mean pooling.

    The folder of an ONNX export (`export("onnx")`) runs on ONNX Runtime, on the CPU and with torch's number of threads;
    its pooling and other modules are those of sentence-transformers.

    Args:
        model_name: A folder, a trainer or trained model, or a Hub id.
        trust_remote_code, device: Whether its repository's code may run; None takes a GPU if there is one.
        dtype: Data type of the weights, such as "bfloat16"; vectors are always float32. None for an ONNX export.
        **kwargs: Further arguments of `SentenceTransformer`, such as `revision` or `truncate_dim`.

    Raises:
        MissingExtra: torch or sentence-transformers is not installed, or onnxruntime for an ONNX export.
        UnknownModel: The path does not exist.
        DefinitionError: `SentenceTransformer` takes no argument of a name in `kwargs`, or an argument has no effect on
            an ONNX export.
        MethodMisfit: The ONNX export is not one of an embedder or plain encoder.

    Example:
        >>> embedder = SentenceTransformersEmbedder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> embedder.run(["A cat sat on the mat."])[0].shape  # doctest: +SKIP
        (384,)
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | Any,
        trust_remote_code: bool = False,
        device: int | str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        require_extra("embed", "torch", "sentence_transformers", what="SentenceTransformersEmbedder")
        super().__init__("", cache_folder_path)
        refuse_unknown_kwargs(type(self), "SentenceTransformer", model_name, trust_remote_code, kwargs)
        self.set_source(model_name, trust_remote_code, device, dtype, kwargs)
        self._is_graph = self._source.is_graph or getattr(self._source.origin, "runtime", "torch") == "onnx"
        if self._is_graph:
            require_extra("export", "onnxruntime", what="An embedder on ONNX Runtime")
            check_graph_embedder(self._source, device, dtype, kwargs)

    @cached_property
    def model(self) -> Any:
        """The `SentenceTransformer`, on its device."""
        if self._is_graph:
            from ..exports.onnx_embedder import OnnxSentenceTransformer

            return self.loaded_by(OnnxSentenceTransformer)
        from sentence_transformers import SentenceTransformer

        return self.loaded_by(SentenceTransformer)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    def compute(self, texts: Sequence[str], *, instruction: str | None = None, **asks: Any) -> list[Vector]:
        """Embeds a batch; returns float32 arrays [dims]."""
        from datadreamer_like.distillation.tokens import start_id

        shown = list(texts)
        if not self.tokenizer.num_special_tokens_to_add():  # a text may have no token, and then it would have no vector
            start = self.tokenizer.convert_ids_to_tokens(start_id(self.tokenizer))
            shown = [text if self.count_tokens(f"{instruction or ''}{text}") else start for text in texts]
        vectors = self.model.encode(shown, prompt=instruction, batch_size=len(texts), show_progress_bar=False)
        return list(np.asarray(vectors, dtype=np.float32))

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text, with special tokens."""
        return len(self.tokenizer(value, verbose=False)["input_ids"])

    @cached_property
    def model_max_length(self) -> int:
        """Maximum number of tokens of a text."""
        return int(self.model.max_seq_length or self.tokenizer.model_max_length)

    @cached_property
    def dims(self) -> int:
        """Length of the vectors."""
        renamed_in_6 = getattr(self.model, "get_embedding_dimension", None)
        return int((renamed_in_6 or self.model.get_sentence_embedding_dimension)())
