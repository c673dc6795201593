"""Coarse-to-fine pruning in a session: its own teacher, the sparsity asked for, and the same model after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dying import counting_steps, run
from safetensors.torch import load_file

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import CoarseToFine
from datadreamer_like.stages import Prune

from .conftest import columns, rows

OPTIONS: dict[str, Any] = {"epochs": 5, "batch_size": 8, "learning_rate": 5e-4}


def pruned(folder: Path, model: Path, dies_at: int = -1) -> Prune:
    with counting_steps(dies_at) as steps, DataDreamer(folder, verbose=False):
        options = {**columns(64), **OPTIONS, "train_output": None}
        slim = Prune("Slim", str(model), CoarseToFine(0.6), retrain=options)
        slim.card.facts["Steps"] = str(steps())
        return slim


@pytest.mark.slow
def test_a_killed_training_comes_to_the_same_smaller_model(good: Path, tmp_path: Path) -> None:
    whole = pruned(tmp_path / "whole", good)
    run(pruned, tmp_path / "broken", good, dies_at=20)  # in the third epoch of 8 steps
    broken = pruned(tmp_path / "broken", good)
    assert (whole.card.facts["Steps"], broken.card.facts["Steps"]) == ("40", "24")
    assert broken.metrics == whole.metrics
    found, expected = (load_file(f"{each.path}/model.safetensors") for each in (broken, whole))
    assert list(found) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())

    dense = TrainedModel(good)
    before, after = (
        sum(weight_of(each).numel() for each in block_linears(one.model).values()) for one in (dense, whole.trained)
    )
    assert 1 - after / before == pytest.approx(0.6, abs=0.01)
    assert whole.trained.bytes_on_disk < dense.bytes_on_disk
    assert "ClosestLayers" in whole.card.facts["Retrained with"]
    # The metrics are those of the model that was saved.
    texts, labels = rows(30, 6)
    right = [one == other for one, other in zip(whole.trained.predict(texts).labels, labels, strict=True)]
    assert whole.metrics["accuracy"] == pytest.approx(sum(right) / 30, abs=1e-6)


def test_another_objective_is_kept_and_what_cannot_be_is_refused_before_any_work(
    session: DataDreamer, good: Path
) -> None:
    given = {**columns(64), **OPTIONS}
    with pytest.raises(DefinitionError, match='"A": CoarseToFine.* measures the model on data'):
        Prune("A", good, CoarseToFine(0.5))
    with pytest.raises(DefinitionError, match=r'"B": .*early_stopping_patience'):
        Prune("B", good, CoarseToFine(0.5), retrain={**given, "early_stopping_patience": 2})
    with pytest.raises(DefinitionError, match='"C": retrain lacks validation_output'):
        Prune("C", good, CoarseToFine(0.5), retrain={k: v for k, v in given.items() if k != "validation_output"})
    fewer = Prune("Fewer", good, CoarseToFine(0.3), given["train_input"])
    with pytest.raises(MethodMisfit, match='"D": CoarseToFine.* narrowed before'):
        Prune("D", fewer, CoarseToFine(0.5), retrain=given)
    objective = SoftTargets(TrainedModel(good), alpha=1.0)
    slim = Prune("E", good, CoarseToFine(0.5), retrain={**given, "epochs": 1, "objective": objective})
    assert "SoftTargets" in slim.card.facts["Retrained with"]
