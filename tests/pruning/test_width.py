import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import batches, build, byte_pairs, llama, logits
from torch import nn

from datadreamer_like import pruning, quantization
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats import layouts
from datadreamer_like.models import Exported, TrainedModel
from datadreamer_like.pruning.structure import Attention, Units, attentions, feed_forwards, masked


def units(model: nn.Module) -> list[Units]:
    return [*attentions(model), *feed_forwards(model)]


def importance(model: Any, data: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """The reference: one example at a time, in float64, of heads and neurons [groups]."""
    double, found = copy.deepcopy(model).double(), []
    reads: dict[str, torch.Tensor] = {}
    for unit in units(double):
        unit.output.register_forward_pre_hook(lambda _, inputs, name=unit.name: reads.__setitem__(name, inputs[0]))
        found.append(torch.zeros(unit.groups, dtype=torch.float64))
    for batch in data:
        for row in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][row].sum())
            with torch.no_grad():
                double(input_ids=batch["input_ids"][row : row + 1, :length])
            for total, unit in zip(found, units(double), strict=True):
                by_unit = reads[unit.name][0].reshape(length, unit.groups, unit.group_size)
                total += by_unit.square().sum(-1).sqrt().mean(0) ** 2
    return [total.sqrt() for total in found]


# A plain config states all of these, and the head sizes stay.
STATED = [
    ("llama", {"heads": 2, "intermediate": 24}),
    ("llama", {"hidden": 24}),
    ("mistral", {"heads": 2, "hidden": 24}),
    ("qwen2", {"heads": 2}),
    ("qwen3", {"heads": 2, "hidden": 16}),
    ("phi3", {"heads": 2, "intermediate": 24}),
    ("gpt-neox", {"heads": 3, "hidden": 24}),
    ("gpt2", {"heads": 3, "hidden": 24, "intermediate": 64}),
    ("bert", {"heads": 3, "hidden": 24}),
    ("distilbert", {"intermediate": 24}),
    ("electra", {"heads": 3, "hidden": 24}),
    ("bart", {"heads": 3, "hidden": 24, "intermediate": 24}),
    ("t5", {"hidden": 24, "intermediate": 24}),
]


@pytest.mark.parametrize(("family", "sizes"), STATED)
def test_the_result_is_a_plain_model_of_its_config(family: str, sizes: dict[str, int], tmp_path: Path) -> None:
    model = build(family)
    small = pruning.Width(**sizes, at_most=1).apply(model, batches(model))
    assert not layouts(small)
    small.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    loaded, found = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = batches(model)[0]
    torch.testing.assert_close(logits(loaded, batch), logits(small, batch), atol=1e-6, rtol=1e-6)
    assert getattr(loaded.config, "hidden_size", None) == sizes.get("hidden", model.config.hidden_size)
    if "intermediate" in sizes:
        assert {unit.groups for unit in feed_forwards(loaded)} == {sizes["intermediate"]}
    for unit, old in zip(attentions(loaded), attentions(model), strict=True):
        assert unit.head_size == old.head_size
        assert unit.output_features == sizes.get("heads", 4) * unit.head_size


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "distilbert", "mpnet", "bert", "phi3"])
def test_heads_and_neurons_of_least_activation_go_as_if_masked(family: str) -> None:
    model = build(family)
    data = batches(model)
    small = pruning.Width(heads=2, intermediate=24, loadable="here", at_most=1).apply(model, data)
    masks = []
    for unit, scores in zip(units(model), importance(model, data), strict=True):
        count = 2 * unit.head_size // unit.group_size if isinstance(unit, Attention) else 24
        mask = torch.zeros(unit.groups)
        mask[scores.argsort(descending=True)[:count]] = 1
        masks.append(mask)
    with masked(units(model), masks):
        expected = logits(model, data[0])
    torch.testing.assert_close(logits(small, data[0]), expected, atol=1e-5, rtol=1e-5)


def test_hidden_dimensions_of_least_activation_go_from_every_layer() -> None:
    model = build("bert")
    data = batches(model)
    small = pruning.Width(heads=3, hidden=24, at_most=1).apply(model, data)
    # Reference: the l2 norm over examples of the mean |output| of each norm, summed over all norms.
    double = copy.deepcopy(model).double()
    norms = [module for module in double.modules() if isinstance(module, nn.LayerNorm)]
    squares = [torch.zeros(32, dtype=torch.float64) for _ in norms]
    outputs: dict[nn.Module, torch.Tensor] = {}
    for norm in norms:
        norm.register_forward_hook(lambda norm, _, output: outputs.update({norm: output[0]}))
    for batch in data:
        for row in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][row].sum())
            with torch.no_grad():
                double(input_ids=batch["input_ids"][row : row + 1, :length])
            for norm, total in zip(norms, squares, strict=True):
                total += outputs[norm].abs().mean(0) ** 2
    kept = sum(total.sqrt() for total in squares).argsort(descending=True)[:24].sort().values
    assert torch.equal(
        small.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight[:, kept]
    )
    old, new = model.bert.encoder.layer[2], small.bert.encoder.layer[2]
    assert torch.equal(new.intermediate.dense.weight, old.intermediate.dense.weight[:, kept])
    assert torch.equal(new.output.dense.weight, old.output.dense.weight[kept])
    assert torch.equal(new.output.LayerNorm.bias, old.output.LayerNorm.bias[kept])
    assert torch.equal(small.bert.pooler.dense.weight, model.bert.pooler.dense.weight[kept][:, kept])
    assert torch.equal(small.classifier.weight, model.classifier.weight[:, kept])


