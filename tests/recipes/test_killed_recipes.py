"""kill -9 in the middle of a recipe: the next run goes on after the last finished epoch, and comes to the same."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook
from user_scripts import files_of
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Predictor
from datadreamer_like.recipes import BornAgain, DistillationLoop, SelfTraining
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainHFClassifier

WORDS, FILLING = ["good", "bad", "fine", "poor"], ["tea", "day", "film", "very", "was", "and", "the", "a"]
TEXTS = [f"{WORDS[i % 4]} {FILLING[i % 8]} {FILLING[i // 8]}" for i in range(64)]
LABELS = ["good" if i % 2 == 0 else "bad" for i in range(64)]
ROWS = {"train": slice(0, 24), "held": slice(24, 32), "pool": slice(32, 64)}
# Epochs of 3 steps in Born, of 1 and 2 in Loop, of 3 and 7 in Grown; two each.
BORN, LOOP, GROWN = 2 * (3 + 3), 2 * (1 + 2), 2 * (3 + 7)


class Counted:
    """A teacher that counts what it is asked."""

    classes_ = ("bad", "good")

    def __init__(self, count: Any) -> None:
        self.count = count

    def __fingerprint__(self) -> str:
        return "the rule"

    def predict_proba(self, texts: list[str]) -> Any:
        self.count("asked", len(texts))
        return np.array([[0.2, 0.8] if "good" in text or "fine" in text else [0.9, 0.1] for text in texts])


def run(folder: Path, encoder: Path, dies_at: dict[str, int]) -> None:
    """What each process runs; it dies at so many steps of an optimizer, or texts of the teacher."""
    counts = {"steps": 0, "asked": 0}

    def count(what: str, number: int = 1) -> None:
        counts[what] += number
        if counts[what] >= dies_at.get(what, 10**9):
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(lambda *_: count("steps"))
    with DataDreamer(folder, verbose=False):
        data = {
            name: DataSource(name, {"text": TEXTS[part], "label": LABELS[part]}).output for name, part in ROWS.items()
        }
        train, held = ((data[name]["text"], data[name]["label"]) for name in ("train", "held"))
        pool = data["pool"]["text"]
        trainer = partial(TrainHFClassifier, model_name=str(encoder), device="cpu")
        options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}
        born = BornAgain("Born", trainer, *train, *held, generations=1, random_weights=True, **options)
        loop = DistillationLoop(
            "Loop", trainer, Predictor(Counted(count)), pool, *held, rows_per_round=8, budget_rows=16, **options
        )
        grown = SelfTraining("Grown", trainer, *train, pool, *held, threshold=0.5, rounds=1, **options)
        models = [*born.generations, *loop.students, *grown.students]
        found = [model.predict(TEXTS).probabilities.tolist() for model in models]
    result = {"counts": [counts["steps"], counts["asked"]], "found": found, "tables": [*map(str, (born, loop, grown))]}
    folder.with_suffix(".json").write_text(json.dumps(result))


def kept_files(folder: Path) -> dict[str, Any]:
    """The files of a session, without the lock of the process that wrote last."""
    return {name: at for name, at in files_of(folder).items() if not name.startswith(".locks")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_recipes_come_to_the_same_models_and_repeat_neither_epochs_nor_answers(tmp_path: Path, tiny_encoder):

    def call(name: str, **dies_at: int) -> Any:
        process = CONTEXT.Process(target=run, args=(tmp_path / name, tiny_encoder, dies_at))
        process.start()
        process.join(timeout=200)
        assert process.exitcode == (-signal.SIGKILL if dies_at else 0)
        return None if dies_at else json.loads((tmp_path / f"{name}.json").read_text())

    whole = call("whole")
    assert whole.pop("counts") == [BORN + LOOP + GROWN, 16]
    call("cut", steps=10)  # in the second epoch of Born's generation 1
    call("cut", asked=9)  # in the teacher's second answer
    call("cut", steps=4 + 6 + 4)  # in the first epoch of Grown's second student, which is lost
    last = call("cut")
    assert last.pop("counts") == [2 * 7, 0]
    assert last == whole
    before = kept_files(tmp_path / "cut")
    again = call("cut")
    assert again.pop("counts") == [0, 0]
    assert again == whole
    assert kept_files(tmp_path / "cut") == before
