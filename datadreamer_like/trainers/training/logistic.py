"""Logistic regression on fixed features, for any objective on logits, by L-BFGS on all rows at once."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from datadreamer_like.distillation import Objective, Outputs, StoredTeacher
from datadreamer_like.errors import ArgumentTypeError, DataError, MethodMisfit, check_number
from datadreamer_like.evaluation.tasks.task import Batch, Measure
from datadreamer_like.graph import current_usage

CHOICES_OF_C = (1.0, 10.0, 100.0, 1000.0)
"""The strengths that are tried if none is given."""

Array = np.ndarray[Any, Any]


@dataclass
class Rows:
    """Features [rows, features], dense or a scipy CSR matrix, with the batch and the teacher's outputs for all rows."""

    features: Any
    batch: Batch
    teacher: Outputs | None


@dataclass
class Head:
    """A fitted linear layer: weight [classes, features] and bias [classes], with its validation metrics."""

    weight: Array
    bias: Array
    metrics: dict[str, float]

    def logits(self, features: Any) -> torch.Tensor:
        """Returns logits [rows, classes]."""
        return torch.from_numpy(np.asarray(features @ self.weight.T) + self.bias)

    def save(self, path: Path) -> None:
        """Writes the head atomically."""
        draft = path.with_suffix(f".{os.getpid()}")
        weights = {"weight": np.ascontiguousarray(self.weight), "bias": self.bias}
        metrics = json.dumps(self.metrics)
        save_file(weights, draft, {"metrics": metrics, "checksum": _checksum(self.weight, self.bias, metrics)})
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Head | None:
        """Reads a head; None if there is none, or it is damaged."""
        try:
            with safe_open(path, "np") as file:
                weight, bias, said = file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()
                whole = said["checksum"] == _checksum(weight, bias, said["metrics"])
                return cls(weight, bias, json.loads(said["metrics"])) if whole else None
        except Exception:  # the library's errors have no class of their own
            return None


def _checksum(weight: Array, bias: Array, metrics: str) -> str:
    of_metrics = zlib.crc32(f"{weight.shape} {metrics}".encode())
    return f"{zlib.crc32(bias.tobytes(), zlib.crc32(weight.tobytes(), of_metrics)):08x}"


def check_needs_logits_only(objective: Objective, who: str) -> None:
    """Raises `MethodMisfit` if an objective needs more than logits, for a trainer called `who` in messages."""
    needed = sorted((objective.wants | objective.teacher_wants) - {"logits"})
    if needed:
        raise MethodMisfit(
            f"{who}: {type(objective).__name__} needs {' and '.join(needed).replace('_', ' ')}, and this classifier "
            "has logits only. Use an objective on logits, such as SoftTargets(teacher)."
        )
    if isinstance(objective.teacher, StoredTeacher):
        raise MethodMisfit(
            f"{who}: a StoredTeacher has signals for the tokens of a language model. Pass the teacher itself: a "
            "classifier's logits are stored without being asked to."
        )


def check_logistic(objective: Objective, c: object, who: str) -> None:
    """Checks the arguments of a trainer that fits a logistic regression, called `who` in messages.

    Raises:
        MethodMisfit: The objective needs more than logits.
        ArgumentTypeError, DefinitionError: `c`, the strength, is not a number above 0 or a list of such numbers.
    """
    check_needs_logits_only(objective, who)
    choices = c if isinstance(c, Sequence) and not isinstance(c, str) else (c,)
    if not choices:
        raise ArgumentTypeError(f"{who}: C is an empty list. Pass a number above 0, or None to try several.")
    for value in choices:
        check_number(value, f"{who}: C", 0, over=True, optional=value is c)


def fit_logistic(
    train: Rows,
    validation: Rows,
    objective: Objective,
    classes: int,
    c: float | Sequence[float] | None,
    new_measure: Callable[[], Measure],
    folder: Path,
) -> tuple[Head, list[dict[str, float]]]:
    """Fits a linear layer for rising C until the validation loss rises; returns the best one, and all their metrics.

    It minimises `objective + ‖weight‖² / (2 C rows)`, which with labels alone is scikit-learn's `LogisticRegression`.
    Each fit starts from the one before, and is kept in `folder`, so that a killed training run resumes after it.
    """
    given = CHOICES_OF_C if c is None else c if isinstance(c, Sequence) else (c,)
    choices = sorted({float(value) for value in given})
    features = train.features.shape[1]
    head = Head(np.zeros((classes, features), np.float32), np.zeros(classes, np.float32), {})
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Head] = []
    for value in choices:
        current_usage().note = f"logistic regression, C = {value:g}"
        path = folder / f"C-{value:g}.safetensors"
        saved = Head.load(path)
        head = fitted(train, objective, value, head) if saved is None else saved
        if saved is None:
            logits = head.logits(validation.features)
            measure = new_measure()
            measure.add(Outputs(logits=logits), validation.batch)
            loss = objective.loss(Outputs(logits=logits), validation.teacher, validation.batch)
            head.metrics = {"loss": _finite(float(loss), "validation"), **measure.result(), "C": value}
            head.save(path)
        found.append(head)
        if len(found) > 1 and found[-1].metrics["loss"] > found[-2].metrics["loss"]:
            break
    return min(found, key=lambda each: each.metrics["loss"]), [each.metrics for each in found]


def fitted(rows: Rows, objective: Objective, c: float, start: Head) -> Head:
    """Fits one linear layer; see `fit_logistic`."""
    from scipy.optimize import minimize

    features, (classes, width) = rows.features, start.weight.shape
    penalty, dtype = 1.0 / (c * features.shape[0]), features.dtype

    def loss_and_gradient(flat: Array) -> tuple[float, Array]:
        both = flat.reshape(classes, width + 1)
        weight, bias = both[:, :-1], both[:, -1]
        scores = np.asarray(features @ weight.T.astype(dtype)) + bias.astype(dtype)
        logits = torch.from_numpy(scores).requires_grad_()
        with torch.enable_grad():
            loss = objective.loss(Outputs(logits=logits), rows.teacher, rows.batch)
        (pull,) = torch.autograd.grad(loss, logits)
        gradient = np.empty_like(both)
        gradient[:, :-1] = np.asarray(features.T @ pull.numpy()).T + penalty * weight
        gradient[:, -1] = pull.double().sum(0)
        return float(loss.detach()) + 0.5 * penalty * float((weight**2).sum()), gradient.ravel()

    flat = np.concatenate([start.weight, start.bias[:, None]], axis=1).astype(np.float64).ravel()
    options = {"maxiter": 2000, "gtol": 1e-5, "ftol": 1e-8}
    found = minimize(loss_and_gradient, flat, jac=True, method="L-BFGS-B", options=options)
    _finite(float(found.fun), "training")
    both = found.x.reshape(classes, width + 1).astype(np.float32)
    return Head(both[:, :-1], both[:, -1].copy(), {})


def _finite(loss: float, what: str) -> float:
    if not math.isfinite(loss):
        raise DataError(
            f"The {what} loss is {loss}. A feature or the teacher's output of one of the rows is not finite: check the "
            "encoder, the teacher and their dtypes."
        )
    return loss
