"""Ray as a session's engine: batches go to its worker processes, results are found, made and kept as always."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

from datadreamer_like.errors import (
    AuthenticationFailed,
    DataDreamerError,
    DefinitionError,
    SessionError,
    StepOutputTypeError,
    require_extra,
)

from .engine import B, Engine, R
from .ray_cluster import connect, disconnect, imported_ray, start_cluster
from .tracebacks import is_of_user, shown_frames
from .usage import Usage, counting, current_usage

logger = logging.getLogger("datadreamer_like")

_MOST_DEATHS = 5  # at a batch: a few workers may be ended from outside during it, more die of its rows
_MOST_AHEAD = 8  # results a worker makes before those of an earlier batch are read
_MOST_RUNS = 32  # that share a worker: of steps that run side by side, and of lazy operations whose rows they read


@dataclass(eq=False)
class RayEngine(Engine):
    """Runs functions on batches of rows in the worker processes of a Ray cluster.

    Only work on batches of rows is sent to workers: `process` of a step, the functions of `map` and `filter`, prompts,
    embeddings. Rows, their order and all fingerprints are those of a run without Ray. A worker that dies is replaced
    and its batch done again, which fails once five have died at the same batch, or one after another as they start;
    answers of models are on disk as they come, so only those in flight are asked for again.

    Ctrl-C ends a script within two seconds. Answers that were received are kept.

    What functions print is in Ray's logs. An error whose class cannot be pickled is raised as a RuntimeError.

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

    _used_in: ClassVar[int | None] = None
    """The process in which a session on Ray was first opened, here or in one from which this one was forked."""

    def __post_init__(self) -> None:
        require_extra("ray", "ray", what="RayEngine")
        for name, value in {"num_workers": self.num_workers, "batch_size": self.batch_size}.items():
            if not isinstance(value, int) or value < 1:
                raise DefinitionError(f"RayEngine: {name} is {value!r}; it must be an integer of at least 1.")
        self._connected = False
        self._runs = count()

    def open(self, enter: Callable[[], None]) -> None:
        """Connects to the cluster, or starts one; it must have room for a worker."""
        if RayEngine._used_in not in (None, os.getpid()):
            raise SessionError(
                "Ray does not work in a process that was forked from one in which it worked. Start the process "
                'without a fork: multiprocessing.get_context("spawn").Process(...).'
            )
        RayEngine._used_in = os.getpid()
        ray = imported_ray()
        self._enter: bytes = ray.cloudpickle.dumps(enter)
        if not ray.is_initialized():
            RayEngine._is_own = self.address is None
            if self.address is None:
                start_cluster(max(os.cpu_count() or 1, int(self.num_workers * self.num_cpus)))
            else:
                connect(self.address, self.timeout)
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
            disconnect(RayEngine._is_own)
            self._connected = RayEngine._is_own = False

    def batches(
        self, process: Callable[[Iterator[B]], Iterator[R]], batches: Iterable[B], what: str, parts: Mapping[str, Any]
    ) -> Iterator[R]:
        """Applies a function to each batch in a worker; one that cannot be sent there is refused before any is read."""
        dumps: Callable[[object], bytes] = imported_ray().cloudpickle.dumps
        usage = current_usage()
        try:
            payload = dumps((process, what, usage.retries))
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
        given = (_Batch(index, pickle.dumps(batch)) for index, batch in enumerate(batches))
        places = max(1, min(self.num_workers, self._room()))
        run = _Run(next(self._runs), payload, given, what, self._workers, places, self.timeout)
        with closing(run.results()) as every:
            for made in every:
                results, counts, failure = pickle.loads(made)
                usage.add(**counts)
                if failure is not None:
                    raise failure
                yield from results

    def _started(self) -> Any:
        """Starts a worker."""
        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "max_concurrency": _MOST_RUNS}
        return imported_ray().remote(**options)(_Worker).remote(self._enter)

    def _room(self) -> int:
        """Returns how many workers the cluster has room for; more would wait forever."""
        found = imported_ray().cluster_resources()
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


