"""The location of a model's cached answers: one file per model, in the session's folder or where the script says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import current_session
from datadreamer_like.storage.answers import AnswerStore

from ..model import Model

StoreOpener = Callable[[], AbstractContextManager[AnswerStore]]


def model_answers(model: Model) -> StoreOpener:
    """Returns a function that opens the store of a model's answers for the current session.

    The file is in `cache_folder_path` if given, else in the session's cache folder. In a `":memory:"` session the store
    exists until the session ends; without a session, until the run ends.
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
