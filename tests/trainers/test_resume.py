"""A training that is killed goes on after its last finished epoch and comes to the same model."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.errors import StorageError
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier

from .conftest import Rows, opinions

EPOCHS = 8


def train(folder: Path, encoder: Path, teacher: Path | None) -> None:
    """What each process runs."""
    with DataDreamer(folder, verbose=False):
        rows, other = Rows("Train rows", opinions(192)).output, Rows("Validation rows", opinions(32, seed=1)).output
        objective = SoftTargets(TrainedModel(teacher)) if teacher is not None else None
        TrainHFClassifier("A", str(encoder)).train(
            rows["text"], rows["label"], other["text"], other["label"],
            objective=objective, epochs=EPOCHS, batch_size=8, learning_rate=2e-3, early_stopping_patience=5,
        )  # fmt: skip


@pytest.fixture(scope="module")
def start() -> Any:
    """Starts a process of its own that trains; the libraries are loaded once for all of them."""

    def run(*arguments: Any) -> Any:
        process = CONTEXT.Process(target=train, args=arguments)
        process.start()
        return process

    return run


def finish(process: Any) -> None:
    process.join(timeout=120)
    assert process.exitcode == 0


def checkpoints(folder: Path) -> list[int]:
    """The epochs of the complete checkpoints."""
    found = []
    with suppress(FileNotFoundError):  # a folder that the training removes while it is searched
        for state in folder.glob(".work/*/checkpoints/checkpoint-*/trainer_state.json"):
            with suppress(ValueError, OSError):
                found.append(round(json.loads(state.read_text())["epoch"]))
    return sorted(found)


def kill(process: Any, folder: Path, epochs: int, wait: float) -> None:
    while max(checkpoints(folder), default=0) < epochs and process.is_alive():
        time.sleep(0.005)
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def answers(folder: Path) -> set[tuple[int, bytes]]:
    """The keys of the teacher's stored answers; one that is stored again has another number."""
    (file,) = folder.glob(".cache/teachers/*/logits.sqlite")
    with closing(sqlite3.connect(file)) as connection:
        return set(connection.execute("SELECT rowid, key FROM answers"))


def result(folder: Path) -> Any:
    return json.loads((folder / "a/node.json").read_text())["result"]


def test_a_killed_training_ends_in_the_same_weights_and_repeats_no_finished_epoch(tiny_encoder, tmp_path, start):
    whole, cut, dice = tmp_path / "whole", tmp_path / "cut", random.Random()
    finish(start(whole, tiny_encoder, None))
    for epochs in (0, 1, 3):
        kill(start(cut, tiny_encoder, None), cut, epochs, dice.uniform(0, 0.3))
    done = checkpoints(cut)
    process, seen = start(cut, tiny_encoder, None), set()
    while process.is_alive():
        seen.update(checkpoints(cut))
    finish(process)
    assert not [epoch for epoch in seen if done and epoch < max(done) and epoch not in done]
    first, second = (load_file(folder / "a/model/model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert result(whole) == result(cut)
    first, second = (json.loads((folder / "a/curves.json").read_text()) for folder in (whole, cut))
    assert first == second
    assert {round(point["epoch"]) for point in first if "eval_loss" in point} == {
        *range(1, 1 + len(result(cut)["history"]))
    }
    assert len(result(cut)["history"]) <= EPOCHS
    assert not list(cut.glob(".work/*"))


def test_the_teacher_is_not_asked_again_after_a_kill(tiny_encoder, tmp_path, start):
    finish(start(tmp_path / "teacher", tiny_encoder, None))
    teacher, cut = tmp_path / "teacher/a/model", tmp_path / "cut"
    kill(start(cut, tiny_encoder, teacher), cut, 1, 0.0)
    assert not (cut / "a").exists(), "the training was over before it could be killed"
    stored = answers(cut)
    assert len(stored) == len({*opinions(192)["text"], *opinions(32, seed=1)["text"]})
    finish(start(cut, tiny_encoder, teacher))
    assert answers(cut) == stored


class Stops(TrainerCallback):
    """Ends a training once, after its second epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.epoch > 1.5 and not (self.folder / "stopped").exists():
            (self.folder / "stopped").touch()
            raise RuntimeError("that is enough")


def test_a_checkpoint_of_other_arguments_is_not_resumed(session, tiny_encoder, data, tmp_path):
    options = {**data(), "epochs": 3, "batch_size": 32, "callbacks": [Stops(tmp_path)]}
    trainer = TrainHFClassifier("A", str(tiny_encoder), device="cpu")
    with pytest.raises(RuntimeError, match="that is enough"):
        trainer.train(**options, learning_rate=1e-3)
    assert max(checkpoints(Path(session.folder))) == 2
    trainer.train(**options, learning_rate=5e-3)
    assert len(trainer.manifest.result["history"]) == 3
    fresh = TrainHFClassifier("Fresh", str(tiny_encoder), device="cpu").train(**options, learning_rate=5e-3)
    first, second = (load_file(Path(each.path) / "model.safetensors") for each in (trainer, fresh))
    assert all(torch.equal(first[name], second[name]) for name in first)


class StopsWhenTold(TrainerCallback):
    """Ends a training after its second epoch while a variable of the environment says so."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.epoch > 1.5 and os.environ.get("STOPS"):
            raise RuntimeError("that is enough")


@pytest.mark.parametrize("given", ["the run's own", "another run's"])
def test_a_checkpoint_of_another_run_in_the_folder_is_refused(tiny_encoder, data, tmp_path, monkeypatch, given):
    def trained(rate: float) -> TrainHFClassifier:
        with DataDreamer(tmp_path / "out", verbose=False):
            options = {"epochs": 3, "batch_size": 32, "callbacks": [StopsWhenTold()]}
            trainer = TrainHFClassifier("A", str(tiny_encoder), device="cpu")
            return trainer.train(**data(), **options, learning_rate=rate)

    monkeypatch.setenv("STOPS", "1")
    found: list[Path] = []
    for rate in (1e-3, 5e-3):
        with pytest.raises(RuntimeError, match="that is enough"):
            trained(rate)
        newest = (tmp_path / "out").glob(".work/*/checkpoints/checkpoint-6")
        found += [path for path in newest if path not in found]
    first, second = found
    monkeypatch.delenv("STOPS")
    if given == "another run's":
        shutil.rmtree(second)
        shutil.copytree(first, second)
        with pytest.raises(StorageError, match=r"checkpoint-6 is a checkpoint of another run, .*Move it away"):
            trained(5e-3)
        shutil.rmtree(second)
    assert len(trained(5e-3).manifest.result["history"]) == 3
    assert not second.exists(), "it was used"
