"""Quantization while a trainer trains: the best epoch is stored in its codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datadreamer_like import DataDreamer
from datadreamer_like.compression.experts import as_layers
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats import CodedModule
from datadreamer_like.formats.binary import BinaryLinear
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Magnitude
from datadreamer_like.quantization import QAT, AbsMax, BinaryNetwork, DynamicInt8
from datadreamer_like.stages import Prune, Quantize

from .conftest import columns
from .test_prune_while_training import OPTIONS


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


@pytest.mark.slow
@pytest.mark.parametrize("start", ["good", "mixture"])
def test_weights_that_were_pruned_before_stay_zero_in_the_codes(
    start: str, session: DataDreamer, request: pytest.FixtureRequest
) -> None:
    options = {**columns(), **OPTIONS, "epochs": 2}
    sparse = Prune("Sparse", request.getfixturevalue(start), Magnitude(0.5), retrain=options)
    zeros = {name: weight == 0 for name, weight in as_layers(sparse.model).state_dict().items()}
    for method in (QAT(4, group_size=16), QAT(8)):
        small = Quantize(f"{method}", sparse, method, retrain=options)
        layers = {name: module for name, module in small.model.named_modules() if isinstance(module, CodedModule)}
        assert len(layers) >= 12
        for name, layer in layers.items():
            pruned = zeros[f"{name}.weight"]
            assert pruned.float().mean() > 0.2
            assert not layer.dequantized()[pruned].any()


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
