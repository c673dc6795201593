from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    ModelError,
    PromptTooLong,
    RateLimited,
    StorageError,
    Unavailable,
)
from datadreamer_like.graph.usage import Usage, counting
from datadreamer_like.models.calls.allowance import Allowance, retry_delay
from datadreamer_like.models.calls.llm_calls import LLMCalls
from datadreamer_like.models.llms.generation import Answer, Request, TokenLogprob
from datadreamer_like.models.llms.llm import LLM


class Asynchronous(LLM):
    """Answers many at once after `seconds`; counts what it is asked."""

    model_name = "echo"

    def __init__(self, folder: Path | None = None, seconds: float = 0.0, system_prompt: str = "") -> None:
        super().__init__(folder)
        self.seconds = seconds
        self.system_prompt = system_prompt
        self.asked: Counter[str] = Counter()
        self.seeds: list[int | None] = []
        self.under_way = self.most_at_once = self.ended = 0

    def identity(self) -> dict[str, Any]:
        return {"system_prompt": self.system_prompt}

    async def answer(self, request: Request) -> Answer:
        prompt = str(request.prompt)
        self.asked[prompt] += 1
        self.seeds.append(request.seed)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await asyncio.sleep(self.seconds * random.random())
            return self.say(prompt)
        finally:
            self.under_way -= 1

    def say(self, prompt: str) -> Answer:
        return Answer([f"{prompt}!"], 2, 3, ["stop"])

    async def end_run(self) -> None:
        self.ended += 1


class Batching(LLM):
    """Answers batches; counts what it is asked."""

    model_name = "echo"

    def __init__(self, folder: Path | None = None, room: int = 1_000) -> None:
        super().__init__(folder)
        self.room = room
        self.asked: Counter[str] = Counter()
        self.batches: list[list[str]] = []

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        prompts = [str(request.prompt) for request in requests]
        if len(prompts) > self.room:
            raise MemoryError("out of memory")
        self.batches.append(prompts)
        self.asked.update(prompts)
        return [Answer([f"{prompt}!"], 2, 3, ["stop"]) for prompt in prompts]


KINDS = pytest.mark.parametrize("kind", [Asynchronous, Batching])
PROMPTS = [f"prompt {number}" for number in range(500)]


@KINDS
def test_answers_come_in_the_order_of_the_prompts(kind: Any, tmp_path: Path) -> None:
    llm = kind(tmp_path)
    if kind is Asynchronous:
        llm.seconds = 0.01
    assert llm.run(PROMPTS) == [f"{prompt}!" for prompt in PROMPTS]


@KINDS
def test_a_rerun_asks_nothing_and_gives_the_same(kind: Any, tmp_path: Path) -> None:
    first = kind(tmp_path).run(PROMPTS)
    usage, again = Usage(), kind(tmp_path)
    with counting(usage):
        assert again.run(PROMPTS) == first
    assert not again.asked
    assert (usage.requests, usage.cached, usage.prompt_tokens) == (0, 500, 0)


@KINDS
def test_equal_prompts_are_sent_once_when_sampling_is_deterministic(kind: Any, tmp_path: Path) -> None:
    llm = kind(tmp_path)
    prompts = ["same", "other"] * 300
    assert llm.run(prompts, top_p=0.0) == ["same!", "other!"] * 300
    assert llm.asked == {"same": 1, "other": 1}
    assert llm.run(prompts, temperature=0, top_p=1.0) == ["same!", "other!"] * 300
    assert llm.asked == {"same": 2, "other": 2}


@KINDS
def test_each_repetition_of_a_prompt_is_a_sample_of_its_own_and_a_rerun_finds_all(kind: Any, tmp_path: Path) -> None:
    llm = kind(tmp_path)
    llm.run(["same"] * 7, top_p=1.0)
    assert llm.asked == {"same": 7}
    llm.run(["same"] * 7, top_p=1.0)
    assert llm.asked == {"same": 7}
    llm.run(["same"] * 9, top_p=1.0)
    assert llm.asked == {"same": 9}


