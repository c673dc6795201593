"""The rows of a run that go into batches: queued, in a batch, or finished; and what is made of a batch's results."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from datadreamer_like.errors import (
    AuthenticationFailed,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.storage.ledger import nanodollars

from ..llms.answer_text import plain_answer, with_text
from ..llms.generation import Answer, Generation, Request
from ..llms.provider_errors import ErrorInAnswer, refused_parameter
from .batch_api import BatchAPI, LineResult
from .batch_files import Batch, parsed_lines
from .budget import Paid
from .pipeline import Job, Recorder

logger = logging.getLogger("datadreamer_like")

# A row that expired, or met an overloaded server, is put into so many batches before it fails.
_MOST_TRIES = 3
_MOST_IN_A_COMMIT = 256
_NOT_OPTIONS = {"model", "messages", "input"}


class Batched(Paid, Protocol):
    """What of a model the engine needs: an `APIModel` has it."""

    retry_on_fail: bool

    def retry_wrapper(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of the client, again after a temporary failure."""

    def unload_model(self) -> None:
        """Closes the client."""

    def error_of(self, error: Exception, refused: tuple[str, bool] | None = None) -> Exception:
        """Returns this package's error for one of the SDK."""

    def leave_out(self, name: str, unsupported: bool, sent: Mapping[str, Any]) -> bool:
        """Drops a refused parameter in later requests; returns False if answers depend on it."""