class _Run:
    """A function that is applied to batches in workers, as far as its results are read.

    A worker answers before it is given a batch: it may have died while it was idle, or wait for cores that others use.
    """

    def __init__(
        self,
        index: int,
        payload: bytes,
        given: Iterator[_Batch],
        what: str,
        workers: _Workers,
        places: int,
        patience: float,
    ) -> None:
        self._index = index
        self._payload = [imported_ray().put(payload)]  # in a list: a worker reads it once, not with each batch
        self._given = given
        self._what = what
        self._workers = workers
        self._patience: float | None = patience
        self._most_made = _MOST_AHEAD * places
        self._waiting: deque[_Batch] = deque()
        self._made: dict[int, bytes] = {}
        self._unasked = deque(range(places))
        self._asked: dict[Any, tuple[int, Any]] = {}
        self._free: deque[tuple[int, Any]] = deque()
        self._busy: dict[Any, tuple[int, Any, _Batch]] = {}
        self._deaths: Counter[int] = Counter()  # at the start of a place's worker, one after another

    def results(self) -> Generator[bytes, None, None]:
        """Yields what is made of each batch, in their order."""
        self._workers.begin()
        try:
            for wanted in count():
                while wanted not in self._made:
                    self._give()
                    if not self._busy and not self._waiting:
                        return
                    self._take()
                yield self._made.pop(wanted)
        finally:
            self._workers.forget(self._index, {place for place, _, _ in self._busy.values()})

    def _give(self) -> None:
        """Gives batches to all workers that are free, and asks others whether they are."""
        while self._free or self._unasked:
            if len(self._waiting) <= (0 if self._free else len(self._asked)):
                batch = next(self._given, None) if len(self._made) < self._most_made else None
                if batch is None:
                    return
                self._waiting.append(batch)
            if self._free:
                place, worker = self._free.popleft()
                batch = self._waiting.popleft()
                self._busy[worker.work.remote(self._index, self._payload, batch.rows)] = place, worker, batch
            else:
                place = self._unasked.popleft()
                worker = self._workers.at(place)
                self._asked[worker.answer.remote()] = place, worker

    def _take(self) -> None:
        """Waits until a worker has done something."""
        ray = imported_ray()
        patience = None if self._busy else self._patience
        found, _ = ray.wait([*self._busy, *self._asked], num_returns=1, timeout=patience)
        if not found:
            logger.warning("%s: waits until the Ray cluster starts a worker; others may use its cores.", self._what)
            self._patience = None
            return
        (done,) = found
        place, worker, batch = self._busy.pop(done, None) or (*self._asked.pop(done), None)
        try:
            made = ray.get(done)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._workers.drop(place, worker)
            self._unasked.extend([place, *(idle for idle, _ in self._free)])  # these may have died with it
            self._free.clear()
            if batch is not None:
                self._waiting.appendleft(batch.after_death(self._what, error))
                return
            self._deaths[place] += 1
            if self._deaths[place] == _MOST_DEATHS:
                raise SessionError(
                    f"{self._what}: {_MOST_DEATHS} workers died as they started, before they were given rows. {error}"
                ) from error
        else:
            self._free.append((place, worker))
            self._deaths[place] = 0
            if batch is not None:
                self._made[batch.index] = made


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
                imported_ray().kill(self._at.pop(place))

    def forget(self, run: int, busy: Collection[int]) -> None:
        """Frees what workers hold of a run that is over; those still busy with it are ended, if no other run is on."""
        with self._lock:
            self._runs -= 1
            if not imported_ray().is_initialized():
                return
            if not self._runs and not self._kept:
                self.end()
            for place, worker in list(self._at.items()):
                if place in busy and not self._runs:
                    imported_ray().kill(self._at.pop(place))
                else:
                    worker.forget.remote(run)

    def end(self) -> None:
        """Ends all workers."""
        with self._lock:
            while self._at and imported_ray().is_initialized():
                imported_ray().kill(self._at.popitem()[1])


class _Worker:
    """What runs in a worker process; the models of a run are loaded once."""

    def __init__(self, enter: bytes) -> None:
        pickle.loads(enter)()
        self._lock = threading.Lock()
        self._runs: dict[int, tuple[Callable[[Iterator[Any]], Iterator[Any]], str, bool]] = {}

    def work(self, run: int, payload: list[Any], rows: bytes) -> bytes:
        """Returns what a run's function makes of a batch, what its models used, and its error, pickled."""
        dumps: Callable[[object], bytes] = imported_ray().cloudpickle.dumps
        usage = Usage()
        try:
            with self._lock:
                if run not in self._runs:
                    self._runs[run] = pickle.loads(imported_ray().get(payload[0]))
            process, what, usage.retries = self._runs[run]
            with counting(usage):
                made = list(process(iter([pickle.loads(rows)])))
            try:
                return dumps((made, usage.of_models(), None))
            except Exception as error:
                raise StepOutputTypeError(
                    f"{what} returned what a Ray worker cannot send to the script ({error}). Return texts, numbers, "
                    "dates, lists or dictionaries."
                ) from error
        except BaseException as error:  # Ray would wrap it, or end the worker; the script is to see the error itself
            return dumps(([], usage.of_models(), _sent(error)))

    def answer(self) -> None:
        """Returns, which shows that the worker runs."""

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
        pickle.loads(imported_ray().cloudpickle.dumps(error))  # by value: a script's own class is not in the worker
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
        sent.__notes__ = [
            *error.__notes__,
            "An error of this class cannot be pickled, so it is sent as a RuntimeError.",
        ]
        return sent
    return error