def test_repetitions_under_a_seed_have_seeds_of_their_own_that_leave_room_for_n(tmp_path: Path) -> None:
    class Four(Asynchronous):
        def say(self, prompt: str) -> Answer:
            return Answer([prompt] * 4)

    llm = Four(tmp_path)
    llm.run(["same", "other", "same", "same"], top_p=1.0, seed=10, n=4, concurrency=1)
    assert llm.seeds == [10, 10, 14, 18]


def test_force_asks_anew_once_a_prompt_and_keeps_the_new_answers(tmp_path: Path) -> None:
    Asynchronous(tmp_path).run(["a", "b"])
    llm = Asynchronous(tmp_path)
    assert llm.run(["a", "b"] * 200, force=True) == ["a!", "b!"] * 200
    assert llm.asked == {"a": 1, "b": 1}


def test_cache_only_gives_what_is_known_and_refuses_to_ask(tmp_path: Path) -> None:
    Asynchronous(tmp_path).run(["a"])
    llm = Asynchronous(tmp_path)
    assert llm.run(["a"], cache_only=True) == ["a!"]
    with pytest.raises(ModelError, match="cache_only"):
        llm.run(["a", "b"], cache_only=True)
    assert not llm.asked


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"max_new_tokens": 5},
        {"seed": 1},
        {"stop": "x"},
        {"schema": {}},
    ],
)
def test_other_sampling_is_another_question(options: Any, tmp_path: Path) -> None:
    llm = Asynchronous(tmp_path)
    llm.run(["a"])
    llm.run(["a"], **options)
    assert llm.asked["a"] == 2
    llm.run(["a"], temperature=1, top_p=0, n=1, batch_size=3, concurrency=2, verbose=True, progress_interval=1)
    assert llm.asked["a"] == 2


def test_another_system_prompt_class_or_model_is_another_question(tmp_path: Path) -> None:
    Asynchronous(tmp_path).run(["a"])
    for other in (Asynchronous(tmp_path, system_prompt="Be brief."), Batching(tmp_path)):
        other.run(["a"])
        assert other.asked == {"a": 1}
    named = Asynchronous(tmp_path)
    named.model_name = "echo-2"
    named.run(["a"])
    assert named.asked == {"a": 1}


def test_chat_messages_are_prompts_and_differ_from_the_same_text(tmp_path: Path) -> None:
    llm = Asynchronous(tmp_path)
    chat = [{"role": "user", "content": "a"}]
    llm.run([chat, "a", chat])
    assert sum(llm.asked.values()) == 2


def test_a_memory_session_asks_once_a_prompt_and_keeps_nothing_afterwards() -> None:
    llm = Asynchronous()
    for calls in (1, 2):
        with DataDreamer(":memory:"):
            assert [llm.run(PROMPTS[:50]) for _ in range(3)] == [[f"{p}!" for p in PROMPTS[:50]]] * 3
        assert set(llm.asked.values()) == {calls}


def test_a_session_keeps_answers_in_its_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with DataDreamer(str(tmp_path / "out")):
            llm = Asynchronous()
            llm.run(["a"])
    assert not llm.asked
    assert len(list((tmp_path / "out" / ".cache").glob("Asynchronous-echo-*.sqlite"))) == 1


def test_without_a_session_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llm = Asynchronous()
    llm.run(["a"] * 5)
    llm.run(["a"])
    assert llm.asked == {"a": 2}
    assert not list(tmp_path.iterdir())


@KINDS
def test_one_text_is_no_list_of_prompts(kind: Any, tmp_path: Path) -> None:
    llm = kind(tmp_path)
    with pytest.raises(ArgumentTypeError, match="must be a list of prompts"):
        llm.run("Say hi.")
    assert not llm.asked


@KINDS
def test_prompts_are_read_a_bounded_way_ahead(kind: Any, tmp_path: Path) -> None:
    read = 0

    def prompts() -> Iterator[str]:
        nonlocal read
        for prompt in PROMPTS:
            read += 1
            yield prompt

    most_ahead = 0
    options: Any = {"concurrency": 4}
    if kind is Batching:
        options = {"batch_size": 6, "batch_scheduler_buffer_size": 60}
    for yielded, _ in enumerate(kind(tmp_path).run(prompts(), return_generator=True, **options)):
        most_ahead = max(most_ahead, read - yielded)
    assert read == 500
    assert 16 <= most_ahead <= 64


