"""`LlamaCPP` keeps the common start of prompts in its slots, in any order of the prompts."""

from __future__ import annotations

import random
import threading
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like.models import Answer, LlamaCPP
from datadreamer_like.models.llms.llamacpp_slots import SlotPool, shared_length

STARTS = [
    "Write the name of one animal that lives in this place, in a single word, without an explanation: ",
    "Say which of the four seasons fits best to what follows. Answer with the season and nothing more: ",
    "Translate the next word to German, and give the article of the noun in front of it, please: ",
]
ENDS = ["the sea", "a forest", "the desert"]


class Served:
    """A pool whose calls wait, until `start`, and record what each slot was given."""

    def __init__(self, slots: int, prompts: list[str]) -> None:
        self.pool = SlotPool(slots)
        self.given: list[list[str]] = [[] for _ in range(slots)]
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.first = [self.pool.submit("", lambda _: self._wait()) for _ in range(slots)]
        for _ in range(slots):
            assert self.begun.acquire(timeout=10)
        self.futures = [self.pool.submit(prompt, lambda slot, p=prompt: self._take(slot, p)) for prompt in prompts]

    def _wait(self) -> None:
        self.begun.release()
        assert self.gate.wait(10)

    def _take(self, slot: int, prompt: str) -> str:
        self.given[slot].append(prompt)
        return prompt.upper()

    def start(self) -> list[Future[Any]]:
        self.gate.set()
        wait(self.futures, 10)
        self.pool.shutdown()
        self.pool.join()
        return self.futures


def changes(prompts: list[str]) -> int:
    return sum(one[:1] != other[:1] for one, other in zip(prompts, prompts[1:], strict=False))


def test_prompts_that_start_alike_follow_each_other_in_a_slot() -> None:
    prompts = [f"{start}, then {number}" for number in range(20) for start in "abcd"]
    served = Served(1, prompts)
    assert [future.result() for future in served.start()] == [prompt.upper() for prompt in prompts]
    assert sorted(served.given[0]) == sorted(prompts)
    assert changes(served.given[0]) == 3
    assert served.given[0][0] == prompts[0]


def test_a_prompt_is_overtaken_by_a_bounded_number() -> None:
    prompts = ["a 0", "b", *(f"a {number}" for number in range(1, 600))]
    served = Served(1, prompts)
    served.start()
    assert 200 < served.given[0].index("b") < 300


def test_no_two_calls_have_a_slot_at_once_and_all_slots_are_used() -> None:
    pool, busy, most, lock = SlotPool(3), set(), [0], threading.Lock()
    together = threading.Barrier(3)

    def call(slot: int) -> None:
        with lock:
            assert slot not in busy
            busy.add(slot)
            most[0] = max(most[0], len(busy))
        together.wait(10)
        with lock:
            busy.remove(slot)

    for future in [pool.submit("same", call) for _ in range(30)]:
        future.result(10)
    assert most == [3]
    pool.shutdown()


def test_an_error_is_its_calls_own_and_shutdown_cancels_what_waits() -> None:
    def fail(slot: int) -> None:
        raise ValueError("no")

    served = Served(1, ["a", "b"])
    failing = served.pool.submit("c", fail)
    served.start()
    with pytest.raises(ValueError, match="no"):
        failing.result(10)
    stopped = Served(1, ["a", "b"])
    stopped.pool.shutdown(cancel=True)
    stopped.gate.set()
    stopped.pool.join()
    assert stopped.first[0].result() is None
    for future in stopped.futures:
        with pytest.raises(CancelledError):
            future.result(10)
    with pytest.raises(RuntimeError, match="shutdown"):
        stopped.pool.submit("d", fail)


def test_shared_length_is_that_of_the_common_start() -> None:
    chance = random.Random(0)
    for _ in range(200):
        one, other = ("".join(chance.choices("ab", k=chance.randrange(8))) for _ in range(2))
        expected = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        assert shared_length(one, other) == (min(len(one), len(other)) if expected is None else expected)


def test_one_slot_computes_each_instruction_once_and_answers_as_without_its_cache(
    smollm_gguf: Path, tmp_path: Path
) -> None:
    prompts = [start + end for end in ENDS for start in STARTS]

    def answers(**parameters: Any) -> list[Answer]:
        llm = LlamaCPP(str(smollm_gguf), context_length=128, slots=1, cache_folder_path=tmp_path, **parameters)
        try:
            return list(llm.answers(prompts, max_new_tokens=4, concurrency=len(prompts)))
        finally:
            llm.unload_model()

    kept, computed = answers(), answers(cache_prompt=False)
    assert [answer.text for answer in kept] == [answer.text for answer in computed]
    assert [answer.prompt_tokens for answer in kept] == [answer.prompt_tokens for answer in computed]
    # The template and the system message come before the instruction.
    shared = [answer.cached_tokens for answer in kept]
    head = min(shared[1:3])
    assert sum(tokens > head + 12 for tokens in shared) == len(prompts) - len(STARTS)
    assert {answer.cached_tokens for answer in computed} == {0}
