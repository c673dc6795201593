import copy
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import SIZES, batches, build, logits
from torch import nn

from datadreamer_like import pruning, quantization
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats import layouts
from datadreamer_like.pruning.heads import importance
from datadreamer_like.pruning.structure import attentions, record


def mask_groups(model: nn.Module, gone: dict[str, list[int]]) -> nn.Module:
    """The reference: the whole model, with what the removed heads computed set to zero."""
    masked = copy.deepcopy(model)
    for attention in attentions(masked):
        gate = torch.ones(attention.groups)
        gate[gone.get(attention.name, [])] = 0
        gate = gate.repeat_interleave(attention.group_size)
        attention.output.register_forward_pre_hook(lambda _, inputs, gate=gate: (inputs[0] * gate, *inputs[1:]))
    return masked


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_removing_heads_gives_the_logits_of_masking_them(family_with_heads: str, implementation: str) -> None:
    model = build(family_with_heads)
    if family_with_heads != "mpnet":  # which has only its own attention
        model.set_attn_implementation(implementation)
    batch = batches(model)[0]
    small = copy.deepcopy(model)
    found = list(attentions(small))
    # One layer loses some heads, one all, the others none.
    gone = {found[0].name: [0], found[1].name: list(range(found[1].groups))}
    expected = logits(mask_groups(model, gone), batch)
    for attention in found:
        attention.remove(gone.get(attention.name, []))
    assert not torch.allclose(expected, logits(model, batch), atol=1e-3)
    torch.testing.assert_close(logits(small, batch), expected, atol=1e-5, rtol=1e-5)
    assert parameters(small) < parameters(model)


def test_importance_is_the_gradient_of_a_gate_on_each_head(family: str) -> None:
    model = build(family)
    data = batches(model)
    found = list(attentions(model))
    scores = importance(model, found, data)
    # Reference: a gate a head, one example at a time, by autograd.
    gates = [torch.ones(attention.groups, requires_grad=True) for attention in found]
    for attention, gate in zip(found, gates, strict=True):
        attention.output.register_forward_pre_hook(
            lambda _, inputs, gate=gate, size=attention.group_size: (
                inputs[0] * gate.repeat_interleave(size),
                *inputs[1:],
            )
        )
    expected = [torch.zeros_like(gate) for gate in gates]
    for batch in data:
        size = len(batch["input_ids"])
        tokens = float((batch["labels"][:, 1:] != -100).sum()) if batch["labels"].dim() == 2 else None
        for row in range(size):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            loss = model(**one).loss
            if tokens is not None:
                # A causal LM's loss is a mean over the batch's tokens, so an example counts by its length.
                loss = loss * float((one["labels"][:, 1:] != -100).sum()) / tokens * size
            for total, gradient in zip(expected, torch.autograd.grad(loss, gates), strict=True):
                total += gradient.abs() / (size * len(data))
    for score, reference in zip(scores, expected, strict=True):
        torch.testing.assert_close(score, reference.detach(), atol=1e-6, rtol=1e-3)


