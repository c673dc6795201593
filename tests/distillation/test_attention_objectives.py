"""Objectives on self-attention against their formulas, written out head by head from the weights of small models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.distillation import (
    AttentionScores,
    HiddenStates,
    Outputs,
    Projections,
    Relations,
    TeacherModel,
    TinyBERT,
    capture_projections,
)
from datadreamer_like.errors import DefinitionError, MethodMisfit

TEACHER = TeacherModel(torch.nn.Identity(), str)
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def projections(heads: int, size: int, seed: int, layers: int = 1, **options: Any) -> tuple[Projections, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(2, heads, 6, size, generator=generator, dtype=torch.float64)

    return tuple(Projections(draw(), draw(), draw(), **options) for _ in range(layers))


def outputs(given: tuple[Projections, ...], **fields: Any) -> Outputs:
    return Outputs(projections=given, mask=MASK, **fields)


def relation(a: Tensor, b: Tensor, row: int, token: int, causal: bool = False) -> Tensor:
    """One token's relation to the others: [seq, size] of one head."""
    seen = [j for j in range(6) if MASK[row, j] and (not causal or j <= token)]
    scores = torch.stack([(a[token] * b[j]).sum() / math.sqrt(a.shape[-1]) for j in seen])
    return scores.softmax(-1)


def by_hand(ours: Any, theirs: Any, names: list[tuple[str, str]], split: int | None, causal: bool = False) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for first, second in names:
        terms = []
        sides = []
        for layer in (ours, theirs):
            pair = [getattr(layer, name) for name in (first, second)]
            if split is not None:  # features of all heads, split again
                whole = [torch.cat([part[:, head] for head in range(part.shape[1])], dim=-1) for part in pair]
                pair = [torch.stack(part.chunk(split, dim=-1), dim=1) for part in whole]
            sides.append(pair)
        for row, token in MASK.nonzero().tolist():
            for head in range(sides[0][0].shape[1]):
                p, q = (relation(a[row, head], b[row, head], row, token, causal) for a, b in sides)
                terms.append((q * (q / p).log()).sum())
        total = total + torch.stack(terms).mean()
    return total


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Relations(TEACHER, kinds=("vv",), heads=5), "heads is 5, which does not divide the 12 features"),
        (Relations(TEACHER, layers=(2, 1)), "layers maps 2 to 1, but the student has 1 layers"),
        (Relations(TEACHER, layers=(1, 3)), "layers maps 1 to 3, but the student has 1 layers"),
        (AttentionScores(TEACHER, layers={1: 3}), "layers maps 1 to 3, but the student has 1 layers"),
    ],
)
def test_heads_and_layers_that_outputs_lack_are_named(objective, message):
    with pytest.raises(MethodMisfit, match=message):
        objective.loss(outputs(projections(3, 4, 0)), outputs(projections(3, 4, 1)), {})


@pytest.mark.parametrize("causal", [False, True])
def test_minilm_compares_attentions_and_value_relations_head_by_head(causal):
    (ours,), (theirs,) = projections(3, 4, 0, causal=causal), projections(3, 8, 1, causal=causal)
    ours.values.requires_grad_()
    loss = Relations(TEACHER).loss(outputs((ours,)), outputs((theirs,)), {})
    wanted = by_hand(ours, theirs, [("queries", "keys"), ("values", "values")], None, causal)
    assert torch.allclose(loss, wanted, rtol=1e-10)
    got, expected = (torch.autograd.grad(each, ours.values)[0] for each in (loss, wanted))
    assert torch.allclose(got, expected, atol=1e-12)
    assert not got[1, :, 4:].any()  # padding
    same = Relations(TEACHER).loss(outputs((theirs,)), outputs((theirs,)), {})
    assert float(same) == pytest.approx(0.0, abs=1e-12)


def test_minilm_v2_splits_the_features_again_so_that_head_counts_may_differ():
    ours, theirs = projections(3, 4, 0, layers=2), projections(2, 12, 1, layers=4)
    objective = Relations(TEACHER, kinds=("qq", "kk", "vv"), heads=6, layers=(2, 3))
    loss = objective.loss(outputs(ours), outputs(theirs), {})
    names = [("queries", "queries"), ("keys", "keys"), ("values", "values")]
    assert torch.allclose(loss, by_hand(ours[1], theirs[2], names, 6), rtol=1e-10)
    with pytest.raises(MethodMisfit, match="same number of heads"):
        Relations(TEACHER).loss(outputs(ours), outputs(theirs), {})


def test_attention_scores_are_compared_before_the_softmax_between_tokens_that_are_not_padding():
    ours, theirs = projections(3, 4, 0, layers=2), projections(3, 8, 1, layers=4)
    ours[0].queries.requires_grad_()
    terms = []
    for layer, other in ((0, 1), (1, 3)):
        for row in range(2):
            for head in range(3):
                for i in range(6):
                    for j in range(6):
                        if MASK[row, i] and MASK[row, j]:
                            a, b = (
                                (side.queries[row, head, i] * side.keys[row, head, j]).sum() / math.sqrt(size)
                                for side, size in ((ours[layer], 4), (theirs[other], 8))
                            )
                            terms.append((a - b) ** 2)
    loss = AttentionScores(TEACHER).loss(outputs(ours), outputs(theirs), {})
    wanted = torch.stack(terms).mean()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)  # in fp32
    got, expected = (torch.autograd.grad(each, ours[0].queries)[0] for each in (loss, wanted))
    assert torch.allclose(got, expected, atol=1e-7)


