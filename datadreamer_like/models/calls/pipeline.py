"""One pipeline for everything that is asked of a model: deduplicate, look up, call, store, yield in order.

It is the same for LLMs, embedders and task models, which say in `Calls` what a call is to them, and for both kinds of
engine: `ConcurrentEngine` keeps many requests under way, `BatchEngine` calls with one batch after another. Memory is
bounded by the window of prompts that were read and are not yet answered, however many prompts there are.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Generic, Self, TypeVar, cast

from datadreamer_like.errors import ArgumentTypeError, ModelError
from datadreamer_like.graph.node import working_node
from datadreamer_like.graph.usage import Usage
from datadreamer_like.storage.answers import AnswerStore

logger = logging.getLogger("datadreamer_like")

P = TypeVar("P")
Q = TypeVar("Q")
A = TypeVar("A")

# Reading prompts should take about this long at a time: less for each costs speed, more leaves slots waiting.
_READ_SECONDS = 0.02


class Calls(ABC, Generic[P, Q, A]):
    """What the pipeline must know of one kind of call: prompts P become requests Q, which get answers A."""

    @abstractmethod
    def admit(self, prompts: Sequence[P]) -> tuple[list[bytes], list[Q]]:
        """Returns the key and the request of each prompt; equal keys are asked once."""

    @abstractmethod
    def encode(self, answer: A) -> bytes:
        """Returns an answer as it is stored."""

    @abstractmethod
    def decode(self, value: bytes) -> A:
        """Reads a stored answer."""

    @abstractmethod
    def failed(self, error: ModelError) -> A:
        """Returns what stands in a failed row's place."""

    @abstractmethod
    def error(self, answer: A) -> ModelError | None:
        """Returns why a row failed, or None; a failed row is not stored."""

    def tokens(self, answer: A) -> tuple[int, int]:
        """Returns the prompt's and the answer's tokens."""
        return 0, 0

    def cost(self, answer: A) -> float | None:
        """Returns what an answer cost, in US dollars; None where that is not known."""
        return 0.0

    def size(self, request: Q) -> int:
        """Returns a length by which requests are sorted into batches."""
        return 0


class Job(Generic[Q, A]):
    """One request on its way; `answer` is set once the answer is on disk."""

    __slots__ = ("answer", "key", "request", "tries")

    def __init__(self, key: bytes, request: Q) -> None:
        self.key = key
        self.request = request
        self.tries = 0
        self.answer: A | None = None


class Recorder(Generic[P, Q, A]):
    """Stores what came back, counts it, and only then shows it to the waiting caller.

    Attributes:
        knows_answers: Whether this run has found or received an answer, so that the model is known to work.
    """

    def __init__(self, calls: Calls[P, Q, A], store: AnswerStore, usage: Usage) -> None:
        self.calls = calls
        self.knows_answers = False
        self._store = store
        self._usage = usage

    def record(self, finished: Sequence[tuple[Job[Q, A], A]]) -> None:
        """Puts answers on disk in one transaction."""
        calls = self.calls
        items = []
        prompt_tokens = completion_tokens = requests = 0
        cost: float | None = 0.0
        for job, answer in finished:
            requests += job.tries
            if calls.error(answer) is None:
                items.append((job.key, calls.encode(answer)))
            # A failed row may have been paid for too.
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
        for job, answer in finished:
            job.answer = answer


