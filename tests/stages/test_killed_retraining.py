"""Pruning and quantizing while a model is trained come to the same result when they are killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dying import counting_steps, run
from safetensors.torch import load_file

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Cubic, Movement
from datadreamer_like.quantization import QAT
from datadreamer_like.stages import Prune, Quantize

from .conftest import columns
from .test_prune_while_training import OPTIONS, STEPS

STAGES: dict[str, tuple[type[Any], Any]] = {
    "prune": (Prune, Movement(0.8, Cubic(every=2))),
    "quantize": (Quantize, QAT(4, 16)),
}


def retrained(kind: str, folder: Path, model: Path, teacher: Path, dies_at: int) -> None:
    stage, method = STAGES[kind]
    with counting_steps(dies_at) as steps, DataDreamer(folder, verbose=False):
        options = {**columns(), **OPTIONS, "objective": SoftTargets(TrainedModel(teacher), temperature=2.0)}
        small = stage("Small", str(model), method, retrain=options)
        made = {"metrics": small.metrics, "tensors": load_file(f"{small.path}/model.safetensors"), "steps": steps()}
    torch.save(made, f"{folder}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_retraining_with_a_teacher_comes_to_the_same_model_when_it_is_killed(
    kind: str, good: Path, poor: Path, tmp_path: Path
) -> None:
    run(retrained, kind, tmp_path / "whole", poor, good)
    run(retrained, kind, tmp_path / "broken", poor, good, dies_at=16)  # in the third epoch
    run(retrained, kind, tmp_path / "broken", poor, good)
    found, expected = (torch.load(tmp_path / f"{name}.pt") for name in ("broken", "whole"))
    assert (found["steps"], expected["steps"]) == (STEPS - 12, STEPS)
    assert found["metrics"] == expected["metrics"]
    assert list(found["tensors"]) == list(expected["tensors"])
    assert all(torch.equal(tensor, expected["tensors"][name]) for name, tensor in found["tensors"].items())
