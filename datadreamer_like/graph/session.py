"""The session: a folder, the names in it, and one way to find a node's result or make it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import DefinitionError, NewerFormat, SessionError, StorageError
from datadreamer_like.storage.folders import explained, locked, new_folder, sweep, write_file

from .manifest import Manifest
from .progress import Progress, ProgressHandler, describe_usage, duration
from .tracebacks import show_errors_briefly
from .usage import counting, current_usage

if TYPE_CHECKING:
    from .node import Node

logger = logging.getLogger("datadreamer_like")

SESSION_FORMAT = 1

# File systems take 255 bytes; locks and drafts put two such names, or other parts, around one.
_LONGEST_SLUG = 120


class NothingToKeep(Exception):
    """Raised by a node's work when its result is made on demand, so that there is nothing to put on disk."""


_current: ContextVar[DataDreamer | None] = ContextVar("datadreamer_like_session", default=None)
_last_started: DataDreamer | None = None


def current_session() -> DataDreamer | None:
    """Returns the session that this code runs in.

    A thread started by hand, or a later cell of a notebook, belongs to the session that was started last.
    """
    return _current.get() or _last_started


class DataDreamer:
    """A session: everything made inside its block is kept below one folder, and found there by the next run.

    Args:
        output_folder_path: The folder; made if it is not there. `":memory:"` keeps nothing after the session.
        verbose: False shows only warnings; True and None show progress.
        log_level: A level of `logging` that overrides `verbose`.
        log_date: Start each log line with date and time.
        hf_log: Let Hugging Face libraries show their own logs and progress bars.

    Raises:
        SessionError: The path is a file, or a session is open already.
        NewerFormat: The folder was written by a newer version of this package.
        StorageError: The folder cannot be written.

    Example:
        >>> from datadreamer_like import DataDreamer
        >>> with DataDreamer(":memory:") as session:
        ...     session.in_memory
        True
    """

    def __init__(
        self,
        output_folder_path: str | os.PathLike[str],
        verbose: bool | None = None,
        log_level: int | None = None,
        log_date: bool = False,
        hf_log: bool = False,
    ) -> None:
        self.in_memory = str(output_folder_path) == ":memory:"
        self.folder = Path(tempfile.gettempdir()) if self.in_memory else Path(output_folder_path).absolute()
        if self.folder.is_file():
            raise SessionError(f"{self.folder} is a file; a session needs a folder. Choose another path.")
        self.verbose = verbose
        self.log_level = log_level or (logging.WARNING if verbose is False else logging.INFO)
        self.log_date = log_date
        self.hf_log = hf_log
        self.in_memory_answers: dict[str, Any] = {}
        self.progress = Progress(quiet=verbose is False)
        self._names: dict[str, int] = {}
        self._names_lock = threading.Lock()
        self._token: Token[DataDreamer | None] | None = None
        self._handler: logging.Handler | None = None
        self._cleanup: Callable[[], object] | None = None
        self._beside: list[Callable[[], None]] = []

    @property
    def cache_folder(self) -> Path | None:
        """Where answers, embeddings and indexes are kept; None in memory."""
        return None if self.in_memory else self.folder / ".cache"

    def __enter__(self) -> DataDreamer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            # What goes wrong beside it now would only hide the reason; Ctrl-C means now.
            waits, self._beside = self._beside, []
            for wait in waits if not isinstance(error, KeyboardInterrupt) else []:
                with contextlib.suppress(Exception):
                    wait()
        self.stop()

    def start(self) -> None:
        """Opens the session without a block, as in a notebook; end it with `stop`."""
        global _last_started
        open_session = current_session()
        if open_session is not None:
            raise SessionError(
                f"A session is open already (on {open_session.folder}); sessions do not nest. End it first: leave its "
                "`with` block, or call its stop()."
            )
        if self.in_memory:
            self.folder = Path(tempfile.mkdtemp(prefix="datadreamer_like-"))
            self._cleanup = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        else:
            self._open_folder()
        self._start_logging()
        show_errors_briefly()
        self._names.clear()
        self._token = _current.set(self)
        _last_started = self

    def stop(self) -> None:
        """Ends the session, when the steps that run in the background are done; raises what one of them raised."""
        waits, self._beside = self._beside, []
        try:
            with contextlib.ExitStack() as all_of_them:
                for wait in reversed(waits):
                    all_of_them.callback(wait)
        finally:
            self._end()

    def wait_at_end(self, wait: Callable[[], None]) -> None:
        """Takes note of work that runs beside the script: `wait` returns when it is done, or raises what it raised."""
        self._beside.append(wait)

    def _end(self) -> None:
        global _last_started
        if _last_started is self:
            _last_started = None
        if self._token is not None:
            with contextlib.suppress(ValueError):  # stopped from another context than it was started in
                _current.reset(self._token)
            self._token = None
        for store in self.in_memory_answers.values():
            close = getattr(store, "close", None)
            if close is not None:
                close()
        self.in_memory_answers.clear()
        if self._handler is not None:
            logger.removeHandler(self._handler)
            self._handler = None
        if self._cleanup is not None:
            self._cleanup()

    def _open_folder(self) -> None:
        with explained("Opening the session", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            note = self.folder / ".session.json"
            if note.exists():
                try:
                    found = int(json.loads(note.read_text(encoding="utf-8"))["format"])
                except (ValueError, KeyError, TypeError) as error:
                    raise StorageError(f"{note} is damaged. Remove that file; the results beside it stay.") from error
                if found > SESSION_FORMAT:
                    raise NewerFormat(
                        f"{self.folder} was written by a newer version of datadreamer-like (its format is {found}, "
                        f"this version reads up to {SESSION_FORMAT}). Upgrade with pip, or choose another folder."
                    )
            else:
                write_file(note, json.dumps({"format": SESSION_FORMAT}))
            if not os.access(self.folder, os.W_OK):
                raise StorageError(f"No permission to write to {self.folder}. Choose a folder that you may write to.")

    def _start_logging(self) -> None:
        logger.setLevel(self.log_level)
        # Whoever configured logging for the whole process gets the records there, once.
        if not logging.getLogger().handlers and not logger.handlers:
            self._handler = ProgressHandler(self.progress, self.log_date)
            logger.addHandler(self._handler)
        if not self.hf_log:
            for name, value in _QUIET_LIBRARIES.items():
                os.environ.setdefault(name, value)
            # Those that the script has imported already have read their environment.
            for name in ("huggingface_hub.utils", "datasets"):
                if name in sys.modules:
                    sys.modules[name].disable_progress_bars()

    # What nodes ask for

    def claim(self, name: str, parent: Node | None = None) -> tuple[str, Path]:
        """Gives a node its name and folder; a name that is taken gets a number.

        Returns:
            The name, and the folder where its result stands when it is complete.
        """
        if not name or not name.strip():
            raise DefinitionError("A node needs a name: a non-empty text as its first argument.")
        if "/" in name:
            raise DefinitionError(f'The name "{name}" has a "/", which is not allowed. Use another character.')
        prefix = f"{parent.name} / " if parent is not None else ""
        base = self.folder if parent is None else self.folder / ".inside" / _slug(parent.name)
        with self._names_lock:
            first, free = str(base / _slug(name)), name
            while str(base / _slug(free)) in self._names:
                self._names[first] += 1
                free = f"{name} #{self._names[first]}"
            self._names[str(base / _slug(free))] = 1
        return prefix + free, base / _slug(free)

    def numbered(self, first: str, nth: Callable[[int], str]) -> str:
        """Returns a name that is free: `first`, or `nth(2)`, `nth(3)` ..."""
        name, count = first, 1
        with self._names_lock:
            while str(self.folder / _slug(name)) in self._names:
                count += 1
                name = nth(count)
        return name

    def settle(self, node: Node, build: Callable[[Path], Manifest]) -> Manifest:
        """Finds the result of a node, or makes it; only one process at a time makes it.

        Args:
            node: The node; its `folder` is where the result stands afterwards.
            build: Fills an empty folder with the result and returns its manifest.

        Returns:
            The manifest of the result, found or made.
        """
        folder = node.folder
        assert folder is not None
        if not node.force:
            found = Manifest.read(folder)
            if found is not None and found.fingerprint == node.fingerprint:
                self._say_found(node, found)
                return found
        lock = self.folder / ".locks" / f"{folder.parent.name if folder.parent != self.folder else ''}~{folder.name}"
        older = aside_of(folder)
        with explained(f'"{node.name}"', folder), locked(lock, f'"{node.name}"') as waited, _kept_if_used(older):
            if not node.force or waited:
                found = self._find(node, folder, older)
                if found is not None:
                    self._say_found(node, found)
                    return found
            previous = Manifest.read(folder)
            if previous is not None and previous.fingerprint != node.fingerprint:
                logger.info('rerunning "%s": %s', node.name, previous.difference(node.parts))
            sweep(older, node.fingerprint)
            if (older / node.fingerprint).exists():
                shutil.rmtree(older / node.fingerprint)
            manifest = self._make(node, older / node.fingerprint, build)
            _bring_forward(folder, older, node.fingerprint)
            if node.scratch.exists():
                shutil.rmtree(node.scratch, ignore_errors=True)
            return manifest

    def _find(self, node: Node, folder: Path, older: Path) -> Manifest | None:
        found = Manifest.read(folder)
        if found is not None and found.fingerprint == node.fingerprint:
            return found
        if (older / node.fingerprint).is_dir():
            _bring_forward(folder, older, node.fingerprint)
            return Manifest.read(folder)
        return None

    def _make(self, node: Node, target: Path, build: Callable[[Path], Manifest]) -> Manifest:
        started = time.monotonic()
        usage = node.usage
        around = current_usage()
        with counting(usage), self.progress.show(node.name, usage, node.progress_interval):
            logger.debug('running "%s"', node.name)
            with new_folder(target) as draft:
                manifest = build(draft)
                card = node.card
                card.seconds = round(time.monotonic() - started, 3)
                card.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                card.package_version = package_version()
                card.rows = manifest.rows
                card.prompt_tokens, card.completion_tokens = usage.prompt_tokens, usage.completion_tokens
                card.cost, card.failed_rows = usage.cost, usage.failed_rows
                manifest.card = card.without_parents()
                manifest.failures = {str(index): message for index, message in sorted(usage.failures.items())}
                manifest.write(draft)
        around.absorb(usage)
        self._say_made(node, manifest)
        return manifest

    def _say_found(self, node: Node, manifest: Manifest) -> None:
        rows = f", {manifest.rows:,} rows" if manifest.rows is not None else ""
        logger.info("%s: found finished%s", node.name, rows)

    def _say_made(self, node: Node, manifest: Manifest) -> None:
        parts = [f"{manifest.rows:,} rows"] if manifest.rows is not None else []
        parts += [f"{duration(node.card.seconds)}", *describe_usage(node.usage)]
        logger.info("%s: done, %s", node.name, ", ".join(parts))
        if node.usage.failed_rows:
            index, message = next(iter(sorted(node.usage.failures.items())))
            logger.warning(
                "%s: %s of its rows failed and hold None; the first is row %s: %s",
                node.name, f"{node.usage.failed_rows:,}", index, message,
            )  # fmt: skip

    # What DataDreamer scripts ask for

    @staticmethod
    def initialized() -> bool:
        """Tells whether a session is open."""
        return current_session() is not None

    @staticmethod
    def is_running_in_memory() -> bool:
        """Tells whether the open session keeps nothing."""
        session = current_session()
        return session is not None and session.in_memory

    @staticmethod
    def is_background_process() -> bool:
        """Tells whether this is a process that a session started: never, background steps are threads here."""
        return False

    @staticmethod
    def is_registered_thread() -> bool:
        """Tells whether this thread belongs to the open session."""
        return current_session() is not None

    @staticmethod
    def get_output_folder_path() -> str:
        """Returns the open session's folder.

        Raises:
            SessionError: No session is open.
        """
        session = current_session()
        if session is None:
            raise SessionError("There is no session. Put this inside `with DataDreamer(folder):`.")
        return str(session.folder)


def package_version() -> str:
    """Returns the installed version of this package."""
    try:
        return importlib.metadata.version("datadreamer-like")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _bring_forward(folder: Path, older: Path, fingerprint: str) -> None:
    """Makes an older result the current one; wherever this is cut off, both stay findable."""
    if folder.exists():
        current = Manifest.read(folder)
        assert current is not None
        aside = older / current.fingerprint
        if current.fingerprint == fingerprint:  # made again by force
            aside = older / f".draft-{fingerprint}-0-replaced"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
    os.rename(older / fingerprint, folder)
    sweep(older, fingerprint)


@contextlib.contextmanager
def _kept_if_used(folder: Path) -> Iterator[None]:
    """Removes an empty folder afterwards."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def aside_of(folder: Path) -> Path:
    """Returns where a node's other results stand, each under its fingerprint."""
    return folder.parent / ".older" / folder.name


def _slug(name: str) -> str:
    """Turns a name into a folder name: lower case, hyphens for spaces, nothing that a file system minds."""
    slug = re.sub(r"[^\w\-#().,&+=@!~' ]", "_", name.lower()).strip()
    slug = re.sub(r"\s+", "-", slug).lstrip(".") or "_"
    content = slug.encode()
    if len(content) <= _LONGEST_SLUG:
        return slug
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    return f"{content[: _LONGEST_SLUG - 9].decode(errors='ignore')}~{digest}"


_QUIET_LIBRARIES = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
