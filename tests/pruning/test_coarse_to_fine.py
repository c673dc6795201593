"""Coarse-to-fine pruning against the paper's formulas in float64, and what must hold for its result."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import batches, build, logits, made
from torch import nn

from datadreamer_like.distillation import ClosestLayers, TeacherModel
from datadreamer_like.errors import DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats.modules import block_linears, stacks, weight_of
from datadreamer_like.formats.quantizer import load
from datadreamer_like.pruning import CoarseToFine, Heads, Linear, Magnitude
from datadreamer_like.pruning.encoders import Encoder
from datadreamer_like.pruning.gates import Gates, gates_of
from datadreamer_like.quantization import NF4, DynamicInt8

FAMILIES = ["bert", "roberta", "distilbert"]


def removed(model: nn.Module, small: nn.Module) -> float:
    before, after = (sum(weight_of(each).numel() for each in block_linears(one).values()) for one in (model, small))
    return 1 - after / before


def by_hand(values: np.ndarray, hidden: int, size: int, heads: list[int], neurons: list[int]) -> float:
    """The share of weights that is removed, summed one gate after another as in the paper's equation."""
    layers = len(heads)
    z_hidden, rest = values[:hidden], values[hidden:]
    attentions, feed_forwards, rest = rest[:layers], rest[layers : 2 * layers], rest[2 * layers :]
    kept, everything = 0.0, 0.0
    for sizes, of_layers, weights in ((heads, attentions, 4 * size), (neurons, feed_forwards, 2)):
        for layer, count in enumerate(sizes):
            for gate in rest[:count]:
                for dimension in z_hidden:
                    kept += weights * of_layers[layer] * gate * dimension
                    everything += weights
            rest = rest[count:]
    return 1 - kept / everything


def random_gates(seed: int = 0) -> Gates:
    gates = Gates(6, 3, [2, 3], [5, 4]).double()
    gates.log_alpha.copy_(2 * torch.randn(len(gates.log_alpha), generator=torch.Generator().manual_seed(seed)))
    return gates


def test_sparsity_is_the_papers_sum_over_products_of_gates() -> None:
    gates = random_gates()
    for values in (torch.rand(24, dtype=torch.float64), (torch.rand(24) > 0.4).double()):
        expected = by_hand(values.numpy(), 6, 3, [2, 3], [5, 4])
        assert float(gates.sparsity(values)) == pytest.approx(expected, abs=1e-12)


def test_an_update_is_adam_on_the_lagrangian_and_what_the_loss_gives() -> None:
    gates, rate = random_gates().train(), 0.05
    a, lambdas = gates.log_alpha.numpy().copy(), np.zeros(2)
    moments = [np.zeros(len(a) + 2), np.zeros(len(a) + 2)]
    weights = torch.linspace(-1, 1, len(a), dtype=torch.float64)

    def probability(a: np.ndarray) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(-(a - 2 / 3 * math.log(1 / 11)))))

    for step, target in enumerate((0.2, 0.4, 0.6), start=1):
        gates.draw()
        z = torch.cat([gates.z.hidden, gates.z.attentions, gates.z.feed_forwards, *gates.z.heads, *gates.z.neurons])
        loss = (z * weights).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        uniform = torch.rand(len(a), generator=torch.Generator().manual_seed(step - 1)).double().numpy()
        s = 1 / (1 + np.exp(-(np.log(uniform / (1 - uniform)) + a) * 1.5))
        inside = (1.2 * s - 0.1 > 0) & (1.2 * s - 0.1 < 1)
        task = weights.numpy() * np.where(inside, 1.2 * 1.5 * s * (1 - s), 0)
        gap = by_hand(probability(a), 6, 3, [2, 3], [5, 4]) - target
        slopes = np.empty(len(a))
        for index in range(len(a)):  # by central differences
            up, down = (a + shift * (np.arange(len(a)) == index) for shift in (1e-6, -1e-6))
            values = [by_hand(probability(each), 6, 3, [2, 3], [5, 4]) for each in (up, down)]
            slopes[index] = (values[0] - values[1]) / 2e-6
        gradient = task + (lambdas[0] + 2 * lambdas[1] * gap) * slopes
        both = np.concatenate([gradient, [-gap, -(gap**2)]])
        moments = [0.9 * moments[0] + 0.1 * both, 0.999 * moments[1] + 0.001 * both**2]
        change = moments[0] / (1 - 0.9**step) / (np.sqrt(moments[1] / (1 - 0.999**step)) + 1e-8)
        a, lambdas = np.clip(a - rate * change[:-2], -math.log(100), math.log(100)), lambdas - rate / 2 * change[-2:]
        gates.update(target, rate)
        np.testing.assert_allclose(gates.log_alpha.numpy(), a, atol=1e-6)
        np.testing.assert_allclose(gates.multipliers.numpy(), lambdas, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", [0.0, 0.35, 0.6, 0.9])
def test_what_is_decided_is_within_a_percent_of_the_target(target: float, seed: int) -> None:
    gates = Gates(32, 8, [4] * 3, [48] * 3)
    gates.log_alpha.copy_(3 * torch.randn(len(gates.log_alpha), generator=torch.Generator().manual_seed(seed)))
    gates.decide(target)
    found = float(gates.sparsity((gates.final > 0).double()))
    assert found == pytest.approx(target, abs=0.01)
    neurons, scores = gates.parts(gates.final).neurons, gates.parts(gates.log_alpha).neurons
    for z, score in zip(neurons, scores, strict=True):
        if 0 < int((z == 0).sum()) < len(z):
            assert score[z == 0].max() <= score[z > 0].min()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.4, 0.8])
