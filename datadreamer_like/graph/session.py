"""The session: a `with` block with an output folder and an engine."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datadreamer_like.errors import ArgumentTypeError, MissingFile, NotMade, SessionError
from datadreamer_like.storage.exports import is_address
from datadreamer_like.storage.ledger import LEDGER_NAME, Ledger, budget_of

from .engine import Engine
from .plan import Plan, planning, started_plan
from .progress import Progress, ProgressHandler
from .ray_engine import RayEngine
from .results import Results
from .threads import Task, counting_interrupts, interrupt_all
from .tracebacks import show_briefly

logger = logging.getLogger("datadreamer_like")

_current: ContextVar[DataDreamer | None] = ContextVar("datadreamer_like_session", default=None)
_last_started: DataDreamer | None = None
_starting = threading.Lock()


def current_session() -> DataDreamer | None:
    """Returns the open session of this context; in other threads and later cells, the one that was started last."""
    return _current.get() or _last_started


class DataDreamer:
    """A session: the results of all nodes in its block are saved in one folder, and loaded by the next run.

    Args:
        output_folder_path: The folder, created if needed; `~` is your home folder. `":memory:"` deletes everything
            after the session.
        verbose, log_level: False shows only warnings, True and None progress; a level of `logging` overrides this.
        log_date: Start each log line with date and time.
        hf_log: Show logs and progress bars of Hugging Face libraries.
        engine: "local" runs in this process, "ray" on a Ray cluster; or a `RayEngine` with options.
        budget: The most that requests to models may cost in this folder, over all runs, such as "5 USD".
        preview: Try the script on few rows: each step makes at most so many, or as many as its inputs have. The full
            run sends only the prompts that the preview has not: other ones where they show other rows, as examples or
            retrieved texts. Results have names of their own, in `.preview`.
        prices: A file with prices of models, before published ones, for models made in the session; by default the
            one in the environment variable `DATADREAMER_LIKE_PRICES`.

    Raises:
        DefinitionError: `budget` is not an amount in US dollars, or `preview` is less than 1.
        MissingFile: There is no such file of prices.
        SessionError: The path cannot be a local folder, a session is already open, or the Ray cluster is unavailable.
        MissingExtra: The engine is not installed.
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
        engine: Engine | Literal["local", "ray"] = "local",
        *,
        budget: str | None = None,
        prices: str | os.PathLike[str] | None = None,
        preview: int | None = None,
    ) -> None:
        self.in_memory = str(output_folder_path) == ":memory:"
        self.folder = Path(tempfile.gettempdir()) if self.in_memory else local_folder(output_folder_path)
        self.verbose = verbose
        self.log_level = log_level or (logging.WARNING if verbose is False else logging.INFO)
        self.log_date = log_date
        self.hf_log = hf_log
        self.in_memory_answers: dict[str, Any] = {}
        budget_of(budget)
        self.budget = budget
        self.preview = preview
        if prices is not None and not isinstance(prices, str | os.PathLike):
            raise ArgumentTypeError(f"prices is {prices!r}; a session takes the path of a file, models take prices.")
        if prices is not None and not os.path.isfile(prices):
            raise MissingFile(f"There is no prices file {os.fspath(prices)}. Check the path given as prices=...")
        self.prices = prices
        self.progress = Progress(quiet=verbose is False)
        if engine not in ("local", "ray") and not isinstance(engine, Engine):
            raise ArgumentTypeError(
                f'engine is {engine!r}; it must be "local", "ray" or an engine, such as RayEngine().'
            )
        self.engine: Engine = {"local": Engine, "ray": RayEngine}[engine]() if isinstance(engine, str) else engine
        self.results = Results(self.folder, preview)
        self.planned: Plan | None = None
        self._background: list[tuple[Task[Any], Callable[[], None]]] = []
        self._ending = contextlib.ExitStack()  # undoes what `start` does

    @property
    def cache_folder(self) -> Path | None:
        """The folder of answers, embeddings and indexes; None in memory."""
        return None if self.in_memory else self.results.cache_folder

    def __enter__(self) -> DataDreamer:
        self.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.planned is not None:
            self.planned.end(error)
        if isinstance(error, KeyboardInterrupt):
            self._interrupt()
        elif error is not None:
            # Errors of background steps would hide this one.
            with contextlib.suppress(Exception):
                self._wait_for_background()
        self.stop()

    def start(self) -> None:
        """Opens the session without a block, as for a notebook; end it with `stop`."""
        with _starting:  # of threads that start sessions at once, all but one are refused
            self._start()

    def _start(self) -> None:
        global _last_started
        open_session = current_session()
        if open_session is not None:
            raise SessionError(
                f"A session is already open (on {open_session.folder}); sessions do not nest. End it first: leave its "
                "`with` block, or call its stop()."
            )
        import tqdm  # type: ignore[import-untyped]

        # Otherwise each thread that shows a progress bar of `datasets` makes this lock and deletes it under the others.
        tqdm.tqdm.get_lock()
        with contextlib.ExitStack() as ending:
            if self.in_memory:
                self.folder = Path(tempfile.mkdtemp(prefix="datadreamer_like-"))
                ending.callback(weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True))
            self.results = Results(self.folder, self.preview)
            self.planned = started_plan(self.folder)
            # Shortens the tracebacks of this package's errors and of Ctrl-C; a hook other than Ray's is not replaced.
            is_free = sys.excepthook is sys.__excepthook__ or getattr(sys.excepthook, "__module__", "").startswith(
                "ray."
            )
            if is_free and not os.environ.get("DATADREAMER_LIKE_FULL_TRACEBACK"):
                sys.excepthook = show_briefly
            ending.enter_context(counting_interrupts())
            self._start_logging(ending)
            ending.callback(self._close_answers)
            if self.planned is None:
                self.results.open()
                if self.budget is not None and self.cache_folder is not None:
                    Ledger(self.cache_folder / LEDGER_NAME).close()  # a damaged one is an error now
                self.engine.open(partial(_join, self.folder, self.budget))
                ending.callback(self.engine.close)
            else:
                self.results.open_to_read()
            ending.callback(self._leave, _current.set(self))
            _last_started = self
            self._ending = ending.pop_all()

    def stop(self) -> None:
        """Waits for background steps and ends the session; raises the error of a failed background step."""
        try:
            self._wait_for_background()
        finally:
            self._ending.close()

    @contextlib.contextmanager
    def plan(self) -> Iterator[Plan]:
        """Plans the nodes that are made in the block instead of running them.

        Nodes are constructed and checked; of those that would run, the plan says why, and what they take. Local data
        are read and operations on rows computed, but not saved. The block ends, without an error, where the script
        needs rows or a model that do not exist yet. No request is sent, nothing is trained, and no result changes.

        Example:
            >>> from datadreamer_like import DataDreamer
            >>> from datadreamer_like.steps import DataSource
            >>> with DataDreamer("./output").plan() as plan:
            ...     pets = DataSource("Pets", data={"pet": ["cat", "dog"]})
            >>> [(node.name, node.state, node.forecast.rows) for node in plan.nodes]
            [('Pets', 'new', 2)]
        """
        with planning(), contextlib.ExitStack() as ending:
            ending.callback(setattr, self, "planned", None)
            if current_session() is not self:
                self.start()
                ending.callback(self.stop)
            self.planned = plan = self.planned or Plan(self.folder)
            with plan.ending():
                yield plan

    def wait_at_end(self, task: Task[Any], wait: Callable[[], None]) -> None:
        """Registers a task in the background: `wait` returns when it is done, or raises its error."""
        self._background.append((task, wait))

    def _wait_for_background(self) -> None:
        first: Exception | None = None
        try:
            for _, wait in self._background:
                try:
                    wait()
                except Exception as error:
                    first = first or error
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            self._background = []
        if first is not None:
            raise first

    def _interrupt(self) -> None:
        tasks, self._background = self._background, []
        interrupt_all(task for task, _ in tasks)

    @property
    def has_background(self) -> bool:
        """Whether there is background work."""
        return bool(self._background)

    def _leave(self, token: Token[DataDreamer | None]) -> None:
        global _last_started
        if _last_started is self:
            _last_started = None
        with contextlib.suppress(ValueError):  # stopped in a different context
            _current.reset(token)

    def _close_answers(self) -> None:
        while self.in_memory_answers:
            self.in_memory_answers.popitem()[1].close()

    def _start_logging(self, ending: contextlib.ExitStack) -> None:
        logger.setLevel(self.log_level)
        # If the application configured logging, records go there only.
        if not logging.getLogger().handlers and not logger.handlers:
            handler = ProgressHandler(self.progress, self.log_date)
            logger.addHandler(handler)
            ending.callback(logger.removeHandler, handler)
        if not self.hf_log:
            for name, value in _QUIET_LIBRARIES.items():
                os.environ.setdefault(name, value)
            # Modules that are already imported have read their environment.
            for name in ("huggingface_hub.utils", "datasets"):
                if name in sys.modules:
                    sys.modules[name].disable_progress_bars()

    # For DataDreamer scripts

    @staticmethod
    def initialized() -> bool:
        """Returns whether a session is open."""
        return current_session() is not None

    @staticmethod
    def is_running_in_memory() -> bool:
        """Returns whether the open session is in memory."""
        session = current_session()
        return session is not None and session.in_memory

    @staticmethod
    def is_background_process() -> bool:
        """Returns False: background steps are threads here."""
        return False

    is_registered_thread = initialized  # every thread belongs to the open session

    @staticmethod
    def get_output_folder_path() -> str:
        """Returns the open session's folder."""
        session = current_session()
        if session is None:
            raise SessionError("There is no session. Call this inside `with DataDreamer(folder):`.")
        return str(session.folder)


