"""Mixtures of experts: methods that change layers change those of experts, which transformers keep in one tensor."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers
from torch import Tensor, nn

from datadreamer_like.compression.experts import as_layers
from datadreamer_like.errors import MethodMisfit, StorageError
from datadreamer_like.evaluation import sensitivity
from datadreamer_like.formats import dequantize, layouts, load, put_together
from datadreamer_like.formats.experts import SplitExperts
from datadreamer_like.kernels import (
    absmax_dequantize,
    absmax_quantize,
    group_dequantize,
    group_quantize,
    nf4_dequantize,
    nf4_quantize,
)
from datadreamer_like.models import TrainedModel
from datadreamer_like.pruning import Magnitude, Movement, SparseGPT, Wanda
from datadreamer_like.quantization import (
    GOBO,
    GPTQ,
    NF4,
    QAT,
    AbsMax,
    Binary,
    BinaryNetwork,
    Cast,
    DynamicInt8,
    LayerByLayer,
    LLMInt8,
    Mixed,
    ZeroPoint,
)
from datadreamer_like.trainers.training.adapters import merged

SIZES = {**tiny_models.SIZES, "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0}
FAMILIES: dict[str, Any] = {
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen2-moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            **SIZES, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=24
        )
    ),
    # Its weights are [in, out], have biases, and gate and other projection in turns.
    "gpt-oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    ),
    # Its experts have no gate.
    "nemotron-h": lambda: transformers.NemotronHForCausalLM(
        transformers.NemotronHConfig(
            **{name: size for name, size in SIZES.items() if name != "num_hidden_layers"},
            layers_block_type=["attention", "moe"], n_routed_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=24, moe_shared_expert_intermediate_size=24, head_dim=8, n_group=1, topk_group=1,
        )
    ),
}  # fmt: skip
METHODS: list[Any] = [
    NF4(), DynamicInt8(), LLMInt8(), GPTQ(4, 16), AbsMax(4), ZeroPoint(8), GOBO(3), Binary(),
    Mixed({"*.experts.1.*": AbsMax(4), "*": AbsMax(8)}), LayerByLayer(4, 16, steps=2), QAT(4, 16, epochs=1),
    BinaryNetwork(epochs=1), Wanda(0.5), SparseGPT(pattern=(2, 4)), Movement(0.5, epochs=1),
]  # fmt: skip


def build(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name.endswith(".experts")}


def weights_of_experts(model: nn.Module) -> dict[str, Tensor]:
    """Those of single experts as [out, in], by the names of their layers."""
    found = {}
    for name, module in experts_of(model).items():
        fused: Any = module
        ups = fused.gate_up_proj if fused.has_gate else fused.up_proj
        for side, weights in (("up", ups), ("down", fused.down_proj)):
            for number, weight in enumerate(weights.detach()):
                found[f"{name}.{number}.{side}"] = weight.T if fused.is_transposed else weight
    return found


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_with_layers_compute_the_same_and_share_their_weights(family: str, dtype: torch.dtype):
    model = build(family, dtype)
    batch = tiny_models.batches(model, count=1)[0]
    view = as_layers(model)
    layers = weights_of_experts(model)
    assert layers
    assert not any(isinstance(module, SplitExperts) for module in model.modules())
    for name, weight in layers.items():
        own = view.get_submodule(name).weight
        assert torch.equal(own, weight)
        assert own.data_ptr() == weight.data_ptr()
    model.set_experts_implementation("eager")
    digits = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(tiny_models.logits(view, batch), tiny_models.logits(model, batch), rtol=0, atol=digits)


def test_a_model_without_experts_is_its_own_view():
    model = tiny_models.build("llama")
    assert as_layers(model) is model


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_of_layers_changes_experts_and_its_result_is_saved(
    family: str, method: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    build(family).save_pretrained(tmp_path / "dense")  # so that it has the renamings of a checkpoint
    model = load(tmp_path / "dense").eval()
    batches = tiny_models.batches(model)
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        small = method.apply(model, batches)
    assert not [each for each in caplog.records if "weights as they are" in each.getMessage()]
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    is_pruned = method.kind == "pruning"
    assert [isinstance(module, SplitExperts) for module in experts_of(small).values()] == (
        [not is_pruned] * len(experts_of(model))
    )
    if is_pruned:
        old = weights_of_experts(model)
        assert all(
            abs(float((weight == 0).float().mean()) - 0.5) < 0.02 for weight in weights_of_experts(small).values()
        )
        assert any(not torch.equal(weight, old[name]) for name, weight in weights_of_experts(small).items())
    small.save_pretrained(tmp_path / "small")
    again = load(tmp_path / "small")
    for batch in batches:
        assert torch.equal(tiny_models.logits(again, batch), tiny_models.logits(small, batch))
    again.save_pretrained(tmp_path / "again")  # what was loaded saves the same
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "again"))
    assert first == second


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["nf4", "absmax"])
def test_the_codes_are_those_of_each_experts_weights(family: str, kind: str):
    model = build(family)
    small = (NF4(double_quant=False) if kind == "nf4" else AbsMax(8, granularity="row")).apply(model)
    for name, weight in weights_of_experts(model).items():
        if kind == "nf4":
            expected = nf4_dequantize(*nf4_quantize(weight), weight.shape)
        else:
            expected = absmax_dequantize(*absmax_quantize(weight, axis=-1))
        assert torch.equal(small.get_submodule(name).dequantized(), expected)
    assert layouts(small)[0]["modules"] == list(experts_of(model))
    assert not small.hf_quantizer.is_compileable  # which experts run depends on the tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dequantized_mixture_has_single_tensors_again(family: str):
    model = build(family)
    small = NF4().apply(model)
    plain = copy.deepcopy(small)
    dequantize(plain)
    assert layouts(plain) == []
    assert plain.state_dict().keys() == model.state_dict().keys()
    batch = tiny_models.batches(model, count=1)[0]
    near(tiny_models.logits(plain, batch), tiny_models.logits(small, batch))


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss"])
def test_wanda_measures_an_expert_on_the_tokens_that_reach_it_without_padding(family: str):
    model = build(family)
    (batch,) = tiny_models.batches(model, count=1)
    first = next(iter(experts_of(model)))
    seen: list[tuple[Tensor, Tensor]] = []
    # Attention is not pruned, so that the first block's experts get what they got in the dense model.
    with model.get_submodule(first).register_forward_pre_hook(lambda _, args: seen.append(args[:2])):
        tiny_models.logits(model, batch)
    (hidden, chosen), real = seen[0], batch["attention_mask"].flatten().bool()
    small = Wanda(0.5, exclude=("*.self_attn",)).apply(model, [batch])
    old, new = weights_of_experts(model), weights_of_experts(small)
    for number in range(4):
        name = f"{first}.{number}.up"
        rows = hidden[(chosen == number).any(1) & real].double()
        assert 0 < len(rows) < len(real)
        scores = old[name].double().abs() * rows.square().sum(0).sqrt()
        kept = scores > scores.sort(1).values[:, [scores.shape[1] // 2 - 1]]
        assert torch.equal(new[name] != 0, kept)


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), GPTQ(4, 16)], ids=lambda each: type(each).__name__)
def test_an_expert_that_no_token_reached_goes_by_its_weights(method: Any):
    model = build("gpt-oss")
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.router.bias[3] = -1e4
    small = method.apply(model, tiny_models.batches(model))
    old = {name: weight for name, weight in weights_of_experts(model).items() if ".experts.3." in name}
    assert len(old) == 4
    for name, weight in old.items():
        if method.kind == "quantization":
            expected = group_dequantize(*group_quantize(weight, 4, 16), 16)
            assert torch.equal(small.get_submodule(name).dequantized(), expected)
            continue
        new = weights_of_experts(small)[name]
        kept = new != 0
        assert torch.equal(new[kept], weight[kept])
        assert abs(float(kept.float().mean()) - 0.5) < 0.02
        # SparseGPT has one threshold for all rows, Wanda one for each.
        dims = (0, 1) if isinstance(method, SparseGPT) else (1,)
        assert (weight.abs().masked_fill(kept, 0.0).amax(dims) <= weight.abs().masked_fill(~kept, 9.9).amin(dims)).all()


def test_patterns_name_single_experts_and_all_of_a_block():
    model = build("mixtral")
    without = NF4(exclude=("*.layers.0.mlp.experts", "*.experts.2.down", "*.self_attn")).apply(model)
    first, second = experts_of(without).values()
    assert not isinstance(first, SplitExperts)
    assert isinstance(second, SplitExperts)
    plain = {name for name, module in without.named_modules() if type(module) is nn.Linear and ".mlp." in name}
    assert plain == {"model.layers.1.mlp.experts.2.down"}

    bits = Mixed({"*.experts.1": AbsMax(4), "*.up": AbsMax(3), "*": AbsMax(8)}).apply(model)
    found = [bits.get_submodule(f"model.layers.0.mlp.experts.{name}").bits for name in ("1.up", "0.up", "0.down")]
    assert found == [4, 3, 8]


@pytest.mark.parametrize("first", [Magnitude(0.5), Wanda(pattern=(2, 4))], ids=str)
def test_zeros_of_pruned_experts_stay_in_codes_that_have_a_zero(first: Any, tmp_path: Path):
    model = build("mixtral")
    batches = tiny_models.batches(model)
    sparse = first.apply(model, batches)
    small = GPTQ(4, 16).apply(sparse, batches)
    for name, weight in weights_of_experts(sparse).items():
        assert not small.get_submodule(name).dequantized()[weight == 0].any()
    small.save_pretrained(tmp_path)
    assert torch.equal(tiny_models.logits(load(tmp_path), batches[0]), tiny_models.logits(small, batches[0]))


def test_zeros_of_experts_that_codes_lose_are_told(caplog: pytest.LogCaptureFixture):
    sparse = Magnitude(0.5, exclude=("*.self_attn", "*.gate", "lm_head")).apply(build("mixtral"))
    zeros = sum(int((weight == 0).sum()) for weight in weights_of_experts(sparse).values())
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        Binary().apply(sparse)
    assert f"{zeros:,} of the {zeros:,} weights that pruning had set to zero" in caplog.text


def test_patterns_of_pruning_that_do_not_divide_experts_are_refused_before_any_work():
    sizes = {**SIZES, "intermediate_size": 46}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=4))
    with pytest.raises(MethodMisfit, match=r"experts\.0\.down"):
        Wanda(pattern=(2, 4)).apply(model, tiny_models.batches(model))


def test_sensitivity_finds_single_experts(tmp_path: Path):
    model = build("mixtral")
    texts = ["a small cat sat on the mat", "the mat sat on a cat"]
    student = TrainedModel.save(model, tiny_models.word_pieces(texts, bos_token="[CLS]"), tmp_path / "model")
    found = sensitivity(student, texts, bits=(2,))
    assert set(weights_of_experts(model)) < set(found.divergences)
    assert max(found.divergences["model.layers.0.mlp.experts.0.up"].values()) > 0


def test_a_quantized_mixture_loads_in_a_new_process_and_takes_adapters(tmp_path: Path):
    NF4().apply(build("mixtral")).save_pretrained(tmp_path)
    script = (
        "import sys, torch, transformers, datadreamer_like.formats, peft\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "model = peft.get_peft_model(model, peft.LoraConfig(target_modules=['up', 'down']))\n"
        "loss = model(input_ids=torch.arange(5, 25)[None], labels=torch.arange(5, 25)[None]).loss\n"
        "loss.backward()\n"
        "print(sum(p.grad is not None and bool(p.grad.any()) for p in model.parameters()))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert int(found.stdout) >= 8, found.stderr


def test_experts_that_are_no_tensors_in_this_version_are_refused(tmp_path: Path):
    NF4().apply(build("mixtral")).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"model.layers.0.mlp.experts"', '"model.layers.0.mlp.gate"'))
    with pytest.raises(StorageError, match=r'"model\.layers\.0\.mlp\.gate" holds experts .*transformers_version'):
        load(tmp_path)


class OtherExperts(nn.Module):
    """Weights in one tensor, of a form that nothing describes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weights = inner, nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("method", [NF4(), GPTQ(4, 16), Wanda(0.5)], ids=lambda method: type(method).__name__)
