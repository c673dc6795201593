"""Pruning while a trainer trains: the schedule is kept, and the best epoch is a sparse one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats.modules import block_linears
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Cubic, Magnitude, Movement, cubic_sparsity
from datadreamer_like.stages import Prune

from .conftest import columns

OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "learning_rate": 2e-3}
STEPS = 4 * 6


class Zeros(TrainerCallback):
    """Counts the zeros that layers compute with, after each step, and notes which parameters decay."""

    shares: list[float] = []
    decaying: set[str] = set()

    def __fingerprint__(self) -> str:
        return "zeros"

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        ids = {id(each) for group in optimizer.param_groups if group["weight_decay"] for each in group["params"]}
        self.decaying.update(name for name, each in model.named_parameters() if id(each) in ids)
        weights = [layer.weight for layer in model.bert.encoder.modules() if hasattr(layer, "in_features")]
        self.shares.append(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights))


@pytest.mark.parametrize(
    "method",
    [
        Magnitude(0.8, "layer", exclude=("*.pooler.*", "classifier.*"), schedule=Cubic(every=4)),
        Magnitude(0.8, exclude=("*.pooler.*", "classifier.*"), schedule=Cubic(every=4)),
        Movement(0.8, schedule=Cubic(every=4)),
    ],
    ids=["by layer", "by model", "movement"],
)
def test_the_share_of_zeros_rises_by_the_schedule_and_the_best_epoch_is_a_sparse_one(
    session: DataDreamer, good: Path, method: Any
) -> None:
    Zeros.shares.clear()
    given = columns()
    # The training callbacks run in order: this one sees the masks of the step before.
    slim = Prune("Slim", good, method, retrain={**given, **OPTIONS, "callbacks": [Zeros()]})
    # 2 steps of warm-up; all is removed at step 19, of 24
    expected = [cubic_sparsity(step - 1, final=0.8, begin=2, steps=17, every=4) for step in range(1, STEPS + 1)]
    expected[19:] = [0.8] * 5
    assert any(name.endswith("parametrizations.weight.original") for name in Zeros.decaying)
    assert not any(name.endswith("scores") for name in Zeros.decaying)
    assert Zeros.shares == pytest.approx(expected, abs=2e-3)
    weights = [layer.weight for layer in block_linears(slim.model).values()]  # type: ignore[arg-type]
    assert sum(int((weight == 0).sum()) for weight in weights) == pytest.approx(
        0.8 * sum(weight.numel() for weight in weights), abs=len(weights)
    )
    # The metrics are those of the model that was saved, though dense epochs had a lower loss.
    logits = torch.from_numpy(slim.trained.logits(list(given["validation_input"])))
    targets = torch.tensor([slim.trained.label2id[label] for label in given["validation_output"]])
    loss = float(torch.nn.functional.cross_entropy(logits, targets))
    assert slim.metrics["loss"] == pytest.approx(loss, abs=1e-4)
    assert slim.trained.bytes_on_disk < 0.8 * TrainedModel(good).bytes_on_disk
    assert Prune("Slim", good, method, retrain={**given, **OPTIONS, "callbacks": [Zeros()]}).metrics == slim.metrics


def test_what_cannot_be_scheduled_is_refused_before_any_work(session: DataDreamer, good: Path) -> None:
    given = {**columns(), **OPTIONS}
    with pytest.raises(DefinitionError, match=r'"A": .*early_stopping_patience, which compares epochs of different'):
        Prune("A", good, Movement(0.5), retrain={**given, "early_stopping_patience": 2})
    with pytest.raises(DefinitionError, match=r'"B": Magnitude.* removes weights during a training\. Pass retrain='):
        Prune("B", good, Magnitude(0.5, schedule=Cubic()))
    with pytest.raises(DefinitionError, match='"C": Movement.* measures the model on data'):
        Prune("C", good, Movement(0.5))
    assert not any((session.folder / name).exists() for name in "abc")
