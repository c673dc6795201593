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
@pytest.mark.parametrize("start", ["poor", "mixture"])
def test_retraining_with_a_teacher_comes_to_the_same_model_when_it_is_killed(
    kind: str, start: str, good: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(start)
    run(retrained, kind, tmp_path / "whole", model, good)
    run(retrained, kind, tmp_path / "broken", model, good, dies_at=16)  # in the third epoch
    run(retrained, kind, tmp_path / "broken", model, good)
    found, expected = (torch.load(tmp_path / f"{name}.pt") for name in ("broken", "whole"))
    assert (found["steps"], expected["steps"]) == (STEPS - 12, STEPS)
    assert found["metrics"] == expected["metrics"]
    assert list(found["tensors"]) == list(expected["tensors"])
    if start == "mixture":  # experts that were trained with codes have layers of their own, pruned ones have not
        name = ".experts.0.up.weight" if kind == "quantize" else ".experts.gate_up_proj_bits"
        assert any(each.endswith(name) for each in found["tensors"])
    assert all(torch.equal(tensor, expected["tensors"][name]) for name, tensor in found["tensors"].items())
