"""How `banking77.py` trains the models of a seed, from few labels or from noisy ones."""

import statistics
import time
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from banking77_rows import MINILM, Array, Split, spread

from datadreamer_like.distillation import HardTargets, Hidden, HiddenStates, Probabilities, SoftTargets, StoredTeacher
from datadreamer_like.evaluation import label_suspects
from datadreamer_like.models import TrainedModel
from datadreamer_like.pruning import Layers, Vocabulary
from datadreamer_like.quantization import DynamicInt8
from datadreamer_like.recipes import BornAgain
from datadreamer_like.stages import Prune, Quantize
from datadreamer_like.steps import DataSource, Predict
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainLinearClassifier,
    TrainStaticClassifier,
)

ALONE, TEACHER = "MiniLM, labels", "MiniLM, soft targets"
TWO_ALONE, TWO = "2 layers, labels", "2 layers, soft targets"
STATIC = "static, soft targets"
FROZEN, SMALL, SMALLEST = "frozen MiniLM, noisy labels", "MiniLM in int8", "3 layers of MiniLM in int8"
# Passes over all rows, rows in a batch and learning rate. A model that learns from labels alone makes as many steps, in
# more passes over its rows.
TRAINING = {
    "MiniLM": (1, 32, 2e-4),
    "3 layers": (1, 32, 3e-4),
    "2 layers": (0.75, 32, 3e-4),
    "static": (20, 128, 1e-2),
}
soft = partial(SoftTargets, temperature=1.0, alpha=1.0)


