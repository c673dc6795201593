"""NF4: bitsandbytes' weights, what is left alone, real bytes on disk, and adapters that are trained on it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, batches, build, logits
from torch import nn
from transformers import AutoModelForCausalLM

from datadreamer_like import DataDreamer, formats
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.formats.modules import linears, stacks, weight_of
from datadreamer_like.formats.nf4 import NF4Linear
from datadreamer_like.pruning import Magnitude
from datadreamer_like.quantization import NF4, DynamicInt8
from datadreamer_like.stages import Quantize
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainHFFineTune


def by_peer(weight: torch.Tensor, **options: Any) -> torch.Tensor:
    """The weight as bitsandbytes has it after quantizing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("bitsandbytes.functional")
    codes, state = peer.quantize_4bit(weight.contiguous().flatten(), quant_type="nf4", **options)
    found: torch.Tensor = peer.dequantize_4bit(codes, state)
    return found.view(weight.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("double_quant", [True, False])
def test_every_linear_layer_of_the_blocks_has_the_weights_of_bitsandbytes(family: str, double_quant: bool) -> None:
    model = build(family)
    small = NF4(double_quant=double_quant).apply(model)
    expected = copy.deepcopy(model)
    blocks = tuple(f"{stack.name}." for stack in stacks(model))
    for name, module in linears(expected).items():
        if not name.startswith(blocks):
            assert torch.equal(small.get_submodule(name).weight, module.weight), name
            continue
        assert isinstance(small.get_submodule(name), NF4Linear), name
        with torch.no_grad():
            weight_of(module).copy_(by_peer(weight_of(module).detach(), compress_statistics=double_quant))
        assert torch.equal(small.get_submodule(name).dequantized(), weight_of(module)), name
    batch = batches(model)[0]
    torch.testing.assert_close(logits(small, batch), logits(expected, batch))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_input_and_bias_as_through_the_dequantized_weight(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    small = NF4().apply(nn.Sequential(nn.Linear(48, 40, bias=bias)))[0]
    plain = small.plain(dtype)
    x = torch.randn(3, 5, 48, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    if bias:
        small.bias.requires_grad_()
        plain.bias.data = plain.bias.data.to(dtype)
    y, expected = small(x), plain(other)
    torch.testing.assert_close(y, expected, **({} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.01}))
    assert y.dtype == dtype
    (y * y).sum().backward()
    (expected * expected).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, **({} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}))
    assert small.weight.grad is None
    if bias:
        torch.testing.assert_close(small.bias.grad, plain.bias.grad.float(), rtol=0.01, atol=0.1)


def test_under_autocast_it_computes_as_a_linear_layer_does() -> None:
    small = NF4().apply(nn.Sequential(nn.Linear(64, 8)))[0]
    plain = small.plain(torch.float32)
    x = torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = small(x)
        assert y.dtype == plain(x).dtype == torch.bfloat16
        torch.testing.assert_close(y, plain(x), rtol=0.02, atol=0.02)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_casting_the_model_leaves_scales_as_they_are() -> None:
    small = NF4(double_quant=False).apply(nn.Sequential(nn.Linear(64, 8)))
    before = small[0].dequantized()
    assert torch.equal(small.half().float()[0].dequantized(), before)
    assert torch.equal(copy.deepcopy(small)[0].dequantized(), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_it_is_stored_in_four_bits_and_loads_again(family: str, tmp_path: Path) -> None:
    model = build(family)
    small = NF4().apply(model)
    small.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, module in small.named_modules():
        if isinstance(module, NF4Linear):
            stored = {key: value for key, value in tensors.items() if key.startswith(f"{name}.weight")}
            count = module.in_features * module.out_features
            assert tensors[f"{name}.weight"].dtype == torch.int8
            assert sum(value.nbytes for value in stored.values()) == count // 2 + -(-count // 64) + 4 + 4
    again = type(model).from_pretrained(tmp_path)
    assert list(again.state_dict()) == list(small.state_dict())
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in again.state_dict().items())
    batch = batches(model)[0]
    assert torch.equal(logits(again, batch), logits(small, batch))
    assert formats.stored_bytes(again) == formats.stored_bytes(small) < formats.stored_bytes(model)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert logits(half, batch).dtype == torch.bfloat16


