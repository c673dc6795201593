"""The engine for requests that hold several rows, such as the texts of one request for embeddings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic

from datadreamer_like.errors import ModelError

from .calls import Q
from .failures import A
from .pipeline import Engine, Job, Recorder

# Groups read ahead for each that may be sent at once.
_WINDOW_IN_GROUPS = 4


@dataclass
class GroupAnswer(Generic[A]):
    """The answers to the rows of one request; its tokens and cost are in them."""

    rows: Sequence[A]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    error: ModelError | None = None


class GroupedEngine(Engine[Q, A]):
    """Answers rows in groups of up to `size` rows and `most` of their sizes, each by one request of another engine.

    `make_engine` is given what stores the answers of groups, and returns that engine; `join` makes its request of those
    of the rows.
    """

    def __init__(
        self,
        make_engine: Callable[[Any], Engine[Any, GroupAnswer[A]]],
        recorder: Recorder[Any, Q, A],
        *,
        join: Callable[[tuple[Q, ...]], Any],
        size: int,
        most: int,
        at_once: int,
    ) -> None:
        self.window = _WINDOW_IN_GROUPS * size * at_once
        self._size, self._most = size, most
        self._join = join
        self._measure = recorder.calls.size
        self._recorder = GroupRecorder(recorder)
        self._engine = make_engine(self._recorder)
        self._waiting: deque[Job[Q, A]] = deque()
        self._numbers = count()

    def submit(self, jobs: Sequence[Job[Q, A]]) -> None:
        """Submits groups that are full."""
        self._waiting.extend(jobs)
        self._engine.submit(list(self._groups(full=True)))

    def wait(self) -> None:
        """Submits the rows that are left, and waits for answers."""
        self._engine.submit(list(self._groups(full=False)))
        self._engine.wait()

    def close(self) -> None:
        """Ends the requests in flight."""
        self._engine.close()

    def _groups(self, full: bool) -> Iterator[Job[Any, GroupAnswer[A]]]:
        group: list[Job[Q, A]] = []
        size = 0
        while self._waiting:
            length = self._measure(self._waiting[0].request)
            if group and (len(group) == self._size or size + length > self._most):
                yield self._job(group)
                group, size = [], 0
            group.append(self._waiting.popleft())
            size += length
        if group and (len(group) == self._size or not full):
            yield self._job(group)
        else:
            self._waiting.extend(group)

    def _job(self, group: list[Job[Q, A]]) -> Job[Any, GroupAnswer[A]]:
        number = next(self._numbers)
        self._recorder.groups[number] = group
        return Job(number, b"", self._join(tuple(job.request for job in group)))


class GroupRecorder(Generic[Q, A]):
    """What the other engine has for a `Recorder`: it stores the answers of a group as those of its rows."""

    def __init__(self, recorder: Recorder[Any, Q, A]) -> None:
        self._recorder = recorder
        self.calls = self
        self.claims = None  # groups of different runs are not the same
        self.groups: dict[int, list[Job[Q, A]]] = {}

    @property
    def stored(self) -> Any:
        """The rows and their answers that the caller has not taken yet."""
        return self._recorder.stored

    @property
    def knows_answers(self) -> bool:
        """Whether this run has an answer, which shows that the model works."""
        return self._recorder.knows_answers

    def discard(self, answer: GroupAnswer[A]) -> None:
        """Counts the answers of a group that is asked for again."""
        for row in answer.rows:
            self._recorder.discard(row)

    def failed(self, error: ModelError) -> GroupAnswer[A]:
        """Returns the answer of a group that failed."""
        return GroupAnswer((), error=error)

    def record(self, finished: Sequence[tuple[Job[Any, GroupAnswer[A]], GroupAnswer[A]]]) -> None:
        """Stores the rows of groups."""
        rows: list[tuple[Job[Q, A], A]] = []
        for job, answer in finished:
            group = self.groups.pop(job.index)
            group[0].tries = job.tries  # requests are counted once a group
            answers = answer.rows
            if answer.error is not None:
                answers = [self._recorder.calls.failed(answer.error)] * len(group)
            rows.extend(zip(group, answers, strict=True))
        self._recorder.record(rows)
