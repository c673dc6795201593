"""Adapters on pruned models, and on their codes: what is measured is the model that is saved, with its zeros."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from peft import LoraConfig

from datadreamer_like import DataDreamer
from datadreamer_like.compression.experts import as_layers
from datadreamer_like.formats import CodedModule, dequantize, layouts, load
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Magnitude, Wanda, masks, reapply
from datadreamer_like.quantization import GOBO, GPTQ, NF4, QAT, AbsMax, Binary, Mixed, ZeroPoint
from datadreamer_like.stages import Prune, Quantize
from datadreamer_like.trainers import TrainHFClassifier
from datadreamer_like.trainers.training.adapters import merged, with_adapter
from datadreamer_like.trainers.training.pruned_adapters import as_saved

from .conftest import columns

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
CODES = [
    None, NF4(), AbsMax(4), AbsMax(8), ZeroPoint(8), GPTQ(4, 16), QAT(4, 16, epochs=1), GOBO(3), Binary(),
    Mixed({"*.0.*": NF4(), "*": AbsMax(8)}),
]  # fmt: skip


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": "all-linear", **options})


def zeros(model: Any) -> dict[str, torch.Tensor]:
    """Where the weights of layers, also those that codes stand for and those of experts, are zero."""
    found = {}
    for name, module in as_layers(model).named_modules():
        if isinstance(module, CodedModule):
            found[name] = module.dequantized() == 0
        elif isinstance(module, torch.nn.Linear):
            found[name] = module.weight == 0
    return found


def loss_of(trained: TrainedModel, given: dict[str, Any]) -> float:
    logits = torch.from_numpy(trained.logits(list(given["validation_input"])))
    targets = torch.tensor([trained.label2id[label] for label in given["validation_output"]])
    return float(torch.nn.functional.cross_entropy(logits, targets))


@pytest.mark.slow
@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("start", ["good", "mixture"])
def test_the_card_has_the_loss_of_the_saved_model_whose_zeros_are_those_it_began_with(
    start: str, codes: Any, session: DataDreamer, request: pytest.FixtureRequest
) -> None:
    given = columns()
    small: Any = Prune("Sparse", request.getfixturevalue(start), Magnitude(0.7))
    if codes is not None:
        small = Quantize("Codes", small, codes, calibration=given["train_input"])
    trainer = TrainHFClassifier("Adapted", small, peft_config=lora()).train(**given, **QUICK)
    assert trainer.metrics["loss"] == pytest.approx(loss_of(trainer.trained, given), abs=1e-4)
    before, after = zeros(small.model), zeros(trainer.model)
    assert before.keys() == after.keys()
    assert sum(int(each.sum()) for each in before.values()) > 0
    assert all(torch.equal(each & after[name], each) for name, each in before.items())
    assert trainer.model.state_dict().keys() == load(request.getfixturevalue(start)).state_dict().keys()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("t5", {}),
    ],
)
@pytest.mark.parametrize("codes", [None, NF4(), AbsMax(8)], ids=str)
def test_a_model_computes_as_the_saved_one_only_inside_and_its_base_as_before(
    family: str, options: dict[str, Any], codes: Any
) -> None:
    sparse = Magnitude(0.5, include=("embeddings",)).apply(tiny_models.build(family))
    small = sparse if codes is None else codes.apply(sparse)
    kept, (batch,) = masks(small), tiny_models.batches(small, count=1)
    base = tiny_models.logits(small, batch)
    if codes is not None:  # whose layers are no longer transposed
        options = {name: value for name, value in options.items() if name != "fan_in_fan_out"}
    adapted = with_adapter(small, lora(**options), "SEQ_CLS" if family == "bert" else None).eval()
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    before = tiny_models.logits(adapted, batch)
    with as_saved(adapted, kept):
        inside = tiny_models.logits(adapted, batch)
        with as_saved(adapted, kept):
            assert torch.equal(tiny_models.logits(adapted, batch), inside)
        torch.testing.assert_close(tiny_models.logits(adapted, batch), inside)
        if "modules_to_save" not in options:
            with adapted.disable_adapter():
                torch.testing.assert_close(tiny_models.logits(adapted, batch), base)
    assert torch.equal(tiny_models.logits(adapted, batch), before)
    assert not torch.allclose(inside, before, atol=1e-3)
    saved = merged(copy.deepcopy(adapted))
    reapply(saved, kept)
    torch.testing.assert_close(inside, tiny_models.logits(saved, batch))
    assert all(not parameter[~kept[name]].any() for name, parameter in saved.named_parameters() if name in kept)


@pytest.mark.parametrize("codes", [NF4(), AbsMax(8), GOBO(3)], ids=str)
def test_an_adapter_on_codes_of_transposed_layers_is_merged(codes: Any) -> None:
    small = codes.apply(tiny_models.build("gpt2"))
    (batch,) = tiny_models.batches(small, count=1)
    adapted = with_adapter(small, lora(), "CAUSAL_LM").eval()
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    expected = tiny_models.logits(adapted, batch)
    torch.testing.assert_close(tiny_models.logits(merged(adapted), batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["up"]], ids=str)
@pytest.mark.parametrize("codes", [NF4(), NF4(exclude=("*.experts.1",))], ids=str)
def test_a_quantized_mixture_with_an_adapter_is_saved_as_it_was_before(
    targets: Any, codes: Any, session: DataDreamer, mixture: Path
) -> None:
    given = columns()
    small = Quantize("Codes", mixture, codes)
    trainer = TrainHFClassifier("Adapted", small, peft_config=lora(target_modules=targets)).train(**given, **QUICK)
    assert layouts(trainer.model) == []
    assert trainer.model.state_dict().keys() == load(mixture).state_dict().keys()
    assert trainer.metrics["loss"] == pytest.approx(loss_of(trainer.trained, given), abs=1e-4)


@pytest.mark.parametrize("first", [Magnitude(0.5), Wanda(0.5)], ids=str)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_masks_of_codes_are_those_of_the_weights_that_they_stand_for(family: str, first: Any) -> None:
    model = tiny_models.build(family)
    sparse = first.apply(model, tiny_models.batches(model))
    small = NF4().apply(sparse)
    codes = {name: parameter.clone() for name, parameter in small.named_parameters()}
    found, expected = masks(small), masks(sparse)
    assert found.keys() == expected.keys()
    assert all(not (found[name] & ~expected[name]).any() for name in found)
    reapply(small, found)
    assert all(torch.equal(parameter, codes[name]) for name, parameter in small.named_parameters())
    dequantize(small)
    for parameter in small.parameters():
        parameter.data += 1
    reapply(small, found)
    assert all(torch.equal(small.get_parameter(name) != 0, mask) for name, mask in found.items())
