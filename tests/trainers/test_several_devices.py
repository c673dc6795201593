"""Training on several devices: a process for each, which come to the weights of one device and leave none behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertModel, TrainerCallback
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import (
    Combined,
    ConfidenceWeighted,
    HiddenStates,
    Probabilities,
    SignalStore,
    SoftTargets,
    StoredAnswers,
)
from datadreamer_like.distillation.signal_store import KEY_BYTES
from datadreamer_like.errors import DefinitionError, ModelError
from datadreamer_like.evaluation.tasks.examples import Ragged
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainHFDPO,
    TrainHFFineTune,
    TrainHFMaskedLM,
    TrainHFPPO,
    TrainHFRewardModel,
    TrainSentenceTransformer,
)
from datadreamer_like.trainers.training.loop import Fit, Run, fit
from datadreamer_like.trainers.training.several_devices import read_run, write_run
from datadreamer_like.trainers.training.share_loop import ShareLoop, share_of_batch

from .conftest import WORDS, Rows, opinions

TWO = ["cpu", "cpu"]
# Adam divides by the size of a gradient, also of those that are zero but for rounding.
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 0.1, "optim": "sgd"}
STEPS = 13  # of an epoch, the last with one row


NONE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def calm(kind: Any, folder: Path) -> Path:
    """Makes a BERT of 2 layers without dropout, so that only the order of sums differs among devices."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *(["[MASK]"] if kind is BertForMaskedLM else [])]
    tokenizer = tiny_models.word_pieces({word: index for index, word in enumerate(words)}, max_length=32)
    tokenizer.mask_token = "[MASK]" if kind is BertForMaskedLM else None
    model = tiny_models.bert(tokenizer, kind, hidden_size=16, num_attention_heads=2, initializer_range=0.2, **NONE)
    return tiny_models.save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def calm_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calm(BertModel, tmp_path_factory.mktemp("calm-encoder"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calm(BertForMaskedLM, tmp_path_factory.mktemp("masked"))


class Interrupts(TrainerCallback):
    """Presses Ctrl-C once, in the second epoch, and counts the steps of the first process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.process_index == 0:
            with (self.folder / "steps").open("a") as file:
                file.write(".")
        elif state.global_step == STEPS + 3 and not (self.folder / "pressed").exists():
            (self.folder / "pressed").touch()
            os.kill(os.getppid(), signal.SIGINT)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(Path(trainer.path) / "model.safetensors")
    return found


def gap(first: Any, second: Any) -> float:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lets SIGINT raise KeyboardInterrupt, also in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_the_rerun_comes_to_the_weights_of_one_device(
    session, calm_encoder, data, tmp_path, ctrl_c
):
    columns = data(opinions(8 * STEPS - 7))
    one = TrainHFClassifier("One", str(calm_encoder), device="cpu").train(**columns, **OPTIONS)
    two = TrainHFClassifier("Two", str(calm_encoder), device=TWO)
    options = {**OPTIONS, "callbacks": [Interrupts(tmp_path)]}
    others = {*psutil.Process().children()}  # that earlier tests have started
    with pytest.raises(KeyboardInterrupt):
        two.train(**columns, **options)
    # Two seconds, and some for a machine that is busy with other tests.
    assert time.time() - (tmp_path / "pressed").stat().st_mtime < 4
    assert {*psutil.Process().children()} <= others
    (tmp_path / "steps").unlink()
    two.train(**columns, **options)
    assert len((tmp_path / "steps").read_text()) == 2 * STEPS  # the first epoch is not repeated
    assert gap(one, two) < 1e-5
    assert two.metrics == pytest.approx(one.metrics, abs=1e-4)
    losses = [[point["loss"] for point in each.curves if "loss" in point] for each in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[0][-1] < losses[0][0]
    assert two.usage.rows == 3 * (8 * STEPS - 7)


def test_a_killed_process_is_one_error_and_ends_the_others(session, calm_encoder, data):
    others, ended = {*psutil.Process().children()}, threading.Event()

    def kill() -> None:
        while not ended.wait(0.01):
            for process in {*psutil.Process().children()} - others:
                with contextlib.suppress(psutil.Error):
                    if process.environ().get("RANK") == "1":
                        return process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ModelError, match=r"process on cpu, number 2 of 2, was killed by SIGKILL.*Run the script"):
            TrainHFClassifier("It", str(calm_encoder), device=TWO).train(**data())
    finally:
        ended.set()
        killer.join()
    assert {*psutil.Process().children()} <= others


def start(folder: Path, encoder: Path) -> None:
    with DataDreamer(folder, verbose=False):
        rows, other = Rows("Train rows", opinions(96)).output, Rows("Validation rows", opinions(32, seed=1)).output
        TrainHFClassifier("A", str(encoder), device=TWO).train(
            rows["text"], rows["label"], other["text"], other["label"], epochs=500, batch_size=8
        )


def test_no_process_outlives_a_killed_script(calm_encoder, tmp_path):
    script = CONTEXT.Process(target=start, args=(tmp_path / "out", calm_encoder))
    script.start()
    try:
        found: list[psutil.Process] = []
        while len(found) < 2:
            assert script.is_alive()
            found = psutil.Process(script.pid).children()
            time.sleep(0.01)
        os.kill(script.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(found, timeout=20)
        script.join(20)
    finally:
        script.kill()
    assert not alive
    assert script.exitcode


# Objectives and tasks, in two processes that have the libraries loaded


class Trained(Exception):
    """The weights and the metrics."""


def trained(folder: Path, models: dict[str, Path], share: Callable[[Run], Fit] | None = None) -> dict[str, Any]:
    """Trains a model of each kind, with the loop of one device or of one of two processes; returns their weights."""
    some = opinions(41)
    few = {**some, "label": [label if row % 7 < 2 else None for row, label in enumerate(some["label"])]}
    found: dict[str, Any] = {}
    with DataDreamer(folder, verbose=False):
        rows, labelled = Rows("Rows", some).output, Rows("Few labels", few).output
        other = Rows("Validation rows", opinions(17, seed=1)).output
        texts, options = (rows["text"], other["text"]), {**OPTIONS, "epochs": 2}
        probabilities = [{"positive": share, "negative": 1 - share} for share in (0.9, 0.2, 0.6)]
        said = [probabilities[len(text) % 3] for text in (*rows["text"], *other["text"])]
        teacher = Probabilities([*rows["text"], *other["text"]], said)
        # The projection to the teacher's size is outside the model, and the loss does not depend on the head.
        states = HiddenStates(TrainedModel(models["teacher"]), layers={1: 2})
        both = Combined([SoftTargets(teacher), ConfidenceWeighted(teacher)], [1.0, 1.0])
        for name, trainer, columns, objective in (
            ("states", TrainHFClassifier, (rows["text"], rows["label"], other["text"], other["label"]), states),
            ("few", TrainHFClassifier, (rows["text"], labelled["label"], other["text"], other["label"]), both),
            ("masked", TrainHFMaskedLM, texts, None),
        ):
            made: Any = trainer(name, str(models[name]), device="cpu")
            if share is not None:
                made.fit = share
            try:
                made.train(*columns, objective=objective, **options)
                found[name] = weights(made), made.metrics
            except Trained as result:
                found[name] = result.args
    return found


def share(folder: Path, models: dict[str, Path], rank: int, port: int) -> None:
    """What each of the two processes runs: a run goes to it in a file, as to the processes of a trainer."""
    runs = itertools.count()

    def fit_share(run: Run) -> Fit:
        path = folder.parent / f"{folder.name}.pickle"
        write_run(run, path)
        read = replace(read_run(path), folder=folder.parent / f"checkpoints-{next(runs)}")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True",
            }.items():  # fmt: skip
                patch.setenv(name, str(value))
            found = fit(read, ShareLoop)
        raise Trained(read.model.state_dict(), found.metrics)  # the second process saves nothing

    torch.save(trained(folder, models, fit_share), folder.parent / f"{folder.name}.pt")


@pytest.mark.slow
def test_every_objective_and_task_comes_to_the_weights_of_one_device(tiny_encoder, calm_encoder, masked, tmp_path):
    models = {"teacher": tiny_encoder, "states": calm_encoder, "few": calm_encoder, "masked": masked}
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = ("first", "second")
    processes = [
        CONTEXT.Process(target=share, args=(tmp_path / name, models, rank, store.port))
        for rank, name in enumerate(names)
    ]
    for process in processes:
        process.start()
    alone = trained(tmp_path / "alone", models)
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{name}.pt") for name in names)
    # What is hidden depends on the rows of a share.
    for name, most in (("states", 1e-5), ("few", 1e-5), ("masked", 0.05)):
        expected, metrics = alone[name]
        assert all(torch.equal(first[name][0][key], second[name][0][key]) for key in expected)
        assert first[name][1] == second[name][1]
        assert max(float((first[name][0][key] - expected[key]).abs().max()) for key in expected) < most
        if name != "masked":
            assert first[name][1] == pytest.approx(metrics, abs=1e-4)


# What does not fit


@pytest.mark.parametrize(
    "kind",
    [
        TrainHFDPO, TrainHFRewardModel, TrainHFPPO, TrainSentenceTransformer, TrainEmbeddingClassifier,
    ],
)  # fmt: skip
def test_trainers_for_one_device_refuse_several_by_name(session, tiny_encoder, kind):
    with pytest.raises(DefinitionError, match=f"{kind.__name__} trains on one. Name one"):
        kind("a", str(tiny_encoder), device=TWO)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": ["cpu", "cuda:0"]}, "must be CUDA devices, or processes on the CPU"),
        ({"device": ["mps", "mps"]}, "must be CUDA devices, or processes on the CPU"),
        ({"device": ["cuda:0", "cuda:0"]}, "names a CUDA device twice"),
        ({"device": ["cuda:97", "cuda:98"]}, "this machine has"),
        ({"device": ["cpu", "gpu"]}, "device cannot be"),
        ({"device": [97, 98]}, "this machine has"),
        ({"device": TWO, "fsdp": "full_shard"}, "fsdp splits a model over devices"),
    ],
)
def test_devices_that_cannot_be_used_together_are_refused(session, tiny_encoder, options, words):
    with pytest.raises(DefinitionError, match=words):
        TrainHFFineTune("a", str(tiny_encoder), **options)


def test_a_batch_has_a_row_for_each_device_and_quantized_weights_stay_on_one(session, tiny_encoder, data):
    with pytest.raises(DefinitionError, match="batch_size=1 is fewer rows than the 2 devices"):
        TrainHFClassifier("a", str(tiny_encoder), device=TWO).train(**data(), batch_size=1)
    with pytest.raises(DefinitionError, match="quantized weights is trained on one device"):
        TrainHFClassifier("b", str(tiny_encoder), device=TWO, qlora=True).train(**data())


# Parts


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_each_row_of_a_batch_is_in_one_share(rows):
    def collate(found: Any) -> Any:
        return {"rows": torch.tensor(found)}

    shares = [share_of_batch(collate, process, 3, list(range(rows))) for process in range(3)]
    learned = [row for each in shares if each["share"] for row in each["rows"].tolist()]
    assert sorted(learned) == list(range(rows))
    assert all(len(each["rows"]) for each in shares)


def test_token_ids_and_answers_of_a_teacher_go_to_another_process(tmp_path):
    with Ragged(tmp_path / "ids") as ids:
        ids.extend([[1, 2], [3]])
    restored = pickle.loads(pickle.dumps(ids))
    assert [row.tolist() for row in (restored[0], restored[1])] == [[1, 2], [3]]
    assert isinstance(restored[0], np.memmap)
    logits = torch.tensor([[0.5, 1.0], [2.0, -1.0]])
    rows = StoredAnswers(tmp_path / "answers").rows(["b", "a", "b"], lambda texts: logits[: len(texts)])
    asked = torch.tensor([2, 1])
    assert torch.equal(pickle.loads(pickle.dumps(rows))[asked], rows[asked])
    keys = [bytes([row] * KEY_BYTES) for row in range(3)]
    column = np.arange(2, dtype=np.float32)
    part = [(row, {"x": column + row}) for row in range(len(keys))]
    signals = SignalStore(tmp_path / "signals").collect(keys, lambda rows: [part])
    (tmp_path / "signals" / "signals.json").unlink()  # nothing is looked up again
    assert pickle.loads(pickle.dumps(signals)).batch([2, 0])["x"].tolist() == [2.0, 3.0, 0.0, 1.0]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two CUDA devices")
def test_two_gpus_come_to_the_weights_of_one(session, calm_encoder, data):
    columns = data(opinions(96))
    one = TrainHFClassifier("One", str(calm_encoder), device="cuda:0").train(**columns, **OPTIONS)
    two = TrainHFClassifier("Two", str(calm_encoder), device=["cuda:0", "cuda:1"]).train(**columns, **OPTIONS)
    assert gap(one, two) < 1e-3