def test_tinybert_is_the_sum_of_its_distances():
    generator = torch.Generator().manual_seed(3)

    def states(layers: int, width: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(2, 6, width, generator=generator) for _ in range(layers + 1))

    ours, theirs = projections(3, 4, 0, layers=2), projections(3, 8, 1, layers=6)
    a, b = states(2, 12), states(6, 24)
    logits = [torch.randn(2, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    matrix = torch.nn.Linear(12, 24, bias=False)
    student = outputs(ours, hidden_states=a, logits=logits[0])
    teacher = outputs(theirs, hidden_states=b, logits=logits[1])
    batch = {"mask": torch.tensor([True, True])}
    loss = TinyBERT(TEACHER).loss(student, teacher, batch, matrix)
    layers = {1: 3, 2: 6}
    wanted = sum(F.mse_loss(matrix(a[m])[MASK], b[g][MASK]) for m, g in {0: 0, **layers}.items())
    wanted += sum(AttentionScores(TEACHER, {m: g}).loss(student, teacher, batch) for m, g in layers.items())
    alone = TinyBERT(TEACHER, prediction=0.0).loss(student, teacher, batch, matrix)
    assert float(alone.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    soft = F.kl_div(logits[0].log_softmax(-1), logits[1].softmax(-1), reduction="batchmean")
    assert float((loss - alone).detach()) == pytest.approx(float(soft), rel=1e-4)
    assert "logits" not in TinyBERT(TEACHER, prediction=0.0).wants


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "gpt2"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_captured_scores_are_the_models_attention_with_any_kernel(family, kernel):
    model = tiny_models.build(family)
    (batch,) = tiny_models.batches(model, 1)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(kernel)
    hooks = sum(len(module._forward_hooks) for module in model.modules())  # transformers has some of its own
    with torch.no_grad(), capture_projections(model) as found:
        model(**inputs)
    assert len(found) == len(attentions)
    mask = inputs["attention_mask"].bool()
    for layer, wanted in zip(found, attentions, strict=True):
        scores = layer.queries @ layer.keys.transpose(-1, -2) / math.sqrt(layer.queries.shape[-1])
        allowed = mask[:, None, None].expand(scores.shape)
        allowed = allowed.tril() if layer.causal else allowed
        found_weights = scores.masked_fill(~allowed, -1e9).softmax(-1)
        real = mask[:, None, :, None].expand(scores.shape)
        assert torch.allclose(found_weights[real], wanted[real], atol=1e-5)
    assert found[0].causal is (family == "gpt2")
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, in this test
def test_heads_that_queries_share_are_repeated_and_an_adapters_output_is_captured():
    from peft import LoraConfig, get_peft_model

    model = tiny_models.build("llama")
    (batch,) = tiny_models.batches(model, 1)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with capture_projections(model) as found:
        model(**inputs)
    assert found[0].queries.shape[1] > found[0].keys.shape[1]
    mask = inputs["attention_mask"].bool()
    student = Outputs(projections=tuple(found), mask=mask)
    loss = Relations(TEACHER, kinds=("kk", "vv")).loss(student, student, {})
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with capture_projections(adapted) as changed:
        adapted(**inputs)
    assert torch.equal(changed[0].keys, found[0].keys)
    assert not torch.allclose(changed[0].queries, found[0].queries)


@pytest.mark.parametrize(
    ("student", "teacher", "objective", "message"),
    [
        ("llama", "llama", Relations(TEACHER), "depend on a rotary embedding"),
        ("mpnet", "mpnet", AttentionScores(TEACHER), "depend on a position bias"),
        ("bert", "gpt2", Relations(TEACHER, kinds=("vv",)), "is causal and the other reads texts as a whole"),
        ("t5", "t5", Relations(TEACHER), "queries, keys and values of T5"),
        ("bert", "bert", Relations(TEACHER, layers=(1, 9)), "the teacher 3"),
        ("bert", "bert", Relations(TEACHER, heads=5), "does not divide the 32 features"),
        ("bert", "bert", AttentionScores(TEACHER, {4: 1}), "the student has 3"),
    ],
)  # fmt: skip
def test_models_whose_attentions_cannot_be_compared_are_refused(student, teacher, objective, message):
    with pytest.raises(MethodMisfit, match=message):
        objective.modules(tiny_models.build(student), tiny_models.build(teacher))


def test_other_numbers_of_heads_are_refused_with_the_way_out():
    model = tiny_models.build("bert")
    other = tiny_models.bert(tiny_models.word_pieces(["a b"]), num_attention_heads=2)
    with pytest.raises(MethodMisfit, match=r"4 attention heads and its teacher 2.*heads=\.\.\."):
        Relations(TEACHER).modules(model, other)
    Relations(TEACHER, kinds=("qq", "kk", "vv"), heads=8).modules(model, other)
    assert TinyBERT(TEACHER).modules(model, model) is None
    wide = tiny_models.bert(tiny_models.word_pieces(["a b"]), hidden_size=48)
    assert TinyBERT(TEACHER).modules(model, wide).weight.shape == (48, 32)
    assert isinstance(HiddenStates(TEACHER).modules(model, wide), torch.nn.Linear)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relations(TEACHER, kinds=("qv",)), 'no relation "qv"'),
        (lambda: Relations(TEACHER, kinds=()), "kinds is"),
        (lambda: Relations(TEACHER, heads=0), "heads is 0"),
        (lambda: Relations(TEACHER, layers=(0, 1)), "counted from 1"),
        (lambda: AttentionScores(TEACHER, {}), "layers is"),
        (lambda: TinyBERT(TEACHER, layers={0: 0}), "counted from 1"),
        (lambda: TinyBERT(TEACHER, prediction=-1.0), "prediction is -1.0"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(DefinitionError, match=message):
        make()
