"""MinHash of 100,000 rows against the library's bare loop, and the memory of exact deduplication of a million rows.

Both MinHash runs make the same n-grams, signatures and tables of rensa, in turn, in one process. Ours also checks each
candidate by its true Jaccard similarity, reads and writes the table, and records origins and reasons.

Run: python benchmarks/dedup.py [--rows 100000] [--exact-rows 1000000] [--rounds 3]
The bars are 1.2 times the time of the bare loop, and 600 MB of resident memory for exact deduplication, imports and
memory-mapped tables included.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from rensa import RMinHash, RMinHashLSH

from datadreamer_like import DataDreamer
from datadreamer_like.steps import DataSource, Deduplicate, DeduplicateByMinHash
from datadreamer_like.steps.quality.minhash_index import bands_of

BAR, BAR_MB = 1.2, 600
THRESHOLD, NUM_PERM = 0.7, 128
WORD = re.compile(r"\w+")


def texts_of(count: int) -> Iterator[dict[str, str]]:
    """Yields texts of 40 words; every tenth is an earlier one with one word changed."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(20_000)]
    earlier: list[list[str]] = []
    for number in range(count):
        if number % 10 == 9:
            text = list(rng.choice(earlier))
            text[rng.randrange(40)] = rng.choice(words)
        else:
            text = rng.choices(words, k=40)
            if number < 10_000:
                earlier.append(text)
        yield {"text": " ".join(text)}


def bare(texts: list[str]) -> int:
    """What a script without the package does: keeps texts that the tables find nothing for."""
    bands, rows = bands_of(THRESHOLD, NUM_PERM)
    tables = RMinHashLSH(threshold=THRESHOLD, num_perm=bands * rows, num_bands=bands)
    kept = 0
    for place, text in enumerate(texts):
        words = WORD.findall(" ".join(text.casefold().split()))
        shingles = {" ".join(words[start : start + 3]) for start in range(max(1, len(words) - 2))}
        signature = RMinHash(bands * rows, 0)
        signature.update(list(shingles))
        if not tables.query(signature):
            tables.insert(place, signature)
            kept += 1
    return kept


def minhash(count: int, rounds: int) -> float:
    """Returns the median ratio of our time to the bare loop's, by CPU seconds of this process."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder, verbose=False):
        rows = DataSource("Rows", data=lambda: texts_of(count)).save()  # lazy ones would be generated in each round
        texts = list(rows.output["text"])
        for number in range(rounds):
            started = time.process_time()
            kept = bare(texts)
            theirs = time.process_time() - started
            started = time.process_time()
            step = DeduplicateByMinHash(
                f"Unique {number}", inputs={"inputs": rows.output["text"]}, args={"threshold": THRESHOLD}, force=True
            )
            ours = time.process_time() - started
            ratios.append(ours / theirs)
            counts = f"kept {kept:,} and {len(step.output):,}"
            print(f"  bare {theirs:6.2f} s, ours {ours:6.2f} s: {ratios[-1]:.2f}; {counts}")
    return statistics.median(ratios)


def exact(count: int) -> None:
    """Deduplicates rows of which a tenth occur twice, and prints the peak of memory; in a process of its own."""
    import resource

    process = psutil.Process()

    def rows() -> Iterator[dict[str, object]]:
        for number in range(count):
            yield {
                "id": number,
                "text": f"This is the text of row {number % (count * 9 // 10)}, about as long as this.",
            }

    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder, verbose=False):
        source = DataSource("Rows", data=rows).save()
        before = process.memory_info().rss / 2**20
        started = time.process_time()
        step = Deduplicate("Once", inputs={"inputs": source.output["text"]})
        seconds = time.process_time() - started
        assert len(step.output) == count * 9 // 10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {count:,} rows in {seconds:.1f} s of CPU; {before:.0f} MB before, peak {peak:.0f} MB")
        sys.exit(peak > BAR_MB)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--exact-rows", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--exact", action="store_true", help="only exact deduplication, in this process")
    given = options.parse_args()
    if given.exact:
        exact(given.exact_rows)
    print("Exact deduplication")  # first: a child inherits the peak of its parent
    command = [sys.executable, str(Path(__file__)), "--exact", "--exact-rows", str(given.exact_rows)]
    fits = subprocess.run(command, check=False).returncode == 0
    print(f"bar {BAR_MB} MB: {'met' if fits else 'MISSED'}")
    print(f"MinHash of {given.rows:,} rows, CPU seconds")
    ratio = minhash(given.rows, given.rounds)
    print(f"median {ratio:.2f}; bar {BAR}: {'met' if ratio <= BAR else 'MISSED'}")
    return int(ratio > BAR or not fits)


if __name__ == "__main__":
    sys.exit(main())
