"""Teachers of embedders: an embedder's vectors, and the margins of a cross-encoder's scores, as targets of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoConfig

from datadreamer_like.errors import ArgumentTypeError, MethodMisfit
from datadreamer_like.evaluation.tasks.texts import Targets
from datadreamer_like.graph.output import Column
from datadreamer_like.models.embedders.embedder import Embedder, Vector
from datadreamer_like.models.embedders.sentence_transformers_embedder import SentenceTransformersEmbedder
from datadreamer_like.models.model import free_memory
from datadreamer_like.models.task_models.task_model import TaskModel
from datadreamer_like.models.trained.hf_source import hf_source, loading
from datadreamer_like.models.trained.model_facts import task_of
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel

_BATCH = 64


class LoadedEmbedder(SentenceTransformersEmbedder):
    """A `SentenceTransformer` object as an embedder; its fingerprint is that of its weights."""

    def __init__(self, model: Any) -> None:
        Embedder.__init__(self, type(model).__name__)
        self.model = model

    def identity(self) -> dict[str, Any]:
        """Returns the weights, the modules, and the limits of texts and vectors."""
        limits = [self.model.max_seq_length, self.model.truncate_dim]
        return {"weights": self.model.state_dict(), "modules": str(self.model), "limits": limits}

    def unload_model(self) -> None:
        """Does nothing: the model is the caller's."""


class PairScores(TaskModel[float]):
    """A cross-encoder's score of each pair of texts, before any activation; a pair is a JSON list of two texts."""

    def __init__(self, teacher: Any, device: Any = None) -> None:
        super().__init__()
        self._given = None if isinstance(teacher, str | os.PathLike | ModelNode | TrainedModel) else teacher
        self._source = None if self._given is not None else hf_source(teacher)
        self.model_name = type(teacher).__name__ if self._source is None else self._source.name
        self.device = device

    @cached_property
    def model(self) -> Any:
        """The `CrossEncoder`; raises `MethodMisfit` if it has no head, or several outputs."""
        from sentence_transformers import CrossEncoder

        model: Any = self._given
        if self._source is not None:
            with loading(self._source, weights=True):
                config = AutoConfig.from_pretrained(self._source.name)
                if task_of(config) != "text-classification":  # its head would be new
                    raise MethodMisfit(
                        f"The teacher, {self.model_name}, has no head that scores pairs of texts. Choose a "
                        "cross-encoder that was trained to rank."
                    )
                model = CrossEncoder(self._source.name, device=None if self.device is None else str(self.device))
        if model.num_labels != 1:
            raise MethodMisfit(
                f"The teacher, {self.model_name}, gives {model.num_labels} numbers for a pair of texts. Margins need "
                "one score: choose a cross-encoder that was trained to rank."
            )
        return model

    def identity(self) -> dict[str, Any]:
        """Returns the model's content or name."""
        return {"model": self.model.model.state_dict() if self._source is None else self._source.identity}

    def compute(self, texts: Sequence[str], **asks: Any) -> list[float]:
        """Scores a batch of pairs."""
        pairs = [tuple(json.loads(text)) for text in texts]
        scores = self.model.predict(
            pairs, batch_size=len(pairs), activation_fn=nn.Identity(), show_progress_bar=False, convert_to_numpy=True
        )
        return [float(score) for score in scores]

    def count_tokens(self, value: str) -> int:
        """Returns 0: the model cuts long pairs itself."""
        return 0

    @property
    def model_max_length(self) -> int:
        """Not reached."""
        return 1

    def unload_model(self) -> None:
        """Frees the memory of a model that was loaded here."""
        if self._source is not None and self.__dict__.pop("model", None) is not None:
            free_memory()


def embedder_of(teacher: object, device: Any = None) -> Embedder:
    """Returns the embedder that an argument `teacher` names, or is.

    Raises:
        ArgumentTypeError: It is none.
    """
    if isinstance(teacher, Embedder):
        return teacher
    if isinstance(teacher, str | os.PathLike | ModelNode | TrainedModel):
        return SentenceTransformersEmbedder(teacher, device=device)
    if isinstance(teacher, nn.Module) and hasattr(teacher, "encode") and hasattr(teacher, "truncate_dim"):
        return LoadedEmbedder(teacher)
    raise ArgumentTypeError(
        f"teacher must be an embedder, a SentenceTransformer, a trainer, a folder or an id on the Hub, not {teacher!r}."
    )


def scorer_of(teacher: object, device: Any = None) -> PairScores:
    """Returns the scores of the cross-encoder that an argument `teacher` names, or is.

    Raises:
        ArgumentTypeError: It is none.
    """
    named = isinstance(teacher, str | os.PathLike | ModelNode | TrainedModel)
    if not named and not (hasattr(teacher, "predict") and hasattr(teacher, "num_labels")):
        raise ArgumentTypeError(
            "teacher must be a sentence_transformers.CrossEncoder, a trainer, a folder or an id on the Hub, not "
            f"{teacher!r}."
        )
    return PairScores(teacher, device)


def embeddings(embedder: Embedder, texts: Iterable[str]) -> Iterator[Vector]:
    """Yields an embedder's vectors; a text is embedded once a session."""
    found: Iterator[Vector] = embedder.run(
        texts, truncate=True, batch_size=_BATCH, return_generator=True, on_error="raise"
    )
    return found


def principal_directions(vectors: Iterable[Vector], dims: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns the `dims` orthogonal directions [size, dims] on which vectors' projections keep their products best.

    These are the first right singular vectors: principal components without centring, as embeddings are compared by
    their products (Eckart and Young 1936).
    """
    products: Any = 0.0
    remaining = iter(vectors)
    while part := list(islice(remaining, 4096)):
        stacked = np.stack(part).astype(np.float64)
        products = products + stacked.T @ stacked
    directions = np.linalg.eigh(products)[1][:, ::-1][:, :dims]
    largest = np.abs(directions).argmax(0)
    signs = np.sign(directions[largest, np.arange(directions.shape[1])])  # those of `eigh` are arbitrary
    found: np.ndarray[Any, np.dtype[np.float32]] = (directions * signs).astype(np.float32)
    return found


def vector_targets(embedder: Embedder, directions: np.ndarray[Any, Any] | None) -> Targets:
    """Returns the targets of rows of one text: its vector [rows, dims], projected on `directions` [size, dims]."""

    def write(columns: Mapping[str, Column], path: Path) -> np.ndarray[Any, Any]:
        (column,) = columns.values()
        size = 0
        with path.open("wb") as file:
            for vector in embeddings(embedder, column.values()):
                found = np.asarray(vector if directions is None else vector @ directions, dtype=np.float32)
                size = len(found)
                file.write(found.tobytes())
        return np.memmap(path, np.float32, mode="r+").reshape(-1, size)

    return write


def margin_targets(scorer: PairScores) -> Targets:
    """Returns the targets of rows of query, positive and negative: the difference of both documents' scores [rows]."""

    def compute(columns: Mapping[str, Column], path: Path) -> np.ndarray[Any, Any]:
        queries, positives, negatives = (column.values() for column in columns.values())
        pairs = (
            json.dumps([query, document], ensure_ascii=False)
            for query, *documents in zip(queries, positives, negatives, strict=True)
            for document in documents
        )
        scores = scorer.run(pairs, batch_size=_BATCH, on_error="raise")
        found = np.asarray(scores, dtype=np.float32).reshape(-1, 2)
        return np.ascontiguousarray(found[:, 0] - found[:, 1])

    return compute