def test_it_gives_the_logits_of_the_gated_model_at_the_sparsity_asked_for(
    family: str, sparsity: float, tmp_path: Any
) -> None:
    model = build(family)
    given = batches(model)
    gated, method = copy.deepcopy(model).eval(), CoarseToFine(sparsity)
    method.begin(gated)
    gates = gates_of(gated)
    gates.log_alpha.copy_(2 * torch.randn(len(gates.log_alpha), generator=torch.Generator().manual_seed(1)))
    gates.decide(sparsity)
    assert len(gates.parts(gates.final).hidden.nonzero()) < 32
    expected = [logits(gated, batch) for batch in given]
    method.end(gated)
    assert removed(model, gated) == pytest.approx(sparsity, abs=0.01)
    gated.save_pretrained(tmp_path)
    saved = load(tmp_path)
    assert saved.config.hidden_size == len(saved.get_input_embeddings().weight.T)  # type: ignore[union-attr, operator]
    for batch, found in zip(given, expected, strict=True):
        torch.testing.assert_close(logits(gated, batch), found, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits(saved, batch), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("closed", ["attention", "feed forward", "both", "heads", "neurons"])
def test_a_layer_whose_gate_is_closed_is_gone(family: str, closed: str, tmp_path: Any) -> None:
    model = build(family)
    batch, method, blocks = batches(model)[0], CoarseToFine(0.1), Encoder(model).blocks
    method.begin(model)
    gates = gates_of(model)
    gates.final.fill_(1.0)
    found = gates.parts(gates.final)
    for part in {"both": (found.attentions, found.feed_forwards), "attention": (found.attentions,)}.get(closed, ()):
        part[1] = 0
    if closed == "feed forward":
        found.feed_forwards[1] = 0
    elif closed in ("heads", "neurons"):
        (found.heads if closed == "heads" else found.neurons)[1].zero_()
    expected = logits(model, batch)
    method.end(model)
    assert len(stacks(model)[0].blocks) == (2 if closed == "both" else 3)
    norm = {"attention": "attention_norm", "feed forward": "norm"}.get(closed)
    if norm:
        assert isinstance(model.get_submodule(getattr(blocks[1], norm)), nn.Identity)
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load(tmp_path), batch), expected, rtol=1e-5, atol=1e-5)


def test_open_gates_change_nothing() -> None:
    model = build("bert")
    batch, gated = batches(model)[0], copy.deepcopy(model)
    CoarseToFine(0.5).begin(gated)
    gates_of(gated).final.fill_(1.0)
    torch.testing.assert_close(logits(gated, batch), logits(model, batch), rtol=1e-5, atol=1e-5)


def test_planted_useless_parts_go_first() -> None:
    model = build("bert")
    block = model.bert.encoder.layer[1]
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.output.dense.weight[:, 8:16] = 0  # a head that nothing reads
        block.output.dense.weight[:, :24] = 0  # neurons that nothing reads
        for weight in (model.classifier.weight, block.output.dense.weight, block.intermediate.dense.weight):
            weight.mul_(3)
    small_gates: list[Gates] = []

    class Watched(CoarseToFine):
        def end(self, model: nn.Module) -> None:
            small_gates.append(gates_of(model))
            super().end(model)

    Watched(0.3, epochs=40, learning_rate=1e-4).apply(model, batches(model, 4, 16))
    scores = small_gates[0].parts(small_gates[0].log_alpha)
    assert int(scores.heads[0].argmin()) == 1
    lowest = scores.neurons[1].argsort()[:24]
    assert int((lowest < 24).sum()) >= 18  # of a random order 12


