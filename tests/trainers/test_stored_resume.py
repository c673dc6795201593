"""A training from stored signals that is killed goes on to the same curve, and its teacher is not asked again."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import SoftTargets, StoredTeacher, TopK
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFFineTune

from .conftest import Rows

TEXTS = ["The cat sat", "A dog ran", "The bird sang", "Rain fell"]
ROWS = {"text": [f"{text} {i}" for i in range(12) for text in TEXTS], "label": ["on the warm mat."] * 48}
EPOCHS = 5


def train(folder: Path, model: Path) -> None:
    """What each process runs."""
    with DataDreamer(folder, verbose=False):
        rows = Rows("Rows", ROWS).output
        objective = SoftTargets(StoredTeacher(TrainedModel(model), TopK(8)))
        TrainHFFineTune("A", str(model)).train(
            rows["text"], rows["label"], rows["text"], rows["label"],
            objective=objective, epochs=EPOCHS, batch_size=8, learning_rate=2e-3,
        )  # fmt: skip


def result(folder: Path) -> Any:
    return json.loads((folder / "a/node.json").read_text())["result"]


@pytest.mark.slow
def test_a_killed_training_reads_the_same_signals_and_ends_in_the_same_curve(tiny_causal_lm, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def start(folder: Path) -> Any:
        process = CONTEXT.Process(target=train, args=(folder, tiny_causal_lm))
        process.start()
        return process

    process = start(whole)
    process.join(timeout=120)
    assert process.exitcode == 0
    process = start(cut)
    while not list(cut.glob(".work/*/checkpoints/checkpoint-*/trainer_state.json")) and process.is_alive():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (cut / "a").exists(), "the training was over before it could be killed"
    (state,) = cut.glob(".cache/signals/*/signals.json")
    stored = state.stat()
    process = start(cut)
    process.join(timeout=120)
    assert process.exitcode == 0
    assert result(cut) == result(whole)
    assert state.stat().st_mtime_ns == stored.st_mtime_ns
