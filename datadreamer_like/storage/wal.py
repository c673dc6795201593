"""Finds damage in the log next to an SQLite file, which SQLite takes for its end: what comes after it would be lost.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

_HEADER, _FRAME = 32, 24
# Of the orders in which checksums read their words.
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
# Another process may be writing while the file is read.
_LOOKS, _PAUSE_SECONDS = 3, 0.05


def damage_of_log(database: Path) -> str:
    """Returns what is wrong with the log next to a database; "" if nothing is.

    A frame at the end that was not written whole is none: its transaction was never committed.
    """
    log = database.with_name(f"{database.name}-wal")
    found = ""
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE_SECONDS)
        try:
            found = _damage(log.read_bytes())
        except FileNotFoundError:
            return ""
        if not found:
            return ""
    return found


def _damage(content: bytes) -> str:
    if len(content) < _HEADER:
        return ""
    magic, _, page_size, _, salt_1, salt_2, *checksum = struct.unpack(">8I", content[:_HEADER])
    order = _MAGIC.get(magic)
    if order is None or _checksum(content[:24], (0, 0), order) != tuple(checksum):
        return "the header of its log (-wal) is damaged"
    size = _FRAME + (page_size if page_size != 1 else 65_536)
    before: tuple[int, int] | None = (checksum[0], checksum[1])
    for start in range(_HEADER, len(content) - size + 1, size):
        _, _, *salts, first, second = struct.unpack(">6I", content[start : start + _FRAME])
        ours = salts == [salt_1, salt_2]
        if before is None:
            if ours:
                return "a page in its log (-wal) is damaged"
            continue
        summed = _checksum(content[start : start + 8], before, order)
        summed = _checksum(content[start + _FRAME : start + size], summed, order)
        # After the last page are those of an earlier log, with other salts.
        before = summed if ours and summed == (first, second) else None
    return ""


def _checksum(content: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