def test_heads_shrink_shapes_by_the_share_asked_and_leave_the_input_model_alone(family_with_heads: str) -> None:
    model = build(family_with_heads)
    before = copy.deepcopy(model.state_dict())
    total = sum(attention.groups for attention in attentions(model))
    small = pruning.Heads(sparsity=0.5).apply(model, batches(model))
    assert sum(attention.groups for attention in attentions(small)) == total - round(0.5 * total)
    assert parameters(small) < parameters(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not layouts(model)
    assert torch.isfinite(logits(small, batches(model)[0])).all()


def test_grouped_queries_go_with_their_key_value_head() -> None:
    model = build("llama")
    small = pruning.Heads(sparsity=0.5, at_least=1).apply(model, batches(model))
    for layer in small.model.layers:
        assert layer.self_attn.k_proj.weight.shape == (8, 32)
        assert layer.self_attn.q_proj.weight.shape == (16, 32)
        assert layer.self_attn.o_proj.weight.shape == (32, 16)


def test_the_least_important_heads_go_first_after_normalising_each_layer() -> None:
    model = build("bert")
    data = batches(model)
    scores = importance(model, list(attentions(model)), data)
    normal = torch.stack([score / score.norm() for score in scores]).flatten()
    lowest = set(normal.argsort()[:3].tolist())
    small = pruning.Heads(sparsity=0.25, step=1.0).apply(model, data)
    expected = mask_groups(
        model,
        {
            attention.name: [index % 4 for index in lowest if index // 4 == layer]
            for layer, attention in enumerate(attentions(model))
        },
    )
    torch.testing.assert_close(logits(small, data[0]), logits(expected, data[0]), atol=1e-5, rtol=1e-5)


def test_a_planted_useless_head_is_found() -> None:
    model = build("distilbert")
    attention = list(attentions(model))[1]
    with torch.no_grad():
        attention.output.weight[:, 8:16] = 0  # what head 1 computes is never read
    small = pruning.Heads(sparsity=1 / 12).apply(model, batches(model))
    torch.testing.assert_close(logits(small, batches(model)[0]), logits(model, batches(model)[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt-neox", "phi3"])
def test_generation_with_a_cache_agrees_when_the_first_layer_has_no_heads(family: str) -> None:
    model = build(family)
    attention = next(attentions(model))
    attention.remove(range(attention.groups))
    prompt = torch.tensor([[7, 8, 9, 10]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(prompt)
    with_cache = model.generate(prompt, attention_mask=mask, use_cache=True, **options)
    without = model.generate(prompt, attention_mask=mask, use_cache=False, **options)
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize("family", ["mpnet", "phi3", "gpt-neox", "bart", "t5"])
def test_heads_of_every_form_are_loaded_as_saved_and_can_lose_more(family: str, tmp_path: Path) -> None:
    model, batch = build(family), batches(build(family))[0]
    small = copy.deepcopy(model)
    found = list(attentions(small))
    for attention in found[:2]:
        attention.remove([1])
    found[0].remove([0])  # which was the unit next to it
    found[-1].remove(range(found[-1].groups))
    record(small, found)
    gone = {found[0].name: [0, 1], found[1].name: [1], found[-1].name: list(range(4 if family != "phi3" else 2))}
    torch.testing.assert_close(logits(small, batch), logits(mask_groups(model, gone), batch), atol=1e-5, rtol=1e-5)
    small.save_pretrained(tmp_path / "once")
    loaded = type(model).from_pretrained(tmp_path / "once")
    torch.testing.assert_close(logits(loaded, batch), logits(small, batch))
    smaller = pruning.Heads(0.3).apply(loaded, batches(model))
    smaller.save_pretrained(tmp_path / "twice")
    again = type(model).from_pretrained(tmp_path / "twice")
    torch.testing.assert_close(logits(again, batch), logits(smaller, batch))


EMPTIED = {
    "bart": ["model.encoder.layers.0.self_attn", "model.decoder.layers.0.self_attn",
             "model.decoder.layers.1.encoder_attn"],
    "t5": ["encoder.block.1.layer.0.SelfAttention", "decoder.block.1.layer.0.SelfAttention",
           "decoder.block.0.layer.1.EncDecAttention"],
}  # fmt: skip


@pytest.mark.parametrize("family", EMPTIED)
def test_an_encoder_decoder_generates_with_a_cache_when_attentions_have_no_heads(family: str) -> None:
    model = build(family)
    for attention in attentions(model):
        attention.remove(range(4) if attention.name in EMPTIED[family] else [2])
    batch = {name: value for name, value in batches(model)[0].items() if name != "labels"}
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 1}
    with_cache = model.generate(**batch, use_cache=True, **options)
    assert with_cache.tolist() == model.generate(**batch, use_cache=False, **options).tolist()


def test_heads_work_without_labels() -> None:
    model = build("bert")
    data = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches(model)]
    small = pruning.Heads(sparsity=0.5).apply(model, data)
    assert parameters(small) < parameters(model)


def test_heads_refuse_what_they_do_not_fit() -> None:
    bert = build("bert")
    assert "attention" in str(pruning.Heads(0.5).fits(nn.Linear(4, 4)))
    with pytest.raises(MethodMisfit, match="Linear"):
        pruning.Heads(0.5).apply(nn.Linear(4, 4), [])
    decoder = transformers.BertLMHeadModel(transformers.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True))
    with pytest.raises(MethodMisfit, match="added cross-attention"):
        pruning.Heads(0.5).apply(decoder, [])
    assert "leaves 26 of 28" in str(pruning.Heads(0.99).fits(build("t5")))  # each first layer has the position bias
    with pytest.raises(MethodMisfit, match="at_least"):
        pruning.Heads(0.5, at_least=3).apply(bert, batches(bert))
    with pytest.raises(DefinitionError, match="calibration"):
        pruning.Heads(0.5).apply(bert)
    with pytest.raises(EmptyDataset):
        pruning.Heads(0.5).apply(bert, [])
    with pytest.raises(DefinitionError, match="under 1"):
        pruning.Heads(1.0)
    with pytest.raises(DataError, match="neither a loss nor logits"):
        pruning.Heads(0.5).apply(bert.bert, [{"input_ids": torch.tensor([[1, 2, 3]])}])


def test_one_batch_in_place_of_a_list_is_refused() -> None:
    model = build("bert")
    with pytest.raises(ArgumentTypeError, match="calibration is one batch; it must be an iterable"):
        pruning.Heads(0.5).apply(model, batches(model)[0])  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="sparsity must be a number, not 'half'"):
        pruning.Heads("half")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="step must be a number, not 'all'"):
        pruning.Heads(0.5, step="all")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="at_least must be a whole number, not 1.5"):
        pruning.Heads(0.5, at_least=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [pruning.Heads(0.5), pruning.Magnitude(0.5), pruning.Vocabulary()], ids=str)
def test_a_quantized_model_is_refused_as_one(method: pruning.Heads | pruning.Magnitude | pruning.Vocabulary) -> None:
    reason = method.fits(quantization.DynamicInt8().apply(build("bert")))
    assert reason is not None
    assert reason.startswith("it is quantized already. Prune first")
