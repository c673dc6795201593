"""The tiny encoder and the rows of the trainers' tests, as steps, whose rows a recipe selects and joins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from trainers.conftest import opinions, tiny_encoder  # noqa: F401

from datadreamer_like import DataDreamer
from datadreamer_like.steps import DataSource

if TYPE_CHECKING:
    from datadreamer_like.trainers import TrainHFClassifier

QUICK: dict[str, Any] = {"epochs": 5, "batch_size": 8, "learning_rate": 3e-3}


@pytest.fixture
def session(tmp_path: Path) -> Any:
    with DataDreamer(tmp_path / "output", verbose=False) as opened:
        yield opened


@pytest.fixture
def trainer(tiny_encoder: Path) -> Callable[[str], TrainHFClassifier]:  # noqa: F811
    from datadreamer_like.trainers import TrainHFClassifier

    return partial(TrainHFClassifier, model_name=str(tiny_encoder), device="cpu")


def rows(name: str, count: int, seed: int) -> Any:
    """A step with opinions: columns `text` and `label`."""
    return DataSource(name, opinions(count, seed)).output


def columns(train: int = 80, validation: int = 48) -> dict[str, Any]:
    """The four columns of a training."""
    first, second = rows("Train", train, 0), rows("Validation", validation, 1)
    return {
        "train_input": first["text"],
        "train_output": first["label"],
        "validation_input": second["text"],
        "validation_output": second["label"],
    }
