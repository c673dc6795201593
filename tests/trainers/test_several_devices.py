"""Training on several devices: a process for each, which come to the weights of one device and leave none behind."""

from __future__ import annotations

import os
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, TrainerCallback
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import HiddenStates, SignalStore, StoredAnswers
from datadreamer_like.distillation.signal_store import KEY_BYTES
from datadreamer_like.errors import DefinitionError, ModelError
from datadreamer_like.evaluation.tasks.examples import Ragged
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainHFDPO,
    TrainHFFineTune,
    TrainHFPPO,
    TrainHFRewardModel,
    TrainSentenceTransformer,
)
from datadreamer_like.trainers.training.loop import Fit, Run, fit
from datadreamer_like.trainers.training.share_loop import ShareLoop, share_of_batch

from .conftest import WORDS, Rows, opinions

TWO = ["cpu", "cpu"]
# Adam divides by the size of a gradient, also of those that are zero but for rounding.
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 0.1, "optim": "sgd"}
STEPS = 13  # of an epoch, the last with one row


@pytest.fixture(scope="module")
def calm_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers without dropout, so that only the order of sums differs among devices."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = tiny_models.word_pieces({word: index for index, word in enumerate([*special, *WORDS])}, max_length=32)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = tiny_models.bert(tokenizer, BertModel, hidden_size=16, num_attention_heads=2, initializer_range=0.2, **none)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("calm-encoder"))


class Dies(TrainerCallback):
    """Kills the second process once, in the second epoch, and counts the steps of the first one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.process_index == 0:
            with (self.folder / "steps").open("a") as file:
                file.write(".")
        elif state.global_step == STEPS + 3 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(Path(trainer.path) / "model.safetensors")
    return found


def gap(first: Any, second: Any) -> float:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
def test_a_killed_process_is_one_error_and_the_rerun_comes_to_the_weights_of_one_device(
    session, calm_encoder, data, tmp_path
):
    columns = data(opinions(8 * STEPS - 7))
    one = TrainHFClassifier("One", str(calm_encoder), device="cpu").train(**columns, **OPTIONS)
    two = TrainHFClassifier("Two", str(calm_encoder), device=TWO)
    options = {**OPTIONS, "callbacks": [Dies(tmp_path)]}
    others = {*psutil.Process().children()}  # that earlier tests have started
    with pytest.raises(ModelError, match=r"process on cpu, number 2 of 2, was killed by SIGKILL\. .*Run the script"):
        two.train(**columns, **options)
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


class Shares(TrainHFClassifier):
    """Trains in this process as one of two, so that no other one has to load the libraries."""

    rank, port = 0, 0

    def fit(self, run: Run) -> Fit:
        assert self.session is not None
        folder, kind = Path(self.session.folder), None
        if self.port:
            os.environ.update(
                RANK=str(self.rank), LOCAL_RANK=str(self.rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(self.port), TORCHELASTIC_USE_AGENT_STORE="True",
            )  # fmt: skip
            run, kind = replace(run, folder=folder.parent / "checkpoints"), ShareLoop
        fit(run, kind)
        save_file({name: value.clone() for name, value in run.model.state_dict().items()}, folder / "trained")
        os._exit(0)


def taught(folder: Path, encoder: Path, teacher: Path, rank: int, port: int) -> None:
    with DataDreamer(folder, verbose=False):
        rows, other = Rows("Train rows", opinions(41)).output, Rows("Validation rows", opinions(17, seed=1)).output
        trainer = Shares("It", str(encoder), device="cpu")
        trainer.rank, trainer.port = rank, port
        # The projection to the teacher's size is outside the model, and the loss does not depend on the head.
        objective = HiddenStates(TrainedModel(teacher), layers={1: 2})
        trainer.train(
            rows["text"], rows["label"], other["text"], other["label"], objective=objective, **{**OPTIONS, "epochs": 2}
        )


@pytest.mark.slow
def test_modules_of_an_objective_are_trained_along_in_all_processes(tiny_encoder, calm_encoder, tmp_path):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folders = [tmp_path / name for name in ("first", "second", "alone")]
    processes = [
        CONTEXT.Process(target=taught, args=(folder, calm_encoder, tiny_encoder, rank, store.port if rank < 2 else 0))
        for rank, folder in enumerate(folders)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second, alone = (load_file(folder / "trained") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = {name: float((first[name] - alone[name]).abs().max()) for name in first}
    # A mean over the tokens of each share, weighted by its rows, is not exactly that over all tokens.
    assert max(moved.values()) < 0.01


def start(folder: Path, encoder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with DataDreamer(folder, verbose=False):
        rows, other = Rows("Train rows", opinions(96)).output, Rows("Validation rows", opinions(32, seed=1)).output
        TrainHFClassifier("A", str(encoder), device=TWO).train(
            rows["text"], rows["label"], other["text"], other["label"], epochs=500, batch_size=8
        )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_script(calm_encoder, tmp_path, how):
    script = CONTEXT.Process(target=start, args=(tmp_path / "out", calm_encoder))
    script.start()
    try:
        found: list[psutil.Process] = []
        while len(found) < 2:
            assert script.is_alive()
            found = psutil.Process(script.pid).children()
            time.sleep(0.01)
        os.kill(script.pid, how)
        _, alive = psutil.wait_procs(found, timeout=20)
        script.join(20)
    finally:
        script.kill()
    assert not alive
    assert script.exitcode


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
        ({"device": ["cpu", "gpu"]}, "There is no device"),
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
    signals = SignalStore(tmp_path / "signals").collect(keys, lambda rows: ((row, {"x": column + row}) for row in rows))
    (tmp_path / "signals" / "signals.json").unlink()  # nothing is looked up again
    assert pickle.loads(pickle.dumps(signals)).batch([2, 0])["x"].tolist() == [2.0, 3.0, 0.0, 1.0]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two CUDA devices")
def test_two_gpus_come_to_the_weights_of_one(session, calm_encoder, data):
    columns = data(opinions(96))
    one = TrainHFClassifier("One", str(calm_encoder), device="cuda:0").train(**columns, **OPTIONS)
    two = TrainHFClassifier("Two", str(calm_encoder), device=["cuda:0", "cuda:1"]).train(**columns, **OPTIONS)
    assert gap(one, two) < 1e-3
