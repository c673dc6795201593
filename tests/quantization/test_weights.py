"""Methods that quantize weights without data: each layer is its formula, what is stored is small and loads again."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import batches, build, logits
from torch import nn

from datadreamer_like import formats
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.formats.decoded import DecodedLinear
from datadreamer_like.formats.gobo import GOBOEmbedding
from datadreamer_like.formats.int8 import LLMInt8Linear
from datadreamer_like.formats.layout import CodedModule
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.quantization import GOBO, NF4, AbsMax, Binary, DynamicInt8, LLMInt8, Mixed, ZeroPoint

METHODS = {
    "absmax": AbsMax(),
    "absmax row": AbsMax(granularity="row"),
    "absmax column": AbsMax(granularity="column"),
    "absmax 5 bits": AbsMax(bits=5, granularity="row"),
    "absmax 3 bits": AbsMax(bits=3, granularity="row"),
    "absmax groups": AbsMax(bits=4, granularity=12),
    "zero-point": ZeroPoint(),
    "zero-point 4 bits": ZeroPoint(bits=4, granularity="row"),
    "binary": Binary(),
    "llm.int8": LLMInt8(),
    "gobo 3 bits": GOBO(),
    "gobo 4 bits": GOBO(bits=4),
}
FAMILIES = ["bert", "llama", "gpt2", "t5"]


def formula(method: Any, w: torch.Tensor) -> torch.Tensor:
    """The weight that a method keeps of w [out, in], written out in float64; for GOBO see `tests/kernels`."""
    w = w.double()
    if isinstance(method, Binary):
        return torch.where(w >= 0, 1.0, -1.0) * w.abs().mean(1, keepdim=True)
    granularity = getattr(method, "granularity", "row")
    if isinstance(granularity, int):
        parts, half = w.split(granularity, dim=1), 2 ** (method.bits - 1)
        scales = [(part.abs().amax(1, keepdim=True) / (half - 0.5)).half().double() for part in parts]
        rounded = [(part / s).round().clamp(-half, half - 1) * s for part, s in zip(parts, scales, strict=True)]
        return torch.cat(rounded, 1)
    dims = {"tensor": (0, 1), "row": (1,), "column": (0,)}[granularity]
    if isinstance(method, ZeroPoint):
        low, high = w.amin(dims, keepdim=True).clamp(max=0), w.amax(dims, keepdim=True).clamp(min=0)
        s = (high - low) / (2**method.bits - 1)
        half = 2 ** (method.bits - 1)
        z = (-low / s).round() - half
        return s * (((w / s).round() + z).clamp(-half, half - 1) - z)
    s = w.abs().amax(dims, keepdim=True) / (2 ** (getattr(method, "bits", 8) - 1) - 1)
    return s * (w / s).round()


def decoded_layers() -> list[Any]:
    """A layer of each kind whose products are of decoded weights, in evaluation mode."""
    given = [method for name, method in METHODS.items() if name != "llm.int8"]
    torch.manual_seed(0)
    return [method.coded("it", nn.Linear(24, 16)).eval() for method in (*given, NF4(), NF4(double_quant=False))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_that_keeps_its_decoded_weight_computes_with_the_codes_that_it_has_now(dtype: torch.dtype) -> None:
    for layer in decoded_layers():
        x = torch.randn(3, 24, dtype=dtype)
        found = [layer(x)]
        codes = torch.randint_like(layer.weight, -128, 127)
        layer.weight.data = codes  # replaced
        found.append(layer(x))
        with torch.no_grad():
            layer.weight.copy_(codes.flip(0))  # written to
        found.append(layer(x))
        scales = next(iter(layer.buffers()))
        scales.mul_(2 if scales.is_floating_point() else 0)
        found.append(layer(x))
        assert not any(torch.equal(y, before) for before, y in pairwise(found))
        expected = nn.functional.linear(x, layer.dequantized().to(dtype), layer.bias.to(dtype))
        torch.testing.assert_close(found[-1], expected, rtol=0, atol=0 if dtype == torch.float32 else 0.1)


def test_decoded_weights_are_kept_in_small_layers_on_a_cpu_alone_and_not_in_training() -> None:
    large = AbsMax(4, granularity="row").coded("it", nn.Linear(1024, 1024)).eval()
    assert large.kept(torch.randn(1, 1024)) is None
    for layer in decoded_layers():
        x = torch.randn(3, 24)
        kept = layer.kept(x)
        assert torch.equal(kept, layer.dequantized())
        assert layer.kept(x) is kept
        assert layer.kept(x.half()).dtype == torch.float16
        size = len(pickle.dumps(layer))
        assert size == len(pickle.dumps(copy.deepcopy(layer)))
        layer.train()
        assert layer.kept(x) is None
        assert size == len(pickle.dumps(layer))
        assert not any(isinstance(value, tuple) for value in vars(layer).values())


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("gobo")])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_layers_of_the_blocks_keep_what_the_formula_says_and_nothing_else_changes(
    family: str, name: str
) -> None:
    model, method = build(family), METHODS[name]
    small = method.apply(model)
    inside = block_linears(model)
    assert inside
    for path, layer in inside.items():
        module = small.get_submodule(path)
        w = weight_of(layer).detach()
        # A number within fp32's rounding of a half may go either way: a step's difference, in hardly any weight.
        near = (module.dequantized().double() - formula(method, w)).abs() <= 1e-5 * w.abs().max()
        assert float(near.double().mean()) > 0.998, path
        assert module.bias is None or torch.equal(module.bias, layer.bias)
    left = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] not in inside}
    assert left
    assert all(torch.equal(small.state_dict()[key], value) for key, value in left.items())


@pytest.mark.parametrize("name", METHODS)
def test_the_model_computes_with_the_weights_that_it_keeps(name: str) -> None:
    model, method = build("bert"), METHODS[name]
    small, stands_for = method.apply(model), copy.deepcopy(model)
    with torch.no_grad():
        for path, module in small.named_modules():
            if isinstance(module, CodedModule):
                weight_of(stands_for.get_submodule(path)).copy_(module.dequantized())
    batch = batches(model)[0]
    expected, found = logits(stands_for, batch), logits(small, batch)
    tolerance = 0.03 if name == "llm.int8" else 1e-5
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("name", [*METHODS, "nf4"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_saved_is_loaded_in_any_dtype(family: str, name: str, tmp_path: Path) -> None:
    model = build(family)
    small = METHODS.get(name, NF4()).apply(model)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in again.state_dict().items())
    batch = batches(model)[0]
    assert torch.equal(logits(again, batch), logits(small, batch))
    assert formats.stored_bytes(again) == formats.stored_bytes(small) < formats.stored_bytes(model)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert logits(half, batch).dtype == torch.bfloat16
    for path, module in half.named_modules():
        if isinstance(module, CodedModule):
            assert torch.equal(module.dequantized(), small.get_submodule(path).dequantized()), path


BYTES = [
    (AbsMax(granularity="row"), 0.27),
    (ZeroPoint(granularity="row"), 0.27),
    (LLMInt8(), 0.27),
    (NF4(), 0.145),
    (GOBO(), 0.12),
    (GOBO(bits=4), 0.145),
    (Binary(), 0.04),
]


@pytest.mark.parametrize(("method", "most"), BYTES)
def test_the_layers_take_the_share_of_bytes_that_their_bits_are(method: Any, most: float, tmp_path: Path) -> None:
    """On disk, of the layers' weights; with the sizes and spread of a small encoder's."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    with torch.no_grad():
        for layer in block_linears(model).values():
            layer.weight.mul_(2).view(-1)[:5] = 0.9  # a spread of 0.04, and outliers
    method.apply(model).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = tuple(f"{name}.weight" for name in block_linears(model))
    ours = sum(value.nbytes for key, value in stored.items() if key.startswith(names))
    assert ours < most * sum(layer.weight.nbytes for layer in block_linears(model).values())
    assert (tmp_path / "model.safetensors").stat().st_size < 1.02 * formats.stored_bytes(method.apply(model)) + 20_000