class Models(dict[str, TrainedModel]):
    """The models of a seed by name, in their order."""

    def __init__(self, split: Split, *, quick: bool) -> None:
        super().__init__()
        count, every = len(split.labels), max(1, len(split.texts) // 200)
        labelled = DataSource("labelled rows", data={"text": split.texts[:count], "label": split.labels})
        few = DataSource("some labelled rows", data={"text": split.texts[:count:8], "label": split.labels[::8]})
        rows = DataSource("all rows", data={"text": split.texts})
        some = DataSource("some rows", data={"text": split.texts[::every]})
        # The epoch that is kept is chosen on some of the same rows: there are no others with labels.
        self.labelled = [step.output[name] for step in (labelled, few) for name in ("text", "label")]
        self.all = [rows.output["text"], None, some.output["text"], None]
        measured = DataSource("measured rows", data={"text": [row["text"] for row in split.measured]})
        self.measured = measured.output["text"]
        self.steps: dict[str, int] = {}
        self.split, self.share = split, 0.5 if quick else 1.0
        self.small = Prune("MiniLM with the tokens of the rows", MINILM, Vocabulary(), rows.output["text"])

    def add(self, trainer: Any, columns: Any, **given: Any) -> Any:
        """Trains one, or finds it in the session, and returns its trainer."""
        start = time.perf_counter()
        trainer.train(*columns, **given)
        self[trainer.name] = trainer.trained
        print(f"  {trainer.name}: {time.perf_counter() - start:.0f} s", flush=True)
        return trainer

    def accuracy(self, name: str) -> float:
        """Share of right answers to the measured rows, in points; they are kept in the session."""
        said = Predict(f"{name}: measured rows", inputs={"texts": self.measured}, args={"model": self[name]})
        pairs = zip(said.output["labels"], self.split.measured, strict=True)
        return 100 * statistics.mean(label == row["category"] for label, row in pairs)

    def tune(self, name: str, kind: str, start: Any, objective: Any = None, share: float = 1.0) -> Any:
        """Fine-tunes all weights of `start`, on the labels alone without an objective."""
        return self.add(TrainHFClassifier(name, start, device="cpu"), **self.options(name, kind, objective, share))

    def born_again(self, name: str, kind: str, start: Any, teacher: Any) -> None:
        """Trains `start` on all rows by a teacher that began there too."""
        options = self.options(name, kind, soft(teacher))
        options = {option: value for option, value in options.items() if option not in ("columns", "objective")}
        trainer = partial(TrainHFClassifier, model_name=start, device="cpu")
        born = BornAgain(name, trainer, *self.all, teacher=teacher, objective=soft, generations=1, **options)
        self[name] = born.students[0].trained

    def static(self, name: str, objective: Any) -> Any:
        """Trains static embeddings, in the same way."""
        return self.add(
            TrainStaticClassifier(name, self.small, device="cpu"), **self.options(name, "static", objective)
        )

    def options(self, name: str, kind: str, objective: Any, share: float = 1.0) -> dict[str, Any]:
        """Columns and options of a training, which makes the same number of steps with a teacher and without."""
        passes, size, rate = TRAINING[kind]
        texts = self.split.texts if objective else self.split.labels
        steps = ceil(self.share * share * passes * ceil(len(self.split.texts) / size))
        self.steps[name] = steps
        # The number of steps is rounded up.
        given = {"objective": objective, "epochs": (steps - 0.5) / ceil(len(texts) / size), "batch_size": size}
        given |= {"learning_rate": rate} | ({} if kind == "static" else {"warmup_steps": 0.1, "max_length": 48})
        return {"columns": self.all if objective else self.labelled, **given}


def learn(split: Split, *, quick: bool) -> Models:
    """Trains all models of a seed with few labels inside a session; each is cached there."""
    found = Models(split, quick=quick)
    found.add(TrainLinearClassifier("TF-IDF, labels"), found.labelled, C=100.0)
    frozen = TrainEmbeddingClassifier("frozen MiniLM, labels", found.small, device="cpu")
    frozen = found.add(frozen, found.labelled, C=30.0)
    alone = found.tune(ALONE, "MiniLM", frozen)
    classes = alone.trained.labels
    given = np.eye(len(classes))[[classes.index(label) for label in split.labels]]
    said = Predict("answers to all rows", inputs={"texts": found.all[0]}, args={"model": alone})
    own = np.array([[row[name] for name in classes] for row in said.output["soft_labels"]])
    answers = spread(split.vectors, own, given)
    minilm = found.tune(TEACHER, "MiniLM", frozen, soft(Probabilities(split.texts, answers.tolist(), classes)))
    # Students of two layers start from the first and the last of the MiniLM that has learned from the same rows.
    found.tune(TWO_ALONE, "2 layers", Prune("2 layers of MiniLM, labels", alone, Layers(2)))
    two = Prune("2 layers of MiniLM", minilm, Layers(2))
    found.tune("2 layers, hard targets", "2 layers", two, HardTargets(minilm))
    student = found.tune(TWO, "2 layers", two, soft(minilm))
    # Half of the steps imitate the teacher's last hidden states, read from disk, and the others its probabilities.
    states = HiddenStates(StoredTeacher(minilm, Hidden([6])), layers={2: 6})
    halfway = found.tune("2 layers, stored states", "2 layers", two, states, share=0.5)
    both = found.tune("2 layers, stored states and soft targets", "2 layers", halfway, soft(minilm), share=0.5)
    found.steps[both.name] += found.steps[halfway.name]
    found.born_again("2 layers, born again", "2 layers", two, student)
    found.static(STATIC, soft(minilm))
    return found


def learn_from_noise(split: Split, *, quick: bool) -> Models:
    """Trains the models of `--teacher-noise`: labels cleaned, spread to all rows, and distilled into small students."""
    found = Models(split, quick=quick)
    found.add(TrainLinearClassifier("TF-IDF, noisy labels"), found.labelled, C=10.0)
    frozen = found.add(TrainEmbeddingClassifier(FROZEN, found.small, device="cpu"), found.labelled, C=10.0)
    classes = frozen.trained.labels
    answers = cleaned(split, classes)
    teacher = soft(Probabilities(split.texts, answers.tolist(), classes))
    minilm = found.tune("MiniLM, unlabelled rows", "MiniLM", frozen, teacher)
    found[SMALL] = Quantize(SMALL, minilm, DynamicInt8()).trained
    three = Prune("3 layers of MiniLM", minilm, Layers(3))
    three = found.tune("3 layers of MiniLM, soft targets", "3 layers", three, soft(minilm))
    found[SMALLEST] = Quantize(SMALLEST, three, DynamicInt8()).trained
    found.static(STATIC, soft(minilm))
    return found


def cleaned(split: Split, classes: list[str]) -> Array:
    """Answers to all rows [rows, classes], from the labels that are no suspects and spread over neighbours."""
    _, counts = np.unique(np.array(split.labels)[~split.checked], return_counts=True)
    suspects = label_suspects(
        split.vectors[: len(split.labels)],
        split.labels,
        trusted=split.checked.tolist(),
        folds=int(min(5, counts.min())),
    )
    print(f"  {int(suspects.is_suspect.sum())} suspects among {len(split.labels)} labels", flush=True)
    own = predicted(split, np.flatnonzero(~suspects.is_suspect), classes, C=10.0)
    return spread(split.vectors, own, suspects.probabilities[:, [suspects.classes.index(name) for name in classes]])


def predicted(split: Split, kept: Array, classes: list[str], C: float) -> Array:
    """Probabilities [rows, classes] by a logistic regression on the embeddings of the labelled rows `kept`."""
    from sklearn.linear_model import LogisticRegression

    head = LogisticRegression(C=C, max_iter=300).fit(split.vectors[kept], np.array(split.labels)[kept])
    found: Array = head.predict_proba(split.vectors)[:, [head.classes_.tolist().index(name) for name in classes]]
    return found
