"""Several LLMs as one: each prompt goes to the one that is free."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    OverBudget,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.threads import DaemonPool

from ..calls.batch_engine import is_out_of_memory
from ..model import free_memory
from .generation import Answer, GenerationOptions, Prompt, Request, Sampling
from .llm import LLM, overrides_only_run

logger = logging.getLogger("datadreamer_like")

# Errors that are not about one prompt: the engine waits, or ends the run.
_OF_ALL_PROMPTS = (AuthenticationFailed, UnknownModel, OverBudget, RateLimited, Unavailable)
# How long a model that takes batches waits for prompts that arrive together.
_GATHER_SECONDS = 0.002
_BATCH = 10


class ParallelLLM(LLM):
    """Several LLMs that answer the prompts of one run together, such as one model on two GPUs, servers or accounts.

    Each prompt goes to the model with the most room: one that takes many requests at once gets as many as its default
    concurrency, one that takes batches its share of what waits. Each keeps its own budget. What one model fails at goes
    to another: a prompt that it refuses or has no memory for at once, one whose answer is empty or malformed when it is
    asked for again. A wrong key or an unknown model of one of them ends the run. If all models are the same
    but for device and key, the cached answers are those of one of them alone. If they differ, it is chance which of
    them answers a prompt.

    Args:
        *llms: The models.

    Raises:
        DefinitionError: There is no model, or one has `batch=True`.
        ArgumentTypeError: One of them is not an LLM, or overrides `run` alone.

    Example:
        >>> llm = ParallelLLM(HFTransformers("gpt2", device=0), HFTransformers("gpt2", device=1))  # doctest: +SKIP
        >>> llm.run(["Name three colours."], batch_size=64)  # doctest: +SKIP
        ['Red, blue and green.']
    """

    def __init__(self, *llms: LLM) -> None:
        super().__init__()
        if not llms:
            raise DefinitionError("ParallelLLM needs at least one LLM: ParallelLLM(llm_1, llm_2).")
        for llm in llms:
            if not isinstance(llm, LLM) or overrides_only_run(llm):
                raise ArgumentTypeError(f"ParallelLLM takes LLMs with answer or answer_batch, not {llm!r:.100}.")
            if getattr(llm, "batch", False):
                raise DefinitionError("ParallelLLM sends single requests. Make its models without batch=True.")
        self.llms = llms
        first = self._source = llms[0]
        self.model_name = first.model_name
        self.cache_folder_path = first.cache_folder_path
        self.extra_options = frozenset.intersection(*(llm.extra_options for llm in llms))
        self.enforces_schemas = all(llm.enforces_schemas for llm in llms)
        self.takes_images = all(llm.takes_images for llm in llms)
        self.tool_choices = frozenset.intersection(*(llm.tool_choices for llm in llms))
        self.default_adaptive_batch_size = any(llm.default_adaptive_batch_size for llm in llms)
        self.default_concurrency = sum(2 * _BATCH if _takes_batches(llm) else llm.default_concurrency for llm in llms)
        self.max_tries = max(llm.max_tries for llm in llms)
        self.retry_seconds = max(llm.retry_seconds for llm in llms)
        self.retry_on_fail = any(llm.retry_on_fail for llm in llms)
        lengths = [llm.max_context_length for llm in llms if llm.max_context_length is not None]
        self.max_context_length = min(lengths, default=None)
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns two of the same model, for tests and documentation."""
        return cls(model, model)

    async def answer(self, request: Request) -> Answer:
        """Answers one request with the model that has the most room."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = _Pool(self.llms)
        return await pool.answer(request)

    async def end_run(self) -> None:
        """Ends the threads of the run, and closes the models' connections."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            pool.close()
        for llm in self.llms:
            await llm.end_run()

    def check(self, sampling: Sampling) -> None:
        """Refuses what one of the models does not support."""
        for llm in self.llms:
            llm.check(sampling)

    def translated(self, options: GenerationOptions) -> GenerationOptions:
        """Returns the options as the first model translates them."""
        return self.llms[0].translated(options)

    def follow_up(self, request: Request, answer: Answer, reason: str) -> Prompt:
        """Returns the first model's prompt for another attempt."""
        return self.llms[0].follow_up(request, answer, reason)

    @property
    def takes_chat(self) -> bool:
        """Whether the first model sends a text as a chat message."""
        return self.llms[0].takes_chat

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text for the first model."""
        return self.llms[0].count_tokens(value)

    def final_count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text as a whole prompt for the first model."""
        return self.llms[0].final_count_tokens(value)

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the smallest room for a prompt among the models."""
        return min(llm.get_max_context_length(max_new_tokens) for llm in self.llms)

    def unload_model(self) -> None:
        """Frees the memory of all models."""
        for llm in self.llms:
            llm.unload_model()

    @property
    def display_name(self) -> str:
        """The models' names."""
        return f"ParallelLLM ({', '.join(llm.display_name for llm in self.llms)})"

    def identity(self) -> dict[str, Any]:
        """Returns the fingerprints of the models."""
        return {"llms": sorted(fingerprint(llm) for llm in self.llms)}

    @property
    def _are_same(self) -> bool:
        return len({fingerprint(llm) for llm in self.llms}) == 1

    @property
    def answers_name(self) -> str:
        """The class of the models, if they are the same, else of this one."""
        return self.llms[0].answers_name if self._are_same else super().answers_name

    def __fingerprint__(self) -> Any:
        return self.llms[0].__fingerprint__() if self._are_same else super().__fingerprint__()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pools": {}}


