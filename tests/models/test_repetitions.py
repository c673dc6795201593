from __future__ import annotations

import random
from collections import Counter

import pytest

from datadreamer_like.models.calls import llm_calls
from datadreamer_like.models.calls.llm_calls import Repetitions


@pytest.mark.parametrize("recent", [1, 7, 100_000])
def test_repetitions_are_counted_as_a_counter_counts_them(recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_calls, "_RECENT_AT_LEAST", recent)
    chosen = random.Random(0)
    hashes = [0, 2**64 - 1, *(chosen.randrange(2**64) for _ in range(50))]
    counted, expected = Repetitions(), Counter[int]()
    for _ in range(200):
        chunk = chosen.choices(hashes, k=chosen.randint(1, 20))
        before = []
        for key in chunk:
            before.append(expected[key])
            expected[key] += 1
        assert counted.count(chunk) == before


def test_no_chunk_is_no_count() -> None:
    assert Repetitions().count([]) == []
