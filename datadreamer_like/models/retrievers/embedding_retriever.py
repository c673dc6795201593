"""Retrieval by the cosine of embeddings, with FAISS."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from datadreamer_like.errors import DefinitionError, EmptyDataset, ModelError, require_extra
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import current_session
from datadreamer_like.storage.folders import explained, locked

from ..embedders.embedder import Embedder
from ..task_models.task_model import TextRun
from .retriever import Corpus, Found, Retriever

if TYPE_CHECKING:
    import torch

# Number of vectors, from the start of the corpus, for training an index with cells.
_TRAINING_VECTORS = 65_536
_VECTORS_AT_ONCE = 4_096


class EmbeddingRetriever(Retriever):
    """Finds the texts whose embeddings have the largest cosine similarity with the query's.

    The index is made once and cached in the session's folder by the corpus's content, the embedder and all options: a
    changed corpus has a new index, and the older one is used again when the change is undone.

    Args:
        texts: The corpus: a column of a step, or a list of texts.
        truncate: Truncate texts that are too long, instead of leaving them out.
        index_type: A FAISS factory string, such as "IVF256,Flat" or "HNSW32"; None compares with every text, exactly.
        index_instruction: Prefix of each text of the corpus, as `query_instruction` is of each query.
        cache_folder_path, device: Folder of the index outside a session; GPU for the search, None for the CPU.
        **kwargs: Attributes to set on the index, such as `nprobe`.

    Raises:
        EmptyDataset, MissingExtra: The corpus has no texts; FAISS is not installed.
        DefinitionError: `index_type` or one of `kwargs` is unknown to FAISS.

    Example:
        >>> retriever = EmbeddingRetriever(step.output["text"], embedder)  # doctest: +SKIP
        >>> retriever.run(["a pet"], k=1)  # doctest: +SKIP
        [{'indices': [3], 'texts': ['A cat sat on the mat.'], 'scores': [0.41]}]
    """

    _index: Any = None

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
        self.embedder = self._source = embedder
        self.truncate = truncate
        self.index_type = index_type
        self.index_batch_size = index_batch_size
        self.index_instruction = index_instruction
        self.query_instruction = query_instruction
        self.device = device
        self.kwargs = kwargs
        self._lock = threading.Lock()  # held while the index is made or loaded, since several threads may search

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns a retriever of three texts, for tests and documentation."""
        return cls(["a", "a cat", "two big dogs"], model)

    def identity(self) -> dict[str, Any]:
        """Returns the corpus, the embedder and all options that determine the results."""
        return {**self._index_identity(), "query_instruction": self.query_instruction, "kwargs": self.kwargs}

    def _index_identity(self) -> dict[str, Any]:
        names = ("texts", "embedder", "truncate", "index_type", "index_instruction")
        return {name: getattr(self, name) for name in names}

    @property
    def index(self) -> Any:
        """The FAISS index, whose ids are positions in the corpus."""
        if (index := self._index) is None:
            with self._lock:
                if (index := self._index) is None:
                    index = self._index = self._prepared(self._found_or_made())
        return index

    def search(self, queries: Iterable[str], k: int, run: TextRun) -> Iterator[Found | ModelError]:
        """Yields positions and cosines of the `k` nearest texts for each query."""
        index = self.index
        embedded = self.embedder.results(queries, self.truncate, self.query_instruction, **asdict(run))
        while portion := list(islice(embedded, run.batch_size)):
            good = [result.value for result in portion if result.error is None]
            scores, ids = index.search(_unit(good), k) if good else ((), ())
            best = zip(ids, scores, strict=True)
            for result in portion:
                if result.error is not None:
                    yield result.error
                    continue
                row_ids, row_scores = next(best)
                # An index with cells may find fewer than k texts, and pads with -1.
                found = row_ids >= 0
                yield row_ids[found].tolist(), row_scores[found].tolist()

    def _found_or_made(self) -> Any:
        import faiss

        session = current_session()
        folder = self.cache_folder_path or (session.cache_folder if session is not None else None)
        if folder is None:
            return self._made()
        digest = fingerprint([type(self), self._index_identity()], "retriever")[:24]
        path = Path(folder) / f"{type(self).__name__}-{digest}.faiss"
        if not path.exists():
            with explained("Keeping a retriever's index", path), locked(path.with_suffix(".lock"), self.display_name):
                if not path.exists():
                    draft = path.with_suffix(".draft")
                    try:
                        faiss.write_index(self._made(), str(draft))
                        draft.replace(path)
                    finally:
                        draft.unlink(missing_ok=True)
        return faiss.read_index(str(path))

    def _made(self) -> Any:
        import faiss

        vectors = self.embedder.run(
            self.texts, truncate=self.truncate, instruction=self.index_instruction, batch_size=self.index_batch_size,
            total_num_texts=len(self.texts), return_generator=True,
        )  # fmt: skip
        good = ((row, vector) for row, vector in enumerate(vectors) if vector is not None)
        portion = list(islice(good, _VECTORS_AT_ONCE))
        if not portion:
            raise EmptyDataset(
                f"None of the {len(self.texts)} texts of the corpus could be embedded. If they are too long, pass "
                "truncate=True."
            )
        try:
            core = faiss.index_factory(len(portion[0][1]), self.index_type or "Flat", faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise DefinitionError(
                f'FAISS has no index "{self.index_type}". See its index factory for the names, or leave index_type out.'
            ) from error
        if not core.is_trained:
            portion += islice(good, _TRAINING_VECTORS - len(portion))
            core.train(_unit([vector for _, vector in portion]))
        index = faiss.IndexIDMap(core)
        while portion:
            positions = np.asarray([position for position, _ in portion], dtype=np.int64)
            index.add_with_ids(_unit([vector for _, vector in portion]), positions)
            portion = list(islice(good, _VECTORS_AT_ONCE))
        return index

    def _prepared(self, index: Any) -> Any:
        import faiss

        parameters = faiss.ParameterSpace()
        for name, value in self.kwargs.items():
            try:
                parameters.set_index_parameter(index, name, value)
            except (RuntimeError, TypeError) as error:
                raise DefinitionError(
                    f'The FAISS index {self.index_type or "Flat"} has no parameter "{name}" that can be {value!r}.'
                ) from error
        if self.device is None or str(self.device) == "cpu" or not hasattr(faiss, "StandardGpuResources"):
            return index
        devices = self.device if isinstance(self.device, list) else [self.device]
        numbers = [int(str(device).rpartition(":")[2]) if str(device) != "cuda" else 0 for device in devices]
        return faiss.index_cpu_to_gpus_list(index, gpus=numbers)

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
        self._index = None
        self.embedder.unload_model()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_index", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}


def _unit(vectors: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns normalized vectors [rows, dims], whose inner product is the cosine similarity."""
    matrix: np.ndarray[Any, np.dtype[np.float32]] = np.array(vectors, dtype=np.float32)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), np.float32(1e-30))
    return matrix


_FAISS_CITATION = """@article{douze2024faiss,
  title={The {Faiss} library},
  author={Douze, Matthijs and Guzhva, Alexandr and Deng, Chengqi and Johnson, Jeff and Szilvasy, Gergely and
    Mazar{\\'e}, Pierre-Emmanuel and Lomeli, Maria and Hosseini, Lucas and J{\\'e}gou, Herv{\\'e}},
  journal={arXiv preprint arXiv:2401.08281},
  year={2024}
}"""
