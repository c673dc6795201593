"""Trainers of embedders, spans, few labels and packed conversations come to the same model when stopped anywhere."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.trainers import (
    TrainHFFineTune,
    TrainHFTokenClassifier,
    TrainSentenceTransformer,
    TrainSetFitClassifier,
)

from .conftest import Rows, opinions
from .test_chats import chat
from .test_token_classifier import sentences

OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-3}


def distil(encoder: Path) -> None:
    rows = Rows("Rows", {"text": opinions(64)["text"]}).output["text"]
    trainer = TrainSentenceTransformer("It", str(encoder), device="cpu", layers=1)
    trainer.train_with_teacher(rows, rows, teacher=str(encoder), reduction="projection", **OPTIONS)


def spans(encoder: Path) -> None:
    rows = Rows("Rows", sentences(64)).output
    trainer = TrainHFTokenClassifier("It", str(encoder), device="cpu")
    trainer.train(rows["text"], rows["spans"], rows["text"], rows["spans"], **OPTIONS)


def few(encoder: Path) -> None:
    rows = Rows("Rows", opinions(16)).output
    trainer = TrainSetFitClassifier("It", str(encoder), device="cpu")
    trainer.train(
        rows["text"], rows["label"], rows["text"], rows["label"],
        epochs=3, batch_size=8, body_learning_rate=2e-3, num_iterations=2,
    )  # fmt: skip


def talks(model: Path) -> None:
    talk = [chat("The cat", "sat.", "A dog", "ran."), chat("Rain", "fell.")] * 20
    rows = Rows("Rows", {"talk": talk}).output["talk"]
    trainer = TrainHFFineTune("It", str(model), device="cpu")
    trainer.train(rows, None, rows, None, **{**OPTIONS, "batch_size": 2}, packing=True, max_length=48)


KINDS: dict[str, Any] = {"distil": distil, "spans": spans, "few": few, "talks": talks}
STEPS = {"distil": 8, "spans": 8, "few": 8, "talks": 6}
"""Steps of the optimizer in an epoch."""
MODELS = {"talks": "tiny_causal_lm"}


def run(kind: str, folder: Path, encoder: Path, dies_at: int, how: signal.Signals) -> None:
    """What each process runs; it gets a signal after so many steps of the optimizer, and counts them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            (folder.parent / "sent").touch()
            os.kill(os.getpid(), how)

    register_optimizer_step_post_hook(count)
    with DataDreamer(folder, verbose=False):
        KINDS[kind](encoder)
    (folder.parent / f"{folder.name}.steps").write_text(str(steps))


@pytest.fixture(scope="module")
def start() -> Any:
    """Runs in a process of its own; the libraries are loaded once for all of them."""

    def call(kind: str, folder: Path, encoder: Path, dies_at: int = -1, how: signal.Signals = signal.SIGKILL) -> None:
        process = CONTEXT.Process(target=run, args=(kind, folder, encoder, dies_at, how))
        process.start()
        process.join(timeout=120)
        if how == signal.SIGKILL:
            assert process.exitcode == (0 if dies_at < 0 else -signal.SIGKILL)
            return
        assert process.exitcode
        # Two seconds, and some for a machine that is busy with other tests.
        assert time.time() - (folder.parent / "sent").stat().st_mtime < 4

    return call


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_interrupted_training_comes_to_the_same_model_and_repeats_no_epoch(request, tmp_path, start, kind):
    model = request.getfixturevalue(MODELS.get(kind, "tiny_encoder"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(kind, whole, model)
    assert (tmp_path / "whole.steps").read_text() == str(3 * STEPS[kind])
    start(kind, cut, model, dies_at=STEPS[kind] + 3)  # in the second epoch
    assert not (cut / "it").exists()
    # By Ctrl-C, in the third one: the first is not repeated.
    start(kind, cut, model, dies_at=STEPS[kind] + 3, how=signal.SIGINT)
    start(kind, cut, model)
    assert (tmp_path / "cut.steps").read_text() == str(STEPS[kind])
    first, second = (load_file(folder / "it/model/model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (json.loads((folder / "it/node.json").read_text())["result"] for folder in (whole, cut))
    assert first == second
    assert not list(cut.glob(".work/*"))
    start(kind, cut, model)
    assert (tmp_path / "cut.steps").read_text() == "0"
