"""An index in a folder: complete or absent, with checksums, and of one corpus."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from datadreamer_like.errors import NewerFormat, StorageError
from datadreamer_like.storage.folders import explained, flush, flush_tree, locked, write_file
from datadreamer_like.storage.seals import checksums, damaged_file, read_sealed, sealed

logger = logging.getLogger("datadreamer_like")

INDEX_FORMAT = 1
INDEX_NAME = "index.json"


def keep_index(folder: Path, decided_by: str, write: Callable[[Path], None], what: str) -> None:
    """Writes an index, unless the folder has a complete and undamaged one that was `decided_by` the same.

    It is written into a draft, flushed and renamed, so a killed process leaves no part of an index. Of several
    processes one writes, and the others wait. A damaged index, or one of another corpus, is written anew.

    Args:
        folder: The index's folder.
        decided_by: Fingerprint of everything that decides its content.
        write: Writes the index's files into an empty folder.
        what: The owner, for messages.

    Raises:
        StorageError: The disk is full, or the folder may not be written, or is a file.
        NewerFormat: A newer version of this package wrote the index.
    """
    if _problem(folder, decided_by) is None:
        return
    with explained("Keeping a retriever's index", folder), locked(folder.with_suffix(".lock"), what):
        problem = _problem(folder, decided_by)  # another process may have written it
        if problem is None:
            return
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise StorageError(f"{what}: {folder} is not a folder, which the index needs to be. Remove it.")
        if folder.exists():
            logger.warning("%s: %s; the index is made again", what, problem)
        draft = folder.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir(parents=True)
        try:
            write(draft)
            content = {"format": INDEX_FORMAT, "decided_by": decided_by, "files": checksums(draft)}
            write_file(draft / INDEX_NAME, sealed(content))
            flush_tree(draft)
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _problem(folder: Path, decided_by: str) -> str | None:
    """Returns why an index cannot be used, for a message; None if it can be."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return f"{folder} has no complete index"
    try:
        content = read_sealed(path)
    except StorageError as error:
        return str(error)
    NewerFormat.check(path, content.get("format"), INDEX_FORMAT)
    if content.get("decided_by") != decided_by:
        return f"{folder} holds the index of another corpus or with other options"
    return damaged_file(folder, content["files"])
