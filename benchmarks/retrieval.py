"""Retrieval against the bare libraries: 1,000,000 vectors of 384 numbers by FAISS, and BM25 by bm25s.

Vectors are given, so that embedding is outside the timed part: points of 32 dimensions, turned into 384 with noise.
Each kind of index is built once in one process, and opened and searched in another. There our search and that of the
same file, read into memory by FAISS alone, take turns on the same queries:
- `search_vectors` includes normalizing the queries and making Python lists; it has the bar.
- `run` includes the pipeline of the embedder and reading the texts found from the corpus's table.

Run: python benchmarks/retrieval.py [--quick] [--rows 1000000] [--folder FOLDER] [--kinds Flat IVF1024,Flat HNSW16]
Bars: 1.1 times the time of the bare library, an index that is opened in 50 ms, and nothing embedded twice. All in one
thread and in its CPU seconds, which other processes on the machine hardly change.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from datadreamer_like import DataDreamer
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import BM25Retriever, Embedder, EmbeddingRetriever
from datadreamer_like.steps import DataSource

BAR, OPEN_BAR_MS, K, DIMS = 1.1, 50, 10, 384
SEARCH = {"IVF": {"nprobe": 32}, "HNSW": {"efSearch": 128}}


class Given(Embedder):
    """Gives a text's vector: "7" is row 7 of a file, "q7" of the file of queries."""

    def __init__(self, folder: Path) -> None:
        super().__init__("given")
        self.rows, self.queries = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rows", "queries"))
        self.embedded = 0

    def identity(self) -> dict[str, Any]:
        return {"rows": self.rows.shape}

    @property
    def model_max_length(self) -> int:
        return 1

    def count_tokens(self, value: str) -> int:
        return 1

    def run(self, texts: Any, *args: Any, **options: Any) -> Any:
        for text in texts:
            self.embedded += 1
            yield self.rows[int(text)]

    def compute(self, texts: Any, **asks: Any) -> Any:
        return [self.queries[int(text[1:])] for text in texts]


def write_vectors(folder: Path, rows: int, queries: int) -> None:
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(32, DIMS)).astype(np.float32)
    for name, count in (("rows", rows), ("queries", queries)):
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, DIMS))
        for start in range(0, count, 50_000):
            size = min(50_000, count - start)
            points = rng.normal(size=(size, 32)).astype(np.float32)
            file[start : start + size] = points @ turn + rng.normal(size=(size, DIMS)).astype(np.float32)
        file.flush()


def retriever_of(kind: str, folder: Path, rows: int) -> EmbeddingRetriever:
    corpus = DataSource("Corpus", data=lambda: ({"text": str(n)} for n in range(rows)))
    options = next((options for name, options in SEARCH.items() if kind.startswith(name)), {})
    return EmbeddingRetriever(corpus.output["text"], Given(folder), index_type=kind, **options)


def megabytes(name: str = "VmHWM") -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def built(kind: str, folder: Path, rows: int) -> dict[str, Any]:
    with DataDreamer(folder / "out", verbose=False):
        model = retriever_of(kind, folder, rows)
        seconds = seconds_of(lambda: model.index)
    return {"seconds": seconds, "peak": megabytes(), "embedded": model.embedder.embedded}


