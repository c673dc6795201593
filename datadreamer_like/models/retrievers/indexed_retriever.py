"""The base of retrievers with an index of their corpus, which is built once and kept on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.output import OutputDatasetColumn
from datadreamer_like.graph.session import current_session

from .index_folder import keep_index
from .retriever import Corpus, Retriever


class IndexedRetriever(Retriever):
    """Base of retrievers that search an index of their corpus, which is built once.

    In a session, or with `cache_folder_path`, the index is a folder whose name is a digest of the corpus and of all
    options that determine the index. It is complete or absent, opened memory-mapped, and built again if it is damaged.
    Without either, it is in memory.

    A subclass writes `build_index`, `write_index`, `open_index` and `index_identity`, besides `search`.

    Raises:
        ArgumentTypeError: A value of the corpus is neither a text nor None.
    """

    _index: Any = None

    def __init__(self, texts: Corpus, cache_folder_path: str | Path | None = None) -> None:
        super().__init__(texts, cache_folder_path)
        if not isinstance(self.texts, OutputDatasetColumn):
            for position, text in enumerate(self.texts):
                _check_text(text, position)
        self._lock = threading.Lock()  # held while the index is made or opened, since several threads may search

    # What a subclass writes.

    def index_identity(self) -> dict[str, Any]:
        """Returns everything that determines the index, except the class: the corpus, and options."""
        return {"texts": self.texts}

    def build_index(self, folder: Path | None) -> Any:
        """Returns the index of `corpus()`; `folder` has room for temporary files, None is the system's."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_index.")

    def write_index(self, index: Any, folder: Path) -> None:
        """Writes an index into an empty folder."""
        raise NotImplementedError(f"{type(self).__name__} does not implement write_index.")

    def open_index(self, folder: Path) -> Any:
        """Opens an index that `write_index` wrote, memory-mapped."""
        raise NotImplementedError(f"{type(self).__name__} does not implement open_index.")

    def prepare_index(self, index: Any) -> Any:
        """Returns an index that was built or opened with the options of its search applied."""
        return index

    # What it has of this class.

    def identity(self) -> dict[str, Any]:
        """Returns the corpus and all options that determine the results."""
        return self.index_identity()

    def corpus(self) -> Iterator[str | None]:
        """Yields the texts of the corpus; None for a missing one, which is never found.

        Raises:
            ArgumentTypeError: A value is not a text.
        """
        if isinstance(self.texts, OutputDatasetColumn):
            (field,) = self.texts.rows.schema
            if not _can_be_text(field.type):
                raise ArgumentTypeError(
                    f'The corpus, the column "{field.name}", holds {field.type}; it must hold texts. Convert it first.'
                )
        for position, text in enumerate(self.texts):
            _check_text(text, position)
            yield text

    @property
    def index(self) -> Any:
        """The index, whose ids are positions in the corpus; built, or opened from its folder, on first use."""
        if (index := self._index) is None:
            with self._lock:
                if (index := self._index) is None:
                    index = self._index = self.prepare_index(self._opened_or_built())
        return index

    def _opened_or_built(self) -> Any:
        session = current_session()
        place = self.cache_folder_path or (session.cache_folder if session is not None else None)
        if place is None:
            return self.build_index(None)
        decided_by = fingerprint([type(self), self.index_identity()], "retriever")
        folder = Path(place) / f"{type(self).__name__}-{decided_by[:24]}"
        keep_index(
            folder, decided_by, lambda draft: self.write_index(self.build_index(draft), draft), self.display_name
        )
        return self.open_index(folder)

    def unload_model(self) -> None:
        """Frees the index; it is opened again when needed."""
        self._index = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_index", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}


def _can_be_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _check_text(text: object, position: int) -> None:
    if text is not None and not isinstance(text, str):
        raise ArgumentTypeError(
            f"Text {position} of the corpus is {type(text).__name__}, {text!r:.100}; it must be a text. Convert it, or "
            "filter such rows out first."
        )
