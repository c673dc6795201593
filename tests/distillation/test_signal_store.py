"""Stored signals are complete or absent, after a kill, a damaged file and with several processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datadreamer_like.distillation import SignalStore, signal_store
from datadreamer_like.distillation.signal_store import Part
from datadreamer_like.errors import NewerFormat, StorageError


def keys(*rows: int) -> list[bytes]:
    return [row.to_bytes(16, "little") for row in rows]


def signals(row: int) -> dict[str, Any]:
    """Signals of different lengths, which a row's number decides; row 0 has none."""
    return {"ids": np.arange(row * 3, dtype=np.uint16), "rest": np.full(row, row / 8, dtype=np.float16)}


class Teacher:
    """Gives the signals of the rows in `order`, and remembers which."""

    def __init__(self, *order: int, wait: float = 0.0) -> None:
        self.order, self.wait, self.asked = order, wait, list[int]()

    def __call__(self, positions: Sequence[int]) -> Iterator[Part]:
        for position in reversed(positions):
            time.sleep(self.wait)
            self.asked.append(self.order[position])
            yield [(position, signals(self.order[position]))]


def check(store: SignalStore, *rows: int, teacher: Teacher | None = None) -> None:
    found = store.collect(keys(*rows), teacher or Teacher(*rows))
    for place, row in enumerate(rows):
        for name, values in signals(row).items():
            np.testing.assert_array_equal(found.batch([place])[name], values)
    several = found.batch([*range(len(rows))])
    np.testing.assert_array_equal(several["ids"], np.concatenate([signals(row)["ids"] for row in rows]))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(signal_store, "_CHUNK_BYTES", 40)


def test_rows_are_asked_once_in_any_order_and_found_by_other_instances(tmp_path):
    first = Teacher(3, 0, 5, 3)
    check(SignalStore(tmp_path), 3, 0, 5, 3, teacher=first)
    assert sorted(first.asked) == [0, 3, 5]
    second = Teacher(5, 7, 3)
    check(SignalStore(tmp_path), 5, 7, 3, teacher=second)
    assert second.asked == [7]


def test_bytes_and_totals_count_rows_that_share_signals_once(tmp_path):
    found = SignalStore(tmp_path).collect(keys(4, 2, 4), Teacher(4, 2, 4))
    assert found.total("ids") == sum(range(12)) + sum(range(6))
    assert found.num_bytes() == sum(file.stat().st_size for file in tmp_path.glob("*.bin"))


def test_what_was_written_after_the_last_chunk_is_cut_off(tmp_path):
    check(SignalStore(tmp_path), 1, 2, 3)
    with (tmp_path / "ids.bin").open("ab") as file:
        file.write(b"half a chunk")
    (tmp_path / "signals.json").with_name(".signals.json-1-abc").write_text("{")
    teacher = Teacher(1, 2, 3, 4)
    check(SignalStore(tmp_path), 1, 2, 3, 4, teacher=teacher)
    assert teacher.asked == [4]


@pytest.mark.parametrize("name", ["ids.bin", "keys.bin", "lengths.bin", "rest.bin", "signals.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_file_is_named_and_all_rows_are_asked_again(tmp_path, caplog, name, how):
    check(SignalStore(tmp_path), 1, 2, 3)
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    teacher = Teacher(1, 2, 3)
    with caplog.at_level(logging.WARNING, logger="datadreamer_like"):
        check(SignalStore(tmp_path), 1, 2, 3, teacher=teacher)
    assert sorted(teacher.asked) == [1, 2, 3]
    assert (name, how) == ("signals.json", "gone") or (name in caplog.text and "made again for all rows" in caplog.text)


def test_rows_that_a_reader_has_open_survive_a_damaged_file_that_another_process_replaces(tmp_path):
    found = SignalStore(tmp_path).collect(keys(1, 2), Teacher(1, 2))
    (tmp_path / "keys.bin").write_bytes(b"nonsense")
    check(SignalStore(tmp_path), 2, 6)
    np.testing.assert_array_equal(found.batch([1])["ids"], signals(2)["ids"])


def test_a_newer_format_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(signal_store, "FORMAT", 99)
    check(SignalStore(tmp_path), 1)
    monkeypatch.undo()
    before = (tmp_path / "signals.json").read_bytes()
    with pytest.raises(NewerFormat):
        check(SignalStore(tmp_path), 1)
    assert (tmp_path / "signals.json").read_bytes() == before


def test_a_teacher_that_fails_leaves_whole_chunks(tmp_path):
    class Failing(Teacher):
        def __call__(self, positions: Sequence[int]) -> Iterator[Part]:
            yield from list(super().__call__(positions))[:4]
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        SignalStore(tmp_path).collect(keys(1, 9, 3, 8, 5, 9), Failing(1, 9, 3, 8, 5, 9))
    teacher = Teacher(1, 9, 3, 8, 5)
    check(SignalStore(tmp_path), 1, 9, 3, 8, 5, teacher=teacher)
    assert 0 < len(teacher.asked) < 5


def test_a_chunk_ends_with_a_part_and_after_ten_seconds(tmp_path, monkeypatch):
    seen: list[int] = []

    def ask(positions: Sequence[int]) -> Iterator[Part]:
        for part in ((0, 1, 2), (3, 4), (5,)):
            yield [(row, signals(order[row])) for row in part]
            seen.append(SignalStore(tmp_path)._opened().rows)

    order = [4, 5, 6, 1, 2, 0]
    SignalStore(tmp_path).collect(keys(*order), ask)
    assert seen == [3, 3, 3]
    monkeypatch.setattr(signal_store, "_CHUNK_SECONDS", 0.0)
    order = [14, 15, 16, 11, 12, 10]
    seen.clear()
    monkeypatch.setattr(signal_store, "_CHUNK_BYTES", 1 << 30)
    SignalStore(tmp_path).collect(keys(*order), ask)
    assert seen == [9, 11, 12]


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError):
        SignalStore(tmp_path / "file" / "in").collect(keys(1), Teacher(1))


def _collect(folder: Path, rows: list[int], wait: float) -> None:
    teacher = Teacher(*rows, wait=wait)
    check(SignalStore(folder), *rows, teacher=teacher)
    (folder / f"asked-{os.getpid()}").write_text(" ".join(map(str, teacher.asked)))


def _start(*arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=_collect, args=arguments)
    process.start()
    return process


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_process_loses_at_most_a_chunk_and_two_at_once_ask_nothing_twice(tmp_path):
    rows = [*range(5, 45)]
    first = _start(tmp_path, rows, 0.02)
    while not (tmp_path / "signals.json").exists():
        time.sleep(0.005)
    time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    both = [_start(tmp_path, rows, 0.005), _start(tmp_path, rows[::2], 0.005)]
    for process in both:
        process.join(timeout=60)
        assert process.exitcode == 0
    asked = [row for process in both for row in (tmp_path / f"asked-{process.pid}").read_text().split()]
    assert len({*asked}) == len(asked)
    assert len(asked) < len(rows), "what the killed process had written is asked again"
