"""The pipeline of all calls to LLMs, embedders and task models: deduplicate, look up, call, store, check, yield."""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic

from datadreamer_like.errors import ModelError, OverBudget
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import current_session, not_in_plan
from datadreamer_like.graph.usage import Usage, current_usage
from datadreamer_like.storage.answers import AnswerStore, Claims

from ..model import Model
from .calls import Calls, P, Q
from .failures import A, Rejected
from .garbage import collecting_rarely
from .options import Run, check_is_list

logger = logging.getLogger("datadreamer_like")

# Target time of reading a chunk of prompts: shorter chunks add overhead, longer ones leave slots idle.
_READ_SECONDS = 0.02


@dataclass(slots=True, eq=False)
class Job(Generic[Q, A]):
    """The position and the request of one prompt. One small object per prompt, since there may be millions.

    `answer` is set once it is on disk and checked; `rejections` are the rejected answers so far, with their reasons;
    `without_text` counts the `tries` that were answered without one.
    """

    index: int
    key: bytes
    request: Q
    tries: int = 0
    without_text: int = 0
    answer: A | None = None
    rejections: tuple[tuple[A, str], ...] = ()


@dataclass(eq=False)
class Recorder(Generic[P, Q, A]):
    """Stores and counts answers before it passes them to the caller."""

    calls: Calls[P, Q, A]
    store: AnswerStore
    usage: Usage
    claims: Claims | None = None
    """What no other run asks for meanwhile; None if it may."""
    asks_again: bool = False
    """Whether answers of other runs are not taken: it asks what they ask for, too."""
    stored: deque[tuple[Job[Q, A], A]] = field(default_factory=deque)
    """Jobs and their answers, which are on disk and which the caller has not taken yet."""
    knows_answers: bool = False
    """Whether this run has found or received an answer, which shows that the model works."""

    def stored_values(self, jobs: Sequence[Job[Q, A]], force: bool) -> list[bytes | None]:
        """Returns the stored answer of each job; one that was paid for elsewhere is stored first, unless `force`."""
        values = self.store.get_many([job.key for job in jobs])
        if self.calls.has_paid and not force:
            missing = [index for index, value in enumerate(values) if value is None]
            answers = self.calls.paid([jobs[i].key for i in missing], [jobs[i].request for i in missing])
            for index, answer in zip(missing, answers, strict=True):
                values[index] = None if answer is None else self.calls.encode(answer)
            items = [(jobs[i].key, value) for i in missing if (value := values[i]) is not None]
            if items:
                self.store.put_many(items)
        return values

    def find(self, job: Job[Q, A]) -> bool:
        """Whether another run has stored the job's answer since it was looked up; the caller then gets it."""
        value = self.store.get_many([job.key])[0]
        if value is None:
            return False
        self.usage.add(cached=1)
        self.knows_answers = True
        self.stored.append((job, self.calls.decode(value)))
        return True

    def lasting_failures(self, jobs: Sequence[Job[Q, A]]) -> list[ModelError | None]:
        """Returns why jobs have failed for good before, while only other failed rows are requested again."""
        if not self.usage.retries:
            return [None] * len(jobs)
        values = self.store.get_many([_failure_key(job.key) for job in jobs])
        return [None if value is None else ModelError(value.decode("utf-8", "surrogatepass")) for value in values]

    def record(self, finished: Sequence[tuple[Job[Q, A], A]]) -> None:
        """Stores answers in one transaction."""
        items, failures = [], []
        prompt_tokens = completion_tokens = requests = 0
        cost: float | None = 0.0
        for job, answer in finished:
            requests += job.tries
            if answer.error is None:
                items.append((job.key, self.calls.encode(answer)))
            elif answer.error.lasting:
                failures.append((_failure_key(job.key), str(answer.error).encode("utf-8", "surrogatepass")))
            # A failed row may cost money too.
            prompt_tokens += answer.prompt_tokens
            completion_tokens += answer.completion_tokens
            cost = None if cost is None or answer.cost is None else cost + answer.cost
        if items or failures:
            self.store.put_many(items + failures)
            self.knows_answers = self.knows_answers or bool(items)
        self.usage.add(requests=requests, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost=cost)
        self.stored.extend(finished)

    def discard(self, answer: A) -> None:
        """Counts an answer that is asked for again: it may cost money too."""
        self.usage.add(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens, cost=answer.cost)


