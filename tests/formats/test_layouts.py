import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import build
from torch import nn

from datadreamer_like import formats
from datadreamer_like.errors import DefinitionError, MethodMisfit, NewerFormat, StorageError
from datadreamer_like.formats import stored_bytes
from datadreamer_like.formats.layout import LayoutKind, renamed
from datadreamer_like.formats.quantizer import LayoutConfig, has_codes
from datadreamer_like.formats.sparse import from_sparse, to_sparse
from datadreamer_like.pruning import Magnitude
from datadreamer_like.quantization import DynamicInt8

IDS = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
DENSE = "bert.encoder.layer.0.intermediate.dense"


class Halved(nn.Module):
    """A stand-in for a quantized layer: int8 codes and a float32 scale."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(1, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


class HalvedKind(LayoutKind):
    name = "test-halved"
    trainable = False

    def rebuild(self, model: nn.Module, entry: formats.Entry) -> None:
        for name in entry["modules"]:
            old: Any = model.get_submodule(name)
            model.set_submodule(name, Halved(old.out_features, old.in_features))


formats.register(HalvedKind())


def bert() -> transformers.BertForSequenceClassification:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.BertForSequenceClassification(config).eval()


def halve(model: nn.Module, name: str) -> None:
    old: Any = model.get_submodule(name)
    new = Halved(*old.weight.shape)
    scale = old.weight.detach().abs().max() / 127
    new.weight = torch.round(old.weight.detach() / scale).to(torch.int8)
    new.scale, new.bias = scale[None], old.bias
    model.set_submodule(name, new)
    formats.add_layout(model, {"kind": "test-halved", "modules": [name]})


def thin(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        weight: Any = model.get_submodule(name).weight
        weight[weight.abs() < weight.abs().median()] = 0
    formats.mark_sparse(model, [f"{name}.weight"])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**IDS).logits


def test_layouts_of_several_methods_are_kept_in_order_and_load_together(tmp_path: Path) -> None:
    model = bert()
    thin(model, DENSE)
    halve(model, DENSE)
    assert [entry["kind"] for entry in formats.layouts(model)] == ["sparse", "test-halved"]
    expected = logits(model)
    model.save_pretrained(tmp_path)
    # The int8 codes of the sparse weight are stored sparse as well.
    stored = load_file(tmp_path / "model.safetensors")
    assert stored[f"{DENSE}.weight_values"].dtype == torch.int8
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), expected)
    assert again.get_submodule(DENSE).weight.dtype == torch.int8
    assert formats.layouts(again) == formats.layouts(model)


def test_float32_scales_keep_their_dtype_when_loaded_in_another(tmp_path: Path) -> None:
    model = bert()
    halve(model, DENSE)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.get_submodule(DENSE).scale.dtype == torch.float32
    assert torch.equal(again.get_submodule(DENSE).scale, model.get_submodule(DENSE).scale)
    assert again.get_submodule(DENSE).bias.dtype == torch.bfloat16


def test_untrainable_layouts_count_as_quantized_and_others_do_not(tmp_path: Path) -> None:
    model = bert()
    thin(model, DENSE)
    assert not model.is_quantized
    model.save_pretrained(tmp_path / "thin")
    assert not formats.load(tmp_path / "thin").is_quantized
    halve(model, "bert.pooler.dense")
    assert model.is_quantized
    model.save_pretrained(tmp_path / "halved")
    again = formats.load(tmp_path / "halved")
    assert again.is_quantized
    with pytest.raises(ValueError, match="fine-tun"):
        transformers.Trainer(
            again, transformers.TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
        )


def test_load_gives_the_class_that_was_saved(tmp_path: Path) -> None:
    model = bert()
    thin(model, DENSE)
    model.save_pretrained(tmp_path)
    again = formats.load(tmp_path)
    assert type(again) is type(model)
    torch.testing.assert_close(logits(again), logits(model))


def test_the_bare_encoder_of_a_folder_loads_and_saves_its_own_names(tmp_path: Path) -> None:
    model = bert()
    thin(model, DENSE)
    thin(model, "classifier")
    model.save_pretrained(tmp_path / "whole")
    bare = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    assert list(formats.layouts(bare)[0]["modules"]) == [DENSE.removeprefix("bert.")]
    torch.testing.assert_close(
        bare.get_submodule(DENSE.removeprefix("bert.")).weight, model.get_submodule(DENSE).weight
    )
    bare.save_pretrained(tmp_path / "bare")
    around = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "bare")
    assert list(formats.layouts(around)[0]["modules"]) == [DENSE]


def test_a_copy_keeps_its_layouts_to_itself() -> None:
    model = bert()
    thin(model, DENSE)
    other = copy.deepcopy(model)
    halve(other, "bert.pooler.dense")
    assert len(formats.layouts(model)) == 1
    assert other.hf_quantizer.quantization_config is other.config.quantization_config
    assert model.hf_quantizer.quantization_config is model.config.quantization_config


def test_state_dict_of_a_checkpoint_loads_into_the_model_itself_and_into_one_around_it(tmp_path: Path) -> None:
    model = bert()
    thin(model, DENSE)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    other = copy.deepcopy(model)
    nn.init.zeros_(other.get_submodule(DENSE).weight)
    other.load_state_dict(stored)
    torch.testing.assert_close(logits(other), logits(model))
    nn.init.zeros_(other.get_submodule(DENSE).weight)
    nn.ModuleDict({"student": other}).load_state_dict({f"student.{name}": value for name, value in stored.items()})
    torch.testing.assert_close(logits(other), logits(model))


def test_modules_that_move_or_go_are_followed() -> None:
    model = bert()
    thin(model, DENSE)
    thin(model, DENSE.replace("layer.0", "layer.1"))
    formats.rename_modules(model, {"bert.encoder.layer.0": None, "bert.encoder.layer.1": "bert.encoder.layer.0"})
    assert list(formats.layouts(model)[0]["modules"]) == [DENSE]
    assert renamed({"kind": "x", "modules": ["a", "b"]}, {"a": "c", "b": None}.get)["modules"] == ["c"]


def test_a_plain_module_remembers_its_layouts() -> None:
    model = nn.Linear(4, 4)
    formats.add_layout(model, {"kind": "sparse", "modules": {"": {"weight": None}}})
    assert formats.layouts(model)[0]["format"] == 1
    assert formats.layouts(nn.Linear(4, 4)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layouts": [{"kind": "sparse", "format": 99, "modules": {}}]},
            '"sparse" layout .*format is 99, this version reads up to 1',
        ),
        ({"layouts": [{"kind": "sparce", "format": 1, "modules": {}}]}, 'Did you mean "sparse"'),
        ({"format": 99, "layouts": []}, "list of layouts .*format is 99, this version reads up to 1"),
    ],
)
def test_a_folder_of_a_newer_version_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model = bert()
    thin(model, DENSE)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NewerFormat, match=message):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_format_1_is_read_as_it_was_first_written(tmp_path: Path) -> None:
    model = bert()
    thin(model, DENSE)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    count = int(torch.count_nonzero(model.get_submodule(DENSE).weight))
    assert config["quantization_config"] == {
        "quant_method": "datadreamer_like",
        "format": 1,
        "layouts": [{"kind": "sparse", "format": 1, "modules": {DENSE: {"weight": count}}}],
    }


def test_a_model_quantized_by_another_library_is_refused() -> None:
    model = bert()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(MethodMisfit, match="gptq"):
        formats.add_layout(model, {"kind": "sparse", "modules": {}})
    assert formats.foreign(bert()) is None
    assert "gptq" in str(formats.foreign(model))
    model.config.quantization_config = {"quant_method": "gguf"}  # what is left of a GGUF file read into plain weights
    assert formats.foreign(model) is None
    model.classifier.weight = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)  # left in its blocks
    assert "gguf" in str(formats.foreign(model))


def test_two_kinds_of_one_name_are_refused() -> None:
    class Other(LayoutKind):
        name = "sparse"

    with pytest.raises(DefinitionError, match="already registered"):
        formats.register(Other())
    with pytest.raises(NewerFormat, match="unknown-kind"):
        formats.add_layout(bert(), {"kind": "unknown-kind", "modules": []})


@pytest.mark.parametrize("shape", [(1,), (7,), (8, 3), (5, 1, 9), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_sparse_tensors_come_back_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randint(-3, 3, shape).to(dtype)
    bits, values = to_sparse(tensor)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-tensor.numel() // 8)
    assert len(values) == int((tensor != 0).sum())
    assert torch.equal(from_sparse(bits, values, tensor.shape), tensor)


def test_bits_are_little_endian_over_the_flattened_tensor() -> None:
    bits, values = to_sparse(torch.tensor([[1.0, 0, 0], [2, 0, 3], [0, 0, 0], [4, 0, 0]]))
    assert bits.tolist() == [0b00101001, 0b00000010]
    assert values.tolist() == [1, 2, 3, 4]


def test_tied_weights_are_stored_once_and_dense(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    thin(model, "model.embed_tokens")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    torch.testing.assert_close(logits(again), logits(model))
    assert isinstance(again.config.quantization_config, LayoutConfig)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_dequantized_model_is_plain_again_with_the_values_of_its_codes(family: str, tmp_path: Path) -> None:
    model = build(family)
    small = DynamicInt8().apply(model)
    assert stored_bytes(small) < 0.4 * stored_bytes(model)
    embedded = small.get_input_embeddings().dequantized()
    formats.dequantize(small)
    assert not has_codes(small)
    assert not small.is_quantized
    assert formats.layouts(small) == []
    assert str(small) == str(model)
    for (name, one), other in zip(small.named_parameters(), model.named_parameters(), strict=True):
        assert (name, one.shape, one.dtype) == (other[0], other[1].shape, other[1].dtype)
        torch.testing.assert_close(one, other[1], rtol=0, atol=float(other[1].detach().abs().max()) / 200)
    assert torch.equal(small.get_input_embeddings().weight, embedded)
    head = small.get_output_embeddings()
    if head is not None and model.config.tie_word_embeddings:
        assert head.weight is small.get_input_embeddings().weight
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for one, other in zip(again.state_dict().values(), small.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_zeros_are_counted_in_codes_too() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 2]])
    model[1].weight.data.fill_(1)
    model[1].bias.data = torch.tensor([0.0, 1.0])
    assert formats.count_zeros(model) == 6
    assert formats.count_zeros(DynamicInt8(exclude=("1",)).apply(model)) == 6


@pytest.mark.parametrize("method", [DynamicInt8(), Magnitude(0.9)])
def test_codes_that_the_config_does_not_describe_are_refused_not_taken_for_weights(method: Any, tmp_path: Path) -> None:
    method.apply(bert()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    one_less = copy.deepcopy(saved)
    del one_less["quantization_config"]["layouts"][0]["modules"]["bert.encoder.layer.1.attention.self.query"]
    without = {key: value for key, value in saved.items() if key != "quantization_config"}
    for changed in (one_less, without):
        path.write_text(json.dumps(changed))
        with pytest.raises(StorageError, match=r"hold .*weight_(scale|bits|values), a part of .* config.json does not"):
            formats.load(tmp_path)


@pytest.mark.parametrize("layouts", ["int8", ["int8"], [{"kind": "int8"}], [{"kind": "int8", "modules": "all"}]])
def test_a_list_of_layouts_that_is_damaged_is_refused(tmp_path: Path, layouts: Any) -> None:
    DynamicInt8().apply(bert()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layouts"] = layouts
    path.write_text(json.dumps(config))
    with pytest.raises(StorageError, match="list of layouts in the model's config.json is damaged"):
        formats.load(tmp_path)


def test_bits_that_do_not_fit_their_values_are_refused() -> None:
    bits, values = to_sparse(torch.tensor([0.0, 1.0, 0.0, 2.0]))
    with pytest.raises(StorageError, match="2 values for 3 positions: its file was changed"):
        from_sparse(bits | 1, values, torch.Size([4]))


def test_buffers_that_are_not_saved_are_filled_where_a_tensor_next_to_them_was_pruned(tmp_path: Path) -> None:
    config = transformers.SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1], num_heads=[2])
    model = transformers.SwinForImageClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    small = Magnitude(0.5, include=("biases",)).apply(model)
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    found = dict(loaded.named_buffers())
    index = [name for name in found if name.endswith("relative_position_index")]
    assert index
    assert all(torch.equal(found[name], small.get_buffer(name)) for name in index)