def test_experts_of_unknown_form_are_left_and_told(method: Any, caplog: pytest.LogCaptureFixture):
    model = tiny_models.build("llama")
    model.model.layers[0].mlp = OtherExperts(model.model.layers[0].mlp)
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        method.apply(model, tiny_models.batches(model, count=1))
    assert 'leaves 256 weights as they are: "model.layers.0.mlp.weights"' in caplog.text


@pytest.mark.parametrize("method", [Magnitude(0.5), Cast(), NF4(exclude=("*.mlp",))], ids=str)
def test_one_that_changes_them_or_was_told_to_leave_them_says_nothing(method: Any, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        method.apply(FAMILIES["mixtral"]())
    assert "weights as they are" not in caplog.text


def test_formats_that_code_layers_refuse_them_before_the_work(tmp_path: Path):
    model = FAMILIES["mixtral"]()
    tokenizer = tiny_models.word_pieces(["a small cat sat on the mat"])
    student = TrainedModel.save(model, tokenizer, tmp_path / "model")
    sparse = TrainedModel.save(Magnitude(0.5).apply(model), tokenizer, tmp_path / "sparse")
    learned = TrainedModel.save(GPTQ(4, 16).apply(model, tiny_models.batches(model)), tokenizer, tmp_path / "learned")
    for refused in (sparse, learned):
        assert 'as "safetensors"' in (refused.why_not_export("gptq") or "")
    for name, options in [
        ("gptq", {}), ("gguf", {}), *(("compressed-tensors", {"scheme": each}) for each in ("W8A8", "FP8_DYNAMIC")),
    ]:  # fmt: skip
        reason = student.why_not_export(name, **options)
        assert reason is not None
        assert 'as "safetensors"' in reason
        with pytest.raises(MethodMisfit, match='as "safetensors"'):
            student.export(name, to=tmp_path / "export", **options)
    assert not (tmp_path / "export").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "up", "down"]], ids=["attention", "experts too"])
@pytest.mark.parametrize("family", ["mixtral", "gpt-oss"])
def test_an_adapter_on_a_quantized_mixture_is_merged_into_single_tensors(family: str, targets: list[str]):
    model = build(family)
    small = NF4().apply(model)
    adapted: Any = peft.get_peft_model(small, peft.LoraConfig(target_modules=targets))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    batch = tiny_models.batches(model, count=1)[0]
    expected = tiny_models.logits(adapted, batch)
    whole = merged(adapted)
    put_together(whole)
    assert whole.state_dict().keys() == model.state_dict().keys()
    assert layouts(whole) == []
    near(tiny_models.logits(whole, batch), expected)