class Engine(ABC, Generic[Q, A]):
    """Answers jobs until it is closed; answers arrive in `Recorder.stored`."""

    window: int
    """Maximum number of prompts that are read and not yet yielded; it may grow during the run."""

    @abstractmethod
    def submit(self, jobs: Sequence[Job[Q, A]]) -> None:
        """Accepts jobs; raises the error that has ended the run."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when answers have been stored; raises the error that has ended the run."""

    @abstractmethod
    def close(self) -> None:
        """Ends all work in flight; also called when the caller is interrupted."""


def run_calls(
    calls: Calls[P, Q, A],
    prompts: Iterable[P],
    make_engine: Callable[[Recorder[P, Q, A]], Engine[Q, A]],
    model: Model,
    run: Run,
    *,
    what: str,
    total: int | None,
    check: Callable[[int, A], A | Rejected] | None = None,
    max_follow_ups: int = 0,
) -> Iterator[A]:
    """Yields the answer to each prompt, in the prompts' order; a failed row's answer holds its error.

    Prompts are read in the calling thread, at most `window` ahead of the yielded answer; `total` is their number, if
    `prompts` has no length, and `what` is what progress lines count, such as "texts done". `check` is called in the
    calling thread, in any order, with a prompt's position and its answer, stored or new; it returns the answer to
    yield, or `Rejected` to ask the model again, up to `max_follow_ups` times before the row fails.
    """
    check_is_list(prompts)
    if total is None and isinstance(prompts, Sequence):
        total = len(prompts)
    not_in_plan(f"answers of {model.display_name}")
    log_progress = _progress_logger(model.display_name, what, total, run)
    open_store, usage = _model_answers(model), current_usage()

    def answers() -> Iterator[A]:
        source = _Source(prompts)
        done = 0
        with collecting_rarely(), open_store() as store, Claims(store) as claims:
            recorder = Recorder(calls, store, usage, claims, asks_again=run.force)
            pending = _Pending(recorder, run, check, max_follow_ups)
            rows = pending.rows
            with pending.saying_what_is_left(what, total), closing(make_engine(recorder)) as engine:
                while True:
                    if recorder.stored:
                        engine.submit(pending.take_stored())
                    ready = bool(rows) and rows[0].answer is not None
                    room = 0 if source.ended else engine.window - len(rows)
                    # The window is filled before waiting; while there are answers to yield, only whole chunks are read.
                    if room > 0 and (not ready or (room >= source.size and not source.slow)):
                        engine.submit(pending.add(source.read(room, most=max(1, engine.window // 4))))
                        log_progress(done)
                    elif ready:
                        keep = 0 if source.ended or source.slow else engine.window - source.size
                        while len(rows) > keep and (answer := rows[0].answer) is not None:
                            rows.popleft()
                            done += 1
                            yield answer
                    elif rows:
                        engine.wait()
                    else:
                        return

    return answers()


def answers_file(model: Model) -> Path | str:
    """Returns the file of a model's stored answers; only its name if they are in memory."""
    last_part = re.sub(r"[^\w.-]+", "-", model.model_name.rstrip("/").rpartition("/")[2]).strip("-.")[:60] or "model"
    digest = fingerprint(model, what=type(model).__name__)[:12]
    name = f"{model.answers_name}-{last_part}-{digest}.sqlite"
    session, folder = current_session(), model.cache_folder_path
    if folder is None and session is not None:
        folder = session.cache_folder
    return name if folder is None else Path(folder) / name


def _model_answers(model: Model) -> Callable[[], AbstractContextManager[AnswerStore]]:
    """Returns a function that opens the store of a model's answers; without a folder or session it lasts one run."""
    file, session = answers_file(model), current_session()
    if isinstance(file, Path) or session is None:
        return lambda: AnswerStore(file if isinstance(file, Path) else "")
    # The session closes it. `setdefault` decides between two threads that both made one.
    kept = session.in_memory_answers
    return lambda: nullcontext(kept[file] if file in kept else kept.setdefault(file, AnswerStore(":memory:")))


class _Source(Generic[P]):
    """Reads prompts in chunks: large ones from a fast iterable, single prompts from a slow one."""

    def __init__(self, prompts: Iterable[P]) -> None:
        self._iterator = iter(prompts)
        self.size = 1
        self.slow = False
        self.ended = False

    def read(self, room: int, most: int) -> list[P]:
        """Returns the next prompts, at most `room`; the next chunk has at most `most`."""
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


@dataclass
class _Pending(Generic[P, Q, A]):
    """The rows that are read and not yet yielded, in order."""

    recorder: Recorder[P, Q, A]
    run: Run
    check: Callable[[int, A], A | Rejected] | None
    max_follow_ups: int
    rows: deque[Job[Q, A]] = field(default_factory=deque)
    count: int = 0
    # Jobs by key: the first one was sent, the others wait for its answer.
    in_flight: dict[bytes, list[Job[Q, A]]] = field(default_factory=dict)
    # With `force`, keys that this run has already requested.
    fresh: set[bytes] = field(default_factory=set)

    @contextmanager
    def saying_what_is_left(self, what: str, total: int | None) -> Iterator[None]:
        """Adds to the error of a used-up budget how many prompts have their answers, and how many are left."""
        try:
            yield
        except OverBudget as error:
            done = self.count - sum(job.answer is None for job in self.rows) + len(self.recorder.stored)
            at_least, at_most = ("At least ", "at most ") if self.count < (total or 0) else ("", "")  # some are unread
            left = "the others are left" if total is None else f"{at_most}{max(0, total - done):,} are left"
            raise OverBudget(f"{error} {at_least}{done:,} {what}, {left}.") from error

    def add(self, prompts: Sequence[P]) -> list[Job[Q, A]]:
        """Appends a job for each prompt, and returns those to submit."""
        keys, requests = self.recorder.calls.admit(prompts)
        start = self.count
        self.count += len(prompts)
        jobs: list[Job[Q, A]] = [*map(Job, range(start, self.count), keys, requests)]
        self.rows.extend(jobs)
        return self._ask(jobs)

    def take_stored(self) -> list[Job[Q, A]]:
        """Assigns stored answers to their jobs, and returns jobs to submit again after a rejection."""
        stored = self.recorder.stored
        again = []
        while stored:
            first, answer = stored.popleft()
            if self.run.force:
                self.fresh.add(first.key)
            for job in self.in_flight.pop(first.key):
                if not self._take(job, answer):
                    again.append(job)
        return self._ask(again)

    def _ask(self, jobs: list[Job[Q, A]]) -> list[Job[Q, A]]:
        """Answers jobs from the store, and returns those to submit, of these and of their follow-ups."""
        decode = self.recorder.calls.decode
        new: list[Job[Q, A]] = []
        while jobs:
            again: list[Job[Q, A]] = []
            sent = len(new)
            known = self.recorder.stored_values(jobs, self.run.force)
            failures = self.recorder.lasting_failures(jobs)
            for job, value, failure in zip(jobs, known, failures, strict=True):
                if value is not None and (not self.run.force or job.key in self.fresh):
                    if not self._take(job, decode(value)):
                        again.append(job)
                elif failure is not None and not self.run.force:
                    self._take(job, self.recorder.calls.failed(failure))
                elif job.key in self.in_flight:
                    self.in_flight[job.key].append(job)
                else:
                    self.in_flight[job.key] = [job]
                    new.append(job)
            cached = len(jobs) - (len(new) - sent)
            if cached:
                self.recorder.usage.add(cached=cached)
                self.recorder.knows_answers = True
            if new and self.run.cache_only:
                raise ModelError(
                    f"{len(new)} of the last {len(jobs)} prompts have no cached answer, and cache_only=True forbids "
                    "sending requests. Run without cache_only once."
                )
            jobs = again
        return new

    def _take(self, job: Job[Q, A], answer: A) -> bool:
        """Sets the answer to yield, and returns True, or makes the job a follow-up to a rejected answer."""
        calls = self.recorder.calls
        if self.check is None and not calls.checks:
            job.answer = answer
            return True
        if answer.error is not None:
            job.answer = calls.rejected(*job.rejections[-1], answer.error) if job.rejections else answer
            return True
        checked = calls.checked(job.request, answer) if calls.checks else answer
        if self.check is not None and not isinstance(checked, Rejected):
            checked = self.check(job.index, checked)
        if not isinstance(checked, Rejected):
            job.answer = checked
            return True
        job.rejections += ((answer, checked.reason),)
        if len(job.rejections) > self.max_follow_ups:
            job.answer = calls.rejected(answer, checked.reason, None)
            return True
        job.key, job.request = calls.follow_up(job.key, job.request, answer, checked.reason)
        job.tries = job.without_text = 0
        return False


def _failure_key(key: bytes) -> bytes:
    return key + b"failed"


def _progress_logger(who: str, what: str, total: int | None, run: Run) -> Callable[[int], None]:
    """Returns a function of the rows done that logs a line at most every `progress_interval` seconds."""
    interval = run.progress_interval or float("inf")
    of = f" of {total:,}" if total is not None else ""
    last = time.monotonic()

    def log(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= interval:
            last = now
            logger.log(run.progress_level, "%s: %s%s %s", who, f"{done:,}", of, what)

    return log
