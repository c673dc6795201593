"""Logistic regression on fixed features, against scikit-learn and against the formulas in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from datadreamer_like.distillation import HardTargets, Outputs, SoftTargets, Supervised
from datadreamer_like.evaluation.soft_labels import loss_targets
from datadreamer_like.trainers.training.logistic import Head, Rows, fit_logistic, fitted

CLASSES, FEATURES, ROWS = 4, 7, 90


class Taught:
    """A teacher by name only: its outputs are given with the rows."""

    classes = ["a", "b", "c", "d"]

    def class_logits(self, texts: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def data() -> tuple[np.ndarray[Any, Any], torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(ROWS, FEATURES)).astype(np.float32)
    features[generator.random(features.shape) < 0.5] = 0
    teacher = torch.from_numpy(features @ generator.normal(size=(FEATURES, CLASSES)).astype(np.float32))
    labels = torch.from_numpy((teacher.numpy() + generator.gumbel(size=teacher.shape)).argmax(1))
    return features, labels, teacher


def rows(features: Any, labels: torch.Tensor, teacher: torch.Tensor | None = None) -> Rows:
    batch = {"labels": labels, "mask": torch.ones(len(labels), dtype=torch.bool)}
    return Rows(features, batch, None if teacher is None else Outputs(logits=teacher))


def start() -> Head:
    return Head(np.zeros((CLASSES, FEATURES), np.float32), np.zeros(CLASSES, np.float32), {})


@pytest.mark.parametrize("kind", [np.asarray, csr_matrix])
@pytest.mark.parametrize("c", [0.1, 1.0, 30.0])
def test_with_labels_alone_it_is_scikit_learns_logistic_regression(data, kind, c):
    features, labels, _ = data
    found = fitted(rows(kind(features), labels), Supervised(), c, start())
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(features.astype(np.float64), labels.numpy())
    np.testing.assert_allclose(found.weight, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(found.bias - found.bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def gradient(head: Head, features: Any, c: float, loss: Any) -> float:
    """The norm of the gradient of `loss(logits) + ‖weight‖² / (2 C rows)` at the head, in float64."""
    weight, bias = (torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in (head.weight, head.bias))
    total = loss(torch.tensor(features, dtype=torch.float64) @ weight.T + bias)
    total = total + (weight**2).sum() / (2 * c * len(features))
    return float(torch.cat([part.flatten() for part in torch.autograd.grad(total, (weight, bias))]).norm())


def test_with_soft_targets_it_ends_where_the_gradient_of_the_formula_vanishes(data):
    features, labels, teacher = data
    labels = labels.where(torch.arange(ROWS) % 3 == 0, -100)  # two rows of three have none

    def loss(logits: torch.Tensor) -> torch.Tensor:
        q = (teacher.double() / 2).softmax(-1)
        soft = 4 * (q * (q.log() - F.log_softmax(logits / 2, -1))).sum(-1).mean()
        kept = labels >= 0
        return 0.7 * soft - 0.3 * F.log_softmax(logits[kept], -1).gather(1, labels[kept][:, None]).mean()

    objective = SoftTargets(Taught(), temperature=2.0, alpha=0.7)
    found = fitted(rows(features, labels, teacher), objective, 5.0, start())
    assert gradient(start(), features, 5.0, loss) > 0.1
    assert gradient(found, features, 5.0, loss) < 1e-4


@pytest.mark.parametrize("kind", [np.asarray, csr_matrix])
def test_soft_labels_and_class_weights_are_scikit_learns_weighted_duplicates(data, kind):
    features, labels, teacher = data
    shares, weights = teacher.softmax(-1).numpy(), np.array([0.5, 1.0, 2.0, 3.0], np.float32)
    batch = {"labels": labels, "mask": torch.ones(ROWS, dtype=torch.bool)}
    batch["targets"] = torch.from_numpy(loss_targets(shares, weights, 0.0, multi=False))
    found = fitted(Rows(kind(features), batch, None), Supervised(), 2.0, start())
    # Each row once for each class, which counts with its probability times its weight.
    twins = np.repeat(features.astype(np.float64), CLASSES, axis=0), np.tile(np.arange(CLASSES), ROWS)
    counts = (shares * weights).astype(np.float64).ravel()
    theirs = LogisticRegression(C=2.0, tol=1e-8, max_iter=10_000).fit(*twins, sample_weight=counts)
    np.testing.assert_allclose(found.weight, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(found.bias - found.bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def test_hard_targets_are_the_labels_that_the_teacher_gives(data):
    features, labels, teacher = data
    taught = fitted(rows(features, torch.full_like(labels, -100), teacher), HardTargets(Taught()), 2.0, start())
    relabelled = fitted(rows(features, teacher.argmax(1)), Supervised(), 2.0, start())
    np.testing.assert_allclose(taught.weight, relabelled.weight, atol=1e-3)


def test_a_strong_penalty_leaves_the_frequencies_of_the_classes(data):
    features, labels, _ = data
    found = fitted(rows(features, labels), Supervised(), 1e-4, start())
    shares = torch.bincount(labels, minlength=CLASSES) / ROWS
    assert np.abs(found.weight).max() < 0.02
    np.testing.assert_allclose(torch.from_numpy(found.bias).softmax(0), shares, atol=3e-3)


class NoMeasure:
    def add(self, outputs: Any, batch: Any) -> None:
        pass

    def result(self) -> dict[str, float]:
        return {}


def test_c_rises_until_the_validation_loss_does_and_the_best_is_kept(data, tmp_path: Path):
    features, labels, _ = data
    generator = np.random.default_rng(1)
    noise = np.concatenate([features, generator.normal(size=(ROWS, 60)).astype(np.float32)], axis=1)
    train, validation = rows(noise[:60], labels[:60]), rows(noise[60:], labels[60:])
    best, history = fit_logistic(train, validation, Supervised(), CLASSES, [1000, 0.01, 0.3], NoMeasure, tmp_path)
    losses = {metrics["C"]: metrics["loss"] for metrics in history}
    assert list(losses) == [0.01, 0.3]  # sorted, and 1000 is not tried
    logits = torch.from_numpy(noise[60:] @ best.weight.T + best.bias)
    assert float(F.cross_entropy(logits, labels[60:])) == pytest.approx(min(losses.values()), rel=1e-5)
    assert best.metrics["C"] == 0.01  # 60 features of noise fit 60 rows


@pytest.mark.parametrize("damage", ["cut", "one bit of a weight", "one bit of a metric"])
def test_finished_fits_are_read_and_a_damaged_one_is_made_again(data, tmp_path: Path, damage: str):
    features, labels, _ = data
    train = rows(features, labels)
    best, history = fit_logistic(train, train, Supervised(), CLASSES, [1, 10], NoMeasure, tmp_path)
    content = bytearray((tmp_path / "C-10.safetensors").read_bytes())
    content[-6 if "weight" in damage else content.index(b'C\\": 10') + 6] ^= 1
    (tmp_path / "C-10.safetensors").write_bytes(content[:40] if damage == "cut" else content)
    before = (tmp_path / "C-1.safetensors").stat().st_mtime_ns
    again, same = fit_logistic(train, train, Supervised(), CLASSES, [1, 10], NoMeasure, tmp_path)
    assert (tmp_path / "C-1.safetensors").stat().st_mtime_ns == before
    assert same == history
    np.testing.assert_array_equal(again.weight, best.weight)