@pytest.mark.parametrize("name", METHODS)
def test_copies_pickles_and_casts_keep_the_weights(name: str) -> None:
    torch.manual_seed(0)
    small = METHODS[name].apply(nn.Sequential(nn.Linear(24, 16)))
    before = small[0].dequantized()
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    for one in (copy.deepcopy(small), again, copy.deepcopy(small).half().float()):
        assert torch.equal(one[0].dequantized(), before)
    x = torch.randn(3, 24)
    assert again.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(copy.deepcopy(small)(x), small(x))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "llm.int8"])
def test_gradients_reach_the_input_as_through_the_dequantized_weight(name: str) -> None:
    torch.manual_seed(0)
    small = METHODS[name].apply(nn.Sequential(nn.Linear(24, 16)))[0]
    plain = small.plain(torch.float32)
    x = torch.randn(3, 24, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    small(x).square().sum().backward()
    plain(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
@pytest.mark.parametrize("name", ["gobo 3 bits", "zero-point", "binary"])
def test_adapters_train_on_decoded_layers_and_merge_into_them(name: str) -> None:
    import peft

    torch.manual_seed(0)
    model = build("llama")
    adapted = peft.get_peft_model(
        METHODS[name].apply(model), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    batch = batches(model)[0]
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        adapted(**batch).loss.backward()
        optimizer.step()
    before = logits(adapted, batch)
    formats.dequantize(adapted)
    torch.testing.assert_close(logits(adapted.merge_and_unload(), batch), before, rtol=1e-3, atol=1e-3)


def test_gobo_keeps_outliers_bit_for_bit_and_has_a_smaller_error_than_absmax() -> None:
    model = build("bert")
    for layer in block_linears(model).values():
        layer.weight.data.view(-1)[3] = 2.7182817
    small, absmax = GOBO().apply(model), AbsMax(bits=3).apply(model)
    for path, layer in block_linears(model).items():
        gobo, peer = (one.get_submodule(path).dequantized() for one in (small, absmax))
        assert gobo.view(-1)[3] == layer.weight.view(-1)[3]
        assert (gobo - layer.weight).norm() < (peer - layer.weight).norm()


@pytest.mark.parametrize("embedding_bits", [3, 4])
def test_gobo_stores_embeddings_and_decodes_the_rows_that_are_asked_for(embedding_bits: int, tmp_path: Path) -> None:
    model = build("bert")
    with torch.no_grad():
        table = model.bert.embeddings.word_embeddings.weight
        table[7, 3], table[7, 4], table[40, 31], table[89, 0] = 3.0, -3.0, 4.0, 5.0
    small = GOBO(embedding_bits=embedding_bits).apply(model)
    embedding = small.bert.embeddings.word_embeddings
    assert isinstance(embedding, GOBOEmbedding)
    assert isinstance(small.bert.embeddings.position_embeddings, nn.Embedding)
    dense = embedding.dequantized()
    assert torch.equal(dense[[7, 40, 89], [3, 31, 0]], table[[7, 40, 89], [3, 31, 0]])
    for ids in (torch.arange(90), torch.tensor([[7, 7, 0], [89, 40, 7]]), torch.tensor(40), torch.zeros(0).long()):
        assert torch.equal(embedding(ids), dense[ids])
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    batch = batches(model)[0]
    assert torch.equal(logits(again, batch), logits(small, batch))
    assert type(
        GOBO(embedding_bits=4, exclude=("*.word_embeddings",)).apply(model).bert.embeddings.word_embeddings
    ) is (nn.Embedding)
    assert embedding.to(torch.bfloat16)(torch.tensor([7])).dtype == torch.bfloat16


def test_gobo_without_outliers_saves_and_loads(tmp_path: Path) -> None:
    model = build("bert")
    small = GOBO(threshold=-1000.0).apply(model)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, batches(model)[0]), logits(small, batches(model)[0]))


def test_llm_int8_takes_planted_outlier_features_out_at_run_time() -> None:
    """As in models of billions of parameters: a feature with activations of 60 that little depends on."""
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[5] *= 60
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight[:, 5] /= 60
    batch = batches(model)[0]
    exact = logits(model, batch)

    def error(method: Any) -> float:
        return float((logits(method.apply(model), batch) - exact).norm() / exact.norm())

    plain = DynamicInt8(embeddings=False)
    assert error(LLMInt8()) < error(plain) < error(DynamicInt8(embeddings=False, granularity="tensor"))
    assert error(LLMInt8()) < 0.5 * error(plain)
    assert error(LLMInt8(threshold=None)) == error(LLMInt8(threshold=float("inf"))) == pytest.approx(error(plain))


def test_only_llm_int8_and_dynamic_int8_multiply_integers() -> None:
    model = build("bert")
    kinds = {
        name: type(method.apply(model).bert.encoder.layer[0].intermediate.dense) for name, method in METHODS.items()
    }
    assert {name for name, kind in kinds.items() if not issubclass(kind, DecodedLinear)} == {"llm.int8"}
    assert kinds["llm.int8"] is LLMInt8Linear


@pytest.mark.parametrize("name", [*METHODS, "nf4"])
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    method = METHODS.get(name, NF4())
    with pytest.raises(MethodMisfit, match=r"has no nn\.Linear"):
        method.apply(nn.Sequential(nn.ReLU()))
    for other in (DynamicInt8(), method):
        with pytest.raises(MethodMisfit, match="quantized already"):
            method.apply(other.apply(build("bert")))
    for value in (float("nan"), float("inf")):
        broken = nn.Sequential(nn.Linear(4, 4))
        broken[0].weight.data[0, 0] = value
        with pytest.raises(MethodMisfit, match='"0" holds infinities or NaN'):
            method.apply(broken)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(MethodMisfit, match=r'"0" is tied to "1": both have one weight.*exclude=\("0",\)'):
        method.apply(tied)


def test_options_out_of_range_are_refused() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (AbsMax, {"bits": 1}, "bits is 1"),
        (AbsMax, {"bits": 4.0}, "bits is 4.0"),
        (AbsMax, {"granularity": "token"}, "granularity is 'token'"),
        (ZeroPoint, {"bits": 9}, "bits is 9"),
        (GOBO, {"bits": 2}, "bits is 2"),
        (GOBO, {"bits": 3.0}, "bits is 3.0"),
        (GOBO, {"threshold": float("nan")}, "threshold is nan"),
        (GOBO, {"threshold": None}, "threshold must be a number"),
        (LLMInt8, {"threshold": "6"}, "threshold must be a number"),
        (Mixed, {"methods": {4: AbsMax()}}, "patterns of names as keys"),
        (GOBO, {"embedding_bits": 8}, "embedding_bits is 8"),
        (LLMInt8, {"threshold": -6.0}, "threshold is -6.0"),
        (Binary, {"exclude": "classifier"}, "tuple of patterns"),
    ]
    for kind, options, message in wrong:
        with pytest.raises((DefinitionError, ArgumentTypeError), match=message):
            kind(**options)
    with pytest.raises(MethodMisfit, match=r'of the weights of "0" have a log density below -4.*standard deviation is'):
        GOBO().apply(nn.Sequential(wide(40.0)))
    llama = build("llama")
    with pytest.raises(MethodMisfit, match=r'"model.embed_tokens" is tied to "lm_head"'):
        GOBO(embedding_bits=4).apply(llama)


def wide(deviation: float) -> nn.Linear:
    made = nn.Linear(20, 20)
    nn.init.normal_(made.weight, std=deviation)
    return made


@pytest.mark.parametrize("method", [AbsMax(4, granularity=16), NF4(), DynamicInt8()])
def test_a_model_that_was_read_out_of_a_gguf_file_is_quantized_like_any_other(method: Any, tmp_path: Path) -> None:
    model = build("llama")
    expected = logits(method.apply(model), batches(model)[0])
    model.config.quantization_config = {"quant_method": "gguf"}  # what its loader leaves
    small = method.apply(model)
    small.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path), batches(model)[0]), expected)
