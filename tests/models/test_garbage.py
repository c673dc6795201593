"""While answers are held the garbage collector passes rarely, and afterwards as before."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import pytest

from datadreamer_like.models import LLM, Answer, Request


class Watching(LLM):
    """Notes the collector's threshold at each batch."""

    model_name = "watching"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        self.seen.append(gc.get_threshold()[0])
        return [Answer(["yes"], 1, 1, ["stop"]) for _ in requests]


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_the_threshold_is_high_during_a_run_and_is_the_old_one_after_it():
    llm = Watching()
    llm.run(["a", "b"])
    assert llm.seen == [10_000]
    assert gc.get_threshold() == (700, 10, 10)


def test_runs_that_overlap_and_end_in_any_order_leave_the_old_one():
    first, second = (Watching().run(["a", "b"], return_generator=True) for _ in range(2))
    next(first)
    next(second)
    assert gc.get_threshold()[0] == 10_000
    first.close()
    assert gc.get_threshold()[0] == 10_000
    list(second)
    assert gc.get_threshold() == (700, 10, 10)


def test_a_run_that_fails_leaves_the_old_one():
    class Failing(Watching):
        def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Failing().run(["a"])
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("own", [(0, 10, 10), (10_000, 10, 10), (50_000, 20, 20)])
def test_a_collector_that_is_off_or_rarer_stays_so(own: tuple[int, int, int]):
    gc.set_threshold(*own)
    llm = Watching()
    llm.run(["a"])
    assert llm.seen == [own[0]]
    assert gc.get_threshold() == own


def test_a_threshold_that_a_script_sets_meanwhile_stays():
    run = Watching().run(["a", "b"], return_generator=True)
    next(run)
    gc.set_threshold(2_000, 5, 5)
    run.close()
    assert gc.get_threshold() == (2_000, 5, 5)