def _takes_batches(llm: LLM) -> bool:
    return type(llm).answer is LLM.answer


@dataclass
class _Job:
    """A request that waits for its answer, and the models that have failed at it."""

    request: Request
    future: asyncio.Future[Answer]
    failed_at: set[int]


class _Pool:
    """The models of one run, in its event loop: what each is doing, and the requests that wait for one."""

    def __init__(self, llms: tuple[LLM, ...]) -> None:
        self._llms = llms
        self._room = [1 if _takes_batches(llm) else llm.default_concurrency for llm in llms]
        self._ask = [llm.within_budget(llm.answer) for llm in llms]
        self._busy = [0] * len(llms)
        self._failures = [0] * len(llms)  # in a row
        self._used_up: set[int] = set()  # models whose budgets are
        self._batched = 0  # requests that models which take batches have
        self._waiting: deque[_Job] = deque()
        self._failed_at: dict[int, set[int]] = {}  # models by the id of a request that is asked again
        self._kinds = [fingerprint(llm) for llm in llms]
        self._warned: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = DaemonPool(max(1, sum(map(_takes_batches, llms))), "datadreamer_like-parallel")
        self._gathering = False

    async def answer(self, request: Request) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(request, future, self._failed_at.pop(id(request), set())))
        if not self._gathering:
            self._gathering = True
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._hand_out)
        return await future

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._threads.shutdown(wait=False)

    def _free(self) -> Iterator[int]:
        """Yields the models with room, the least busy first, and those that fail at the moment last."""
        load = [busy / room for busy, room in zip(self._busy, self._room, strict=True)]
        order = sorted(range(len(load)), key=lambda index: (self._failures[index], load[index]))
        yield from (index for index in order if load[index] < 1 and index not in self._used_up)

    def _hand_out(self) -> None:
        self._gathering = False
        while any(self._give(index) for index in self._free()):
            pass

    def _give(self, index: int) -> bool:
        """Gives a model what waits for it; returns False if nothing does."""
        # A model that takes batches gets its share of what waits and of what the others have, so that a small batch is
        # not followed by small ones; one that takes requests gets a single one.
        batches = _takes_batches(self._llms[index])
        share = -(-(len(self._waiting) + self._batched) // len(self._llms)) if batches else 1
        jobs: list[_Job] = []
        others: list[_Job] = []
        while self._waiting and len(jobs) < share:
            job = self._waiting.popleft()
            if not job.future.done():  # not cancelled while it waited
                (others if index in job.failed_at and self._left(job.failed_at) else jobs).append(job)
        self._waiting.extendleft(reversed(others))
        if not jobs:
            return False
        self._busy[index] += 1
        self._batched += len(jobs) if batches else 0
        task = asyncio.get_running_loop().create_task(self._serve(index, jobs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _left(self, failed_at: set[int]) -> set[int]:
        """Returns the models that a request may be given to, besides those that have failed at it."""
        return set(range(len(self._llms))) - self._used_up - failed_at

    async def _serve(self, index: int, jobs: list[_Job]) -> None:
        llm = self._llms[index]
        batched = len(jobs) if _takes_batches(llm) else 0
        try:
            requests = [job.request for job in jobs]
            if batched:
                loop = asyncio.get_running_loop()
                answers = await loop.run_in_executor(self._threads, _answers, llm, requests)
            else:
                answers = [await self._ask[index](requests[0])]
            if wrong := [answer for answer in answers if not isinstance(answer, Answer)]:
                raise DefinitionError(f"{llm.display_name} gave {wrong[0]!r:.100} for a prompt; expected an Answer.")
        except Exception as error:
            if isinstance(error, OverBudget) and len(self._used_up | {index}) < len(self._llms):
                self._used_up.add(index)
                self._waiting.extendleft(reversed(jobs))
                return
            for job in jobs:
                if not self._handed_on(index, job, error) and not job.future.done():
                    job.future.set_exception(error)
            if isinstance(error, RateLimited | Unavailable):
                self._failures[index] += 1
        else:
            self._failures[index] = 0
            for job, answer in zip(jobs, answers, strict=True):
                if not self._handed_on(index, job, answer.error) and not job.future.done():
                    job.future.set_result(answer)
        finally:
            self._busy[index] -= 1
            self._batched -= batched
            # The next requests come when the answers have been stored.
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._hand_out)

    def _handed_on(self, index: int, job: _Job, error: Exception | None) -> bool:
        """Notes that a model has failed at a request; returns whether another one is asked at once."""
        if not isinstance(error, ModelError) or isinstance(error, _OF_ALL_PROMPTS):
            return False
        # Models that are the same refuse the same, but for what does not fit into memory.
        alike = {index}
        if isinstance(error, BadRequest):
            alike |= {other for other, kind in enumerate(self._kinds) if kind == self._kinds[index]}
        failed_at = job.failed_at | alike
        if not self._left(failed_at):
            return False
        self._failures[index] += 1
        if index not in self._warned:
            self._warned.add(index)
            logger.warning("%s fails at a prompt, which another model gets: %s", self._llms[index].display_name, error)
        if isinstance(error, MalformedAnswer):  # paid for, so the engine counts it, and asks again
            self._failed_at[id(job.request)] = failed_at
            return False
        job.failed_at = failed_at
        self._waiting.append(job)
        return True


def _answers(llm: LLM, requests: list[Request]) -> list[Answer]:
    """Answers a batch, in halves if memory runs out."""
    try:
        answers = list(llm.answer_batch(requests))
    except StopIteration as error:  # which a future does not take
        raise RuntimeError(f"answer_batch of {llm.display_name} raised StopIteration.") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, ModelError) or not is_out_of_memory(error):
            raise
        if len(requests) == 1:
            return [Answer.failed(ModelError(f"Memory ran out with this prompt alone: {error}"))]
    else:
        if len(answers) != len(requests):
            raise DefinitionError(
                f"answer_batch of {llm.display_name} returned {len(answers)} answers to {len(requests)} requests."
            )
        return answers
    free_memory()  # outside the handler, since the traceback holds the failed call's tensors
    half = len(requests) // 2
    return _answers(llm, requests[:half]) + _answers(llm, requests[half:])
