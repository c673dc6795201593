"""A full disk ends in one error that says so, and the next run goes on; damaged files are named, or made again."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.errors import StorageError
from datadreamer_like.models import HFTransformers
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.stages import Compare, Prune
from datadreamer_like.trainers import TrainHFClassifier, TrainHFDPO
from datadreamer_like.trainers.training.checkpoints import newest_checkpoint

from .conftest import Rows, opinions

TIMING: dict[str, Any] = {"repeats": 1, "latency_texts": 1, "throughput_texts": 2, "resamples": 10}


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a file system that is full answers alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def classifier(start: Path, **options: Any) -> TrainHFClassifier:
    rows = Rows("rows", opinions(24)).output
    teacher = options.pop("teacher", None)
    objective = None if teacher is None else SoftTargets(TrainedModel(teacher))
    columns = [rows["text"], rows["label"]] * 2
    return TrainHFClassifier("c", start, **options).train(*columns, epochs=2, batch_size=8, objective=objective)


def preferences(start: Path) -> TrainHFDPO:
    rows = Rows("rows", {"p": ["the cat", "the dog"], "c": ["sat", "ran"], "r": ["ran", "sat"]}).output
    return TrainHFDPO("d", start).train(*[rows["p"], rows["c"], rows["r"]] * 2, epochs=1, batch_size=2)


@pytest.fixture(scope="module")
def taught(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with DataDreamer(tmp_path_factory.mktemp("taught"), verbose=False):
        return Path(classifier(tiny_encoder).path)


WORK = {
    "classifier": lambda encoder, causal, taught: classifier(encoder),
    "adapter": lambda encoder, causal, taught: classifier(encoder, peft_config=LoraConfig(r=4)),
    "teacher": lambda encoder, causal, taught: classifier(encoder, teacher=taught),
    "preferences": lambda encoder, causal, taught: preferences(causal),
    "prune": lambda encoder, causal, taught: Prune("p", taught, pruning.Magnitude(0.5)),
    "compare": lambda encoder, causal, taught: Compare(
        "cmp", [taught, taught], *[Rows("rows", opinions(4)).output[name] for name in ("text", "label")], **TIMING
    ),
}


@pytest.mark.parametrize("size", [150, 30_000, 150_000])
@pytest.mark.parametrize("work", WORK)
def test_a_full_disk_is_one_error_and_the_next_run_goes_on(
    tmp_path: Path, tiny_encoder, tiny_causal_lm, taught, work, size
):
    arguments = tiny_encoder, tiny_causal_lm, taught
    with DataDreamer(tmp_path / "out", verbose=False):
        pass
    said = ""
    try:
        with room(size), DataDreamer(tmp_path / "out", verbose=False):
            WORK[work](*arguments)
    except StorageError as error:
        said = str(error)
    assert "space" in said or (not said and size > 20_000)  # there may be room enough
    with DataDreamer(tmp_path / "out", verbose=False):
        assert WORK[work](*arguments).manifest is not None


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "its start zeroed": lambda content: bytes(64) + content[64:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_damaged_file_of_a_model_is_named_by_everything_that_loads_it(tmp_path, taught, tiny_causal_lm, name, damage):
    folder, writer = tmp_path / "model", tmp_path / "writer"
    for source, target in ((taught, folder), (tiny_causal_lm, writer)):
        shutil.copytree(source, target)
        (target / name).write_bytes(DAMAGE[damage]((target / name).read_bytes()))
    with pytest.raises(StorageError, match=name):
        TrainedModel(folder).predict(["a film"])
    with pytest.raises(StorageError, match=name):
        HFTransformers(writer).run(["Hi"], max_new_tokens=1)
    with DataDreamer(tmp_path / "out", verbose=False):
        with pytest.raises(StorageError, match=name):
            classifier(folder)
        with pytest.raises(StorageError, match=name):
            Prune("p", folder, pruning.Magnitude(0.5))


def test_a_head_that_is_missing_is_not_made_up(tmp_path, taught):
    shutil.copytree(taught, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, tmp_path / "model/model.safetensors")
    with pytest.raises(StorageError, match=r"model.safetensors was cut off after it was saved"):
        TrainedModel(tmp_path / "model").predict(["a film"])
    (tmp_path / "model/card.json").unlink()  # whose digests know what was saved
    with pytest.raises(StorageError, match=r"lack 2 of the weights of BertForSequenceClassification.*classifier"):
        TrainedModel(tmp_path / "model").predict(["a film"])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
@pytest.mark.parametrize("damage", [*DAMAGE, "one bit"])
def test_a_damaged_checkpoint_is_not_resumed(tmp_path, name, damage):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from datadreamer_like.trainers.training.checkpoints import Seal

    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.ones(99)}, folder / "model.safetensors")
        torch.save({"lr": torch.ones(3)}, folder / "optimizer.pt")
        torch.save({"cpu": torch.ones(3)}, folder / "rng_state.pth")
        state = TrainerState(global_step=step, epoch=step / 4, best_model_checkpoint=str(tmp_path / "checkpoint-4"))
        state.save_to_json(str(folder / "trainer_state.json"))
        Seal().on_save(TrainingArguments(str(tmp_path)), state, TrainerControl())
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    file = tmp_path / "checkpoint-8" / name
    content = bytearray(file.read_bytes())
    content[content.index(b'"global_step": 8') + 15 if name == "trainer_state.json" else len(content) // 2] ^= 1
    changed = DAMAGE[damage](bytes(content)) if damage in DAMAGE else bytes(content)
    file.write_bytes(changed)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_a_checkpoint_is_whole_after_its_folder_was_moved(tmp_path):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from datadreamer_like.trainers.training.checkpoints import Seal

    folder = tmp_path / "then" / "checkpoint-4"
    folder.mkdir(parents=True)
    state = TrainerState(global_step=4, epoch=1.0, best_model_checkpoint=str(folder))
    state.save_to_json(str(folder / "trainer_state.json"))
    Seal().on_save(TrainingArguments(str(folder.parent)), state, TrainerControl())
    moved = folder.parent.rename(tmp_path / "now")
    for _ in range(2):
        assert newest_checkpoint(moved) == moved / "checkpoint-4"
    file = moved / "checkpoint-4" / "trainer_state.json"
    file.write_text(file.read_text().replace('"epoch": 1.0', '"epoch": 9.0'))
    assert newest_checkpoint(moved) is None


def test_without_the_best_checkpoint_no_later_one_is_resumed(tmp_path):
    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = {"global_step": step, "epoch": 1.0, "best_model_checkpoint": str(tmp_path / "checkpoint-4")}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "checkpoint-4/trainer_state.json").write_text("{")
    assert newest_checkpoint(tmp_path) is None
