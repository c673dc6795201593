"""What `step.trace` costs: bytes that are kept for each row, and the share of a step's time.

Steps of several kinds are run on the same rows with the origin kept and without, in the same rounds;
the median of the paired ratios of CPU time counts.

Run: python benchmarks/trace.py [rows] [rounds]
The bars are 16 bytes a row and 5 % of the time.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datadreamer_like import DataDreamer
from datadreamer_like.graph.origin import Origin, Recorder
from datadreamer_like.models import LLM, Answer, Request
from datadreamer_like.steps import DataSource, FilterWithPrompt, Prompt

BYTES_BAR, TIME_BAR = 16.0, 0.05


class AtOnce(LLM):
    """Answers a batch at once."""

    model_name = "at-once"

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Says yes to every second prompt."""
        return [Answer(["yes" if len(str(request.prompt)) % 2 else "no"], 12, 1, ["stop"]) for request in requests]


def main() -> int:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    logging.disable(logging.WARNING)
    texts = [f"Write one sentence about item number {number}, please{'.' * (number % 3)}" for number in range(rows)]
    llm_args = {"llm": AtOnce()}
    steps: dict[str, Callable[[Any], Any]] = {
        "filter": lambda source: source.filter(lambda row: len(row["text"]) % 2, lazy=False),
        "shuffle": lambda source: source.shuffle(seed=1, lazy=False),
        "map, filter, save": lambda source: source.map(_longer).filter(lambda row: row["size"] % 2).save(),
        "Prompt": lambda source: Prompt("Ask", inputs={"prompts": source.output["text"]}, args=llm_args),
        "FilterWithPrompt": lambda source: FilterWithPrompt(
            "Keep", inputs={"inputs": source.output["text"]}, args={**llm_args, "instruction": "Is it good? yes or no"}
        ),
    }
    add, at, save = Recorder.add, Origin.__dict__["at"], Origin.save
    missed = []
    print(f"{rows:,} rows, a quarter of them for prompts, and {rounds} rounds, more where a step is short")
    for name, make in steps.items():
        ratios, sizes = [], []
        prompts = "Prompt" in name  # these take 20 times as long a row
        given = texts[: rows // 4] if prompts else texts
        # Single runs vary by a tenth.
        for turn in range(-1, rounds * (3 if prompts else 5)):  # the first one warms up
            seconds = {}
            # Taking turns: the second of a pair finds memory and files warm.
            for traced in (True, False) if turn % 2 else (False, True):
                if not traced:
                    Recorder.add = lambda self, num_rows, stated: None  # type: ignore[method-assign]
                    Origin.at = classmethod(lambda kind, parent, piece: kind())  # type: ignore[assignment]
                    Origin.save = lambda self, folder, prefix="": None  # type: ignore[method-assign]
                try:
                    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder, verbose=False):
                        source = DataSource("Texts", data={"text": given})
                        started = time.process_time()
                        step = make(source)
                        seconds[traced] = time.process_time() - started
                        kept = sum(file.stat().st_size for file in Path(step.folder).glob("*.npy"))
                        if traced:
                            sizes.append(kept / step.output.num_rows)
                finally:
                    Recorder.add, Origin.at, Origin.save = add, at, save  # type: ignore[method-assign, assignment]
            if turn >= 0:
                ratios.append(seconds[True] / seconds[False] - 1)
        share = statistics.median(ratios)
        met = max(sizes) < BYTES_BAR and share < TIME_BAR
        print(
            f"  {name:20} {max(sizes):6.2f} bytes a row   {100 * share:+5.2f} % of the time   {'' if met else 'MISSED'}"
        )
        if not met:
            missed.append(name)
    verdict = f"MISSED by {', '.join(missed)}" if missed else "met"
    print(f"bars {BYTES_BAR:.0f} bytes and {100 * TIME_BAR:.0f} %: {verdict}")
    return 1 if missed else 0


def _longer(row: dict[str, Any]) -> dict[str, Any]:
    return {"size": len(row["text"])}


if __name__ == "__main__":
    sys.exit(main())