def seconds_of(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def in_turns(calls: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round, after one round that warms them up."""
    for call in calls:
        call()
    return [[seconds_of(call) for call in calls] for _ in range(rounds)]


def searched(kind: str, folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    import faiss

    with DataDreamer(folder / "out", verbose=False):
        model = retriever_of(kind, folder, rows)
        fingerprint(model.embedder)  # hashes the code of this script's class, once a process
        before = megabytes("VmRSS")
        opened = seconds_of(lambda: model.index)
        found = {"open": opened * 1e3, "grown": megabytes("VmRSS") - before, "embedded": model.embedder.embedded}
        queries = np.array(model.embedder.queries)
        texts = [f"q{n}" for n in range(len(queries))]
        ours = [ids for ids, _ in model.search_vectors(queries, K)]
        found["mapped"] = megabytes()
        maps = Path("/proc/self/maps").read_text()
        (file,) = (path for path in (folder / "out" / ".cache").glob("*/vectors.faiss") if str(path) in maps)
        bare = model.prepare_index(faiss.read_index(str(file)))
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        times = in_turns(
            [
                lambda: list(model.search_vectors(queries, K)),
                lambda: model.run(texts, k=K, force=True),
                lambda: bare.search(unit, K),
            ],
            rounds,
        )
    np.save(folder / f"found-{kind}.npy", np.array(ours))
    found["bare"] = statistics.median(each[2] for each in times)
    found["ratio"], found["run"] = (statistics.median(each[place] / each[2] for each in times) for place in (0, 1))
    return found


def measured(kind: str, folder: Path, rows: int, rounds: int) -> bool:
    """Prints the figures of a kind of index, and returns whether its bars are met."""
    parts = []
    for phase in ("build", "search"):
        command = [sys.executable, __file__, "--phase", phase, "--kinds", kind, "--folder", str(folder)]
        done = subprocess.run(
            [*command, "--rows", str(rows), "--rounds", str(rounds)], check=True, stdout=subprocess.PIPE, text=True
        )
        parts.append(json.loads(done.stdout.splitlines()[-1]))
    build, search = parts
    exact = np.load(folder / "found-Flat.npy")
    mine = np.load(folder / f"found-{kind}.npy")
    recall = np.mean([len({*a} & {*b}) / K for a, b in zip(mine.tolist(), exact.tolist(), strict=True)])
    print(
        f"{kind}: built in {build['seconds']:.0f} s (peak {build['peak']:,.0f} MB), opened in {search['open']:.1f} ms "
        f"(+{search['grown']:.0f} MB), peak while searching {search['mapped']:,.0f} MB with the mapped file"
    )
    print(
        f"  {len(mine)} queries: FAISS {search['bare']:.2f} s, search_vectors {search['ratio']:.3f} ×, "
        f"run {search['run']:.3f} ×, recall@{K} {recall:.3f}",
        flush=True,
    )
    good = search["ratio"] <= BAR and search["open"] <= OPEN_BAR_MS
    return good and build["embedded"] == rows and search["embedded"] == 0


def bm25(rows: int, rounds: int) -> bool:
    """Prints the figures of BM25, and returns whether its bar is met."""
    import bm25s

    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.3, size=rows * 20), 50_000).reshape(rows, 20)
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    queries = [" ".join(f"w{word}" for word in row) for row in rng.integers(20, 5_000, size=(500, 5))]
    model = BM25Retriever(texts)
    our_build = seconds_of(lambda: model.index)
    bare = bm25s.BM25(k1=1.2, b=0.75)
    bare_build = seconds_of(lambda: bare.index([model.words(text) for text in texts], show_progress=False))

    def theirs() -> Any:
        return bare.retrieve([model.words(query) for query in queries], k=K, show_progress=False)

    found, scores = model.run(queries, k=K), theirs().scores
    for mine, other in zip(found, scores, strict=True):
        np.testing.assert_allclose(mine["scores"], other[: len(mine["scores"])], rtol=1e-4)
    times = in_turns([lambda: model.run(queries, k=K), theirs], rounds)
    ratio = statistics.median(mine / other for mine, other in times)
    print(
        f"BM25, {rows:,} texts: built in {our_build:.1f} s (bm25s {bare_build:.1f} s); {len(queries)} queries: bm25s "
        f"{statistics.median(each[1] for each in times):.2f} s, run {ratio:.3f} ×; the scores are the same"
    )
    return ratio <= BAR


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--phase", choices=["build", "search"])
    options = parser.parse_args()
    rows = options.rows or (20_000 if options.quick else 1_000_000)
    rounds = options.rounds or (3 if options.quick else 5)
    kinds = options.kinds or (["Flat", "IVF64,Flat", "HNSW16"] if options.quick else ["Flat", "IVF1024,Flat", "HNSW16"])
    if options.phase is not None:
        more = (rounds,) if options.phase == "search" else ()
        print(json.dumps({"build": built, "search": searched}[options.phase](kinds[0], options.folder, rows, *more)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "queries.npy").exists():
            write_vectors(folder, rows, options.queries)
        print(f"{rows:,} × {DIMS}, one thread, medians of {rounds} rounds", flush=True)
        met = [measured(kind, folder, rows, rounds) for kind in dict.fromkeys(["Flat", *kinds])]
    met.append(bm25(rows // 10 if options.quick else rows // 5, rounds))
    print(f"bar {BAR}, opened in {OPEN_BAR_MS} ms, nothing embedded twice: {'met' if all(met) else 'MISSED'}")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
