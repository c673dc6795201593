"""The pipeline of all calls to models: deduplicate, look up, call, store, check, yield in order.

It serves LLMs, embedders and task models, which describe their calls in `Calls`, with both engines:
`ConcurrentEngine` keeps many requests in flight, `BatchEngine` sends one batch after another. Memory is bounded by the
window of prompts that are read and not yet answered.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Generic, Self, TypeVar

from datadreamer_like.errors import ArgumentTypeError, ModelError
from datadreamer_like.graph.usage import Usage
from datadreamer_like.storage.answers import AnswerStore

from .failures import Rejected

logger = logging.getLogger("datadreamer_like")

P = TypeVar("P")
Q = TypeVar("Q")
A = TypeVar("A")

# Target time of reading a chunk of prompts: shorter chunks add overhead, longer ones leave slots idle.
_READ_SECONDS = 0.02


class Calls(ABC, Generic[P, Q, A]):
    """One kind of call, for the pipeline: prompts P become requests Q, which get answers A."""

    @abstractmethod
    def admit(self, prompts: Sequence[P]) -> tuple[list[bytes], list[Q]]:
        """Returns the key and the request of each prompt; requests with equal keys are sent once."""

    @abstractmethod
    def encode(self, answer: A) -> bytes:
        """Returns the stored form of an answer."""

    @abstractmethod
    def decode(self, value: bytes) -> A:
        """Reads a stored answer."""

    @abstractmethod
    def failed(self, error: ModelError) -> A:
        """Returns the answer of a failed row."""

    @abstractmethod
    def error(self, answer: A) -> ModelError | None:
        """Returns the error of a failed row, or None; the answer of a failed row is not stored."""

    def tokens(self, answer: A) -> tuple[int, int]:
        """Returns the prompt's and the answer's tokens."""
        return 0, 0

    def cost(self, answer: A) -> float | None:
        """Returns the cost of an answer in US dollars; None if unknown."""
        return 0.0

    def size(self, request: Q) -> int:
        """Returns a length for sorting requests into batches."""
        return 0

    def follow_up(self, key: bytes, request: Q, answer: A, reason: str) -> tuple[bytes, Q]:
        """Returns the key and the request of a follow-up to a rejected answer."""
        raise NotImplementedError

    def rejected(self, answer: A, reason: str, cause: ModelError | None) -> A:
        """Returns the answer of a row that failed by rejection; `cause` is the error of a failed follow-up."""
        raise NotImplementedError


class Job(Generic[Q, A]):
    """The position and the request of one prompt. One small object per prompt, since there may be millions.

    Attributes:
        index: Position of the prompt.
        key: Key of the request.
        request: The request.
        tries: How often the request was sent.
        received: The answer to the request; set once it is on disk.
        answer: The answer to yield; set once it is checked.
        same: Jobs with the same key, which wait for this job's request.
        rejections: Rejected answers so far, with their reasons.
    """

    __slots__ = ("answer", "index", "key", "received", "rejections", "request", "same", "tries")

    def __init__(self, index: int, key: bytes, request: Q) -> None:
        self.index = index
        self.key = key
        self.request = request
        self.tries = 0
        self.received: A | None = None
        self.answer: A | None = None
        self.same: list[Job[Q, A]] | None = None
        self.rejections: list[tuple[A, str]] | None = None


class Recorder(Generic[P, Q, A]):
    """Stores and counts answers before it passes them to the caller.

    Attributes:
        stored: Jobs with answers on disk that the caller has not taken yet.
        knows_answers: Whether this run has found or received an answer, which shows that the model works.
    """

    def __init__(self, calls: Calls[P, Q, A], store: AnswerStore, usage: Usage) -> None:
        self.calls = calls
        self.stored: deque[Job[Q, A]] = deque()
        self.knows_answers = False
        self._store = store
        self._usage = usage

    def record(self, finished: Sequence[tuple[Job[Q, A], A]]) -> None:
        """Stores answers in one transaction."""
        calls = self.calls
        items = []
        prompt_tokens = completion_tokens = requests = 0
        cost: float | None = 0.0
        for job, answer in finished:
            job.received = answer
            requests += job.tries
            if calls.error(answer) is None:
                items.append((job.key, calls.encode(answer)))
            # A failed row may cost money too.
            sent, received = calls.tokens(answer)
            prompt_tokens += sent
            completion_tokens += received
            price = calls.cost(answer)
            cost = None if cost is None or price is None else cost + price
        if items:
            self._store.put_many(items)
            self.knows_answers = True
        self._usage.add(
            requests=requests,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=cost,
        )
        self.stored.extend([job for job, _ in finished])


class Engine(ABC, Generic[Q, A]):
    """Answers jobs inside its `with` block; answers arrive in `Recorder.stored`."""

    window: int
    """Maximum number of prompts that are read and not yet yielded; it may grow during the run."""

    @abstractmethod
    def submit(self, jobs: Sequence[Job[Q, A]]) -> None:
        """Accepts jobs; raises the error that has ended the run."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when answers have been stored; raises the error that has ended the run."""

    def close(self) -> None:
        """Ends all work in flight; also called when the caller is interrupted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_calls(
    calls: Calls[P, Q, A],
    prompts: Iterable[P],
    make_engine: Callable[[Recorder[P, Q, A]], Engine[Q, A]],
    open_store: Callable[[], AbstractContextManager[AnswerStore]],
    usage: Usage,
    *,
    force: bool = False,
    cache_only: bool = False,
    check: Callable[[int, A], A | Rejected] | None = None,
    max_follow_ups: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[A]:
    """Yields the answer to each prompt, in the prompts' order; a failed row's answer holds its error.

    Args:
        calls: Describes the calls.
        prompts: Read in the calling thread, at most `window` ahead of the yielded answer.
        make_engine: Makes the engine for prompts without a stored answer.
        open_store: Opens the answer store for this run.
        usage: Counts requests, cached answers and tokens.
        force: Send requests even if answers are stored.
        cache_only: Raise instead of sending a request.
        check: Called in the calling thread, in any order, with a prompt's position and its answer, stored or new;
            returns the answer to yield, or `Rejected` to ask the model again.
        max_follow_ups: Maximum number of follow-ups to rejected answers before the row fails.
        progress: Called periodically with the number of rows yielded so far.
    """
    source = _Source(prompts)
    done = 0
    with open_store() as store:
        recorder = Recorder(calls, store, usage)
        pending = _Pending(recorder, store, usage, check, max_follow_ups, force=force, cache_only=cache_only)
        rows = pending.rows
        with make_engine(recorder) as engine:
            while True:
                if recorder.stored:
                    engine.submit(pending.take_stored())
                ready = bool(rows) and rows[0].answer is not None
                room = 0 if source.ended else engine.window - len(rows)
                # The window is filled before waiting; while there are answers to yield, only whole chunks are read.
                if room > 0 and (not ready or (room >= source.size and not source.slow)):
                    engine.submit(pending.add(source.read(room, most=max(1, engine.window // 4))))
                    if progress is not None:
                        progress(done)
                elif ready:
                    keep = 0 if source.ended or source.slow else engine.window - source.size
                    while len(rows) > keep:
                        answer = rows[0].answer
                        if answer is None:
                            break
                        rows.popleft()
                        done += 1
                        yield answer
                elif rows:
                    engine.wait()
                else:
                    return


class _Source(Generic[P]):
    """Reads prompts in chunks: large ones from a fast iterable, single prompts from a slow one."""

    def __init__(self, prompts: Iterable[P]) -> None:
        if isinstance(prompts, str | bytes):
            # Otherwise each character would be sent as a prompt.
            raise ArgumentTypeError("A model was given one text; expected a list of them, as in run([text]).")
        self._iterator = iter(prompts)
        self.size = 1
        self.slow = False
        self.ended = False

    def read(self, room: int, most: int) -> list[P]:
        size = min(self.size, room)
        started = time.monotonic()
        chunk = list(islice(self._iterator, size))
        took = time.monotonic() - started
        self.ended = len(chunk) < size
        self.slow = size == 1 and took > _READ_SECONDS
        if took > _READ_SECONDS / 2:
            self.size = max(1, min(int(size * _READ_SECONDS / took), most))
        elif size == self.size:
            self.size = min(2 * size, most)
        return chunk


class _Pending(Generic[P, Q, A]):
    """The rows that are read and not yet yielded.

    Attributes:
        rows: The rows, in order.
    """

    def __init__(
        self,
        recorder: Recorder[P, Q, A],
        store: AnswerStore,
        usage: Usage,
        check: Callable[[int, A], A | Rejected] | None,
        max_follow_ups: int,
        *,
        force: bool,
        cache_only: bool,
    ) -> None:
        self.rows: deque[Job[Q, A]] = deque()
        self._recorder = recorder
        self._store = store
        self._usage = usage
        self._check = check
        self._max_follow_ups = max_follow_ups
        self._force = force
        self._cache_only = cache_only
        self._count = 0
        self._in_flight: dict[bytes, Job[Q, A]] = {}
        # With `force`, keys that this run has already requested.
        self._fresh: set[bytes] = set()
        self._follow_ups: list[Job[Q, A]] = []

    def add(self, prompts: Sequence[P]) -> list[Job[Q, A]]:
        """Appends a job for each prompt, and returns those to submit."""
        if not prompts:
            return []
        keys, requests = self._recorder.calls.admit(prompts)
        start = self._count
        self._count += len(prompts)
        jobs: list[Job[Q, A]] = [*map(Job, range(start, self._count), keys, requests)]
        self.rows.extend(jobs)
        return self._ask(jobs) + self._ask_again()

    def take_stored(self) -> list[Job[Q, A]]:
        """Assigns stored answers to their jobs, and returns jobs to submit again after a rejection."""
        stored = self._recorder.stored
        while stored:
            job = stored.popleft()
            del self._in_flight[job.key]
            if self._force:
                self._fresh.add(job.key)
            answer, same = job.received, job.same
            assert answer is not None
            job.received = job.same = None
            self._take(job, answer)
            for other in same or ():
                self._take(other, answer)
        return self._ask_again()

    def _ask(self, jobs: Sequence[Job[Q, A]]) -> list[Job[Q, A]]:
        known = self._store.get_many([job.key for job in jobs])
        if self._force:
            known = [value if job.key in self._fresh else None for job, value in zip(jobs, known, strict=True)]
        decode = self._recorder.calls.decode
        in_flight = self._in_flight
        new: list[Job[Q, A]] = []
        for job, value in zip(jobs, known, strict=True):
            if value is not None:
                self._take(job, decode(value))
                continue
            first = in_flight.setdefault(job.key, job)
            if first is job:
                new.append(job)
            elif first.same is None:
                first.same = [job]
            else:
                first.same.append(job)
        if len(new) < len(jobs):
            self._usage.add(cached=len(jobs) - len(new))
            self._recorder.knows_answers = True
        if new and self._cache_only:
            raise ModelError(
                f"{len(new)} of the last {len(jobs)} prompts have no cached answer, and cache_only=True forbids "
                "sending requests. Run without cache_only once."
            )
        return new

    def _ask_again(self) -> list[Job[Q, A]]:
        new: list[Job[Q, A]] = []
        while self._follow_ups:
            jobs, self._follow_ups = self._follow_ups, []
            new += self._ask(jobs)
        return new

    def _take(self, job: Job[Q, A], answer: A) -> None:
        if self._check is None:
            job.answer = answer
            return
        calls = self._recorder.calls
        error = calls.error(answer)
        if error is not None:
            job.answer = answer if job.rejections is None else calls.rejected(*job.rejections[-1], error)
            return
        checked = self._check(job.index, answer)
        if not isinstance(checked, Rejected):
            job.answer = checked
            return
        job.rejections = [*(job.rejections or ()), (answer, checked.reason)]
        if len(job.rejections) > self._max_follow_ups:
            job.answer = calls.rejected(answer, checked.reason, None)
        else:
            job.key, job.request = calls.follow_up(job.key, job.request, answer, checked.reason)
            job.tries = 0
            self._follow_ups.append(job)


def progress_logger(
    who: str, what: str, prompts: Iterable[object], total: int | None, interval: float | None, level: int
) -> Callable[[int], None] | None:
    """Returns a function of the rows done that logs a line at most every `interval` seconds; None for no interval."""
    if not interval:
        return None
    if total is None and isinstance(prompts, Sequence):
        total = len(prompts)
    of = f" of {total:,}" if total is not None else ""
    last = time.monotonic()

    def log(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= interval:
            last = now
            logger.log(level, "%s: %s%s %s", who, f"{done:,}", of, what)

    return log
