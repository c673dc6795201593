"""Trainings that draw tokens, samples or a teacher's answers, killed and resumed: they come to the same model."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import OnPolicy, SequenceLevel
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFFineTune, TrainHFMaskedLM

from .conftest import Rows, opinions
from .test_resume import finish, kill, result

ROWS = {"text": opinions(96)["text"], "label": ["The cat sat on the warm mat."] * 96}
OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 2e-3}


def train(folder: Path, kind: str, start: Path) -> None:
    """What each process runs."""
    with DataDreamer(folder, verbose=False):
        rows, other = (Rows(name, {key: values[:count] for key, values in ROWS.items()}).output
                       for name, count in (("Train rows", 96), ("Validation rows", 16)))  # fmt: skip
        if kind == "masked":
            TrainHFMaskedLM("A", str(start)).train(rows["text"], other["text"], **OPTIONS)
            return
        teacher = TrainedModel(start)
        objective: Any = OnPolicy(teacher, fraction=0.5, max_new_tokens=5, temperature=2.0)
        if kind == "written":
            objective = SequenceLevel(teacher, beam_size=4, max_new_tokens=60)
        columns = rows["text"], rows["label"], other["text"], other["label"]
        TrainHFFineTune("A", str(start)).train(*columns, objective=objective, **OPTIONS, max_length=100)


@pytest.fixture(scope="module")
def run() -> Any:
    """Starts a process of its own that trains; the libraries are loaded once for all of them."""

    def start(*arguments: Any) -> Any:
        process = CONTEXT.Process(target=train, args=arguments)
        process.start()
        return process

    return start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["on-policy", "masked"])
def test_what_is_drawn_after_a_kill_is_what_would_have_been_drawn(kind, tiny_causal_lm, tmp_path, run):
    start = tiny_causal_lm
    if kind == "masked":
        tokenizer = tiny_models.word_pieces(ROWS["text"], max_length=32)
        tokenizer.mask_token = "[MASK]"
        start = tiny_models.save(tiny_models.bert(tokenizer, BertForMaskedLM), tokenizer, tmp_path / "start")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(run(whole, kind, start))
    kill(run(cut, kind, start), cut, 2, 0.05)
    assert not (cut / "a").exists(), "the training was over before it could be killed"
    finish(run(cut, kind, start))
    first, second = (load_file(folder / "a/model/model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert result(whole) == result(cut)


def stored(folder: Path) -> set[tuple[int, bytes]]:
    """The keys of the teacher's answers; one that is stored again has another number."""
    found: set[tuple[int, bytes]] = set()
    for file in folder.glob(".cache/**/*.sqlite"):
        with closing(sqlite3.connect(file)) as connection:
            try:
                found |= set(connection.execute("SELECT rowid, key FROM answers"))
            except sqlite3.OperationalError:  # not made yet
                continue
    return found


@pytest.mark.slow
def test_a_teacher_that_is_killed_while_it_writes_repeats_no_stored_answer(tiny_causal_lm, tmp_path, run):
    folder = tmp_path / "cut"
    process = run(folder, "written", tiny_causal_lm)
    while not stored(folder) and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = stored(folder)
    prompts = len(set(ROWS["text"]))
    assert 0 < len(before) < prompts, "the teacher was done before it could be killed"
    finish(run(folder, "written", tiny_causal_lm))
    after = stored(folder)
    assert before <= after
    assert len(after) == prompts
