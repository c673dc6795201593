"""Trainers of embedders, spans, few labels and packed conversations come to the same model when killed anywhere."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dying import counting_steps, run
from safetensors.torch import load_file

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


def few(encoder: Path, **options: Any) -> None:
    rows = Rows("Rows", opinions(16)).output
    trainer = TrainSetFitClassifier("It", str(encoder), device="cpu", **options)
    trainer.train(
        rows["text"], rows["label"], rows["text"], rows["label"],
        epochs=3, batch_size=8, body_learning_rate=2e-3, num_iterations=2,
    )  # fmt: skip


def talks(model: Path) -> None:
    talk = [chat("The cat", "sat.", "A dog", "ran."), chat("Rain", "fell.")] * 20
    rows = Rows("Rows", {"talk": talk}).output["talk"]
    trainer = TrainHFFineTune("It", str(model), device="cpu")
    trainer.train(rows, None, rows, None, **{**OPTIONS, "batch_size": 2}, packing=True, max_length=48)


KINDS: dict[str, Any] = {
    "distil": distil,
    "spans": spans,
    "few": few,
    "few, codes": partial(few, qlora=True),
    "talks": talks,
}
STEPS = {"distil": 8, "spans": 8, "few": 8, "few, codes": 8, "talks": 6}
"""Steps of the optimizer in an epoch."""
MODELS = {"talks": "tiny_causal_lm"}


def train(kind: str, folder: Path, encoder: Path, dies_at: int) -> None:
    """What each process runs, until it is killed."""
    with counting_steps(dies_at) as steps, DataDreamer(folder, verbose=False):
        KINDS[kind](encoder)
        (folder.parent / f"{folder.name}.steps").write_text(str(steps()))


def interrupted(kind: str, folder: Path, encoder: Path, dies_at: int) -> None:
    """What a process runs until Ctrl-C, of which it writes the time."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        (folder.parent / "sent").touch()
        os.kill(os.getpid(), signal.SIGINT)

    with counting_steps(dies_at, interrupt), DataDreamer(folder, verbose=False):
        KINDS[kind](encoder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_interrupted_training_comes_to_the_same_model_and_repeats_no_epoch(request, tmp_path, kind):
    model = request.getfixturevalue(MODELS.get(kind, "tiny_encoder"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(train, kind, whole, model)
    assert (tmp_path / "whole.steps").read_text() == str(3 * STEPS[kind])
    run(train, kind, cut, model, dies_at=STEPS[kind] + 3)  # in the second epoch
    assert not (cut / "it").exists()
    # By Ctrl-C, in the third one: the first is not repeated.
    run(interrupted, kind, cut, model, dies_at=STEPS[kind] + 3, ends_with=1)
    # Two seconds, and some for a machine that is busy with other tests.
    assert time.time() - (tmp_path / "sent").stat().st_mtime < 4
    run(train, kind, cut, model)
    assert (tmp_path / "cut.steps").read_text() == str(STEPS[kind])
    first, second = (load_file(folder / "it/model/model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (json.loads((folder / "it/node.json").read_text())["result"] for folder in (whole, cut))
    assert first == second
    assert not list(cut.glob(".work/*"))
    run(train, kind, cut, model)
    assert (tmp_path / "cut.steps").read_text() == "0"
