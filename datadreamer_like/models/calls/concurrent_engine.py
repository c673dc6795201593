"""The engine for models that take concurrent requests: workers in an event loop in a thread.

A slot takes its next request as soon as its answer is on disk, so all slots stay busy at any latency. The thread makes
it work the same way in a script, in a notebook and inside a running loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    MalformedAnswer,
    ModelError,
    OverBudget,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.graph.threads import DaemonPool
from datadreamer_like.storage.answers import Claims

from .allowance import Allowance, retry_delay
from .calls import Q
from .failures import A
from .pipeline import Engine, Job, Recorder

logger = logging.getLogger("datadreamer_like")

# Rate-limited requests are retried this many times as often.
_PATIENCE_WHEN_LIMITED = 5
_TRIES_WITHOUT_TEXT = 3
# Consecutive failed rows, each after all its tries, before the provider is considered down.
_DOWN_FROM_START = 3
_DOWN_LATER = 20
# Rows that are refused in the same words, before any is answered, until the refusal is about all rows.
_REFUSED_FROM_START = 20

# Prompts read ahead per slot: enough that one slow answer does not block the others.
_WINDOW_IN_REQUESTS = 16

_QUICK_SECONDS = 0.001
_MOST_IN_A_COMMIT = 256

# The caller is notified of stored answers when they are a quarter of the window, or after this time.
_LATEST_NEWS_SECONDS = 0.005

# Short, so that Ctrl-C ends a script whose requests cannot be cancelled.
_JOIN_SECONDS = 1.0
_LONG_PAUSE_SECONDS = 60.0
# Other processes that come wait so long for their first claim.
_LET_IN_SECONDS = 0.1
# Timers may fire a little early.
_AFTER_PAUSE_SECONDS = 0.001


class ConcurrentEngine(Engine[Q, A]):
    """Keeps up to `most` requests in flight, `concurrency` at first; `Allowance` finds how many.

    `ask` sends one request, and is cancelled when the run ends early; a row fails after `max_tries`, between which it
    waits as `retry_delay` says. `at_end` is called in the event loop when the run ends.
    """

    def __init__(
        self,
        ask: Callable[[Q], Awaitable[A]],
        recorder: Recorder[Any, Q, A],
        *,
        concurrency: int,
        most: int,
        max_tries: int,
        retry_seconds: float,
        at_end: Callable[[], Awaitable[None]],
    ) -> None:
        self.window = _WINDOW_IN_REQUESTS * most
        self._ask = ask
        self._recorder = recorder
        self._max_tries = max_tries
        self._retry_seconds = retry_seconds
        self._at_end = at_end
        self._allowance = Allowance(most, concurrency)
        self._thread: threading.Thread | None = None
        # Set by the loop when answers are on disk or the run has failed.
        self._news = threading.Event()
        self._failure: BaseException | None = None
        self._submitted = 0
        # A deque may be extended in one thread and emptied in another; all below is used only in the loop's thread.
        self._queue: deque[Job[Q, A]] = deque()
        self._stop = asyncio.Event()
        # A future for each worker that waits for a job that may be sent.
        self._idle: deque[asyncio.Future[None]] = deque()
        self._is_waking = False
        self._active = 0
        self._paused_until = float("-inf")
        self._finished: list[tuple[Job[Q, A], A]] = []
        self._late_news: asyncio.TimerHandle | None = None
        self._unsaved = 0
        self._lost = 0
        self._refusal, self._refusals = "", 0
        self._warned_of_others = False

    # In the caller's thread.

    def submit(self, jobs: Sequence[Job[Q, A]]) -> None:
        """Queues jobs; the thread starts with the first one."""
        if self._failure is not None:
            raise self._failure
        if not jobs:
            return
        self._queue.extend(jobs)
        self._submitted += len(jobs)
        if self._thread is None:
            # The runner copies the caller's context, which holds the session and the usage.
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._loop = self._runner.get_loop()
            # Of calls that block, such as a look-up of a host's address.
            self._loop.set_default_executor(DaemonPool(32, "datadreamer_like-blocking"))
            self._thread = threading.Thread(target=self._serve, name="datadreamer_like-requests", daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._wake)

    def wait(self) -> None:
        """Blocks until answers are stored."""
        while not self._recorder.stored:
            if self._failure is not None:
                raise self._failure
            # A thread that waits without a timeout cannot be interrupted.
            self._news.wait(0.1)
            self._news.clear()

    def close(self) -> None:
        """Cancels requests in flight, stores received answers, and ends the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        # The garbage collector may close an abandoned generator in any thread, including this one.
        if thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                logger.warning("A request could not be cancelled within %.0f s; it is abandoned.", _JOIN_SECONDS)

    def _serve(self) -> None:
        try:
            with self._runner:
                self._runner.run(self._main())
        except BaseException as error:
            self._fail(error)

    # In the loop's thread.

    async def _main(self) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(self._allowance.most)]
        if self._recorder.claims is not None:
            workers.append(asyncio.create_task(self._let_others_in(self._recorder.claims)))
        try:
            await self._stop.wait()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._commit()
            await self._at_end()

    async def _work(self) -> None:
        now, claims = self._loop.time, self._recorder.claims
        job: Job[Q, A] | None = None
        try:
            while True:
                while not self._may_send():
                    place: asyncio.Future[None] = self._loop.create_future()
                    self._idle.append(place)
                    await place
                    self._is_waking = False
                job = self._queue.popleft()
                self._active += 1
                self._wake()
                if claims is not None and not claims.take(job.key) and await self._is_answered(job, claims):
                    self._active -= 1
                    continue
                job.tries += 1
                sent_at = now()
                answer: A | None
                try:
                    answer = await self._ask(job.request)
                except (AuthenticationFailed, UnknownModel, OverBudget):
                    raise
                except (RateLimited, Unavailable, MalformedAnswer) as error:
                    answer = self._failed_for_now(job, error, sent_at)
                except ModelError as error:
                    answer = self._refused(error)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    # The client library cancelled the call, not this run.
                    unavailable = Unavailable("The request was cancelled by the client library.")
                    answer = self._failed_for_now(job, unavailable, sent_at)
                else:
                    answer = self._received(job, answer, sent_at)
                if answer is None:
                    self._active -= 1
                    self._give_up([job])
                else:
                    self._finish(job, answer, quick=now() - sent_at < _QUICK_SECONDS)
        except Exception as error:
            self._fail(error)
            self._give_up([] if job is None else [job])

    async def _is_answered(self, job: Job[Q, A], claims: Claims) -> bool:
        """Waits while another run asks the same; claims the job, unless the other run has stored its answer."""
        if self._recorder.asks_again:
            claims.wait(job.key, lambda: None)  # claimed, or asked at the same time
            return False

        def free() -> None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(turn.set)

        turn = asyncio.Event()
        since = self._loop.time()
        while (again_in := claims.wait(job.key, free)) is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(turn.wait(), None if again_in == float("inf") else again_in)
            turn.clear()
            if not self._warned_of_others and self._loop.time() - since > _LONG_PAUSE_SECONDS:
                self._warned_of_others = True
                logger.warning(
                    "Another run has been asking for a prompt of this one for over a minute; waiting for its answer. "
                    "If it is a process that was stopped, end it, and this one asks."
                )
        if not self._recorder.find(job):
            return False
        self._give_up([job])
        self._tell()
        return True

    async def _let_others_in(self, claims: Claims) -> None:
        try:
            while True:
                await asyncio.sleep(_LET_IN_SECONDS)
                claims.let_others_in()
        except Exception as error:
            self._fail(error)

    def _give_up(self, jobs: Iterable[Job[Q, A]]) -> None:
        if self._recorder.claims is not None:
            self._recorder.claims.give_up([job.key for job in jobs])

    def _received(self, job: Job[Q, A], answer: A, sent_at: float) -> A | None:
        self._lost = 0
        if not self._allowance.is_full:
            self._allowance.succeeded(self._loop.time() - sent_at)
        # An answer without a text is paid for each time.
        if isinstance(answer.error, MalformedAnswer):
            job.without_text += 1
            if job.tries < self._max_tries and job.without_text < _TRIES_WITHOUT_TEXT:
                self._recorder.discard(answer)
                return self._failed_for_now(job, answer.error, sent_at)
        return answer

    def _may_send(self) -> bool:
        if not self._queue or self._active >= self._allowance.allowed or self._failure is not None:
            return False
        return self._paused_until < 0 or self._loop.time() >= self._paused_until

    def _wake(self) -> None:
        # One worker, which wakes the next when it has taken a job: there may be thousands of workers for one job, and
        # one worker may take all jobs if answers come at once.
        if self._idle and not self._is_waking and self._may_send():
            place = self._idle.popleft()
            if not place.done():  # The end of the run cancels it.
                self._is_waking = True
                place.set_result(None)

    def _finish(self, job: Job[Q, A], answer: A, quick: bool) -> None:
        # A request keeps its slot until its answer is on disk, so that a kill loses at most one answer per slot; only
        # requests that are faster than a transaction release it at once.
        if quick:
            self._active -= 1
        else:
            self._unsaved += 1
        self._finished.append((job, answer))
        # Answers that arrive in the same iteration of the loop share a transaction.
        if len(self._finished) == 1:
            self._loop.call_soon(self._commit)
        elif len(self._finished) >= _MOST_IN_A_COMMIT:
            self._commit()

    def _failed_for_now(
        self, job: Job[Q, A], error: RateLimited | Unavailable | MalformedAnswer, sent_at: float
    ) -> A | None:
        after = None if isinstance(error, MalformedAnswer) else error.retry_after
        # An overloaded server says when to come again, too.
        limited = isinstance(error, RateLimited) or (isinstance(error, Unavailable) and after is not None)
        if limited:
            self._allowance.refused(sent_at, self._loop.time())
        elif isinstance(error, Unavailable):
            self._allowance.failed(sent_at, self._loop.time())
        if job.tries < self._max_tries * (_PATIENCE_WHEN_LIMITED if limited and self._max_tries > 1 else 1):
            delay = retry_delay(job.tries, self._retry_seconds, after)
            logger.debug("try %s failed, next in %.1f s: %s", job.tries, delay, error)
            if limited and after is not None:
                until = self._loop.time() + after
                if after >= _LONG_PAUSE_SECONDS and until > self._paused_until + _LONG_PAUSE_SECONDS:
                    logger.warning("The provider asks to wait %s s before the next request; waiting.", f"{after:,.0f}")
                self._paused_until = max(self._paused_until, until)
                self._loop.call_at(until + _AFTER_PAUSE_SECONDS, self._wake)
            self._loop.call_later(delay, self._again, job)
            return None
        self._lost += 1
        if self._recorder.knows_answers or self._refusals:
            down_from = max(_DOWN_LATER, 2 * self._allowance.allowed)
        else:
            down_from = min(_DOWN_FROM_START, self._submitted)
        if self._lost >= down_from:
            raise type(error)(
                f"The last {self._lost} requests have all failed, each tried {job.tries} times: {error} Earlier "
                "answers are saved: run again later to continue."
            ) from error
        return self._recorder.calls.failed(error)

    def _refused(self, error: ModelError) -> A:
        words = re.sub(r"(?<![\w-])[\w-]*?\d[\w-]*+", "0", str(error))  # numbers, and ids of requests
        self._refusals = self._refusals + 1 if words == self._refusal else 1
        self._refusal, self._lost = words, 0
        if self._refusals >= _REFUSED_FROM_START and not self._recorder.knows_answers and type(error) is BadRequest:
            raise BadRequest(f"The first {self._refusals} requests have all been refused in the same words: {error}")
        return self._recorder.calls.failed(error)

    def _again(self, job: Job[Q, A]) -> None:
        self._queue.appendleft(job)
        self._wake()

    def _commit(self) -> None:
        finished, self._finished = self._finished, []
        if not finished:
            return
        try:
            try:
                self._recorder.record(finished)
            finally:
                self._give_up([job for job, _ in finished])
        except Exception as error:
            self._fail(error)
            return
        self._active -= self._unsaved
        self._unsaved = 0
        self._wake()
        self._tell()

    def _tell(self) -> None:
        # Waking the caller takes longer than a fast answer, so it is woken once for several transactions.
        if not self._queue or len(self._recorder.stored) >= self.window // 4:
            self._news.set()
        elif self._late_news is None:
            self._late_news = self._loop.call_later(_LATEST_NEWS_SECONDS, self._notify)

    def _notify(self) -> None:
        self._late_news = None
        self._news.set()

    def _fail(self, error: BaseException) -> None:
        # The first failure is the cause of later ones.
        if self._failure is None:
            self._failure = error
        self._news.set()
