"""What a call is to an LLM: its key, its seed, its stored form, and the engine that answers it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from datadreamer_like.errors import ArgumentTypeError, ModelError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.usage import Usage

from ..llms.generation import Answer, Generation, Prompt, Request
from .batch_engine import BatchEngine
from .cache import StoreOpener
from .concurrent_engine import ConcurrentEngine
from .pipeline import Calls, Engine, Recorder, run_calls
from .repetitions import Repetitions
from .stored_answer import decode_answer, encode_answer

if TYPE_CHECKING:
    from ..llms.llm import LLM

logger = logging.getLogger("datadreamer_like")


class LLMCalls(Calls[Prompt, Request, Answer]):
    """Calls of one LLM with one sampling.

    A key is a hash of the LLM's identity, the sampling options and the prompt. Where sampling is random, the number
    of times that the prompt came before in this run belongs to it too: asking five times for a sample means five
    samples, and a rerun finds all five.
    """

    def __init__(self, llm: LLM, generation: Generation) -> None:
        self._llm = llm
        self._sampling = generation.sampling
        identity = f"{fingerprint(llm)}\0{generation.sampling.key_material()}\0"
        self._prefix = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16)
        self._repetitions = None if generation.sampling.deterministic else Repetitions()

    def admit(self, prompts: Sequence[Prompt]) -> tuple[list[bytes], list[Request]]:
        """Returns keys and requests; a repetition under a seed gets a seed of its own."""
        sampling = self._sampling
        keys: list[bytes] = []
        for prompt in prompts:
            hasher = self._prefix.copy()
            hasher.update(prompt.encode("utf-8", "surrogatepass") if type(prompt) is str else _chat_bytes(prompt))
            keys.append(hasher.digest())
        requests = [Request(prompt, sampling, sampling.seed) for prompt in prompts]
        if self._repetitions is not None:
            times = self._repetitions.count([int.from_bytes(key[:8], "little") for key in keys])
            for row, time_before in enumerate(times):
                if time_before:
                    keys[row] = hashlib.blake2b(keys[row] + b"%d" % time_before, digest_size=16).digest()
                    if sampling.seed is not None:
                        # Seeds of one request's n answers follow each other, so its repetition's start n later.
                        seed = sampling.seed + time_before * sampling.n
                        requests[row] = requests[row]._replace(seed=seed)
        return keys, requests

    encode = staticmethod(encode_answer)
    decode = staticmethod(decode_answer)
    failed = staticmethod(Answer.failed)

    def error(self, answer: Answer) -> ModelError | None:
        """Returns why the row failed."""
        return answer.error

    def tokens(self, answer: Answer) -> tuple[int, int]:
        """Returns the tokens as the engine counted them."""
        return answer.prompt_tokens, answer.completion_tokens

    def cost(self, answer: Answer) -> float | None:
        """Returns what the answer cost."""
        return answer.cost

    def size(self, request: Request) -> int:
        """Returns the characters of the prompt."""
        prompt = request.prompt
        return len(prompt) if isinstance(prompt, str) else sum(len(str(message.get("content"))) for message in prompt)


def answer_prompts(
    llm: LLM, prompts: Iterable[Prompt], generation: Generation, open_store: StoreOpener, usage: Usage, *, batched: bool
) -> Iterator[Answer]:
    """Yields an LLM's answers through the pipeline."""
    calls = LLMCalls(llm, generation)

    def make_engine(recorder: Recorder[Prompt, Request, Answer]) -> Engine[Request, Answer]:
        if batched:
            return BatchEngine(
                llm.answer_batch,
                recorder,
                batch_size=generation.batch_size,
                adaptive=generation.adaptive_batch_size,
                window=generation.batch_scheduler_buffer_size,
            )
        return ConcurrentEngine(
            llm.answer,
            recorder,
            concurrency=generation.concurrency or llm.default_concurrency,
            max_tries=llm.max_tries if llm.retry_on_fail else 1,
            at_end=llm.end_run,
        )

    return run_calls(
        calls,
        prompts,
        make_engine,
        open_store,
        usage,
        force=generation.force,
        cache_only=generation.cache_only,
        raise_errors=generation.on_error == "raise",
        progress=_progress(llm, prompts, generation),
    )


def _chat_bytes(prompt: Prompt) -> bytes:
    if isinstance(prompt, str):  # a subclass of str
        return prompt.encode("utf-8", "surrogatepass")
    if isinstance(prompt, Sequence) and prompt and all(isinstance(message, Mapping) for message in prompt):
        try:
            # A text never starts with this byte, so no chat has the key of a text.
            return (
                b"\xff"
                + json.dumps(
                    [dict(message) for message in prompt if isinstance(message, Mapping)],
                    sort_keys=True,
                    separators=(",", ":"),
                ).encode()
            )
        except TypeError:
            pass
    shown = repr(prompt)[:200]
    raise ArgumentTypeError(f"A prompt must be a text or a list of chat messages of plain values, not {shown}.")


def _progress(llm: LLM, prompts: Iterable[Prompt], generation: Generation) -> Callable[[int], None] | None:
    """Returns a function that logs a line when `progress_interval` seconds have passed since the last one."""
    interval = generation.progress_interval
    if not interval:
        return None
    total = generation.total_num_prompts
    if total is None and isinstance(prompts, Sequence):
        total = len(prompts)
    of = f" of {total:,}" if total is not None else ""
    last = time.monotonic()

    def note(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= interval:
            last = now
            logger.log(generation.progress_level, "%s: %s%s prompts answered", llm.display_name, f"{done:,}", of)

    return note
