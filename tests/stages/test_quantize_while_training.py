"""Quantization while a trainer trains: the best epoch is stored in its codes, and a kill changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats.binary import BinaryLinear
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.quantization import QAT, AbsMax, BinaryNetwork, DynamicInt8
from datadreamer_like.stages import Quantize

from .test_prune_while_training import OPTIONS, STEPS, columns


@pytest.mark.parametrize(
    ("method", "kind"), [(QAT(4, group_size=16), UniformLinear), (BinaryNetwork(scaled=True), BinaryLinear)]
)
def test_the_metrics_are_those_of_the_codes_that_are_stored(
    session: DataDreamer, good: Path, method: Any, kind: type
) -> None:
    given = columns()
    small = Quantize("Small", good, method, retrain={**given, **OPTIONS, "epochs": 2})
    assert sum(isinstance(module, kind) for module in small.model.modules()) == 12
    logits = torch.from_numpy(small.trained.logits(list(given["validation_input"])))
    targets = torch.tensor([small.trained.label2id[label] for label in given["validation_output"]])
    loss = float(torch.nn.functional.cross_entropy(logits, targets))
    assert small.metrics["loss"] == pytest.approx(loss, abs=1e-4)
    assert small.trained.bytes_on_disk < 0.8 * TrainedModel(good).bytes_on_disk


def trained(folder: Path, model: Path, teacher: Path, dies_at: int) -> None:
    """What each process runs; it dies after so many steps of the optimizer, and counts them."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(count)
    with DataDreamer(folder, verbose=False):
        options = {**columns(), **OPTIONS, "objective": SoftTargets(TrainedModel(teacher), temperature=2.0)}
        small = Quantize("Small", str(model), QAT(4, 16), retrain=options)
        torch.save({"metrics": small.metrics, "tensors": load_file(f"{small.path}/model.safetensors")}, f"{folder}.pt")
    Path(f"{folder}.steps").write_text(str(steps))


@pytest.mark.slow
def test_training_with_a_teacher_comes_to_the_same_codes_when_it_is_killed(
    good: Path, poor: Path, tmp_path: Path
) -> None:
    def run(folder: Path, dies_at: int) -> int:
        process = CONTEXT.Process(target=trained, args=(folder, poor, good, dies_at))
        process.start()
        process.join(timeout=120)
        return int(process.exitcode or 0)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, -1) == 0
    assert run(broken, 16) == -signal.SIGKILL  # in the third epoch
    assert run(broken, -1) == 0
    assert int(Path(f"{broken}.steps").read_text()) == STEPS - 12
    found, expected = (torch.load(f"{folder}.pt") for folder in (broken, whole))
    assert found["metrics"] == expected["metrics"]
    assert list(found["tensors"]) == list(expected["tensors"])
    assert all(torch.equal(tensor, expected["tensors"][name]) for name, tensor in found["tensors"].items())


def test_what_cannot_be_trained_is_refused_before_any_work(session: DataDreamer, good: Path) -> None:
    given = {**columns(), **OPTIONS}
    for name, method in (("A", DynamicInt8()), ("B", AbsMax(4, 16))):
        with pytest.raises(DefinitionError, match=f'"{name}": quantized weights cannot be trained'):
            Quantize(name, good, method, retrain=given)
    with pytest.raises(DefinitionError, match='"C": QAT.* measures the model on data'):
        Quantize("C", good, QAT())
    with pytest.raises(DefinitionError, match='"D": .*early_stopping_patience, which compares epochs'):
        Quantize("D", good, QAT(), retrain={**given, "early_stopping_patience": 2})
    with pytest.raises(DefinitionError, match='"E": retrain lacks train_output'):
        Quantize("E", good, QAT(), retrain={k: v for k, v in given.items() if k != "train_output"})
    assert not any((session.folder / name).exists() for name in "abcde")
