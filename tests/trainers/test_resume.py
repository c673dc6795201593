"""A training that is killed goes on after its last finished epoch and comes to the same model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from datadreamer_like import DataDreamer
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.models.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier
from tests.trainers.conftest import Rows, opinions

folder, encoder, teacher = sys.argv[1:4]
with DataDreamer(folder):
    rows, other = Rows("Train rows", opinions(192)).output, Rows("Validation rows", opinions(32, seed=1)).output
    columns = (rows["text"], rows["label"], other["text"], other["label"])
    objective = SoftTargets(TrainedModel(teacher)) if teacher != "none" else None
    options = {{"early_stopping_patience": 3}} if teacher == "none" else {{}}
    TrainHFClassifier("A", encoder).train(*columns, objective=objective, epochs=8, batch_size=8, learning_rate=2e-3, **options)
print("finished")
"""


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    script = SCRIPT.format(tests=str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", script, str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder: Path, *arguments: object) -> str:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "finished" in out
    return err


def epochs_done(folder: Path) -> int:
    states = folder.glob(".work/*/checkpoints/checkpoint-*/trainer_state.json")
    done = 0
    for state in states:
        try:
            done = max(done, round(json.loads(state.read_text())["epoch"]))
        except (ValueError, OSError):
            continue
    return done


def kill_after(folder: Path, epochs: int, wait: float, *arguments: object) -> None:
    process = start(folder, *arguments)
    while epochs_done(folder) < epochs and process.poll() is None:
        time.sleep(0.01)
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_weights_and_repeats_no_finished_epoch(tiny_encoder, tmp_path):
    finish(tmp_path / "whole", tiny_encoder, "none")
    cut, dice = tmp_path / "cut", random.Random()
    for epochs in (1, 3):
        kill_after(cut, epochs, dice.uniform(0, 0.25), tiny_encoder, "none")
    done = epochs_done(cut)
    log = finish(cut, tiny_encoder, "none")
    assert done >= 3 or (cut / "a").exists()
    if not (cut / "a").exists() or "found finished" not in log:
        assert f"going on after epoch {done}" in log
    whole, again = (load_file(folder / "a/model/model.safetensors") for folder in (tmp_path / "whole", cut))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    results = [json.loads((folder / "a/node.json").read_text())["result"] for folder in (tmp_path / "whole", cut)]
    assert results[0] == results[1]
    assert not list(cut.glob(".work/*"))


@pytest.mark.slow
def test_the_teacher_is_not_asked_again_after_a_kill(tiny_encoder, tmp_path):
    finish(tmp_path / "teacher", tiny_encoder, "none")
    teacher = tmp_path / "teacher/a/model"
    cut = tmp_path / "cut"
    kill_after(cut, 1, 0.0, tiny_encoder, teacher)
    if (cut / "a").exists():
        pytest.skip("the training was over before it could be killed")
    said = next(cut.glob(".work/*/teacher-train.npy"))
    made = said.stat().st_mtime_ns
    process = start(cut, tiny_encoder, teacher)
    seen = set()
    while process.poll() is None:
        try:
            seen.add(said.stat().st_mtime_ns)
        except FileNotFoundError:
            break
        time.sleep(0.02)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert seen == {made}
