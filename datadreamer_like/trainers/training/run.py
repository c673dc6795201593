"""Everything that a training loop needs, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datadreamer_like.distillation import Objective, Supervised
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Task

from .options import Training
from .teaching import NoTeacher, TeacherAnswers


@dataclass
class Run:
    """A model with its data and options, ready to be trained.

    Attributes:
        model: The model, trained in place; a peft model trains its adapter alone.
        task: What the rows are.
        train: Rows to learn from.
        validation: Rows by which the best epoch is chosen.
        training: The options.
        folder: Where checkpoints are kept until the model is saved.
        device: Where to train.
        autocast: "bf16" or "fp16" for mixed precision.
        objective: What is minimised.
        teachers: The teacher's answers for "train" and for "validation".
        modules: The objective's own modules, trained along with the model.
    """

    model: Any
    task: Task
    train: Examples
    validation: Examples
    training: Training
    folder: Path
    device: torch.device
    autocast: str | None = None
    objective: Objective = field(default_factory=Supervised)
    teachers: Mapping[str, TeacherAnswers] = field(
        default_factory=lambda: {"train": NoTeacher(), "validation": NoTeacher()}
    )
    modules: nn.Module | None = None


@dataclass(frozen=True)
class Fit:
    """The result of a training run.

    Attributes:
        metrics: Validation metrics of the best epoch, whose weights the model has.
        epochs: Number of epochs trained.
        history: Validation metrics of each epoch.
    """

    metrics: dict[str, float]
    epochs: float
    history: list[dict[str, float]]
