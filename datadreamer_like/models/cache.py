"""Where a model's answers are kept: one file a model, beside the session's results or where the script says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from datadreamer_like.graph.fingerprint import fingerprint, is_installed
from datadreamer_like.graph.session import current_session
from datadreamer_like.storage.answers import AnswerStore

StoreOpener = Callable[[], AbstractContextManager[AnswerStore]]


class CachedModel(Protocol):
    """What a model must have for its answers to be kept."""

    model_name: str
    cache_folder_path: str | Path | None

    @property
    def version(self) -> float:
        """Version of the class's behaviour."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns what decides an answer beside class, version and name."""
        ...

    def __fingerprint__(self) -> Any: ...


def model_identity(model: CachedModel) -> dict[str, Any]:
    """Returns all that tells a model's answers from those of another, for `graph.fingerprint`."""
    kind = type(model)
    # Our own classes say with `version` when their answers change; of a script's own class, the code says it.
    code: object = f"{kind.__module__}.{kind.__qualname__}" if is_installed(kind.__module__) else kind
    return {"class": code, "version": model.version, "model": model.model_name, **model.identity()}


def model_answers(model: CachedModel) -> StoreOpener:
    """Returns how to open the store of a model's answers, as seen from the session that is current now.

    With `cache_folder_path`, the file lies there; else in the session's cache folder; in a `":memory:"` session it
    lives as long as the session; without any session, as long as the run.
    """
    digest = fingerprint(model, what=type(model).__name__)
    name = f"{type(model).__name__}-{_file_name(model.model_name)}-{digest[:12]}.sqlite"
    session = current_session()
    folder = Path(model.cache_folder_path) if model.cache_folder_path is not None else None
    if folder is None and session is not None:
        folder = session.cache_folder
        if folder is None:
            answers = session.in_memory_answers
            return lambda: _kept(answers, name)
    return lambda: AnswerStore(folder / name if folder is not None else "")


@contextmanager
def _kept(answers: dict[str, Any], name: str) -> Iterator[AnswerStore]:
    # The session closes it.
    store = answers.get(name)
    if store is None:
        # `setdefault` decides between two threads that both made one.
        store = answers.setdefault(name, AnswerStore(":memory:"))
    yield store


def _file_name(model_name: str) -> str:
    last = re.sub(r"[^\w.-]+", "-", model_name.rstrip("/").rpartition("/")[2]).strip("-.")
    return last[:60] or "model"
