"""Ray as a session's engine: batches go to worker processes of Ray Data, results are found, made and kept as always."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from datadreamer_like.errors import AuthenticationFailed, DataDreamerError, DefinitionError, SessionError, require_extra

from .engine import B, Engine, R
from .tracebacks import is_of_user, shown_frames
from .usage import Usage, counting, current_usage

_MOST_TRIES = 5  # of a batch: a few workers may be ended from outside during it, more die of its rows
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(eq=False)
class RayEngine(Engine):
    """Runs functions on batches of rows in the worker processes of a Ray cluster.

    Only work on batches of rows is sent to workers: `process` of a step, the functions of `map` and `filter`, prompts,
    embeddings. Rows, their order and all fingerprints are those of a run without Ray. A worker that dies is replaced
    and its batch done again, which fails once five have died at the same batch; answers of models are on disk as they
    come, so only those in flight are asked for again.

    Ctrl-C ends a script in about two seconds, most of which Ray takes to end its processes; on a machine that is busy
    with other work it may take three. Answers that were received are kept.

    All workers must see the session's folder on one file system that supports locks. Keys of providers are never sent:
    workers take them from their own environment.

    Args:
        address: A running cluster, such as "10.0.0.1:6379", "ray://10.0.0.1:10001" or "auto". None for the one that
            this process is connected to, or else a new one on this machine, which ends with the session.
        num_workers: Worker processes; each holds its own copy of the models that its work needs.
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

    def __post_init__(self) -> None:
        require_extra("ray", "ray", what="RayEngine")
        for name, value in {"num_workers": self.num_workers, "batch_size": self.batch_size}.items():
            if not isinstance(value, int) or value < 1:
                raise DefinitionError(f"RayEngine: {name} is {value!r}; it must be an integer of at least 1.")
        self._connected = False
        self._runs = count()

    def open(self, enter: Callable[[], None]) -> None:
        """Connects to the cluster, or starts one; it must have room for a worker."""
        self._enter = enter
        self._tries: Any = None
        ray = _ray()
        if not ray.is_initialized():
            with _environment(), _without_notice():
                if self.address is None:
                    cores = max(os.cpu_count() or 1, int(self.num_workers * self.num_cpus))
                    ray.init(num_cpus=cores, include_dashboard=False, **_QUIET)
                else:
                    self._connect(self.address)
            self._connected = True
        if not self._room():
            found = ray.cluster_resources()
            self.close()
            raise SessionError(
                f"The Ray cluster has {found.get('CPU', 0):g} CPU cores and {found.get('GPU', 0):g} GPUs; a worker "
                f"takes {self.num_cpus:g} and {self.num_gpus:g}. Lower num_cpus or num_gpus, or use a larger cluster."
            )

    def close(self) -> None:
        """Disconnects from the cluster, and ends it if it was started for the session."""
        if self._connected:
            _ray().shutdown()
            self._connected = False

    def batches(
        self, process: Callable[[Iterator[B]], Iterator[R]], batches: Iterable[B], what: str, parts: Mapping[str, Any]
    ) -> Iterator[R]:
        """Applies a function to each batch in a worker; one that cannot be sent there is refused before any is read."""
        dumps: Callable[[object], bytes] = _ray().cloudpickle.dumps
        try:
            payload = dumps((self._enter, process))
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
        return self._run(payload, batches, what, current_usage())

    def _run(self, payload: bytes, batches: Iterable[B], what: str, usage: Usage) -> Iterator[R]:
        import pyarrow as pa

        ray = _ray()
        data = ray.data
        # Each batch is one block of one row, opaque to Ray, so that values come back as they were. Blocks go to Ray's
        # store a few at a time, so that this process need not hold them all.
        blocks = (pa.table({"batch": [pickle.dumps(item)], "index": [index]}) for index, item in enumerate(batches))
        stored = []
        while portion := list(islice(blocks, 256)):
            stored.append(data.from_blocks(portion))
        if not stored:
            return
        if self._tries is None:
            self._tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
        run = next(self._runs)
        num_blocks = sum(part.num_blocks() for part in stored)
        dataset = stored[0].union(*stored[1:]) if len(stored) > 1 else stored[0]
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(payload, self._tries, run, what),
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=min(self.num_workers, num_blocks, self._room())),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        for table in dataset.iter_batches(batch_size=1, batch_format="pyarrow"):
            made, counts, error = pickle.loads(table.column("made")[0].as_py())
            usage.add(**counts)
            if error is not None:
                raise error
            yield from made

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


class _Tries:
    """Counts how often each batch of a run was begun, in a process that outlives the workers of all runs."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[int, int]] = Counter()

    def begin(self, run: int, batch: int) -> int:
        self._begun[run, batch] += 1
        return self._begun[run, batch]


class _Worker:
    """What runs in a worker process; made once, so that its models are loaded once."""

    def __init__(self, payload: bytes, tries: Any, run: int, what: str) -> None:
        enter, self._process = pickle.loads(payload)
        self._tries, self._run, self._what = tries, run, what
        enter()

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        usage, made, failure = Usage(), [], None
        index = table.column("index")[0].as_py()
        try:
            if _ray().get(self._tries.begin.remote(self._run, index)) > _MOST_TRIES:
                raise SessionError(
                    f"{self._what}: {_MOST_TRIES} workers died at the same batch of rows (batch {index}, counted from "
                    "0). A row may crash the function or take more memory than there is: look at these rows, lower the "
                    "engine's batch_size, or give workers more memory."
                )
            with counting(usage):
                made = list(self._process(iter([pickle.loads(table.column("batch")[0].as_py())])))
        except Exception as error:  # Ray would try again and wrap it; the script is to see the error itself
            failure = _sent(error)
        return pa.table({"made": [_ray().cloudpickle.dumps((made, usage.of_models(), failure))]})


def _sent(error: Exception) -> Exception:
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


def _ray() -> Any:
    """Imports Ray, which takes seconds, without its reports on each execution and its way to show errors."""
    hook = sys.excepthook
    ray: Any = importlib.import_module("ray")
    sys.excepthook = hook
    importlib.import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
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