def test_prompts_of_a_slow_source_are_sent_at_once_and_answered_before_the_next_is_read(tmp_path: Path) -> None:
    asked_when_read: list[int] = []
    llm = Asynchronous(tmp_path)

    def prompts() -> Iterator[str]:
        for number in range(6):
            time.sleep(0.05)
            asked_when_read.append(sum(llm.asked.values()))
            yield f"{number}"

    llm.run(prompts())
    assert asked_when_read[2:] == [2, 3, 4, 5]


@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_a_slow_source_wakes_no_more_workers_than_it_has_prompts(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = []

    class Counting(asyncio.SelectorEventLoop):
        scheduled = 0

        def call_soon(self, *args: Any, **options: Any) -> asyncio.Handle:
            self.scheduled += 1
            return super().call_soon(*args, **options)

    def new_loop() -> Counting:
        loops.append(Counting())
        return loops[-1]

    def prompts() -> Iterator[str]:
        for number in range(50):
            time.sleep(0.002)
            yield f"{number}"

    monkeypatch.setattr(asyncio, "new_event_loop", new_loop)
    assert len(Asynchronous(tmp_path, seconds).run(prompts(), concurrency=1000)) == 50
    # A thousand workers start and end; each prompt schedules a few callbacks.
    assert loops[-1].scheduled < 5_000


def test_concurrency_is_a_cap_that_is_reached(tmp_path: Path) -> None:
    llm = Asynchronous(tmp_path, seconds=0.01)
    llm.run(PROMPTS[:100], concurrency=7)
    assert llm.most_at_once == 7
    llm = Asynchronous(tmp_path / "2", seconds=0.01)
    llm.run(PROMPTS[:100], batch_size=5)
    assert llm.most_at_once == 5


def test_it_works_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def cell() -> Any:
        return Asynchronous(tmp_path).run(["a"])

    assert asyncio.run(cell()) == ["a!"]


def test_an_abandoned_generator_ends_its_requests_and_its_thread(tmp_path: Path) -> None:
    llm = Asynchronous(tmp_path, seconds=0.01)
    generator = llm.run(PROMPTS, return_generator=True)
    next(generator)
    assert any(thread.name == "datadreamer_like-requests" for thread in threading.enumerate())
    del generator
    gc.collect()
    assert not any(thread.name == "datadreamer_like-requests" for thread in threading.enumerate())
    assert (llm.under_way, llm.ended) == (0, 1)
    assert sum(llm.asked.values()) < 500


def test_ctrl_c_stops_promptly_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, signal, sys, threading
        sys.path.insert(0, os.path.dirname(sys.argv[2]))
        from test_pipeline import *
        class Slow(Asynchronous):
            async def answer(self, request):
                if int(request.prompt) >= 20:
                    if self.under_way == 0:
                        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                    self.under_way += 1
                    await asyncio.sleep(1000)
                return self.say(request.prompt)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            Slow(sys.argv[1]).run(map(str, range(1000)), concurrency=4)
        except KeyboardInterrupt:
            assert threading.active_count() <= 2, threading.enumerate()
            print("stopped")
        """
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), __file__], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "stopped", done.stderr
    assert time.monotonic() - started < 50
    from datadreamer_like.storage.answers import AnswerStore

    with AnswerStore(next(tmp_path.glob("*.sqlite"))) as store:
        assert len(store) == 20


# Errors


class Failing(Asynchronous):
    """Raises what a prompt says."""

    errors: dict[str, Exception] = {
        "long": PromptTooLong("too long"),
        "bad": BadRequest("not this one"),
        "key": AuthenticationFailed("wrong key"),
        "bug": KeyError("a bug"),
    }

    def say(self, prompt: str) -> Answer:
        word = prompt.partition(" ")[0]
        if word in self.errors:
            raise self.errors[word]
        return super().say(prompt)


def test_a_bad_row_is_none_in_its_place_counted_logged_and_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        assert Failing(tmp_path).run(["a", "long", "b", "bad"]) == ["a!", None, "b!", None]
    assert "2 of 4 prompts failed and have no answer; the first is row 1: too long" in caplog.text
    again = Failing(tmp_path)
    assert again.run(["a", "long", "b"]) == ["a!", None, "b!"]
    assert again.asked == {"long": 1}


def test_answers_carry_the_error_of_a_failed_row(tmp_path: Path) -> None:
    good, failed = Failing(tmp_path).answers(["a", "long"])
    assert (good.texts, good.prompt_tokens, good.completion_tokens, good.error) == (["a!"], 2, 3, None)
    assert isinstance(failed.error, PromptTooLong)
    assert failed.text is None


def test_on_error_raise_raises_in_the_rows_turn_with_earlier_answers_saved(tmp_path: Path) -> None:
    texts = Failing(tmp_path).run(["a", "b", "long", "c"], on_error="raise", return_generator=True)
    assert [next(texts), next(texts)] == ["a!", "b!"]
    with pytest.raises(PromptTooLong):
        next(texts)
    assert not any(thread.name == "datadreamer_like-requests" for thread in threading.enumerate())
    again = Failing(tmp_path)
    again.run(["a", "b"])
    assert not again.asked


@pytest.mark.parametrize(("word", "kind"), [("key", AuthenticationFailed), ("bug", KeyError)])
def test_what_no_retry_can_mend_ends_the_run_at_once(word: str, kind: type[Exception], tmp_path: Path) -> None:
    llm = Failing(tmp_path)
    with pytest.raises(kind):
        llm.run(["a", "b", *[f"{word} {number}" for number in range(5_000)]], concurrency=2)
    assert sum(llm.asked.values()) <= 2 + 2
    again = Failing(tmp_path)
    assert again.run(["a", "b"], cache_only=True) == ["a!", "b!"]


class Recovering(Asynchronous):
    """Fails the first `failures` tries of each prompt."""

    failures = 2
    error: ModelError = Unavailable("down", retry_after=0.001)

    async def answer(self, request: Request) -> Answer:
        if self.asked[str(request.prompt)] < self.failures:
            self.asked[str(request.prompt)] += 1
            raise self.error
        return await super().answer(request)


@pytest.mark.parametrize("error", [Unavailable("down", 0.001), RateLimited("slow", 0.001)])
def test_what_passes_is_tried_again_and_every_try_counts_as_a_request(error: ModelError, tmp_path: Path) -> None:
    llm, usage = Recovering(tmp_path), Usage()
    llm.error = error
    with counting(usage):
        assert llm.run(PROMPTS[:30]) == [f"{p}!" for p in PROMPTS[:30]]
    assert set(llm.asked.values()) == {3}
    assert usage.requests == 90


def test_the_pause_before_another_try_is_a_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = Recovering(tmp_path)
    llm.error, llm.failures, llm.retry_seconds = Unavailable("down"), 7, 1e-4
    with caplog.at_level(logging.DEBUG, "datadreamer_like"):
        assert llm.run(["a"]) == ["a!"]
    assert [record.args[1] < 0.0128 for record in caplog.records if "failed, next in" in record.msg] == [True] * 7


def test_retry_on_fail_false_tries_once(tmp_path: Path) -> None:
    llm = Recovering(tmp_path)
    llm.retry_on_fail = False
    llm.asked["good"] = 2
    assert llm.run(["good", "a", "good"], concurrency=1) == ["good!", None, "good!"]
    assert llm.asked["a"] == 1


def test_a_provider_that_answers_nobody_ends_the_run_before_a_million_rows_are_burnt(tmp_path: Path) -> None:
    llm = Recovering(tmp_path)
    llm.failures, llm.max_tries = 1_000_000, 3
    with pytest.raises(Unavailable, match="run again later"):
        llm.run((f"{number}" for number in range(1_000_000)), concurrency=4)
    assert sum(llm.asked.values()) < 200
    single = Recovering(tmp_path)
    single.failures, single.max_tries = 1_000_000, 2
    with pytest.raises(Unavailable):
        single.run(["only one"])


def test_a_provider_that_goes_down_midway_ends_the_run(tmp_path: Path) -> None:
    class Dying(Recovering):
        async def answer(self, request: Request) -> Answer:
            self.failures = 0 if int(str(request.prompt)) < 50 else 1_000_000
            return await super().answer(request)

    llm = Dying(tmp_path)
    llm.max_tries = 2
    with pytest.raises(Unavailable):
        llm.run((f"{number}" for number in range(100_000)), concurrency=4)
    assert sum(llm.asked.values()) < 50 + 400
    assert Asynchronous.run(Dying(tmp_path), [f"{n}" for n in range(50)], cache_only=True)[49] == "49!"


def test_a_rate_limit_halves_the_requests_at_once_and_they_grow_back() -> None:
    allowance = Allowance(32)
    allowance.refused(sent_at=1.0, now=2.0)
    allowance.refused(sent_at=1.5, now=2.1)  # sent before the halving: no news
    assert allowance.allowed == 16
    allowance.refused(sent_at=3.0, now=4.0)
    assert allowance.allowed == 8
    for _ in range(9):
        allowance.succeeded()
    assert allowance.allowed == 9
    for _ in range(2_000):
        allowance.succeeded()
    assert allowance.allowed == 32
    for when in range(100):
        allowance.refused(sent_at=10.0 + when, now=10.0 + when)
    assert allowance.allowed == 1


def test_requests_at_once_double_per_round_until_answers_take_longer() -> None:
    allowance = Allowance(256, start=32)
    for _ in range(32 + 64):
        allowance.succeeded(0.1)
    assert allowance.allowed == 128
    for _ in range(3_000):
        allowance.succeeded(0.1 * allowance.allowed / 70)  # a server with 70 slots
    assert allowance.allowed < 140
    for _ in range(20_000):
        allowance.succeeded(0.1)
    assert allowance.allowed > 200


def test_requests_at_once_recover_from_a_rate_limit_also_where_answers_have_become_longer() -> None:
    allowance = Allowance(256, start=32)
    for _ in range(200):
        allowance.succeeded(0.2)
    for when in range(8):
        allowance.refused(sent_at=float(when), now=float(when))
    assert allowance.allowed == 1
    for number in range(40_000):
        allowance.succeeded(0.6 if number % 3 else 0.1)
    assert allowance.allowed > 200
    queue = Allowance(256, start=32)
    for _ in range(100_000):
        queue.succeeded(0.1 * max(1.0, queue.allowed / 70))  # a server with 70 slots, for long
    assert queue.allowed < 140


def test_a_server_that_fails_more_than_a_fifth_of_its_requests_gets_half_as_many() -> None:
    few, many = Allowance(64), Allowance(64)
    for number in range(10_000):
        for allowance, every in ((few, 20), (many, 3)):
            if number % every:
                allowance.succeeded(0.1)
            else:
                allowance.failed(sent_at=float(number), now=float(number))
    assert few.allowed == 64
    assert many.allowed < 16


def test_backoff_doubles_with_full_jitter_and_keeps_what_the_provider_asks() -> None:
    for tries, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (20, 60.0)):
        delays = [retry_delay(tries, 0.5) for _ in range(2_000)]
        assert 0 <= min(delays) < 0.1 * longest
        assert 0.9 * longest < max(delays) <= longest
    assert all(7.0 <= retry_delay(1, 0.5, retry_after=7.0) <= 7.7 for _ in range(100))


def test_a_full_disk_ends_the_run_with_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datadreamer_like.storage.answers import AnswerStore

    opened = AnswerStore.__init__

    def small(self: AnswerStore, path: str | Path) -> None:
        opened(self, path)
        self._connection.execute("PRAGMA max_page_count = 40")

    monkeypatch.setattr(AnswerStore, "__init__", small)
    with pytest.raises(StorageError, match="No space is left"):
        Asynchronous(tmp_path).run([f"{number} " + "x" * 1_000 for number in range(500)])


# Batches


def test_batches_hold_prompts_of_like_length_the_longest_first(tmp_path: Path) -> None:
    llm = Batching(tmp_path)
    prompts = ["x" * length for length in random.Random(0).sample(range(1, 200), 40)]
    assert llm.run(prompts, batch_size=10, batch_scheduler_buffer_size=40) == [f"{p}!" for p in prompts]
    lengths = [[len(prompt) for prompt in batch] for batch in llm.batches]
    assert [len(batch) for batch in lengths] == [10] * 4
    assert [length for batch in lengths for length in batch] == sorted(map(len, prompts), reverse=True)


def test_a_model_that_answers_within_a_moment_gets_more_prompts_at_a_time_but_not_without_bound(tmp_path: Path) -> None:
    read = most_ahead = 0

    def prompts() -> Iterator[str]:
        nonlocal read
        for read in range(1, 20_001):
            yield f"{read}"

    for yielded, _ in enumerate(Batching(tmp_path).run(prompts(), return_generator=True)):
        most_ahead = max(most_ahead, read - yielded)
    assert 100 < most_ahead <= 2_048


def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does(tmp_path: Path) -> None:
    llm = Batching(tmp_path, room=3)
    assert llm.run(PROMPTS[:40], batch_size=16, adaptive_batch_size=True) == [f"{p}!" for p in PROMPTS[:40]]
    assert max(map(len, llm.batches)) == 2
    with pytest.raises(MemoryError):
        Batching(tmp_path / "2", room=3).run(PROMPTS[:40], batch_size=16)
    assert Batching(tmp_path / "3", room=0).run(["a"], adaptive_batch_size=True) == [None]


def test_a_batch_with_an_answer_missing_is_a_definition_error(tmp_path: Path) -> None:
    class Short(Batching):
        def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
            return super().answer_batch(requests)[1:]

    with pytest.raises(DefinitionError, match="one per request"):
        Short(tmp_path).run(PROMPTS[:5])


# Options, prompts and compatibility


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_tokens": 5}, 'Did you mean "max_new_tokens"'),
        ({"n": 0}, '"n" cannot be 0'),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"temperature": -1.0}, "0 or more"),
        ({"stop": 3}, "stop"),
        ({"on_error": "ignore"}, "keep"),
        ({"temperature": "hot"}, "must be a number"),
        ({"n": 1.5}, "must be a whole number"),
        ({"reasoning_effort": "low"}, "no generation option"),
        ({"response_format": {"type": "json_object"}}, "no generation option"),
        ({"schema": 3}, "must be a pydantic model class or a JSON schema"),
        ({"schema": {"type": "sandwich"}}, "not a valid JSON schema: at type"),
        ({"repetition_penalty": 0.0}, "a number above 0"),
        ({"logit_bias": {"a": 1}}, "must be a dict from token ids"),
        ({"temperature": float("nan")}, "0 or more"),
        ({"n": float("inf")}, "must be a whole number"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_sent(options: Any, match: str, tmp_path: Path) -> None:
    llm = Asynchronous(tmp_path)
    with pytest.raises(DefinitionError, match=match) as caught:
        llm.run(["a"], **options)
    wrong_kind = "must be" in match or "option" in match or match.startswith(("stop", "Did"))
    assert isinstance(caught.value, ArgumentTypeError) == wrong_kind
    assert not llm.asked


def test_a_prompt_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    for prompt in (3.5, None, b"bytes", {"role": "user", "content": "a"}, ["a"], [], [{"content": object()}]):
        with pytest.raises(ArgumentTypeError, match="text or a list of chat messages"):
            Asynchronous(tmp_path).run([prompt])  # type: ignore[list-item]


def test_an_answer_survives_being_stored() -> None:
    answer = Answer(
        ["naïve 🤖 \ud800", None],
        7,
        9,
        ["stop", "length"],
        [[TokenLogprob("a", -0.5, (("a", -0.5), ("b", -1.25)))], []],
        ["thought", None],
        cost=0.0,
    )
    assert LLMCalls.decode(LLMCalls.encode(answer)) == answer
    assert LLMCalls.decode(b'[["x"],1,2,["stop"]]') == Answer(["x"], 1, 2, ["stop"], cost=0.0)


def test_n_answers_are_a_list_a_row(tmp_path: Path) -> None:
    class Several(Failing):
        def say(self, prompt: str) -> Answer:
            super().say(prompt)
            return Answer([prompt, prompt * 2], 1, 1)

    assert Several(tmp_path).run(["a", "long"], n=2) == [["a", "aa"], None]


def test_a_subclass_that_overrides_run_alone_works_also_through_answers(tmp_path: Path) -> None:
    class Own(LLM):
        def run(self, prompts: Any, **options: Any) -> Any:
            assert options["return_generator"]
            return (None if prompt == "bad" else prompt.upper() for prompt in prompts)

    assert [answer.text for answer in Own().answers(["a", "bad"], temperature=0.3)] == ["A", None]


@pytest.mark.parametrize("kind", [Asynchronous, Batching, LLM])
@pytest.mark.parametrize(("n", "given"), [(3, ["a"]), (1, ["a", "b"]), (2, ["a", None, "b"])])
def test_an_own_llm_that_gives_another_number_of_texts_is_refused_by_name(
    tmp_path: Path, kind: Any, n: int, given: list[str | None]
) -> None:
    class Odd(kind):  # type: ignore[misc]
        model_name = "odd"

    if kind is LLM:
        Odd.run = lambda self, prompts, **options: (given for _ in prompts)
    elif kind is Batching:
        Odd.answer_batch = lambda self, requests: [Answer(given) for _ in requests]
    else:
        Odd.say = lambda self, prompt: Answer(given)
    for _ in range(2):  # and nothing of it is kept
        with pytest.raises(DefinitionError, match=f"^Odd returned {len(given)} texts to a prompt; expected n={n}"):
            list(Odd(tmp_path).answers(["p"], n=n))


@pytest.mark.parametrize("given", [["a"], ["a", "b", "c"], ["a", 5]])
def test_a_run_that_gives_another_number_of_answers_or_no_texts_is_refused(given: list[Any]) -> None:
    class Own(LLM):
        model_name = "own"

        def run(self, prompts: Any, **options: Any) -> Any:
            list(prompts)
            return given

    with pytest.raises(DefinitionError, match="own.*: run returned"):
        list(Own().answers(["p", "q"]))


def test_format_prompt_takes_as_many_examples_as_fit(tmp_path: Path) -> None:
    class Small(Asynchronous):
        def count_tokens(self, value: str) -> int:
            return len(value.split())

        def get_max_context_length(self, max_new_tokens: int | None) -> int:
            return 10 - (max_new_tokens or 0)

    llm = Small(tmp_path)
    parts: Any = {"beg_instruction": "Do it", "in_context_examples": ["e f g"] * 5, "end_instruction": "Now"}
    assert llm.format_prompt(**parts) == "Do it\ne f g\ne f g\nNow"
    assert llm.format_prompt(max_new_tokens=4, **parts) == "Do it\ne f g\nNow"
    assert llm.format_prompt(max_in_context_examples=1, sep=" ", **parts) == "Do it e f g Now"
    with pytest.raises(PromptTooLong, match="room for 6"):
        llm.format_prompt(max_new_tokens=4, min_in_context_examples=2, **parts)
    with pytest.raises(PromptTooLong, match="with 1 in-context example has"):
        llm.format_prompt(max_new_tokens=7, **parts)
    assert llm.format_prompt(max_new_tokens=7, max_in_context_examples=0, **parts) == "Do it\nNow"
    with pytest.raises(BadRequest, match="5 in-context examples, fewer than the 6"):
        llm.format_prompt(min_in_context_examples=6, **parts)
    with pytest.raises(DefinitionError):
        llm.format_prompt(min_in_context_examples=2, max_in_context_examples=1, **parts)
    assert Asynchronous(tmp_path).format_prompt(**parts).count("e f g") == 5


def test_an_llm_pickles(tmp_path: Path) -> None:
    llm = Asynchronous(tmp_path)
    llm.run(["a"])
    again = pickle.loads(pickle.dumps(llm))
    assert again.run(["a"], cache_only=True) == ["a!"]


def test_a_killed_batch_run_asks_again_only_what_was_under_way(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys, time
        sys.path.insert(0, os.path.dirname(sys.argv[2]))
        from test_pipeline import *
        from pathlib import Path
        class Slow(Batching):
            def answer_batch(self, requests):
                time.sleep(0.02)
                if len(self.batches) == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().answer_batch(requests)
        Slow(Path(sys.argv[1])).run(PROMPTS[:200], batch_size=10)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), __file__], check=False)
    assert done.returncode == -signal.SIGKILL
    from datadreamer_like.storage.answers import AnswerStore

    with AnswerStore(next(tmp_path.glob("*.sqlite"))) as store:
        assert len(store) == 50
