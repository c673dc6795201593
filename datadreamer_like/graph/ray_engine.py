"""Ray as a session's engine: batches go to its worker processes, results are found, made and kept as always."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

from datadreamer_like.errors import AuthenticationFailed, DataDreamerError, DefinitionError, SessionError, require_extra

from .engine import B, Engine, R
from .tracebacks import is_of_user, shown_frames
from .usage import Usage, counting, current_usage

_MOST_DEATHS = 5  # at a batch: a few workers may be ended from outside during it, more die of its rows
_MOST_AHEAD = 8  # results a worker makes before those of an earlier batch are read
_MOST_RUNS = 32  # that share a worker: of steps that run side by side, and of lazy operations whose rows they read
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(eq=False)
class RayEngine(Engine):
    """Runs functions on batches of rows in the worker processes of a Ray cluster.

    Only work on batches of rows is sent to workers: `process` of a step, the functions of `map` and `filter`, prompts,
    embeddings. Rows, their order and all fingerprints are those of a run without Ray. A worker that dies is replaced
    and its batch done again, which fails once five have died at the same batch; answers of models are on disk as they
    come, so only those in flight are asked for again.

    Ctrl-C ends a script within two seconds. Answers that were received are kept.

    All workers must see the session's folder on one file system that supports locks. Keys of providers are never sent:
    workers take them from their own environment.

    Args:
        address: A running cluster, such as "10.0.0.1:6379", "ray://10.0.0.1:10001" or "auto". None for the one that
            this process is connected to, or else a new one on this machine for the session alone, which ends with it.
        num_workers: Worker processes; each holds its own copy of the models that its work needs. They serve
            all steps of the session, those that run side by side in threads. On a cluster that others may use, and
            where they have GPUs, they end when no step works.
        num_cpus, num_gpus: CPU cores and GPUs that a worker takes.
        batch_size: Rows that are sent to a worker at once.
        timeout: Seconds to wait for a cluster at `address`.

    Raises:
        MissingExtra: Ray is not installed.
        DefinitionError: An option is out of its range.

    Example:
        >>> with DataDreamer("./output", engine=RayEngine(num_workers=8)):  # doctest: +SKIP
        ...     made = Prompt("Made on eight workers", inputs=..., args={"llm": llm})
    """

    address: str | None = None
    num_workers: int = 2
    num_cpus: float = 1
    num_gpus: float = 0
    batch_size: int | None = 64
    timeout: float = 30.0

    _is_own: ClassVar[bool] = False
    """Whether the cluster that this process is connected to was started by an engine, for its sessions alone."""

    def __post_init__(self) -> None:
        require_extra("ray", "ray", what="RayEngine")
        for name, value in {"num_workers": self.num_workers, "batch_size": self.batch_size}.items():
            if not isinstance(value, int) or value < 1:
                raise DefinitionError(f"RayEngine: {name} is {value!r}; it must be an integer of at least 1.")
        self._connected = False
        self._runs = count()

    def open(self, enter: Callable[[], None]) -> None:
        """Connects to the cluster, or starts one; it must have room for a worker."""
        ray = _ray()
        self._enter: bytes = ray.cloudpickle.dumps(enter)
        if not ray.is_initialized():
            with _environment(), _without_notice():
                RayEngine._is_own = self.address is None
                if self.address is None:
                    cores = max(os.cpu_count() or 1, int(self.num_workers * self.num_cpus))
                    ray.init(num_cpus=cores, include_dashboard=False, **_QUIET)
                else:
                    self._connect(self.address)
            self._connected = True
        # Idle workers hold cores that others may wait for, and only the end of a process is certain to free a GPU.
        self._workers = _Workers(self._started, kept=RayEngine._is_own and not self.num_gpus)
        if not self._room():
            found = ray.cluster_resources()
            self.close()
            raise SessionError(
                f"The Ray cluster has {found.get('CPU', 0):g} CPU cores and {found.get('GPU', 0):g} GPUs; a worker "
                f"takes {self.num_cpus:g} and {self.num_gpus:g}. Lower num_cpus or num_gpus, or use a larger cluster."
            )

    def close(self) -> None:
        """Disconnects from the cluster, and ends it if it was started for the session."""
        self._workers.end()
        if self._connected:
            if RayEngine._is_own:
                _end_autoscaler()
            _ray().shutdown()
            self._connected = RayEngine._is_own = False

    def batches(
        self, process: Callable[[Iterator[B]], Iterator[R]], batches: Iterable[B], what: str, parts: Mapping[str, Any]
    ) -> Iterator[R]:
        """Applies a function to each batch in a worker; one that cannot be sent there is refused before any is read."""
        dumps: Callable[[object], bytes] = _ray().cloudpickle.dumps
        usage = current_usage()
        try:
            payload = dumps((process, usage.retries))
        except Exception as error:
            faults = []
            for name, value in parts.items():
                try:
                    dumps(value)
                except Exception as reason:
                    faults.append(f"{name} ({type(reason).__name__}: {str(reason).partition(chr(10))[0]})")
            raise DefinitionError(
                f"{what} cannot be sent to Ray's workers: {', '.join(faults) or error}. Use functions and objects that "
                "can be pickled: no locks, open files or connections in what they refer to."
            ) from error
        return self._run(payload, batches, what, usage)

    def _run(self, payload: bytes, batches: Iterable[B], what: str, usage: Usage) -> Iterator[R]:
        ray = _ray()
        run, work = next(self._runs), [ray.put(payload)]  # in a list: a worker reads it once, not with each batch
        workers = self._workers
        free = deque(range(max(1, min(self.num_workers, self._room()))))
        most_made = _MOST_AHEAD * len(free)
        given = (_Batch(index, pickle.dumps(batch)) for index, batch in enumerate(batches))
        again: deque[_Batch] = deque()
        running: dict[Any, tuple[int, Any, _Batch]] = {}
        made: dict[int, bytes] = {}
        workers.begin()
        try:
            for wanted in count():
                while wanted not in made:
                    while free and (again or len(made) < most_made):
                        batch = again.popleft() if again else next(given, None)
                        if batch is None:
                            break
                        place = free.popleft()
                        worker = workers.at(place)
                        running[worker.work.remote(run, work, batch.rows)] = place, worker, batch
                    if not running:
                        return
                    (done,), _ = ray.wait(list(running), num_returns=1)
                    place, worker, batch = running.pop(done)
                    free.append(place)
                    try:
                        made[batch.index] = ray.get(done)
                    except ray.exceptions.RayTaskError:
                        raise
                    except ray.exceptions.RayError as error:
                        workers.drop(place, worker)
                        again.append(batch.after_death(what, error))
                results, counts, failure = pickle.loads(made.pop(wanted))
                usage.add(**counts)
                if failure is not None:
                    raise failure
                yield from results
        finally:
            workers.forget(run, {place for place, _, _ in running.values()})

    def _started(self) -> Any:
        """Starts a worker."""
        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "max_concurrency": _MOST_RUNS}
        return _ray().remote(**options)(_Worker).remote(self._enter)

    def _connect(self, address: str) -> None:
        refused = SessionError(
            f"No Ray cluster answers at {address}. Start one with `ray start --head`, correct the address, or leave it "
            "out to run on this machine."
        )
        if address != "auto" and not _answers(address, self.timeout):
            raise refused
        try:
            _ray().init(address=address, **_QUIET)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise refused from error

    def _room(self) -> int:
        """Returns how many workers the cluster has room for; more would wait forever."""
        found = _ray().cluster_resources()
        shares = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        room = (int(found.get(name, 0) // share) for name, share in shares.items() if share)
        return min(room, default=self.num_workers)


@dataclass
class _Batch:
    """Rows for a worker, pickled, with their place in the order."""

    index: int
    rows: bytes
    deaths: int = 0

    def after_death(self, what: str, error: Exception) -> _Batch:
        """Counts a worker that died at the batch, up to a bound."""
        self.deaths += 1
        if self.deaths == _MOST_DEATHS:
            raise SessionError(
                f"{what}: {_MOST_DEATHS} workers died at the same batch of rows (batch {self.index}, counted from 0). "
                "A row may crash the function or take more memory than there is: look at these rows, lower the "
                "engine's batch_size, or give workers more memory."
            ) from error
        return self


class _Workers:
    """Worker processes by their places; one is started when it is first needed, and again if it died.

    Runs share them. If they are not `kept`, they end with the last run that is going on.
    """

    def __init__(self, start: Callable[[], Any], kept: bool) -> None:
        self._start = start
        self._kept = kept
        self._at: dict[int, Any] = {}
        self._runs = 0
        self._lock = threading.RLock()  # a run that nobody reads may end while a worker starts, in the same thread

    def begin(self) -> None:
        """Counts a run."""
        with self._lock:
            self._runs += 1

    def at(self, place: int) -> Any:
        """Returns the worker of a place."""
        with self._lock:
            if place not in self._at:
                self._at[place] = self._start()
            return self._at[place]

    def drop(self, place: int, worker: Any) -> None:
        """Gives up a worker that died or is out of reach."""
        with self._lock:
            if self._at.get(place) is worker:  # another run that shares it may have been here first
                _ray().kill(self._at.pop(place))

    def forget(self, run: int, busy: Collection[int]) -> None:
        """Frees what workers hold of a run that is over; those still busy with it are ended, if no other run is on."""
        with self._lock:
            self._runs -= 1
            if not _ray().is_initialized():
                return
            if not self._runs and not self._kept:
                self.end()
            for place, worker in list(self._at.items()):
                if place in busy and not self._runs:
                    _ray().kill(self._at.pop(place))
                else:
                    worker.forget.remote(run)

    def end(self) -> None:
        """Ends all workers."""
        with self._lock:
            while self._at and _ray().is_initialized():
                _ray().kill(self._at.popitem()[1])


class _Worker:
    """What runs in a worker process; the models of a run are loaded once."""

    def __init__(self, enter: bytes) -> None:
        self._enter: bytes | None = enter
        self._lock = threading.Lock()
        self._runs: dict[int, tuple[Callable[[Iterator[Any]], Iterator[Any]], bool]] = {}

    def work(self, run: int, payload: list[Any], rows: bytes) -> bytes:
        """Returns what a run's function makes of a batch, what its models used, and its error, pickled."""
        dumps: Callable[[object], bytes] = _ray().cloudpickle.dumps
        usage = Usage()
        try:
            with self._lock:
                if self._enter is not None:
                    pickle.loads(self._enter)()
                    self._enter = None
                if run not in self._runs:
                    self._runs[run] = pickle.loads(_ray().get(payload[0]))
            process, usage.retries = self._runs[run]
            with counting(usage):
                made = list(process(iter([pickle.loads(rows)])))
            return dumps((made, usage.of_models(), None))
        except BaseException as error:  # Ray would wrap it, or end the worker; the script is to see the error itself
            return dumps(([], usage.of_models(), _sent(error)))

    def forget(self, run: int) -> None:
        """Frees the models of a run that is over."""
        if self._runs.pop(run, None) is not None:
            gc.collect()


