"""Retrieval by the cosine of embeddings, with FAISS."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from datadreamer_like.errors import (
    ArgumentTypeError,
    BadRequest,
    DataError,
    DefinitionError,
    EmptyDataset,
    MalformedAnswer,
    ModelError,
    StorageError,
    check_number,
    require_extra,
)

from ..calls.failures import log_failures
from ..embedders.embedder import Embedder
from ..model import check_spelling
from ..task_models.task_model import Computed, TextRun
from .indexed_retriever import IndexedRetriever
from .retriever import QUERIES_AT_ONCE, Corpus, Found

if TYPE_CHECKING:
    import torch

Vectors = np.ndarray[Any, np.dtype[np.float32]]

_VECTORS_AT_ONCE = 4_096
# Parameters with which nothing would be searched otherwise.
_AT_LEAST_ONE = {"nprobe", "efSearch", "efConstruction"}
# Vectors for training an index with cells, drawn at random: FAISS wants 39 to 256 for each cell.
_TRAINING_VECTORS = 65_536
_TRAINING_VECTORS_PER_CELL = 64
# Parameters that decide the index, not only its search.
_BUILDING = frozenset({"efConstruction"})
_FILE = "vectors.faiss"


class EmbeddingRetriever(IndexedRetriever):
    """Finds the texts whose embeddings have the largest cosine similarity with the query's.

    The index is built once and cached in the session's folder by the corpus's content, the embedder and all options: a
    changed corpus has a new index, and the older one is used again when the change is undone. It is opened
    memory-mapped, so that several processes share its memory. A killed run leaves no part of an index; embeddings that
    it has computed are cached.

    Args:
        texts: The corpus: a column of a step, or a list of texts. Missing texts are left out.
        truncate: Truncate texts that are too long, instead of leaving them out.
        index_type: A FAISS factory string. None, "Flat", compares with every text, exactly. "IVF1024,Flat" puts the
            texts into 1,024 cells and searches `nprobe` of them; "HNSW32" follows a graph, `efSearch` wide. See
            `docs/retrieval.md` for when to take which.
        index_batch_size: Texts in a batch of the embedder, while the index is built.
        index_instruction: Prefix of each text of the corpus, as `query_instruction` is of each query.
        cache_folder_path, device: Folder of the index outside a session; GPU for the search, None for the CPU.
        **kwargs: Parameters of the index, such as `nprobe`, `efSearch` or `efConstruction`.

    Raises:
        EmptyDataset, MissingExtra: The corpus has no texts; FAISS is not installed.
        ArgumentTypeError: `embedder` is not one, or `index_type` is not a text.
        DefinitionError: `index_type` or one of `kwargs` is unknown to FAISS, or there are fewer texts than cells.
        DataError: A vector of the corpus is not finite, or one has another length than those of the index.
        ModelError: A text of the corpus could not be embedded, though nothing is wrong with it.

    References:
        Douze et al. 2024, arXiv:2401.08281 (FAISS); Malkov and Yashunin 2016, arXiv:1603.09320 (HNSW).

    Example:
        >>> retriever = EmbeddingRetriever(step.output["text"], embedder)  # doctest: +SKIP
        >>> retriever.run(["a pet"], k=1)  # doctest: +SKIP
        [{'indices': [3], 'texts': ['A cat sat on the mat.'], 'scores': [0.41]}]
    """

    def __init__(
        self,
        texts: Corpus,
        embedder: Embedder,
        truncate: bool = False,
        index_type: str | None = None,
        index_batch_size: int = 10,
        index_instruction: str | None = None,
        query_instruction: str | None = None,
        cache_folder_path: str | Path | None = None,
        device: int | str | torch.device | list[int | str | torch.device] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(texts, cache_folder_path)
        require_extra("embed", "faiss", what="EmbeddingRetriever")
        if index_type is not None and not isinstance(index_type, str):
            raise ArgumentTypeError(f'index_type must be a name of FAISS such as "HNSW32", not {index_type!r:.100}.')
        if not isinstance(embedder, Embedder):
            raise ArgumentTypeError(
                "EmbeddingRetriever takes an embedder, such as SentenceTransformersEmbedder(model_name), not "
                f"{embedder!r:.100}."
            )
        check_spelling(device, None)
        self.embedder = self._source = embedder
        self.truncate = truncate
        self.index_type = index_type
        self.index_batch_size = index_batch_size
        self.index_instruction = index_instruction
        self.query_instruction = query_instruction
        self.device = device
        self.kwargs = kwargs

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns a retriever of three texts, for tests and documentation."""
        return cls(["a", "a cat", "two big dogs"], model)

    def identity(self) -> dict[str, Any]:
        """Returns the corpus, the embedder and all options that determine the results."""
        return {**self.index_identity(), "query_instruction": self.query_instruction, "kwargs": self.kwargs}

    def index_identity(self) -> dict[str, Any]:
        """Returns the corpus, the embedder and all options that determine the index."""
        names = ("texts", "embedder", "truncate", "index_type", "index_instruction")
        building = {name: value for name, value in self.kwargs.items() if name in _BUILDING}
        return {name: getattr(self, name) for name in names} | building

    def search(self, queries: Iterable[str], k: int, run: TextRun) -> Iterator[Found | ModelError]:
        """Yields positions and cosines of the `k` nearest texts for each query."""
        assert self.index is not None  # built before the queries are embedded
        embedded = self.embedder.results(queries, self.truncate, self.query_instruction, **asdict(run))
        while portion := list(islice(embedded, max(run.batch_size, QUERIES_AT_ONCE))):
            found = self.search_vectors([result.value for result in portion if result.error is None], k)
            for result in portion:
                yield next(found) if result.error is None else result.error

    def search_vectors(self, vectors: Sequence[Any], k: int = 5) -> Iterator[Found]:
        """Yields positions and cosines of the `k` nearest texts for vectors of the embedder [queries, dims].

        They need not have length 1. An index with cells may find fewer than `k` texts. Equal cosines are in the order
        of the corpus.

        Raises:
            DataError: A vector is not finite, or has another length than those of the index.
        """
        if not len(vectors):
            return
        scores, ids = self.index.search(_unit(vectors, self.index.d), k)
        if (scores[:, 1:] == scores[:, :-1]).any():
            order = np.lexsort((ids, -scores), axis=1)
            scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
        if (ids >= 0).all():
            yield from zip(ids.tolist(), scores.tolist(), strict=True)
            return
        for row_ids, row_scores in zip(ids, scores, strict=True):  # padded with -1
            found = row_ids >= 0
            yield row_ids[found].tolist(), row_scores[found].tolist()

    def build_index(self, folder: Path | None) -> Any:
        """Embeds the corpus, and returns a FAISS index of the vectors."""
        import faiss

        texts = cast("Iterator[str]", self.corpus())  # a missing text fails its row, and is left out
        results = self.embedder.results(
            texts, self.truncate, self.index_instruction, batch_size=self.index_batch_size,
            total_num_texts=len(self.texts),
        )  # fmt: skip
        results = log_failures(map(_can_be_left_out, count(), results), "keep", "texts of the corpus are left out")
        good = ((position, result.value) for position, result in enumerate(results) if result.error is None)
        first = next(good, None)
        if first is None:
            raise EmptyDataset(
                f"None of the {len(self.texts)} texts of the corpus could be embedded. If they are too long, pass "
                "truncate=True."
            )
        core = self._empty(len(first[1]))
        index = faiss.IndexIDMap(core)
        portions = _portions(chain([first], good), core.d)
        if core.is_trained:
            for positions, matrix in portions:
                index.add_with_ids(matrix, positions)
            return index
        with tempfile.TemporaryFile(dir=folder) as file:
            positions = np.concatenate([_written(portion, file) for portion in portions])
            file.flush()
            matrix = np.memmap(file, np.float32, "r", shape=(len(positions), core.d))
            self._train(core, matrix)
            for start in range(0, len(positions), _VECTORS_AT_ONCE):
                part = slice(start, start + _VECTORS_AT_ONCE)
                index.add_with_ids(np.array(matrix[part]), positions[part])
        return index

    def write_index(self, index: Any, folder: Path) -> None:
        """Writes a FAISS index."""
        import faiss

        try:
            faiss.write_index(index, str(folder / _FILE))
        except RuntimeError as error:
            raise StorageError(
                f"FAISS cannot write its index into {folder}: {error}. Check that there is enough space."
            ) from error

    def open_index(self, folder: Path) -> Any:
        """Opens a FAISS index, memory-mapped."""
        import faiss

        return faiss.read_index(str(folder / _FILE), faiss.IO_FLAG_MMAP_IFC)

    def prepare_index(self, index: Any) -> Any:
        """Sets the index's parameters, and moves it to the GPU if there is a `device`."""
        import faiss

        self._set_parameters(index)
        if self.device is None or str(self.device) == "cpu" or not hasattr(faiss, "StandardGpuResources"):
            return index
        devices = self.device if isinstance(self.device, list) else [self.device]
        numbers = [int(str(device).rpartition(":")[2]) if str(device) != "cuda" else 0 for device in devices]
        return faiss.index_cpu_to_gpus_list(index, gpus=numbers)

    def _empty(self, dims: int) -> Any:
        """Returns an index without vectors, with all parameters set, so that a wrong one is an error before work."""
        import faiss

        try:
            core = faiss.index_factory(dims, self.index_type or "Flat", faiss.METRIC_INNER_PRODUCT)
            if _cells(core) == 0:
                raise RuntimeError("it has no cells")
        except RuntimeError as error:
            raise DefinitionError(
                f'FAISS has no index "{self.index_type}" for vectors of {dims} numbers. See its index factory for the '
                "names, or leave index_type out."
            ) from error
        cells = _cells(core)
        if cells is not None and cells > len(self.texts):
            raise DefinitionError(
                f'index_type="{self.index_type}" has {cells:,} cells, and the corpus {len(self.texts):,} texts. Leave '
                "index_type out: comparing with so few texts is fast."
            )
        self._set_parameters(core)
        return core

    def _set_parameters(self, index: Any) -> None:
        import faiss

        parameters = faiss.ParameterSpace()
        for name, value in self.kwargs.items():
            if name.rpartition("_")[2] in _AT_LEAST_ONE:
                check_number(value, name, 1)
            try:
                parameters.set_index_parameter(index, name, value)
            except (RuntimeError, TypeError) as error:
                raise DefinitionError(
                    f'The FAISS index {self.index_type or "Flat"} has no parameter "{name}" that can be {value!r}.'
                ) from error

    def _train(self, core: Any, matrix: Vectors) -> None:
        """Trains an index on vectors [texts, dims] that are drawn at random, always the same ones."""
        size = min(len(matrix), max(_TRAINING_VECTORS, _TRAINING_VECTORS_PER_CELL * (_cells(core) or 0)))
        chosen = np.random.default_rng(0).choice(len(matrix), size, replace=False)
        try:
            core.train(np.array(matrix[np.sort(chosen)]))
        except RuntimeError as error:
            raise DefinitionError(
                f'FAISS cannot train the index "{self.index_type}" on {size:,} texts: {error}. Leave index_type '
                "out, or choose one with fewer cells or codes."
            ) from error

    @property
    def citation(self) -> list[str] | None:
        """Citations of FAISS and the embedder."""
        return [_FAISS_CITATION, *(super().citation or [])]

    @property
    def display_name(self) -> str:
        """Class and embedder, for display."""
        return f"{type(self).__name__} ({self.embedder.model_name})"

    def unload_model(self) -> None:
        """Frees the index and the embedder; they are loaded again when needed."""
        super().unload_model()
        self.embedder.unload_model()