def not_in_plan(what: str) -> None:
    """Raises `NotMade` while the open session is planned: a plan sends nothing, so it has no new `what`."""
    session = current_session()
    if session is not None and session.planned is not None:
        raise NotMade(f"it needs {what}, and a plan sends nothing.")


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a session's folder; raises `SessionError` if it cannot be one."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ArgumentTypeError(f"The output folder must be a path, not {path!r}.")
    if is_address(text):
        raise SessionError(
            f"{text} is an address; results are saved in a local folder. Give a local path, and copy the folder after "
            "the session, or mount the store."
        )
    if not text.strip() or "\0" in text:
        raise SessionError(f'The output folder {text!r} is not a path. Give a path, such as "./output".')
    try:
        folder = Path(text).expanduser().absolute()
        os.fsencode(folder)
        broken = next((part for part in (folder, *folder.parents) if part.is_symlink() and not part.exists()), None)
        file = next((part for part in (folder, *folder.parents) if part.exists() and not part.is_dir()), None)
    except (RuntimeError, ValueError, OSError) as error:
        raise SessionError(f"{text!r} cannot be the output folder ({error}). Choose another path.") from error
    if broken is not None:
        raise SessionError(
            f"{broken} is a link to {os.readlink(broken)}, which is missing. Mount its disk, or choose another path."
        )
    if file is not None:
        raise SessionError(f"{file} is a file; a session needs a folder. Choose another path.")
    return folder


def _join(folder: Path, budget: str | None) -> None:
    """Joins the session of another process, so that models in this process cache their answers in its folder."""
    global _last_started
    _last_started = DataDreamer(folder, verbose=False, budget=budget)


_QUIET_LIBRARIES = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
