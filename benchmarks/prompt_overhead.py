"""Overhead per prompt: a `Prompt` step with an LLM that answers immediately, against a minimal implementation.

The minimal implementation ("floor") hashes each prompt, looks it up in SQLite, stores its answer there, and writes
prompt and answer to an Arrow file. The bar is half of its rows per second, for both kinds of engine. Also shown: the
pipeline without a step, and a rerun with all answers cached.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from datadreamer_like import DataDreamer
from datadreamer_like.models import LLM, Answer, Request
from datadreamer_like.steps import DataSource, Prompt

ROWS = 100_000
ROUNDS = 5
BAR = 0.5


def prompts() -> list[str]:
    return [f"Write one sentence about item number {number}, in plain English, please." for number in range(ROWS)]


class AtOnce(LLM):
    """Answers a batch at once."""

    model_name = "at-once"

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Returns the prompts with a few words before them."""
        return [Answer([f"Here is one: {request.prompt}"], 12, 14, ["stop"]) for request in requests]


class AtOnceAsync(LLM):
    """Answers many requests at once, each at once."""

    model_name = "at-once-async"

    async def answer(self, request: Request) -> Answer:
        """Returns the prompt with a few words before it."""
        return Answer([f"Here is one: {request.prompt}"], 12, 14, ["stop"])


def floor(folder: Path) -> float:
    """Hash, lookup, insert and Arrow write, a thousand rows at a time."""
    rows = iter(prompts())
    started = time.perf_counter()
    connection = sqlite3.connect(folder / "floor.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE answers (key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)")
    schema = pa.schema([("prompts", pa.string()), ("generations", pa.string())])
    placeholders = ",".join("?" * 1_000)
    with pa.OSFile(str(folder / "floor.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while chunk := list(islice(rows, 1_000)):
            keys = [hashlib.blake2b(prompt.encode(), digest_size=16).digest() for prompt in chunk]
            connection.execute(f"SELECT key, value FROM answers WHERE key IN ({placeholders})", keys).fetchall()
            answers = [f"Here is one: {prompt}" for prompt in chunk]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO answers VALUES (?, ?)",
                [(key, json.dumps([answer]).encode()) for key, answer in zip(keys, answers, strict=True)],
            )
            connection.execute("COMMIT")
            writer.write_batch(pa.record_batch([chunk, answers], schema=schema))
    connection.close()
    return ROWS / (time.perf_counter() - started)


def pipeline(llm: type[LLM]) -> Callable[[Path], float]:
    def measure(folder: Path) -> float:
        model, rows = llm(folder), prompts()
        started = time.perf_counter()
        for _ in model.run(rows, return_generator=True):
            pass
        return ROWS / (time.perf_counter() - started)

    return measure


def step(llm: type[LLM], again: bool = False) -> Callable[[Path], float]:
    def measure(folder: Path) -> float:
        with DataDreamer(folder / "out", verbose=False):
            source = DataSource("Prompts", data={"prompts": prompts()})
            for name in ("First", "Second") if again else ("First",):
                started = time.perf_counter()
                made = Prompt(name, inputs={"prompts": source.output["prompts"]}, args={"llm": llm()})
                took = time.perf_counter() - started
            assert made.output.num_rows == ROWS
            assert made.output[ROWS - 1]["generations"].startswith("Here is one: ")
        return ROWS / took

    return measure


def main() -> int:
    logging.disable(logging.INFO)
    measures: dict[str, Callable[[Path], float]] = {
        "floor": floor,
        "Prompt step, batch engine": step(AtOnce),
        "Prompt step, async engine": step(AtOnceAsync),
        "Prompt step, all cached": step(AtOnce, again=True),
        "pipeline alone, batch engine": pipeline(AtOnce),
        "pipeline alone, async engine": pipeline(AtOnceAsync),
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    # In turn, and compared within a round, so that other load on the machine hits all measurements alike.
    for _ in range(ROUNDS):
        for name, measure in measures.items():
            with tempfile.TemporaryDirectory() as folder:
                rates[name].append(measure(Path(folder)))
    print(f"{ROWS:,} rows, an LLM that answers at once; medians of {ROUNDS} rounds")
    ratios = {}
    for name, of_name in rates.items():
        ratios[name] = statistics.median(rate / bare for rate, bare in zip(of_name, rates["floor"], strict=True))
        print(f"  {name:30} {statistics.median(of_name):10,.0f} rows/s   {ratios[name]:5.2f} of the floor")
    held = {name: ratios[name] for name in ("Prompt step, batch engine", "Prompt step, async engine")}
    for name, ratio in held.items():
        print(f"{name}: ratio {ratio:.2f}, bar {BAR}: {'met' if ratio >= BAR else 'MISSED'}")
    return 0 if min(held.values()) >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