def _can_be_left_out(position: int, result: Computed) -> Computed:
    """Returns the result of a text of the corpus; raises its error if the text is not the cause."""
    if result.error is not None and not isinstance(result.error, BadRequest):
        kind = DataError if isinstance(result.error, MalformedAnswer) else type(result.error)
        raise kind(
            f"Text {position} of the corpus could not be embedded, and an index without it would be kept: "
            f"{result.error} Run again to go on; the embeddings so far are kept."
        ) from result.error
    return result


def _cells(index: Any) -> int | None:
    import faiss

    inner = faiss.try_extract_index_ivf(index)
    return None if inner is None else int(inner.nlist)


def _portions(pairs: Iterator[tuple[int, Any]], dims: int) -> Iterator[tuple[np.ndarray[Any, Any], Vectors]]:
    """Yields positions [rows] and normalized vectors [rows, dims], some thousand at a time."""
    while portion := list(islice(pairs, _VECTORS_AT_ONCE)):
        positions, vectors = zip(*portion, strict=True)
        yield np.asarray(positions, dtype=np.int64), _unit(vectors, dims, positions)


def _written(portion: tuple[np.ndarray[Any, Any], Vectors], file: Any) -> np.ndarray[Any, Any]:
    """Writes the vectors of a portion, and returns its positions."""
    file.write(portion[1].data)
    return portion[0]