class BatchRows:
    """The rows of a run without an answer on disk.

    Attributes:
        jobs: All of them, by key.
        queue: Those that are in no batch.
        holding: How many batches under way have a row.
        size: Characters of their prompts.
    """

    def __init__(self, llm: Batched, api: BatchAPI, recorder: Recorder[Any, Request, Answer], run: Generation) -> None:
        self.jobs: dict[bytes, Job[Request, Answer]] = {}
        self.queue: deque[Job[Request, Answer]] = deque()
        self.holding: Counter[bytes] = Counter()
        self.size = 0
        self._llm = llm
        self._api = api
        self._recorder = recorder
        self._run = run
        self._tries = _MOST_TRIES if llm.retry_on_fail else 1
        # Of rows that need further replies: those so far, and the batches that they are from.
        self._replies: dict[bytes, list[Any]] = {}
        self._kept: list[Batch] = []
        self._finished: list[tuple[Job[Request, Answer], Answer]] = []
        self._others: list[tuple[bytes, Answer]] = []  # answers to prompts that only an earlier run had

    def add(self, job: Job[Request, Answer]) -> None:
        """Takes a row; it is not queued."""
        self.jobs[job.key] = job
        self.size += self._recorder.calls.size(job.request)

    def bodies(self, request: Request, key: bytes) -> list[dict[str, Any]]:
        """Returns the bodies that ask for the answers that a row does not have yet."""
        return self._api.bodies(request, self._replies.get(key, ()))

    def put_back(self, keys: Iterable[bytes]) -> None:
        """Queues the rows of a batch that was not processed."""
        for key in keys:
            if key in self.jobs and not self.holding[key]:
                self.jobs[key].tries -= 1
                self.queue.append(self.jobs[key])

    def take_stored(self, jobs: Iterable[Job[Request, Answer]]) -> None:
        """Finishes rows whose answers another process has stored; queues those that are in no batch either."""
        waiting = list(jobs)
        values = self._recorder.store.get_many([job.key for job in waiting])
        for job, value in zip(waiting, values, strict=True):
            if value is not None:
                self.finish(job.key, self._recorder.calls.decode(value))
            elif not self.holding[job.key]:
                self.queue.append(job)

    def finish(self, key: bytes, answer: Answer) -> None:
        """Takes the answer of a row; `store` stores it."""
        job = self.jobs.pop(key, None)
        if job is not None:
            self.size -= self._recorder.calls.size(job.request)
            self._finished.append((job, answer))
        elif answer.error is None:
            self._others.append((key, answer))

    def fail(self, key: bytes, error: ModelError) -> None:
        """Takes the error of a row."""
        self.finish(key, self._recorder.calls.failed(error))

    def store(self) -> None:
        """Stores the answers so far, and removes batches whose results are not needed any more."""
        others, self._others = self._others, []
        if others:
            self._recorder.store.put_many([(key, self._recorder.calls.encode(answer)) for key, answer in others])
            for _, answer in others:
                self._recorder.usage.add(
                    cost=answer.cost, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
                )
        finished, self._finished = self._finished, []
        if finished:
            self._recorder.record(finished)
        for batch in list(self._kept):
            batch.waiting.intersection_update(self.jobs)
            if not batch.waiting:
                self._kept.remove(batch)
                batch.remove()

    def release(self) -> None:
        """Lets other processes work on batches that are kept."""
        for batch in self._kept:
            batch.release()
        self._kept.clear()

    def read(self, batch: Batch, cancelled: bool) -> None:
        """Stores the answers of a batch that has ended, and queues its rows that have none.

        Raises:
            ModelError: The batch was cancelled, or all rows would meet the error of one.
        """
        sent = batch.first_line().get(self._api.body_name, {})
        ends: list[Exception] = []
        lost = self.missing_lines(batch, batch.results_file)
        if lost and not cancelled:
            words = (
                "%s: the results of the batch %s lack %s of its %s lines; their prompts are submitted again, and paid "
                "again if the provider has billed these lines"
            )
            logger.warning(words, self._llm.display_name, batch.id, f"{lost:,}", f"{batch.lines:,}")
        for key, results in self._rows_of(batch):
            try:
                self._read_row(batch, key, results, sent, put_back=not cancelled)
            except (AuthenticationFailed, UnknownModel, DefinitionError) as error:
                ends.append(error)
            if len(self._finished) + len(self._others) >= _MOST_IN_A_COMMIT:
                self.store()
        self.store()
        if batch.waiting and not ends:
            self._kept.append(batch)
        else:
            batch.remove()
        if ends:
            raise ends[0]
        if cancelled and (left := sum(key in self.jobs for key in batch.rows)):
            raise ModelError(
                f"{self._llm.display_name}: the batch {batch.id} was cancelled at the provider: {left:,} of its "
                f"{len(batch.rows):,} prompts have no answer, the others are kept. Run again to submit these again."
            )

    def missing_lines(self, batch: Batch, path: Path) -> int:
        """Returns how many lines of a batch have no result in a file."""
        found = {batch.place_of(result.custom_id) for result in self._read(parsed_lines(path))}
        return batch.lines - len(found - {None})

    def are_no_results(self, path: Path) -> bool:
        """Returns whether a file has lines, and none of them is a result."""
        if next(self._read(parsed_lines(path)), None) is not None:
            return False
        with path.open("rb") as file:
            return any(line.strip() for line in file)

    def _read(self, lines: Iterable[Any]) -> Iterator[LineResult]:
        """Yields the results in lines; others are left out."""
        for line in lines:
            with suppress(TypeError, KeyError, AttributeError, ValueError):
                yield self._api.read(line)

    def _rows_of(self, batch: Batch) -> Iterator[tuple[bytes, list[LineResult]]]:
        """Yields the results of each row; of fewer lines than it has where some are missing."""

        def in_order(of_row: dict[int, LineResult]) -> list[LineResult]:
            return [of_row[index] for index in sorted(of_row)]

        found: dict[bytes, dict[int, LineResult]] = {}
        left = dict.fromkeys(batch.rows)
        for result in self._read(batch.results()):
            key, index = batch.place_of(result.custom_id) or (b"", 0)
            if key in left:
                of_row = found.setdefault(key, {})
                of_row[index] = result
                if len(of_row) == batch.rows[key].lines:
                    del left[key]
                    yield key, in_order(found.pop(key))
        for key in left:
            yield key, in_order(found.get(key, {}))

    def cost(self, batch: Batch) -> int:
        """Returns what a batch cost, in dollars of 10⁻⁹: of replies with unknown costs and lost ones the worst case."""
        cost = 0
        for key, results in self._rows_of(batch):
            row = batch.rows[key]
            worst = -(-row.worst // row.lines)
            cost += worst * (row.lines - len(results))
            for result in results:
                if result.reply is not None:
                    try:
                        of_reply = self._api.answer([result.reply], self._run.sampling).cost
                    except MalformedAnswer:
                        of_reply = None
                    cost += worst if of_reply is None else nanodollars(of_reply)
                elif isinstance(result.error, ErrorInAnswer):
                    cost += worst
        return cost

    def _read_row(
        self, batch: Batch, key: bytes, results: list[LineResult], sent: Mapping[str, Any], *, put_back: bool
    ) -> None:
        """Finishes a row, or puts it back; raises an error that every row would meet."""
        sampling, job = self._run.sampling, self.jobs.get(key)
        replies = [*self._replies.pop(key, ()), *(result.reply for result in results if result.reply is not None)]
        error: ModelError | None = None
        if self._api.missing(replies, sampling) <= 0:
            try:
                answer = with_text(plain_answer(self._api.answer(replies, sampling), sampling.schema is not None))
                if not isinstance(answer.error, MalformedAnswer):
                    return self.finish(key, answer)
                self._recorder.discard(answer)
                error = answer.error
            except MalformedAnswer as malformed:
                error = malformed
            replies = []
        if job is None:
            return None
        left_out = False
        for result in results:
            if result.error is not None:
                refused = refused_parameter(result.error, [name for name in sent if name not in _NOT_OPTIONS])
                if refused is not None and self._llm.leave_out(*refused, sent):
                    left_out = True
                    continue
                failure = self._llm.error_of(result.error, refused)
                if not isinstance(failure, ModelError) or isinstance(failure, AuthenticationFailed | UnknownModel):
                    raise failure
                error = failure
        job.tries -= left_out
        lasting = error is not None and not isinstance(error, RateLimited | Unavailable | MalformedAnswer)
        if lasting or (job.tries >= self._tries and not self.holding[key] and put_back):
            unprocessed = Unavailable(f"The provider did not process the prompt in {job.tries} batches.")
            return self.fail(key, error or unprocessed)
        if replies:
            self._replies[key] = replies
            batch.waiting.add(key)
        if put_back and not self.holding[key]:
            self.queue.append(job)
        return None
