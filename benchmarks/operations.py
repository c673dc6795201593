"""A million rows through `filter`, `sort`, `shuffle`, `select` and `concat`, against the same calls of `datasets`.

Two comparisons, on the same rows in the same rounds:
- as a view: our default call against the call of `datasets`. Both keep the positions of the rows. `filter` gets the
  same Python function; ours is read once to the end, since it calls the function then. Our `sort` has no view: its
  writing of the sorted rows is compared with positions alone.
- on disk: our call with `lazy=False` against the call of `datasets` and `save_to_disk`. Both write a new table.

Run: python benchmarks/operations.py [rows] [rounds]
The bar is 1.1 times the time of `datasets`, on disk, for each call.
"""

from __future__ import annotations

import gc
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from datadreamer_like import DataDreamer, concat
from datadreamer_like.steps import DataSource

BAR = 1.1


def rows_of(count: int) -> datasets.Dataset:
    rng = random.Random(0)
    numbers = list(range(count))
    rng.shuffle(numbers)
    return datasets.Dataset.from_dict(
        {"n": numbers, "text": [f"This is the text of row {n}, about as long as a sentence is." for n in numbers]}
    )


def keep(row: dict[str, Any]) -> bool:
    return bool(row["n"] % 2)


def timed(call: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    datasets.disable_progress_bars()
    datasets.disable_caching()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of pyarrow, within datasets
    chosen = random.Random(1).sample(range(count), count // 2)
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name, DataDreamer(Path(name) / "out", verbose=False):
        folder = Path(name)
        rows_of(count).save_to_disk(str(folder / "rows"))
        theirs = datasets.load_from_disk(str(folder / "rows"))
        ours = DataSource("Rows", data=theirs)
        calls: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
            "filter": (lambda **how: ours.filter(keep, **how), lambda: theirs.filter(keep)),
            "sort": (lambda **how: ours.sort("n", **how), lambda: theirs.sort("n")),
            "shuffle": (lambda **how: ours.shuffle(seed=1, **how), lambda: theirs.shuffle(seed=1)),
            "select": (lambda **how: ours.select(chosen, **how), lambda: theirs.select(chosen)),
            "concat": (
                lambda **how: concat(ours, ours, **how),
                lambda: datasets.concatenate_datasets([theirs, theirs]),
            ),
        }
        for _ in range(rounds):
            for operation, (our_call, their_call) in calls.items():
                eager = {} if operation == "sort" else {"lazy": False}
                read = _read if operation == "filter" else lambda step: step
                pair = timed(lambda: read(our_call())), timed(their_call)  # noqa: B023
                seconds.setdefault(f"{operation}, as a view", []).append(pair)
                pair = timed(lambda: our_call(**eager)), timed(lambda: _save(their_call(), folder))  # noqa: B023
                seconds.setdefault(f"{operation}, on disk", []).append(pair)
    print(f"{count:,} rows, medians of {rounds} rounds, seconds: ours, datasets, ratio")
    missed = []
    for name, pairs in seconds.items():
        mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        judged = name.endswith("on disk")
        print(f"  {name:22} {mine:7.2f} {other:7.2f}   {ratio:5.2f}{'' if judged else '   (no bar)'}")
        if judged and ratio > BAR:
            missed.append(name)
    print(f"bar {BAR}: {'MISSED by ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


def _save(dataset: datasets.Dataset, folder: Path) -> None:
    dataset.save_to_disk(str(folder / "copy"))
    shutil.rmtree(folder / "copy")


def _read(step: Any) -> None:
    for _ in step.output.rows.read():
        pass


if __name__ == "__main__":
    sys.exit(main())
