"""Layer-by-layer distillation: what it minimises, in what order, and what it gains."""

from __future__ import annotations

import copy
import logging
import re
from typing import Any

import pytest
import torch
from tiny_models import batches, build, logits
from torch import nn

from datadreamer_like.compression.calibration import walk_blocks
from datadreamer_like.errors import DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats.modules import block_linears
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.quantization import AbsMax, LayerByLayer


@torch.no_grad()
def block_losses(small: Any, model: Any, given: list[dict[str, torch.Tensor]]) -> list[float]:
    """`mean (L_k(x) - L̂_k(x))²` in float64 of each block, x from the quantized blocks before it, without padding."""
    found = []
    originals = {block.name: copy.deepcopy(block.module) for block in walk_blocks(model, given, "test")}
    for block in walk_blocks(small, given, "test"):
        quantized = [(block.tokens(output).double()) for output in block.outputs()]
        own, block.module = block.module, originals[block.name]
        teacher = [block.tokens(output).double() for output in block.outputs()]
        block.module = own
        found.append(
            sum(float((a - b).square().mean()) for a, b in zip(quantized, teacher, strict=True)) / len(quantized)
        )
    return found


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_loss_of_each_block_falls_on_what_the_quantized_ones_before_it_put_out(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(family)
    given = batches(model)
    with caplog.at_level(logging.INFO, logger="datadreamer_like"):
        small = LayerByLayer(3, 16, steps=12, learning_rate=1e-3).apply(model, given)
    said = [re.search(r"was (\S+), and is (\S+)$", record.message) for record in caplog.records]
    losses = [(float(found[1]), float(found[2])) for found in said if found]
    assert len(losses) == (5 if family == "t5" else 3)
    assert all(after < 0.9 * before for before, after in losses)
    assert [after for _, after in losses] == pytest.approx(block_losses(small, model, given), rel=0.01)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_logits_are_nearer_to_the_teacher_than_those_of_rounding_to_nearest(family: str, bits: int) -> None:
    model = build(family)
    given = batches(model, count=4)
    expected = logits(model, given[0])
    small = [LayerByLayer(bits, 16, 40, 1e-3).apply(model, given[1:]), AbsMax(bits, 16).apply(model)]
    errors = [float((logits(each, given[0]) - expected).norm()) for each in small]  # of texts that none has seen
    assert errors[0] < 0.9 * errors[1]


def test_only_one_block_has_gradients_and_weights_learn_after_it_as_before() -> None:
    model = build("bert")
    model.bert.embeddings.requires_grad_(False)
    method = LayerByLayer(4, 16, steps=3)
    learning: list[set[str]] = []

    class Watched(nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                learning.append({name for name, each in small.named_parameters() if each.requires_grad})
            return x

    small = copy.deepcopy(model)
    for layer in small.bert.encoder.layer:
        layer.output.dropout = Watched()
    method.change(small, batches(model))
    assert learning
    for names in learning:
        assert len({name.split(".")[3] for name in names}) == 1
        assert all(name.rpartition(".")[0] in block_linears(model) for name in names)
    assert all(parameter.grad is None for parameter in small.parameters())
    for name, parameter in small.named_parameters():
        is_code = isinstance(small.get_submodule(name.rpartition(".")[0]), UniformLinear)
        assert parameter.requires_grad == (not is_code and not name.startswith("bert.embeddings")), name


def test_a_block_whose_loss_does_not_fall_keeps_what_was_rounded() -> None:
    model = build("bert")
    small = LayerByLayer(4, 16, steps=3, learning_rate=10.0).apply(model, batches(model))
    nearest = AbsMax(4, 16).apply(model).state_dict()
    assert all(torch.equal(value, nearest[name]) for name, value in small.state_dict().items())


def test_bad_options_data_and_models_are_refused() -> None:
    with pytest.raises(DefinitionError, match="steps=0"):
        LayerByLayer(steps=0)
    with pytest.raises(DefinitionError, match="bits is 1"):
        LayerByLayer(1)
    model = build("bert")
    with pytest.raises(EmptyDataset, match="LayerByLayer"):
        LayerByLayer().apply(model, [])
    with pytest.raises(MethodMisfit, match="no list of blocks"):
        LayerByLayer().apply(nn.Sequential(nn.Linear(4, 4)), batches(model))