def test_zeros_of_pruning_stay_zeros() -> None:
    sparse = Magnitude(0.5).apply(build("llama"))
    small = NF4().apply(sparse)
    assert formats.count_zeros(small) >= formats.count_zeros(sparse)
    for name, module in small.named_modules():
        if isinstance(module, NF4Linear):
            assert (module.dequantized()[sparse.get_submodule(name).weight == 0] == 0).all()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_adapters_learn_and_codes_stay() -> None:
    import peft

    torch.manual_seed(0)
    model = build("llama")
    small = NF4().apply(model)
    codes = {name: value.clone() for name, value in small.state_dict().items()}
    adapted = peft.get_peft_model(small, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    batch = batches(model)[0]
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = adapted(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        with_gradient = {name for name, p in adapted.named_parameters() if p.grad is not None}
        assert with_gradient == {name for name in dict(adapted.named_parameters()) if "lora_" in name}
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    for name, value in adapted.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "")
        assert plain not in codes or torch.equal(value, codes[plain]), name
    before = logits(adapted, batch)
    formats.dequantize(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), before, rtol=1e-4, atol=1e-4)
    assert not merged.is_quantized


def test_a_trainer_takes_the_quantized_model_with_an_adapter(tiny_causal_lm: Path, tmp_path: Path) -> None:
    import peft

    texts = ["The cat sat on", "A dog ran after", "Rain fell on", "The train was"] * 4
    answers = [" the red ball.", " the cold sea.", " the old tree.", " a long book."] * 4
    with DataDreamer(tmp_path / "out", verbose=False):
        rows = DataSource("Rows", data={"text": texts, "answer": answers})
        small = Quantize("4 bit", tiny_causal_lm, NF4())
        columns = {"train_input": rows.output["text"], "train_output": rows.output["answer"],
                   "validation_input": rows.output["text"], "validation_output": rows.output["answer"]}  # fmt: skip
        with pytest.raises(MethodMisfit, match=r"quantized \(nf4\), so they cannot be trained.*peft_config"):
            TrainHFFineTune("Weights", model_name=small).train(**columns, epochs=1)
        tuned = TrainHFFineTune(
            "Adapter", model_name=small, peft_config=peft.LoraConfig(r=8, target_modules="all-linear")
        )
        tuned.train(**columns, epochs=6, batch_size=4, learning_rate=1e-2)
        assert tuned.manifest is not None
        history = tuned.manifest.result["history"]
        assert history[-1]["loss"] < 0.7 * history[0]["loss"]
        assert not any(isinstance(module, NF4Linear) for module in tuned.model.modules())
        again = AutoModelForCausalLM.from_pretrained(tuned.path)
        assert type(again.model.layers[0].mlp.gate_proj) is nn.Linear


def test_excluded_modules_are_left_alone() -> None:
    small = NF4(exclude=("*.self_attn", "*.layers.0")).apply(build("llama"))
    names = {name for name, module in small.named_modules() if isinstance(module, NF4Linear)}
    assert names == {f"model.layers.{layer}.mlp.{part}_proj" for layer in (1, 2) for part in ("down", "gate", "up")}


def test_misuse_is_refused() -> None:
    with pytest.raises(DefinitionError, match="block_size is 63"):
        NF4(block_size=63)
    with pytest.raises(DefinitionError, match="tuple of patterns"):
        NF4(exclude="lm_head")  # type: ignore[arg-type]
    with pytest.raises(MethodMisfit, match="quantized already"):
        NF4().apply(DynamicInt8().apply(build("bert")))
    with pytest.raises(MethodMisfit, match="quantized already"):
        NF4().apply(NF4().apply(build("bert")))
    with pytest.raises(MethodMisfit, match="quantized already"):
        Magnitude(0.5).apply(NF4().apply(build("bert")))
    broken = nn.Sequential(nn.Linear(4, 4))
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(MethodMisfit, match='"0" holds infinities or NaN'):
        NF4().apply(broken)
