"""Counts how often each prompt came before in a run, in a few bytes a prompt however many there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RECENT_AT_LEAST = 65_536
# New hashes are counted in a dict, quick and large, until they are this share of the sorted ones, compact and static.
_RECENT_SHARE = 1 / 8


class Repetitions:
    """Counts of 64-bit hashes."""

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._hashes = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.uint32)

    def count(self, hashes: Sequence[int]) -> list[int]:
        """Returns for each hash how often it came before, in this call or an earlier one."""
        recent = self._recent
        before = self._older(hashes)
        for position, key in enumerate(hashes):
            seen = recent.get(key, 0)
            recent[key] = seen + 1
            before[position] += seen
        if len(recent) >= max(_RECENT_AT_LEAST, _RECENT_SHARE * len(self._hashes)):
            self._settle()
        return before

    def _older(self, hashes: Sequence[int]) -> list[int]:
        if not len(self._hashes):
            return [0] * len(hashes)
        wanted = np.array(hashes, np.uint64)
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        found: list[int] = np.where(self._hashes[places] == wanted, self._counts[places], 0).tolist()
        return found

    def _settle(self) -> None:
        size = len(self._recent)
        hashes = np.concatenate([self._hashes, np.fromiter(self._recent.keys(), np.uint64, size)])
        counts = np.concatenate([self._counts, np.fromiter(self._recent.values(), np.uint32, size)])
        self._recent.clear()
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        self._hashes = hashes[starts]
        self._counts = np.add.reduceat(counts[order], starts, dtype=np.uint32)
