"""The finder names the parts of every family as its architecture has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, MORE_FAMILIES, build
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datadreamer_like.formats.modules import (
    attentions,
    feed_forwards,
    linears,
    output_heads,
    replace_modules,
    stacks,
    token_embeddings,
    weight_of,
)

# Family: lists of blocks with their lengths, name of the first attention, linear layers a block, attentions,
# linear layers outside the blocks, token embeddings, output heads.
BERT_LINEARS = ["attention.output.dense", "attention.self.key", "attention.self.query", "attention.self.value",
                "intermediate.dense", "output.dense"]  # fmt: skip
LLAMA_LINEARS = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj",
                 "self_attn.q_proj", "self_attn.v_proj"]  # fmt: skip


def encoder(name: str, *outside: str) -> tuple[object, ...]:
    first = f"{name}.encoder.layer.0.attention"
    return ({f"{name}.encoder.layer": 3}, first, BERT_LINEARS, 3, outside, [f"{name}.embeddings.word_embeddings"], [])


LLAMA = (
    {"model.layers": 3}, "model.layers.0.self_attn", LLAMA_LINEARS, 3, ("lm_head",), ["model.embed_tokens"],
    ["lm_head"],
)  # fmt: skip
KNOWN: dict[str, tuple[object, ...]] = {
    "bert": encoder("bert", "bert.pooler.dense", "classifier"),
    "bert-mlm": (
        *encoder("bert", "cls.predictions.decoder", "cls.predictions.transform.dense")[:-1],
        ["cls.predictions.decoder"],
    ),
    "roberta": encoder("roberta", "classifier.dense", "classifier.out_proj"),
    "xlm-roberta": encoder("roberta", "classifier.dense", "classifier.out_proj"),
    "electra": encoder("electra", "classifier.dense", "classifier.out_proj", "electra.embeddings_project"),
    "mpnet": (
        {"mpnet.encoder.layer": 3}, "mpnet.encoder.layer.0.attention",
        ["attention.attn.k", "attention.attn.o", "attention.attn.q", "attention.attn.v", "intermediate.dense",
         "output.dense"],
        3, ("classifier.dense", "classifier.out_proj"), ["mpnet.embeddings.word_embeddings"], [],
    ),
    "distilbert": (
        {"distilbert.transformer.layer": 3}, "distilbert.transformer.layer.0.attention",
        ["attention.k_lin", "attention.out_lin", "attention.q_lin", "attention.v_lin", "ffn.lin1", "ffn.lin2"],
        3, ("classifier", "pre_classifier"), ["distilbert.embeddings.word_embeddings"], [],
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gpt2": (
        {"transformer.h": 3}, "transformer.h.0.attn", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        3, ("lm_head",), ["transformer.wte"], ["lm_head"],
    ),
    "t5": (
        {"encoder.block": 3, "decoder.block": 2}, "encoder.block.0.layer.0.SelfAttention",
        ["layer.0.SelfAttention.k", "layer.0.SelfAttention.o", "layer.0.SelfAttention.q", "layer.0.SelfAttention.v",
         "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"],
        3 + 2 * 2, ("lm_head",), ["shared", "encoder.embed_tokens", "decoder.embed_tokens"], ["lm_head"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_family_are_found(family: str) -> None:
    model = build(family)
    lists, attention, inside, count, outside, embeddings, heads = KNOWN[family]
    found = stacks(model)
    assert {stack.name: len(stack.blocks) for stack in found} == lists
    assert sorted(linears(found[0].blocks[0])) == inside
    names = [name for name, _ in attentions(model)]
    assert names[0] == attention
    assert len(names) == count
    in_blocks = tuple(f"{stack.name}." for stack in found)
    assert sorted(name for name in linears(model) if not name.startswith(in_blocks)) == sorted(outside)  # type: ignore[call-overload]
    assert list(token_embeddings(model)) == embeddings
    assert list(output_heads(model)) == heads


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_of_a_linear_layer_is_out_by_in(family: str) -> None:
    for module in linears(build(family)).values():
        weight = weight_of(module)
        with torch.no_grad():
            x = torch.randn(2, weight.shape[1])
            bias = module.bias if module.bias is not None else 0
            torch.testing.assert_close(module(x), x @ weight.T + bias)


@pytest.mark.parametrize("family", sorted({*FAMILIES, *MORE_FAMILIES}))
def test_every_layer_has_one_feed_forward_network_back_to_the_hidden_size(family: str) -> None:
    model = build(family)
    found = dict(feed_forwards(model))
    blocks = [f"{stack.name}.{index}" for stack in stacks(model) for index in range(len(stack.blocks))]
    assert len(found) == len(blocks)
    for block, (name, form) in zip(blocks, found.items(), strict=True):
        assert f"{name}.".startswith(f"{block}.")
        output, hidden = weight_of(model.get_submodule(f"{name}.{form.output}")), 32
        neurons = 128 if family == "gpt2" else 48
        assert output.shape == (hidden, neurons)
        for path in form.inputs:
            assert weight_of(model.get_submodule(f"{name}.{path}")).shape == (form.halves * neurons, hidden)


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox", "phi3"])
def test_a_fused_projection_is_split_as_the_attention_does(family: str) -> None:
    model = build(family)
    name, form = next(attentions(model))
    module = model.get_submodule(name)
    seen: list[tuple[torch.Tensor, ...]] = []

    def keep(_: object, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__: object, **___: object) -> Any:
        seen.append((query, key, value))
        return value.new_zeros(value.shape[0], value.shape[2], 32), None

    features: list[torch.Tensor] = []
    module.get_submodule(form.query).register_forward_hook(lambda _, __, output: features.append(output))
    ALL_ATTENTION_FUNCTIONS["kept for a test"] = keep
    try:
        model.config._attn_implementation = "kept for a test"
        with torch.no_grad():
            model(input_ids=torch.tensor([[5]]))  # at position 0 nothing is rotated
    finally:
        ALL_ATTENTION_FUNCTIONS.pop("kept for a test")
    for part, expected in zip(form.split(module, features[0]), seen[0], strict=True):
        torch.testing.assert_close(part, expected.transpose(1, 2).flatten(2))


def test_a_plain_module_has_linears_and_no_blocks() -> None:
    model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    assert list(linears(model)) == ["1"]
    assert list(linears(model, exclude=["1"])) == []
    assert list(token_embeddings(model)) == ["0"]
    assert stacks(model) == []
    assert output_heads(model) == {}


def test_a_shared_module_is_replaced_under_all_its_names() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    replace_modules(model, {"0": nn.Identity()})
    assert model[0] is model[1][0]
    assert isinstance(model[0], nn.Identity)
