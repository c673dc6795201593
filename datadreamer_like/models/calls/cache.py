"""The location of a model's cached answers: one file per model, in the session's folder or where the script says."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import current_session
from datadreamer_like.storage.answers import AnswerStore

from ..model import Model


def model_answers(model: Model) -> Callable[[], AbstractContextManager[AnswerStore]]:
    """Returns a function that opens the store of a model's answers for the current session.

    The file is in `cache_folder_path` if given, else in the session's cache folder. In a `":memory:"` session the store
    exists until the session ends; without a session, until the run ends.
    """
    last_part = re.sub(r"[^\w.-]+", "-", model.model_name.rstrip("/").rpartition("/")[2]).strip("-.")[:60] or "model"
    digest = fingerprint(model, what=type(model).__name__)[:12]
    name = f"{type(model).__name__}-{last_part}-{digest}.sqlite"
    session = current_session()
    folder = model.cache_folder_path
    if folder is None and session is not None:
        folder = session.cache_folder
        if folder is None:
            # The session closes it. `setdefault` decides between two threads that both made one.
            kept = session.in_memory_answers
            return lambda: nullcontext(kept[name] if name in kept else kept.setdefault(name, AnswerStore(":memory:")))
    return lambda: AnswerStore(Path(folder) / name if folder is not None else "")