def _unit(vectors: Sequence[Any], dims: int, positions: Sequence[int] | None = None) -> Vectors:
    """Returns normalized vectors [rows, dims], whose inner product is the cosine similarity.

    `positions` are those of their texts in the corpus, for messages; without them they are of queries.
    """
    wrong = next((np.shape(vector) for vector in vectors if np.shape(vector) != (dims,)), None)
    if wrong is not None:
        of = "A query" if positions is None else "A text of the corpus"
        raise DataError(
            f"{of} has a vector of shape {wrong}; those of the index have {dims} numbers. Use the embedder that the "
            "index was made with, which must give all texts vectors of one length."
        )
    matrix: Vectors = np.array(vectors, dtype=np.float32)
    lengths_of = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(lengths_of).all():
        row = int(np.flatnonzero(~np.isfinite(lengths_of[:, 0]))[0])
        where = f"query {row} of its batch" if positions is None else f"text {positions[row]} of the corpus"
        raise DataError(f"The embedder's vector of {where} is not finite. Check the text, and the embedder's dtype.")
    matrix /= np.maximum(lengths_of, np.float32(1e-30))
    return matrix


_FAISS_CITATION = """@article{douze2024faiss,
  title={The {Faiss} library},
  author={Douze, Matthijs and Guzhva, Alexandr and Deng, Chengqi and Johnson, Jeff and Szilvasy, Gergely and
    Mazar{\\'e}, Pierre-Emmanuel and Lomeli, Maria and Hosseini, Lucas and J{\\'e}gou, Herv{\\'e}},
  journal={arXiv preprint arXiv:2401.08281},
  year={2024}
}"""
