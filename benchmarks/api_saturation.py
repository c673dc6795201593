"""A provider's API under load: how much of it a run uses, what it sends, and what it survives.

`api_server.py` is the provider, in its own process. The floor is a bare aiohttp loop that keeps nothing; our answers
are on disk before they count. Ratios compare what was measured in one round of one run; where a bar is absolute and no
server is waited for, seconds are those of the processor. The exit status is 1 if a bar is missed.
`--quick` takes a tenth of the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import aiohttp

from datadreamer_like import DataDreamer
from datadreamer_like.models import OpenAI
from datadreamer_like.steps import DataSource, Prompt

AT_ONCE = 64
HUNG_SECONDS, TIMEOUT = 6.0, 2.0


class Server:
    """The provider; `setup` changes its behaviour and clears its counts."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def setup(self, **behaviour: Any) -> None:
        urlopen(f"{self.address}/setup?{quote(json.dumps(behaviour))}").read()

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = json.load(urlopen(f"{self.address}/counts"))
        return counts

    def llm(self, folder: Path, **options: Any) -> OpenAI:
        return OpenAI("bench", base_url=f"{self.address}/v1", api_key="none", cache_folder_path=folder, **options)


@contextmanager
def serving() -> Iterator[Server]:
    command = [sys.executable, str(Path(__file__).with_name("api_server.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Server(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait()


def prompts(rows: int, start: int = 0) -> list[str]:
    return [f"Write one sentence about item number {number}." for number in range(start, start + rows)]


def answers_to(asked: list[str]) -> list[str]:
    return [f"echo: {prompt}" for prompt in asked]


Measured = tuple[float, float]
"""Rows per second, and milliseconds of the processor for a row."""


def measured(rows: int, started: float, at_first: float) -> Measured:
    return rows / (time.perf_counter() - started), 1e3 * (time.process_time() - at_first) / rows


def bare(server: Server, rows: int) -> Measured:
    """64 workers that post and parse, and keep nothing."""

    async def run() -> Measured:
        waiting = iter(prompts(rows))
        url, headers = f"{server.address}/v1/chat/completions", {"Authorization": "Bearer none"}

        async def work(session: aiohttp.ClientSession) -> None:
            for prompt in waiting:
                body = {"model": "bench", "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
                async with session.post(url, json=body, headers=headers) as response:
                    answer = await response.json()
                    assert answer["choices"][0]["message"]["content"]

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            started, at_first = time.perf_counter(), time.process_time()
            await asyncio.gather(*(work(session) for _ in range(AT_ONCE)))
            return measured(rows, started, at_first)

    return asyncio.run(run())


def ours(server: Server, rows: int) -> Measured:
    """`OpenAI`, answers durable."""
    with tempfile.TemporaryDirectory() as folder:
        llm, asked = server.llm(Path(folder)), prompts(rows)
        started, at_first = time.perf_counter(), time.process_time()
        answered = llm.run(asked, concurrency=AT_ONCE)
        result = measured(rows, started, at_first)
    assert answered == answers_to(asked)
    return result


class Bars:
    """Prints what was measured, and remembers missed bars."""

    def __init__(self) -> None:
        self.missed = 0

    def row(self, what: str, figure: str, bar: str = "", held: bool = True) -> None:
        self.missed += not held
        verdict = f"   bar {bar}: {'met' if held else 'MISSED'}" if bar else ""
        print(f"{what:48} {figure}{verdict}", flush=True)


def latency(server: Server, bars: Bars, share: float) -> None:
    rounds: list[tuple[Measured, Measured]] = []
    server.setup(latency=0.05)
    for _ in range(5 if share == 1 else 3):
        rounds.append((bare(server, int(4_000 * share)), ours(server, int(4_000 * share))))
    ratio = statistics.median(mine / floor for (floor, _), (mine, _) in rounds)
    floor, mine = (statistics.median(each[which][0] for each in rounds) for which in (0, 1))
    bare_cpu, our_cpu = (statistics.median(each[which][1] for each in rounds) for which in (0, 1))
    figure = f"{ratio:.2f} of the bare loop ({mine:,.0f} of {floor:,.0f} rows/s)"
    bars.row(f"50 ms a reply, {AT_ONCE} at once", figure, ">= 0.70", ratio >= 0.70)
    bars.row("  of the processor, for a row", f"{our_cpu:.2f} ms, the bare loop {bare_cpu:.2f} ms")
    server.setup(latency=0.2)
    share_of_ideal = max(ours(server, int(5_000 * share))[0] for _ in range(2)) / (AT_ONCE / 0.2)
    bars.row("200 ms a reply", f"{share_of_ideal:.3f} of the ideal", ">= 0.95", share_of_ideal >= 0.95)


def limited(server: Server, bars: Bars, share: float) -> None:
    rows = 1_000
    for headers in (True, False):
        server.setup(latency=0.05, rate=100.0, headers=headers)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            assert server.llm(Path(folder)).run(prompts(rows)) == answers_to(prompts(rows))
            took = time.perf_counter() - started
        counts = server.counts()
        rejected = counts.get("rejected", 0) / counts["requests"]
        figure = f"{took:.1f} s, {100 * rejected:.1f} % rejected"
        if headers:
            held = took <= 11 and rejected <= 0.05
            bars.row("100 requests/s allowed, 1,000 rows", figure, "<= 11 s, <= 5 %", held)
        else:
            bars.row("the same without rate headers", figure)


def cached(server: Server, bars: Bars, share: float) -> None:
    rows, added = int(100_000 * share), 137
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def script(count: int) -> float:
            started = time.process_time()
            with DataDreamer(folder / "out", verbose=False):
                source = DataSource("Prompts", data={"prompts": prompts(count)})
                llm = server.llm(folder / "answers")
                made = Prompt("Sentences", inputs={"prompts": source.output["prompts"]}, args={"llm": llm})
            took = time.process_time() - started
            assert made.output[count - 1]["generations"] == f"echo: {prompts(1, count - 1)[0]}"
            return took

        server.setup()
        script(rows)
        sent = server.counts()["requests"]
        bars.row(f"{rows:,} rows", f"{sent:,} requests", f"= {rows:,}", sent == rows)
        again = min(script(rows) for _ in range(3))
        bars.row(f"a finished run of {rows:,} again", f"{again:.2f} s of CPU", "< 1 s", again < 1)
        started = time.process_time()
        assert len(server.llm(folder / "answers").run(prompts(rows))) == rows
        rate = rows / (time.process_time() - started)
        bars.row(f"{rows:,} cached prompts", f"{rate:,.0f} rows/s of CPU", ">= 50,000", rate >= 50_000)
        script(rows + added)
        more = server.counts()["requests"] - sent
        bars.row(f"{added} rows added", f"{more} requests", f"= {added}", more == added)


def faulty(server: Server, bars: Bars, share: float) -> None:
    rows = int(4_000 * share)
    server.setup(latency=0.05, faults=0.01, hung=HUNG_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        llm = server.llm(Path(folder), timeout=TIMEOUT)
        started = time.perf_counter()
        answered = llm.run(prompts(rows), concurrency=AT_ONCE)
        took = time.perf_counter() - started
    counts = server.counts()
    faults = sum(count for name, count in counts.items() if name not in ("requests", "rejected"))
    right = sum(mine == wanted for mine, wanted in zip(answered, answers_to(prompts(rows)), strict=True))
    figure = f"{right:,} of {rows:,} rows right and in order after {faults} faults, {rows / took:,.0f} rows/s"
    bars.row("1 % each of seven faults", figure, "all", right == rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parts: dict[str, Callable[[Server, Bars, float], None]] = {
        "latency": latency, "limited": limited, "faulty": faulty, "cached": cached,
    }  # fmt: skip
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(parts)}; by default all")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    bars = Bars()
    with serving() as server:
        ours(server, 1)  # imports
        for name in given.parts or parts:
            parts[name](server, bars, 0.1 if given.quick else 1.0)
    return 1 if bars.missed else 0


if __name__ == "__main__":
    sys.exit(main())