class Engine(ABC, Generic[Q, A]):
    """Takes jobs and gets them answered, inside its `with` block."""

    window: int
    """Most prompts that are read and not yet yielded; it may grow while the run goes on."""

    @abstractmethod
    def submit(self, jobs: Sequence[Job[Q, A]]) -> None:
        """Takes jobs over; raises what has ended the run."""

    @abstractmethod
    def wait(self, job: Job[Q, A]) -> A:
        """Returns the job's answer when it is on disk; raises what has ended the run."""

    def close(self) -> None:
        """Ends all work that is under way; called also when the caller is interrupted."""

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
    raise_errors: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[A]:
    """Yields the answer to each prompt, in the prompts' order.

    Args:
        calls: What a call is.
        prompts: Read in the calling thread, at most `window` ahead of the answer that is yielded.
        make_engine: Makes the engine that answers what the store does not hold.
        open_store: Opens the answers' store for this run.
        usage: Counts requests, cached answers, tokens and failed rows.
        force: Ask even for what the store holds.
        cache_only: Raise in place of asking.
        raise_errors: Raise a failed row's error, in its turn, in place of yielding it.
        progress: Called now and then with the number of rows yielded so far.
    """
    rows: deque[A | Job[Q, A]] = deque()
    source = _Source(prompts)
    failures = _Failures(usage)
    done = 0
    with open_store() as store:
        recorder = Recorder(calls, store, usage)
        desk = _Desk(recorder, store, usage, force=force, cache_only=cache_only)
        with make_engine(recorder) as engine:
            while True:
                room = 0 if source.ended else engine.window - len(rows)
                # Before waiting the window is filled up; while there is something to yield only whole chunks are read.
                if room and (not _head_is_ready(rows) or (room >= source.size and not source.slow)):
                    engine.submit(desk.admit(source.read(room, most=max(1, engine.window // 4)), rows))
                    if progress is not None:
                        progress(done)
                    continue
                if not rows:
                    break
                row = rows.popleft()
                if type(row) is Job:
                    answer: A = row.answer if row.answer is not None else engine.wait(row)
                    desk.forget(row)
                    error = calls.error(answer)
                    if error is not None:
                        failures.add(done, error)
                        if raise_errors:
                            raise error
                else:
                    answer = cast(A, row)
                done += 1
                yield answer
    failures.log(done)


class _Source(Generic[P]):
    """Reads prompts by the chunk: large chunks of a quick iterable, single prompts of a slow one."""

    def __init__(self, prompts: Iterable[P]) -> None:
        if isinstance(prompts, str | bytes):
            # Else each of its letters would be sent, and paid for.
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


class _Desk(Generic[P, Q, A]):
    """Decides for each prompt whether its answer is known, under way, or has to be asked for."""

    def __init__(
        self, recorder: Recorder[P, Q, A], store: AnswerStore, usage: Usage, *, force: bool, cache_only: bool
    ) -> None:
        self._recorder = recorder
        self._store = store
        self._usage = usage
        self._force = force
        self._cache_only = cache_only
        self._pending: dict[bytes, Job[Q, A]] = {}
        # With `force`, what this run itself has asked is not asked again.
        self._fresh: set[bytes] = set()

    def admit(self, prompts: Sequence[P], rows: deque[A | Job[Q, A]]) -> list[Job[Q, A]]:
        """Appends an answer or a job to `rows` for each prompt, and returns the new jobs."""
        if not prompts:
            return []
        calls = self._recorder.calls
        keys, requests = calls.admit(prompts)
        if self._force:
            known = [
                value if key in self._fresh else None
                for key, value in zip(keys, self._store.get_many(keys), strict=True)
            ]
        else:
            known = self._store.get_many(keys)
        jobs: list[Job[Q, A]] = []
        cached = 0
        for key, request, value in zip(keys, requests, known, strict=True):
            if value is not None:
                rows.append(calls.decode(value))
                cached += 1
                continue
            job = self._pending.get(key)
            if job is None:
                job = self._pending[key] = Job(key, request)
                jobs.append(job)
            else:
                cached += 1
            rows.append(job)
        if cached:
            self._usage.add(cached=cached)
            self._recorder.knows_answers = True
        if jobs and self._cache_only:
            raise ModelError(
                f"{len(jobs)} of the last {len(prompts)} prompts have no cached answer, and cache_only=True forbids to "
                "ask for it. Run without cache_only once."
            )
        return jobs

    def forget(self, job: Job[Q, A]) -> None:
        """Lets go of a job whose first row is yielded; later rows find its answer in the store."""
        if self._pending.pop(job.key, None) is not None and self._force:
            self._fresh.add(job.key)


class _Failures:
    """Counts failed rows and says at the end how many there were."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._count = 0
        self._first: tuple[int, ModelError] | None = None

    def add(self, row: int, error: ModelError) -> None:
        self._usage.row_failed(row, str(error))
        self._count += 1
        self._first = self._first or (row, error)

    def log(self, rows: int) -> None:
        # A step that is at work says it itself, by its own rows.
        if self._first is not None and working_node() is None:
            logger.warning(
                "%s of %s prompts failed and have no answer; the first is row %s: %s",
                f"{self._count:,}", f"{rows:,}", *self._first,
            )  # fmt: skip


def _head_is_ready(rows: deque[Any]) -> bool:
    return bool(rows) and (type(rows[0]) is not Job or rows[0].answer is not None)
