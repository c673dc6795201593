"""Wanda follows the official procedure: measured in a plain re-implementation that reruns the whole model each time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES, batches, build, logits
from torch import nn
from transformers import AutoModelForCausalLM

from datadreamer_like import kernels
from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats import stored_bytes
from datadreamer_like.formats.modules import linears, stacks, weight_of
from datadreamer_like.pruning import Magnitude, Wanda
from datadreamer_like.quantization import DynamicInt8


def plainly_pruned(model: nn.Module, calibration: list[dict[str, torch.Tensor]], sparsity: float) -> nn.Module:
    """Wanda in the slow way, for one decoder stack: for each block the whole model runs anew on every sequence."""
    model = copy.deepcopy(model)
    for block in model.model.layers:
        layers = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        squares = {name: torch.zeros(module.in_features, dtype=torch.float64) for name, module in layers.items()}
        for batch in calibration:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                seen: dict[str, torch.Tensor] = {}
                handles = [
                    module.register_forward_hook(lambda _, x, y, name=name, seen=seen: seen.update({name: x[0]}))
                    for name, module in layers.items()
                ]
                with torch.no_grad():
                    # Causal, so what stands after a token changes nothing: padding may as well be cut.
                    model(input_ids=ids[None, : int(mask.sum())], use_cache=False)
                for handle in handles:
                    handle.remove()
                for name, x in seen.items():
                    squares[name] += x[0].double().square().sum(0)
        for name, module in layers.items():
            scores = module.weight.detach().abs() * squares[name].sqrt().float()
            count = round(sparsity * module.in_features)
            for row in range(scores.shape[0]):
                module.weight.data[row, scores[row].argsort(stable=True)[:count]] = 0
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_is_the_official_procedure(family: str) -> None:
    model = build(family)
    calibration = batches(model)
    expected = plainly_pruned(model, calibration, 0.5)
    found = Wanda(sparsity=0.5).apply(model, calibration)
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one == 0, other == 0), name
        torch.testing.assert_close(one, other, msg=name)


def test_later_blocks_see_what_pruned_ones_put_out() -> None:
    model = build("llama")
    calibration = batches(model)
    found = Wanda(sparsity=0.5).apply(model, calibration)
    # From the dense model's activations other weights would have been chosen.
    inputs = []
    last = model.model.layers[-1].mlp.gate_proj
    handle = last.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    for batch in calibration:
        logits(model, batch)
    handle.remove()
    rows = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(inputs, calibration, strict=True)])
    scores = last.weight.detach().abs() * rows.norm(dim=0)
    dense_choice = scores.argsort(dim=1, stable=True)[:, :16].sort(dim=1).values
    chosen = (found.model.layers[-1].mlp.gate_proj.weight == 0).nonzero()[:, 1].view(-1, 16)
    assert not torch.equal(dense_choice, chosen)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [Wanda(sparsity=0.4), Wanda(pattern=(2, 4))], ids=["share", "pattern"])
def test_every_row_of_every_block_has_exactly_the_zeros_asked_for(family: str, method: Wanda) -> None:
    model = build(family)
    found = method.apply(model, batches(model))
    blocks = tuple(f"{stack.name}." for stack in stacks(found))
    for name, module in linears(found).items():
        zeros = weight_of(module) == 0
        if not name.startswith(blocks):
            assert not zeros.any()
        elif method.pattern is None:
            assert set(zeros.sum(1).tolist()) == {round(0.4 * zeros.shape[1])}, name
        else:
            assert (zeros.view(zeros.shape[0], -1, 4).sum(-1) == 2).all(), name


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
def test_padding_does_not_count(family: str) -> None:
    model = build(family)
    calibration = batches(model)
    other = copy.deepcopy(calibration)
    for batch in other:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    one, two = (Wanda(sparsity=0.5).apply(model, data) for data in (calibration, other))
    for (name, left), right in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right), name


def test_batch_size_changes_nothing_and_a_cache_setting_comes_back() -> None:
    model = build("gpt2")
    calibration = batches(model)
    single = [{key: value[i : i + 1] for key, value in b.items()} for b in calibration for i in range(4)]
    one, two = (Wanda(sparsity=0.5).apply(model, data) for data in (calibration, single))
    same = [torch.equal(a == 0, b == 0) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert one.config.use_cache is model.config.use_cache is True


def test_excluded_modules_stay_and_what_is_pruned_is_stored_sparse(tmp_path: Path) -> None:
    model = build("llama")
    method = Wanda(sparsity=0.75, exclude=("*.self_attn", "*.down_proj"))
    small = method.apply(model, batches(model))
    touched = {name.rsplit(".", 1)[1] for name, m in linears(small).items() if bool((m.weight == 0).any())}
    assert touched == {"gate_proj", "up_proj"}
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = batches(model)[0]
    torch.testing.assert_close(logits(again, batch), logits(small, batch))
    assert stored_bytes(small) == stored_bytes(again) < stored_bytes(model)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"sparsity": 0.5, "pattern": (2, 4)}, {"pattern": (5, 4)}, {"sparsity": 1},
        {"pattern": 2}, {"pattern": (2.0, 4)}, {"pattern": "24"}, {"pattern": (2, 4, 8)},
        {"sparsity": 0.5, "exclude": "*.down_proj"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        Wanda(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [Wanda, Magnitude, DynamicInt8])
def test_a_pattern_in_exclude_that_matches_nothing_is_reported(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    options = {} if method is DynamicInt8 else {"sparsity": 0.5}
    method(exclude=("*.nope", "*.output.dense*"), **options).apply(model := build("bert"), batches(model))
    assert [record.getMessage().partition("the pattern ")[2] for record in caplog.records] == [
        '"*.nope" in exclude matches no name in the model.'
    ]


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(MethodMisfit, match="no linear layers"):
        Wanda(0.5).apply(nn.Sequential(nn.Conv2d(4, 4, 3)), [{}])
    with pytest.raises(MethodMisfit, match="32 inputs of .* not a multiple of 5"):
        Wanda(pattern=(2, 5)).apply(build("bert"), [{}])
    with pytest.raises(MethodMisfit, match="quantized already"):
        Wanda(0.5).apply(DynamicInt8().apply(build("bert")), [{}])
    with pytest.raises(EmptyDataset, match="no calibration batch"):
        Wanda(0.5).apply(build("bert"), [])
    t5 = build("t5")
    with pytest.raises(DataError, match="Add labels, or decoder_input_ids"):
        Wanda(0.5).apply(t5, [{name: value for name, value in batches(t5)[0].items() if name != "labels"}])
    assert Magnitude(0.5).fits(nn.Sequential(nn.Linear(4, 4))) is None


def test_a_module_without_a_list_of_blocks_is_one_block() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(31, 17), nn.ReLU(), nn.Linear(17, 5))
    x = torch.randn(40, 31) * torch.rand(31)
    small = Wanda(0.4).apply(model, [{"input": x[:25]}, {"input": x[25:]}])
    for index, inputs in ((0, x), (2, model[:2](x).detach())):  # of the dense model
        scores = model[index].weight.abs() * inputs.norm(dim=0)
        dropped = scores.argsort(dim=1, stable=True)[:, : round(0.4 * scores.shape[1])]
        wanted = model[index].weight.scatter(1, dropped, 0.0)
        torch.testing.assert_close(small[index].weight, wanted, rtol=0, atol=0)


def test_layers_that_run_several_times_are_measured_on_all_their_inputs_without_padding() -> None:
    sizes = {"hidden_size": 16, "embedding_size": 8, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.AlbertConfig(vocab_size=90, num_hidden_layers=3, max_position_embeddings=16, **sizes)
    model = transformers.AlbertForSequenceClassification(config).eval()
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    name, seen = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query", []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][mask.bool()]))
    batch = {"input_ids": torch.randint(5, 90, (2, 6)), "attention_mask": mask}
    with torch.no_grad():
        model(**batch)
    hook.remove()
    assert len(seen) == 3
    weight = model.get_submodule(name).weight
    kept = kernels.wanda_mask(weight, torch.cat(seen).norm(dim=0), 0.5)
    assert torch.equal(Wanda(0.5).apply(model, [batch]).get_submodule(name).weight, weight * kept)
