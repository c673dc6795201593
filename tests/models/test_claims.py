from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import CONTEXT

from datadreamer_like import DataDreamer, concurrent
from datadreamer_like.errors import BadRequest, ModelError, Unavailable
from datadreamer_like.models.llms.generation import Answer, Request
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.steps import DataSource, Prompt

PROMPTS = [f"prompt {number}" for number in range(60)]


class Provider:
    """Answers after 10 ms, or once not in `slow`; counts what it is asked, and is never asked the same at once."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.under_way: set[str] = set()
        self.slow: list[str] = []
        self.behave: Callable[[str, int], Answer] = lambda prompt, times: Answer([prompt.upper()], 3, 2, ["stop"])

    async def answer(self, prompt: str) -> Answer:
        self.asked[prompt] += 1
        assert prompt not in self.under_way
        self.under_way.add(prompt)
        try:
            await asyncio.sleep(0.01)
            while prompt in self.slow:
                await asyncio.sleep(0.01)
            return self.behave(prompt, self.asked[prompt])
        finally:
            self.under_way.remove(prompt)


class Paid(LLM):
    model_name = "paid"

    def __init__(self, provider: Provider, folder: Path | None = None) -> None:
        super().__init__(folder)
        self.provider = provider

    def identity(self) -> dict[str, Any]:
        return {}

    async def answer(self, request: Request) -> Answer:
        return await self.provider.answer(str(request.prompt))


@pytest.fixture
def paid() -> Provider:
    return Provider()


def together(*runs: Callable[[], Any]) -> list[Any]:
    results: dict[int, Any] = {}

    def keep(index: int, run: Callable[[], Any]) -> None:
        try:
            results[index] = run()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=keep, args=each, daemon=True) for each in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [results[index] for index in range(len(runs))]


@pytest.mark.parametrize("where", ["one folder", "in memory"])
def test_different_steps_at_the_same_time_pay_once_for_the_prompts_that_they_share(
    where: str, paid: Provider, tmp_path: Path
) -> None:
    with DataDreamer(tmp_path if where == "one folder" else ":memory:", verbose=False):
        first = DataSource("First", {"prompts": PROMPTS[:40]}).output["prompts"]
        second = DataSource("Second", {"prompts": PROMPTS[:19:-1]}).output["prompts"]
        steps = concurrent(
            lambda: Prompt("A", inputs={"prompts": first}, args={"llm": Paid(paid), "temperature": 0.0}),
            lambda: Prompt("B", inputs={"prompts": second}, args={"llm": Paid(paid), "temperature": 0.0}),
        )
        assert list(steps[0].output["generations"]) == [prompt.upper() for prompt in PROMPTS[:40]]
        assert list(steps[1].output["generations"]) == [prompt.upper() for prompt in PROMPTS[:19:-1]]
    assert paid.asked == Counter(PROMPTS)
    assert sum(step.usage.requests for step in steps) == 60
    assert sum(step.usage.cached for step in steps) == 20


def test_a_prompt_that_fails_in_one_run_is_asked_for_by_the_other(paid: Provider, tmp_path: Path) -> None:
    def refuse_once(prompt: str, times: int) -> Answer:
        if times == 1 and prompt in PROMPTS[:9]:
            raise BadRequest("No.")
        return Answer(["yes"], 1, 1, ["stop"])

    paid.behave = refuse_once
    found = together(*[lambda: Paid(paid, tmp_path).run(PROMPTS, temperature=0.0)] * 2)
    assert [{one, two} for one, two in zip(*found, strict=True)] == [{None, "yes"}] * 9 + [{"yes"}] * 51
    assert paid.asked == Counter(PROMPTS + PROMPTS[:9])


def test_a_run_that_ends_by_an_error_holds_up_no_other(paid: Provider, tmp_path: Path) -> None:
    def down_at_first(prompt: str, times: int) -> Answer:
        if times == 1:
            raise Unavailable("Down.")
        return Answer(["up"], 1, 1, ["stop"])

    paid.behave = down_at_first
    once, patient = Paid(paid, tmp_path), Paid(paid, tmp_path)
    once.retry_on_fail, patient.retry_seconds = False, 0.001
    found = together(
        lambda: once.run(PROMPTS[:3], temperature=0.0, concurrency=1),
        lambda: patient.run(PROMPTS[:9], temperature=0.0, concurrency=1),
    )
    assert found[1] == ["up"] * 9
    assert isinstance(found[0], ModelError) or set(found[0]) <= {None, "up"}


def test_a_run_that_is_abandoned_gives_up_what_it_asked_for(paid: Provider, tmp_path: Path) -> None:
    paid.slow = PROMPTS[1:5]
    abandoned = Paid(paid, tmp_path).answers(PROMPTS[:5], temperature=0.0)
    assert next(abandoned).text == PROMPTS[0].upper()
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.extend(Paid(paid, tmp_path).run(PROMPTS[:5], temperature=0.0)))
    other.start()
    other.join(0.1)
    assert paid.asked == Counter(PROMPTS[:5])
    abandoned.close()
    paid.slow = []
    other.join(10)
    assert found == [prompt.upper() for prompt in PROMPTS[:5]]
    assert paid.asked == Counter([PROMPTS[0], *2 * PROMPTS[1:5]])


def test_a_run_waits_for_what_one_with_force_asks_and_one_with_force_for_none(paid: Provider, tmp_path: Path) -> None:
    paid.slow = PROMPTS[1:5]
    forced = Paid(paid, tmp_path).answers(PROMPTS[:5], temperature=0.0, force=True)
    assert next(forced).text == PROMPTS[0].upper()
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.extend(Paid(paid, tmp_path).run(PROMPTS[:9], temperature=0.0)))
    other.start()
    other.join(0.2)
    assert paid.asked == Counter(PROMPTS[:9])
    again = Paid(Provider(), tmp_path)
    assert again.run(PROMPTS[1:3], temperature=0.0, force=True) == [prompt.upper() for prompt in PROMPTS[1:3]]
    assert again.provider.asked == Counter(PROMPTS[1:3])
    paid.slow = []
    assert len(list(forced)) == 4
    other.join(10)
    assert found == [prompt.upper() for prompt in PROMPTS[:9]]
    assert paid.asked == Counter(PROMPTS[:9])


def test_a_run_whose_stored_answers_are_deleted_goes_on_with_a_warning(
    paid: Provider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paid.slow = PROMPTS[1:5]
    run = Paid(paid, tmp_path / "folder").answers(PROMPTS[:5], temperature=0.0)
    next(run)
    shutil.rmtree(tmp_path / "folder")
    until = time.monotonic() + 5
    while "was deleted or moved while a run" not in caplog.text and time.monotonic() < until:
        time.sleep(0.01)
    paid.slow = []
    assert [answer.text for answer in run] == [prompt.upper() for prompt in PROMPTS[1:5]]
    assert caplog.text.count("do not clean a folder") == 1


def test_two_runs_read_in_turn_in_one_thread_wait_for_each_other_without_end(paid: Provider, tmp_path: Path) -> None:
    runs = [Paid(paid, tmp_path).answers(prompts, temperature=0.0) for prompts in (PROMPTS, PROMPTS[::-1])]
    texts = [(one.text, two.text) for one, two in zip(*runs, strict=True)]
    assert texts == [(one.upper(), two.upper()) for one, two in zip(PROMPTS, PROMPTS[::-1], strict=True)]
    assert paid.asked == Counter(PROMPTS)


class Logged(LLM):
    """Notes in a file which process is asked for what; answers after 20 ms, `slow` prompts after 30 s."""

    model_name = "logged"

    def __init__(self, folder: Path, slow: tuple[str, ...] = ()) -> None:
        super().__init__(folder)
        self.slow = slow

    def identity(self) -> dict[str, Any]:
        return {}

    async def answer(self, request: Request) -> Answer:
        with (Path(str(self.cache_folder_path)) / "asked").open("a") as log:
            log.write(f"{os.getpid()} {request.prompt}\n")
        await asyncio.sleep(30 if request.prompt in self.slow else 0.02)
        return Answer([str(request.prompt).upper()], 3, 2, ["stop"])


def run_logged(folder: Path, prompts: list[str], slow: tuple[str, ...] = ()) -> None:
    found = Logged(folder, slow).run(prompts, temperature=0.0, concurrency=8)
    assert found == [prompt.upper() for prompt in prompts]


def asked(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    return [(int(line.partition(" ")[0]), line.partition(" ")[2]) for line in lines]


def test_processes_pay_once_for_the_prompts_that_they_share(tmp_path: Path) -> None:
    both = [PROMPTS[:50], PROMPTS[:9:-1]]
    others = [CONTEXT.Process(target=run_logged, args=(tmp_path, prompts)) for prompts in both]
    for other in others:
        other.start()
    run_logged(tmp_path, PROMPTS)
    for other in others:
        other.join(20)
        assert other.exitcode == 0
    assert Counter(prompt for _, prompt in asked(tmp_path)) == Counter(PROMPTS)


@pytest.mark.parametrize("cleaned", [False, True])
def test_a_process_waits_for_the_answer_of_another_until_that_one_is_killed(tmp_path: Path, cleaned: bool) -> None:
    first = CONTEXT.Process(target=run_logged, args=(tmp_path, PROMPTS[:4], tuple(PROMPTS[:2])))
    first.start()
    while len(asked(tmp_path)) < 4:
        time.sleep(0.01)
    if cleaned:
        [locks] = tmp_path.glob("*.locks")
        locks.unlink()
        while not locks.exists():
            time.sleep(0.01)
        time.sleep(0.05)
    second = threading.Thread(target=run_logged, args=(tmp_path, PROMPTS[:9]), daemon=True)
    second.start()
    second.join(0.5)
    # All but what the first process waits for.
    assert second.is_alive()
    assert Counter(prompt for _, prompt in asked(tmp_path)) == Counter(PROMPTS[:9])
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    second.join(10)
    assert not second.is_alive()
    mine = Counter(prompt for process, prompt in asked(tmp_path) if process == os.getpid())
    assert mine == Counter([*PROMPTS[:2], *PROMPTS[4:9]])
