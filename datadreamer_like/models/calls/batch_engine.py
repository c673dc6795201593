"""The engine for models that answer whole batches; it runs in the caller's thread."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    ModelError,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.graph.threads import interrupts

from ..model import free_memory
from .calls import Q
from .failures import A
from .options import Run
from .pipeline import Engine, Job, Recorder

logger = logging.getLogger("datadreamer_like")

# Each batch is stored before the next one starts; batches that are faster than a transaction share one, at least twenty
# times a second.
_QUICK_SECONDS = 0.005
_COMMIT_SECONDS = 0.05

# Prompts read ahead and sorted by length; more for a model that answers them within a moment.
_WINDOW_IN_BATCHES = 10
_LARGEST_WINDOW = 2_048
_MOMENT_SECONDS = 0.1

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA and MPS, where it is not an OutOfMemoryError
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # on Windows
    "std::bad_alloc",
)


class BatchEngine(Engine[Q, A]):
    """Answers batches of requests of similar length, the longest first, so that memory runs out early if at all.

    `ask` answers a batch, one answer per request, in order. After a batch for which memory ran out, batches have at
    most half its size, as requests times the longest one: shorter requests still fill whole batches. A batch that is
    refused (`BadRequest`) is asked in halves, until the requests that are the cause fail alone. Unless the run says
    otherwise, at least `least_window` requests are read ahead.
    """

    def __init__(
        self, ask: Callable[[Sequence[Q]], Sequence[A]], recorder: Recorder[Any, Q, A], run: Run, least_window: int = 1
    ) -> None:
        self._ask = ask
        self._recorder = recorder
        self._batch_size = run.batch_size
        self._adaptive = run.adaptive_batch_size
        self._most = math.inf  # requests times the size of the longest one
        buffer_size = run.batch_scheduler_buffer_size
        self.window = max(buffer_size or max(_WINDOW_IN_BATCHES * run.batch_size, least_window), run.batch_size)
        self._largest_window = self.window if buffer_size is not None else max(self.window, _LARGEST_WINDOW)
        self._filled_at = time.monotonic()
        # Sorted by length, the longest last.
        self._pool: list[Job[Q, A]] = []
        self._sorted = True
        self._finished: list[tuple[Job[Q, A], A]] = []
        self._committed_at = 0.0

    def submit(self, jobs: Sequence[Job[Q, A]]) -> None:
        """Adds jobs to the pool from which batches are taken."""
        if not jobs:
            return
        if not self._pool:
            now = time.monotonic()
            if now - self._filled_at < _MOMENT_SECONDS:
                self.window = min(2 * self.window, self._largest_window)
            self._filled_at = now
        self._pool.extend(jobs)
        self._sorted = False

    def wait(self) -> None:
        """Answers batches until some of their answers are stored."""
        while not self._recorder.stored:
            if not self._pool:
                return self.close()
            if not self._sorted:
                self._pool.sort(key=self._size)
                self._sorted = True
            fitting = self._most / self._size(self._pool[-1])
            batch = self._pool[-max(1, int(min(self._batch_size, fitting))) :]
            batch.reverse()
            started = time.monotonic()
            answers = self._answer(batch)
            if answers is None:
                continue
            now = time.monotonic()
            del self._pool[-len(batch) :]
            self._finished.extend(zip(batch, answers, strict=True))
            if now - started >= _QUICK_SECONDS or now - self._committed_at >= _COMMIT_SECONDS:
                self.close()

    def close(self) -> None:
        """Stores the answers received so far."""
        finished, self._finished = self._finished, []
        if finished:
            self._recorder.record(finished)
        self._committed_at = time.monotonic()

    def _size(self, job: Job[Q, A]) -> int:
        return max(1, self._recorder.calls.size(job.request))

    def _answer(self, batch: list[Job[Q, A]]) -> Sequence[A] | None:
        """Returns the answers of a batch, or None if a smaller batch must be tried."""
        for job in batch:
            job.tries += 1
        try:
            before = interrupts[get_ident()]
            answers = self._ask([job.request for job in batch])
            if interrupts[get_ident()] != before:  # an LLM of the script's own caught it
                raise KeyboardInterrupt
        except (AuthenticationFailed, Unavailable, UnknownModel):
            raise
        except ModelError as error:
            if isinstance(error, BadRequest) and len(batch) > 1:  # of one of them, it may be
                half = len(batch) // 2
                first = self._answer(batch[:half])
                second = None if first is None else self._answer(batch[half:])
                return None if first is None or second is None else [*first, *second]
            return [self._recorder.calls.failed(error)] * len(batch)
        except (MemoryError, RuntimeError) as error:
            if not self._adaptive or not is_out_of_memory(error):
                raise
            # The longest comes first.
            self._most = len(batch) * self._size(batch[0]) / 2
            if len(batch) == 1:
                return [self._recorder.calls.failed(ModelError(f"Memory ran out with this prompt alone: {error}"))]
        else:
            if len(answers) == len(batch):
                return answers
            raise DefinitionError(
                f"answer_batch returned {len(answers)} answers to {len(batch)} requests; expected one per request."
            )
        # Outside the handler, since the traceback holds the failed call's tensors.
        logger.info("memory ran out with a batch of %s; the next one has half as many", len(batch))
        free_memory()
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    # Matched by name and words, to avoid importing torch. Its CPU allocator raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or any(words in str(error) for words in _OUT_OF_MEMORY)
    )