def test_planted_dead_dimensions_go_and_the_logits_stay() -> None:
    model = build("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "norm" in name:
                parameter[..., ::4] = 0
            elif "o_proj" in name or "down_proj" in name:
                parameter[::4] = 0
            elif parameter.dim() == 2:
                parameter[:, ::4] = 0
    data = batches(model)
    small = pruning.Width(hidden=24, at_most=1).apply(model, data)
    # A root mean square over 24 of 32 dimensions is larger; the norms' weights undo it.
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "norm" in name:
                parameter.mul_((32 / 24) ** 0.5)
    torch.testing.assert_close(logits(small, data[0]), logits(model, data[0]), atol=1e-4, rtol=1e-3)


def test_tied_weights_stay_tied_and_dtype_and_gradients_stay() -> None:
    model = build("llama").to(torch.bfloat16)
    model.model.layers[0].requires_grad_(False)
    small = pruning.Width(hidden=24, at_most=1).apply(model, batches(model))
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in small.model.layers[0].parameters())
    assert all(parameter.requires_grad for parameter in small.model.layers[1].parameters())
    assert not small.training


def test_a_width_only_our_loader_reads_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    model = build("bert")
    with pytest.raises(MethodMisfit, match=r'config cannot state .*\[16, 32\].*loadable="here"'):
        pruning.Width(heads=2).apply(model, batches(model))
    small = pruning.Width(heads=2, loadable="here").apply(model, batches(model))
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = batches(model)[0]
    torch.testing.assert_close(logits(loaded, batch), logits(small, batch))
    with pytest.raises(MethodMisfit, match="different|cannot state"):
        pruning.Width(heads=1).apply(loaded, batches(model))
    # A config that refuses a count that does not divide its hidden size.
    with pytest.raises(MethodMisfit, match="config refuses these sizes"):
        pruning.Width(hidden=30, heads=4, at_most=1).apply(build("llama"), batches(model))


def test_too_much_at_a_time_is_refused_before_work() -> None:
    model = build("llama")
    with pytest.raises(MethodMisfit, match=r"% of its parameters would go, more than at_most=33 %"):
        pruning.Width(hidden=8).apply(model, [])
    with pytest.raises(MethodMisfit, match="more than at_most=5 %"):
        pruning.Width(heads=2, loadable="here", at_most=0.05).apply(build("bert"), [])


def test_misuse_is_refused() -> None:
    model = build("llama")
    for options, message in [
        ({}, "at least one of heads"),
        ({"heads": 0}, "heads=0 must be at least 1"),
        ({"hidden": 16, "loadable": "vllm"}, "loadable"),
        ({"hidden": 16, "at_most": 0}, "at_most"),
    ]:
        with pytest.raises(DefinitionError, match=message):
            pruning.Width(**options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="intermediate must be a whole number"):
        pruning.Width(intermediate=0.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="at_most must be a number, not 'half'"):
        pruning.Width(intermediate=40, at_most="half")  # type: ignore[arg-type]
    for method, message in [
        (pruning.Width(heads=3), "multiple of 2"),
        (pruning.Width(heads=6), "up to the 4"),
        (pruning.Width(intermediate=100), "more than the 48"),
        (pruning.Width(hidden=64), "more than its hidden size, 32"),
    ]:
        with pytest.raises(MethodMisfit, match=message):
            method.apply(model, batches(model))
    with pytest.raises(EmptyDataset):
        pruning.Width(intermediate=40).apply(model, [])
    with pytest.raises(DefinitionError, match="calibration"):
        pruning.Width(intermediate=40).apply(model)
    sizes = {"vocab_size": 90, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    opt = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, word_embed_proj_dim=32))
    assert "no attention of a supported class" in str(pruning.Width(heads=2).fits(opt))
    assert "no feed-forward network" in str(pruning.Width(intermediate=24).fits(opt))
    assert "transformers model" in str(pruning.Width(intermediate=2).fits(nn.Linear(4, 4)))
    assert "quantized already" in str(pruning.Width(heads=2).fits(quantization.DynamicInt8().apply(build("bert"))))


def test_llama_cpp_reads_the_result_with_its_fewer_heads_neurons_and_hidden_dimensions(tmp_path: Path) -> None:
    texts = ["a small cat sat", "dogs run in the park, quickly", "the quick brown fox"]
    tokenizer = byte_pairs(
        texts, 300, ["<s>", "</s>", "<pad>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=64
    )
    model = llama(tokenizer, num_key_value_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1)
    data = [dict(tokenizer(texts, padding=True, return_tensors="pt"))]
    small = pruning.Width(heads=2, intermediate=96, hidden=32, at_most=1).apply(model.eval(), data)
    trained = TrainedModel.save(small, tokenizer, tmp_path / "model")
    report = Exported.read(trained.export("gguf", to=tmp_path / "gguf", type="F16", texts=texts))
    assert report.distance < 2e-3  # of llama.cpp's log-probabilities to those of transformers
