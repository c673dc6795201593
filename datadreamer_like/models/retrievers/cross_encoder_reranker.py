"""Reranking by a cross-encoder, which reads query and text together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from datadreamer_like.errors import MethodMisfit, ModelError, require_extra

from ..task_models.task_model import TaskModel, TextRun
from ..trained.sentence_transformers_model import SentenceTransformersModel, refuse_unknown_kwargs
from .reranker import Reranker
from .retriever import Retriever

if TYPE_CHECKING:
    import torch


class CrossEncoderReranker(Reranker):
    """Sorts the texts that a retriever finds by a cross-encoder of sentence-transformers.

    Scores are those of the model, after its own activation. They are cached as embeddings are. Pairs that are too long
    are cut.

    Args:
        retriever: Finds the texts to sort.
        model_name: A folder, a trainer or trained model, or a Hub id, with one score per pair, such as
            "cross-encoder/ms-marco-MiniLM-L6-v2".
        depth: Texts to sort for each query; `k` if that is more.
        trust_remote_code, device: Whether its repository's code may run; None takes a GPU if there is one.
        dtype: Data type of the weights, such as "bfloat16".
        **kwargs: Further arguments of `CrossEncoder`, such as `revision` or `max_length`.

    Raises:
        MissingExtra: torch or sentence-transformers is not installed.
        UnknownModel: The path does not exist.
        DefinitionError: `CrossEncoder` takes no argument of a name in `kwargs`.
        MethodMisfit: The model gives several scores per pair; raised when it is loaded.

    References:
        Nogueira and Cho 2019, arXiv:1901.04085.

    Example:
        >>> best = CrossEncoderReranker(retriever, "cross-encoder/ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
        >>> best.run(["How do I parse dates?"], k=3)  # doctest: +SKIP
    """

    def __init__(
        self,
        retriever: Retriever,
        model_name: str | os.PathLike[str] | Any,
        depth: int = 100,
        trust_remote_code: bool = False,
        device: int | str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(retriever, depth)
        require_extra("embed", "torch", "sentence_transformers", what=type(self).__name__)
        refuse_unknown_kwargs(type(self), "CrossEncoder", model_name, trust_remote_code, kwargs)
        self.scorer = PairScorer(model_name, trust_remote_code, device, dtype, kwargs)
        self.scorer.cache_folder_path = self.cache_folder_path
        self._source = self.scorer._source
        self.model_name = self.scorer.model_name

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns a reranker of three texts with the folder of a cross-encoder, for tests and documentation."""
        from .bm25_retriever import BM25Retriever

        return cls(BM25Retriever.example(), model, depth=3, device="cpu")

    def identity(self) -> dict[str, Any]:
        """Returns the retriever, the model and all options that determine scores."""
        return {**super().identity(), "scorer": self.scorer}

    def score_pairs(self, pairs: Iterable[tuple[str, str]], run: TextRun) -> Iterator[float | ModelError]:
        """Yields the cross-encoder's score of each pair."""
        options = {**asdict(run), "total_num_texts": None}
        texts = (json.dumps(pair, ensure_ascii=False) for pair in pairs)
        for result in self.scorer.results(texts, truncate=True, **options):
            yield result.value if result.error is None else result.error

    @property
    def model(self) -> Any:
        """The `CrossEncoder`, on its device."""
        return self.scorer.model

    def unload_model(self) -> None:
        """Frees the memory of the model and of the retriever."""
        self.scorer.unload_model()
        super().unload_model()


class PairScorer(TaskModel[float], SentenceTransformersModel):
    """A cross-encoder as a task model, whose texts are pairs as JSON lists; what `CrossEncoderReranker` runs."""

    def __init__(
        self, model_name: Any, trust_remote_code: bool, device: Any, dtype: Any, kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self.set_source(model_name, trust_remote_code, device, dtype, kwargs)

    @cached_property
    def model(self) -> Any:
        """The `CrossEncoder`, in evaluation mode."""
        from sentence_transformers import CrossEncoder

        model = self.loaded_by(CrossEncoder)
        if model.num_labels != 1:
            raise MethodMisfit(
                f"{self.model_name} gives {model.num_labels} scores per pair; a reranker needs one. Choose a "
                "cross-encoder that was trained for ranking."
            )
        return model

    def compute(self, texts: Sequence[str], **asks: Any) -> list[float]:
        """Returns the scores of a batch of pairs."""
        scores = self.model.predict(
            [json.loads(text) for text in texts], batch_size=len(texts), show_progress_bar=False
        )
        return [float(score) for score in np.asarray(scores, dtype=np.float32)]

    def count_tokens(self, value: str) -> int:
        """Returns an estimate of the number of tokens of a pair, which is cut if it is too long."""
        return len(value) // 4 + 1

    @property
    def model_max_length(self) -> int:
        """Maximum number of tokens of a pair."""
        return int(self.model.max_seq_length or self.model.tokenizer.model_max_length)
