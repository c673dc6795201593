"""The engine for providers' batch APIs: requests are answered within a day, for about half the price.

What a batch consists of is on disk before it is submitted, and its id as soon as it is known. However this process
ends, the next run waits for the same batch.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    MalformedAnswer,
    ModelError,
    PromptTooLong,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.graph.usage import current_usage
from datadreamer_like.storage.ledger import in_dollars

from ..llms.generation import Answer, Generation, Request
from .batch_api import BatchAPI, BatchState
from .batch_budget import BatchBudget
from .batch_files import Batch, Row, batches_in, custom_id, is_batch, lines_cut, make_batch, new_label, take_batch
from .batch_rows import Batched, BatchRows
from .pipeline import Engine, Job, Recorder
from .sent_once import sent_once

logger = logging.getLogger("datadreamer_like")

# Failed looks at a batch, one after the other, before the provider is considered down.
_MOST_LOST_LOOKS = 60
# Prompts read ahead, so that they are in as few batches as possible: at most so many.
_MOST_ROWS, _MOST_BYTES = 1_000_000, 1 << 29


@dataclass
class Elsewhere:
    """A batch that another process works on, and rows of this run that are in it."""

    keys: frozenset[bytes]
    jobs: list[Job[Request, Answer]]


class BatchJobs(Engine[Request, Answer]):
    """Answers requests by batches of a provider's `api`, whose files are in `folder`.

    Batches are submitted when the prompts of the run are read, or as many as fit into memory, and polled with growing
    pauses. Rows that were not processed, or met a temporary failure, go into another batch.
    """

    def __init__(
        self, llm: Batched, api: BatchAPI, folder: Path, recorder: Recorder[Any, Request, Answer], run: Generation
    ) -> None:
        self.window = min(2 * api.limits.rows, _MOST_ROWS)
        self._llm = llm
        self._api = api
        self._folder = folder
        self._recorder = recorder
        self._run = run
        self._budget = BatchBudget.of(llm)
        self._had_client = "client" in vars(llm)
        self._rows_a_batch = api.limits.rows
        self._most_batches = _MOST_ROWS
        self._rows = BatchRows(llm, api, recorder, run)
        self._on_disk: dict[str, frozenset[bytes]] | None = None
        self._batches: list[Batch] = []
        self._elsewhere: dict[str, Elsewhere] = {}
        self._lost_looks = 0
        self._found: dict[str, tuple[list[bytes], int]] = {}
        self._reported: dict[str, str] = {}
        self._reported_at = time.monotonic()

    def submit(self, jobs: Sequence[Job[Request, Answer]]) -> None:
        """Queues rows that are not in a batch already."""
        for job in jobs:
            self._rows.add(job)
            if not self._find(job):
                self._rows.queue.append(job)
        if len(self._rows.jobs) > self.window // 2 and self._rows.size < _MOST_BYTES:
            self.window = min(2 * self.window, _MOST_ROWS)

    def wait(self) -> None:
        """Submits what is queued, and polls until answers are stored."""
        pauses = self._api.pauses()
        while not self._recorder.stored:
            self._look_elsewhere()
            while self._rows.queue and len(self._batches) < self._most_batches and self._make_batch():
                pass
            for batch in list(self._batches):
                self._look_at(batch)
            self._rows.store()
            if not self._recorder.stored:
                if not (self._batches or self._rows.queue or self._elsewhere):
                    return
                time.sleep(next(pauses))
        current_usage().note = ""

    def close(self) -> None:
        """Stores the answers that are here; batches under way go on at the provider."""
        self._rows.store()
        if self._batches:
            ids = ", ".join(batch.id or batch.label for batch in self._batches)
            words = "%s: still under way at the provider: %s; run again to fetch the answers"
            logger.info(words, self._llm.display_name, ids)
        for batch in self._batches:
            batch.release()
        self._batches.clear()
        self._rows.release()
        with suppress(OSError):  # it is not empty, or is not there
            self._folder.rmdir()
        if self._budget is not None:
            self._budget.close()
        if not self._had_client:
            self._llm.unload_model()  # closes the client that this run opened

    # Batches of earlier runs and of other processes

    def _find(self, job: Job[Request, Answer]) -> bool:
        """Returns whether a row is in a batch that exists."""
        if self._on_disk is None:
            self._on_disk = batches_in(self._folder)
        for label in [label for label, keys in self._on_disk.items() if job.key in keys]:
            keys = self._on_disk.pop(label)
            batch = take_batch(self._folder, label)
            if batch is not None and not batch.state["begun"]:  # its run was killed before anything was sent
                self._pay(batch, 0)
                batch.remove()
            elif batch is not None:
                self._work_on(batch)
            elif is_batch(self._folder, label):
                logger.info("%s: another process waits for the batch %s", self._llm.display_name, label)
                self._elsewhere[label] = Elsewhere(keys, [])
        for other in self._elsewhere.values():
            if job.key in other.keys and not self._rows.holding[job.key]:
                other.jobs.append(job)
                return True
        return bool(self._rows.holding[job.key])

    def _look_elsewhere(self) -> None:
        """Reads what other processes have fetched, and goes on with what they have left."""
        for label in list(self._elsewhere):
            batch = take_batch(self._folder, label)
            if batch is None and is_batch(self._folder, label):
                continue
            jobs = self._elsewhere.pop(label).jobs
            if batch is not None:
                self._work_on(batch)
            self._rows.take_stored(jobs)

    def _work_on(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._rows.holding.update(batch.rows.keys())

    def _leave(self, batch: Batch) -> None:
        self._batches.remove(batch)
        self._rows.holding.subtract(batch.rows.keys())

    def _pay(self, batch: Batch, cost: int) -> None:
        if self._budget is not None:
            self._budget.pay(batch.label, cost)

    # Submitting

    def _make_batch(self) -> bool:
        """Submits a batch of queued rows; returns False if they have to wait for money."""
        room = None if self._budget is None else self._budget.room()
        taken: list[Job[Request, Answer]] = []
        label = new_label()
        batch = make_batch(self._folder, label, self._lines(label, room, taken))
        if batch is None:
            if self._rows.queue and self._budget is not None and not self._batches:
                self._budget.check(self._budget.most(self._rows.queue[0].request))
            return False
        if self._budget is not None and not self._budget.hold(batch.label, batch.worst):
            batch.remove()  # another process has reserved the money meanwhile
            self._rows.queue.extendleft(reversed(taken))
            return False
        for job in taken:
            job.tries += 1
        self._work_on(batch)
        self._send(batch)
        return True

    def _lines(
        self, label: str, room: int | None, taken: list[Job[Request, Answer]]
    ) -> Iterator[tuple[Row, list[bytes]]]:
        """Yields the lines of as many queued rows as fit into one batch, and moves these to `taken`."""
        limits, lines, size, worst = self._api.limits, 0, 0, 0
        while self._rows.queue:
            job = self._rows.queue[0]
            try:
                most = 0 if self._budget is None else self._budget.most(job.request)
                bodies = self._rows.bodies(job.request, job.key)
                named = [(custom_id(job.key, index, label), body) for index, body in enumerate(bodies)]
                of_row = [json.dumps(self._api.line(name, body)).encode() + b"\n" for name, body in named]
                length = sum(map(len, of_row))
                if length > limits.bytes or len(of_row) > limits.rows:
                    raise PromptTooLong(
                        f"The request has {length:,} bytes in {len(of_row):,} lines; a batch takes at most "
                        f"{limits.bytes:,} bytes in {limits.rows:,} lines. Shorten the prompt, or leave out batch."
                    )
            except ModelError as error:
                self._rows.queue.popleft()
                self._rows.fail(job.key, error)
                continue
            full = lines + len(of_row) > self._rows_a_batch or size + length > limits.bytes
            if (taken and full) or (room is not None and worst + most > room):
                return
            self._rows.queue.popleft()
            taken.append(job)
            lines, size, worst = lines + len(of_row), size + length, worst + most
            yield Row(job.key, len(of_row), most), of_row

    def _send(self, batch: Batch) -> None:
        """Submits a batch, unless it was submitted."""

        def once(what: str, find: Callable[[], Any], send: Callable[[], Any]) -> str:
            return sent_once(batch.state, what, find, send, self._llm.retry_wrapper, batch.save)

        if batch.id is not None:
            return
        batch.check_lines()
        current_usage().note = f"submitting a batch of {len(batch.rows):,} prompts"
        try:
            self._api.submit(batch.lines_file, batch.label, batch.lines, once)
        except RateLimited as error:
            if len(self._batches) == 1:
                raise
            self._put_back(batch, str(error))
            return
        except (BadRequest, AuthenticationFailed, UnknownModel):
            self._pay(batch, 0)
            batch.remove()
            raise
        words = "%s: submitted batch %s with %s prompts; if this script ends, the next run waits for the same batch"
        logger.info(words, self._llm.display_name, batch.id, f"{len(batch.rows):,}")

    # Waiting

    def _look_at(self, batch: Batch) -> None:
        """Asks for the state of a batch, and reads its results if it has ended."""
        self._send(batch)  # an earlier run may have been killed while it did
        if batch not in self._batches or batch.id is None:
            return
        state = BatchState("fetched", ended=True)
        if not batch.has_results():
            failure: Exception | None = None
            try:
                state = self._api.poll(batch.id)
            except Exception as error:
                failure = self._llm.error_of(error)
            if failure is not None:
                if self._is_lost(batch, failure):
                    raise failure
                return
            self._lost_looks = 0
            self._report(batch, state)
        if state.queue_full and (self._batches != [batch] or self._rows_a_batch > 1):
            self._put_back(batch, state.failure)
        elif state.failure:
            self._leave(batch)
            self._pay(batch, 0)
            batch.remove()
            raise BadRequest(
                f"{self._llm.display_name}: the provider refuses the batch {batch.id} as a whole: {state.failure} "
                "Nothing of it was processed; run again to submit its prompts again."
            )
        elif state.ended:
            try:
                whole = not state.cancelled and self._llm.retry_on_fail
                batch.keep_results(partial(self._llm.retry_wrapper, self._download, batch, whole))
            except UnknownModel as gone:
                self._name_lost(batch, gone, "the results of the batch")
                raise
            if self._budget is not None:
                self._budget.pay(batch.label, self._rows.cost(batch))
            self._leave(batch)
            self._most_batches = max(self._most_batches, len(self._batches) + 1)
            self._rows.read(batch, state.cancelled)

    def _download(self, batch: Batch, whole: bool, file: BinaryIO) -> None:
        batch_id = batch.id
        assert batch_id is not None
        file.seek(0)
        file.truncate()  # what an attempt before has written
        self._api.download(batch_id, file)
        file.flush()
        if self._rows.are_no_results(Path(file.name)):
            raise MalformedAnswer(
                f"{self._llm.display_name}: what the provider sent as the results of the batch {batch_id} is something "
                "else. The batch is kept; run again to fetch them again."
            )
        # Lines that a broken connection cut or lost would be submitted again; if it is always so, it is the provider's.
        cut = lines_cut(Path(file.name))
        missing = self._rows.missing_lines(batch, Path(file.name)) if whole else 0
        found, before = (cut, missing), self._found.get(batch_id)
        self._found[batch_id] = found
        if (cut or missing) and found != before:
            what = f"have {len(cut):,} lines that cannot be read" if cut else f"lack {missing:,} lines"
            raise MalformedAnswer(
                f"{self._llm.display_name}: the results of the batch {batch_id} {what}. The batch is kept; run again "
                "to fetch them again."
            )

    def _is_lost(self, batch: Batch, failure: Exception) -> bool:
        """Returns whether a failed look ends the run."""
        if isinstance(failure, UnknownModel):
            self._name_lost(batch, failure, "the batch")
            return True
        self._lost_looks += 1
        logger.debug("%s: batch %s: %s", self._llm.display_name, batch.id, failure)
        temporary = isinstance(failure, RateLimited | Unavailable | MalformedAnswer)
        return not temporary or self._lost_looks >= _MOST_LOST_LOOKS or not self._llm.retry_on_fail

    def _name_lost(self, batch: Batch, failure: UnknownModel, what: str) -> None:
        kept = ""
        if self._budget is not None:
            kept = (
                f" Its worst case of {in_dollars(batch.worst)} then stays counted as spent: it may have been billed. "
                "If it was not, raise the budget by that."
            )
        failure.args = (
            f"{self._llm.display_name}: the provider does not have {what} {batch.id} any more, or not for this key. "
            f"Use the key that submitted it; or remove {batch.state_file}, and its prompts are submitted again.{kept}",
        )

    def _report(self, batch: Batch, state: BatchState) -> None:
        words = f"batch {batch.id} is {state.status}, {state.done:,} of {batch.lines:,} requests done"
        current_usage().note = words
        now = time.monotonic()
        changed = self._reported.get(batch.label) != state.status
        if changed or now - self._reported_at >= (self._run.progress_interval or float("inf")):
            self._reported[batch.label], self._reported_at = state.status, now
            logger.log(self._run.progress_level, "%s: %s", self._llm.display_name, words)

    def _put_back(self, batch: Batch, why: str) -> None:
        """Puts the rows of a batch back that the provider has no room for: they wait for others, or are halved."""
        self._leave(batch)
        self._pay(batch, 0)
        batch.remove()
        logger.info("%s: %s Its prompts are submitted later.", self._llm.display_name, why)
        if self._batches:
            self._most_batches = len(self._batches)
        else:
            self._rows_a_batch = max(1, len(batch.rows) // 2)
        self._rows.put_back(batch.rows)