def _sent(error: BaseException) -> BaseException:
    """Returns an error that survives a pickle, with where it was raised."""
    if isinstance(error, AuthenticationFailed):
        return AuthenticationFailed(f"{error} (Keys are not sent to Ray's workers: set it in their environment.)")
    if not isinstance(error, DataDreamerError):
        trace = error.__traceback__
        frames = shown_frames(error, trace) if is_of_user(trace) else traceback.extract_tb(trace)
        error.add_note("In a Ray worker:\n" + "".join(traceback.format_list(frames)).rstrip("\n"))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _answers(address: str, timeout: float) -> bool:
    """Returns whether a cluster answers; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=min(timeout, 10.0)):
            pass
        if address.startswith("ray://"):
            return True
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        return subprocess.run(command, capture_output=True, timeout=timeout, check=False).returncode == 0
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False


def _end_autoscaler() -> None:
    """Ends the autoscaler of a cluster on this machine, for which Ray would wait a second as it shuts down."""
    import psutil

    folder = os.path.join(os.path.dirname(_ray().__file__), "autoscaler")
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(argument.startswith(folder) for argument in child.cmdline()):
                child.kill()


def _ray() -> Any:
    """Imports Ray, which takes seconds, without its way to show errors."""
    hook = sys.excepthook
    ray: Any = importlib.import_module("ray")
    sys.excepthook = hook
    return ray


@contextmanager
def _environment() -> Iterator[None]:
    """Sets what workers of a new cluster inherit: where the script found its modules, and no reports on each actor."""
    wanted = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _without_notice() -> Iterator[None]:
    """Keeps off the terminal the line in which Ray's C++ code says that it found the log level that we set."""
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            written.seek(0)
            os.write(2, b"".join(line for line in written if b"RAY_BACKEND_LOG_LEVEL" not in line))
