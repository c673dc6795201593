"""The progress display shows a speed and a remaining time when there is something to estimate them from."""

from __future__ import annotations

import time

import pytest

from datadreamer_like.graph.progress import _Task
from datadreamer_like.graph.usage import Usage


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.task = _Task("Training", Usage(total_rows=1000), None, started=self.now)

    def line_after(self, seconds: float, rows: int) -> str:
        """The line once `rows` more are done, `seconds` after the last one."""
        self.now += seconds
        self.task.usage.add(rows=rows)
        return self.task.line()


def test_no_time_is_left_before_some_seconds_and_steps_have_gone_by(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    lines = [clock.line_after(1, 0), *(clock.line_after(1, 10) for _ in range(5))]
    assert not [line for line in lines if "left" in line or "rows/s" in line]
    assert "60 of 1,000 rows, 10.0 rows/s, 2 min left, 7.0 s so far" in clock.line_after(1, 10)


def test_one_slow_step_is_nothing_to_estimate_from(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    lines = [clock.line_after(30, 64) for _ in range(3)]
    assert not [line for line in lines if "left" in line]
    assert "left" in clock.line_after(30, 64)


def test_loading_and_the_rows_of_an_earlier_run_do_not_count(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    assert clock.line_after(60, 0) == "0 of 1,000 rows, 60 s so far"
    clock.line_after(1, 500)  # of a checkpoint
    for _ in range(10):
        line = clock.line_after(1, 1)
    assert line == "510 of 1,000 rows, 1.0 rows/s, 8 min left, 71 s so far"