def test_calibration_without_a_trainer_trains_against_the_model_as_it_was() -> None:
    model = build("bert")
    given = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches(model)]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(CoarseToFine(0.5, epochs=10, learning_rate=1e-3).apply(copy.deepcopy(model).train(), given))
    assert results[0].training
    assert removed(model, results[0]) == pytest.approx(0.5, abs=0.01)
    states = [found.state_dict() for found in results]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not any("gates" in name or "coarse" in name for name in states[0])


@pytest.mark.parametrize("kind", ["tokens", "several classes", "bfloat16"])
def test_it_takes_other_classifiers_and_16_bits(kind: str) -> None:
    model: Any = build("bert")
    given = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches(model)]
    if kind == "tokens":
        model = made(transformers.BertForTokenClassification, model.config).eval()
    elif kind == "several classes":
        model.config.problem_type = "multi_label_classification"
    else:
        model = model.bfloat16()
    small = CoarseToFine(0.4, epochs=3).apply(model, given)
    assert removed(model, small) == pytest.approx(0.4, abs=0.01)
    found = small(**given[0]).logits
    assert found.dtype == model.dtype
    assert found.isfinite().all()


def test_the_result_is_trained_further_and_quantized(tmp_path: Any) -> None:
    model = build("bert")
    batch = batches(model)[0]
    CoarseToFine(0.6, epochs=3).apply(model, [batch]).save_pretrained(tmp_path / "small")
    small = load(tmp_path / "small")
    expected = logits(small, batch)
    small(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    coded = NF4().apply(small)
    coded.save_pretrained(tmp_path / "coded")
    found = logits(load(tmp_path / "coded"), batch)
    torch.testing.assert_close(found, logits(coded, batch), rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, expected)


def test_gradients_that_a_scaler_has_multiplied_are_refused() -> None:
    model = build("bert")
    CoarseToFine(0.5).begin(model.train())
    with pytest.raises(DefinitionError, match="fp16 scales"), torch.autocast("cpu", torch.float16):
        model(**batches(model)[0])


def test_the_target_rises_linearly_and_what_is_removed_is_decided_once() -> None:
    schedule = Linear(rise=0.25, cooldown=0.5)
    assert schedule.bounds(200) == (0, 100)
    assert [schedule.sparsity(step, 200, 0.8) for step in (0, 25, 50, 200)] == pytest.approx([0, 0.4, 0.8, 0.8])
    model = build("bert")
    method = CoarseToFine(0.6, schedule)
    method.begin(model.train())
    for step in range(1, 7):
        method.after_step(model, step, 6)
        assert gates_of(model).is_decided == (step >= 3)
        final = gates_of(model).final.clone()
        method.after_step(model, step, 6) if step >= 3 else None
        assert torch.equal(final, gates_of(model).final)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CoarseToFine(1.0), "under 1"),
        (lambda: CoarseToFine(-0.1), "at least 0"),
        (lambda: CoarseToFine(0.5, schedule=None), "CoarseToFine needs one"),
        (lambda: CoarseToFine(0.5, epochs=0), "number of passes"),
        (lambda: CoarseToFine(0.5, learning_rate=0.0), "above 0"),
        (lambda: CoarseToFine(0.5, gate_learning_rate=-1.0), "gate_learning_rate is -1.0; it must be over 0"),
        (lambda: Linear(rise=0.7, cooldown=0.4), "at most 1"),
        (lambda: Linear(rise=1.5), "under 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        make()


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    model, method = build("bert"), CoarseToFine(0.5)
    for other, says in {
        "gpt2": "none of the encoders",
        "llama": "none of the encoders",
        "t5": "none of the encoders",
        "bert-mlm": "its head is not one for classes",
    }.items():
        with pytest.raises(MethodMisfit, match=says):
            method.apply(build(other), [{}])
    assert "its head" in str(method.fits(model.bert))
    assert "quantized already" in str(method.fits(DynamicInt8().apply(model)))
    assert "sparse already" in str(method.fits(Magnitude(0.5).apply(model)))
    assert "narrowed before" in str(method.fits(Heads(0.5).apply(model, batches(model))))
    with pytest.raises(EmptyDataset, match="no calibration batch"):
        method.apply(model, [])
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    assert "infinities or NaN" in str(method.why_not(model))


def test_its_objective_is_the_papers_with_the_given_teacher() -> None:
    teacher = TeacherModel(build("bert"), str)
    assert CoarseToFine(0.5).objective(teacher) == ClosestLayers(teacher, temperature=2.0, weight=0.9)
