from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import Lasso, Ridge
from tiny_models import batches, build, logits
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from datadreamer_like import pruning, quantization
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.pruning.forward_only import Round, cost_by_unit, prior
from datadreamer_like.pruning.structure import Units, attentions, feed_forwards


def units(model: nn.Module) -> list[Units]:
    return [*attentions(model), *feed_forwards(model)]


def prunable(model: nn.Module) -> int:
    return sum(unit.groups * unit.unit_parameters for unit in units(model))


FAMILIES = ["bart", "bert", "gpt2", "llama", "mpnet", "phi3", "t5"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_share_asked_for_goes_and_the_model_runs(family: str) -> None:
    model = build(family)
    small = pruning.ForwardOnly(0.3, step=0.1, samples=8).apply(model, batches(model, 1))
    largest = max(unit.unit_parameters for unit in units(model))
    assert abs(prunable(model) - prunable(small) - 0.3 * prunable(model)) <= largest / 2
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
    assert gone >= prunable(model) - prunable(small)  # biases go too
    assert torch.isfinite(logits(small, batches(model)[0])).all()


def test_no_gradient_is_ever_enabled() -> None:
    model = build("llama")
    calls = []

    def check(_: nn.Module, __: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        calls.append((torch.is_grad_enabled(), tensor.requires_grad, tensor.grad_fn))

    for layer in model.model.layers:  # a copy of the model keeps its hooks
        layer.register_forward_hook(check)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.enable_grad():
        pruning.ForwardOnly(0.2, step=0.1, samples=4).apply(model, batches(model, 1))
    # Per round a pass for the prior and one a sample, through three layers.
    assert len(calls) == 2 * (1 + 4) * 3
    assert set(calls) == {(False, False, None)}


def test_the_prior_is_the_norm_of_activations_times_that_of_weights() -> None:
    model = build("llama").double().requires_grad_(False)
    data = batches(model)
    inputs: dict[str, list[Tensor]] = {unit.name: [] for unit in units(model)}
    for unit in units(model):
        unit.output.register_forward_pre_hook(lambda _, given, name=unit.name: inputs[name].append(given[0]))
    with torch.no_grad():
        found = prior(model, units(model), data)  # type: ignore[arg-type]
    mask = torch.cat([batch["attention_mask"] for batch in data]).bool()
    for unit, scores in zip(units(model), found, strict=True):
        tokens = torch.cat(inputs[unit.name])[mask]
        expected = []
        for group in range(unit.groups):
            features = range(group * unit.group_size, (group + 1) * unit.group_size)
            terms = [tokens[:, f].norm() ** 2 * unit.output.weight[:, f].norm() ** 2 for f in features]
            expected.append(float(sum(terms)) ** 0.5)
        assert scores.tolist() == pytest.approx(expected, rel=1e-5)


def test_drawn_models_have_the_rounds_size_and_lack_units_of_low_prior_more_often() -> None:
    model = build("gpt2")
    with torch.no_grad():
        target = 0.1 * prunable(model)
        one = Round(units(model), prior(model, units(model), batches(model)), target)  # type: ignore[arg-type]
    absent = one.draw(400, torch.Generator().manual_seed(0))
    sizes = absent.double() @ one.size
    assert float((sizes - target).abs().max()) <= float(one.size.max()) / 2
    assert float(one.size.sum()) == pytest.approx(2 * target, abs=float(one.size.max()))
    density, often = one.prior / one.size, absent.double().mean(0)
    neurons = one.size == one.size.min()
    low = density[neurons] < density[neurons].median()
    assert float(often[neurons][low].mean()) > float(often[neurons][~low].mean()) + 0.05


@pytest.mark.parametrize("regression", ["ridge", "lasso"])
def test_the_regression_is_that_of_the_formula(regression: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    absent = torch.rand(40, 12, generator=generator) < 0.5
    size = torch.tensor([1.0, 4.0] * 6).double()
    expected = torch.rand(12, generator=generator).double()
    losses = 2 + absent.double() @ torch.randn(12, generator=generator).double()
    found = cost_by_unit(absent, losses, expected, size, regression, 0.05)
    # Reference: sklearn on the same model, with the part of the prior by ordinary least squares first.
    x, y = absent.double().numpy(), losses.numpy()
    x, y = x - x.mean(0), y - y.mean()
    along = x @ expected.numpy()
    scale = max(0.0, float(along @ y / (along @ along)))
    rest, features = y - scale * along, x * size.sqrt().numpy()
    if regression == "ridge":
        strength = 0.05 * (features**2).sum(1).mean()
        deviation = Ridge(alpha=strength, fit_intercept=False).fit(features, rest).coef_
    else:
        strength = 0.05 * abs(features.T @ rest).max() / len(rest)
        deviation = Lasso(alpha=strength, fit_intercept=False, tol=1e-8, max_iter=100_000).fit(features, rest).coef_
    reference = scale * expected.numpy() / size.numpy() + deviation / size.sqrt().numpy()
    assert found.numpy() == pytest.approx(reference, abs=1e-6 if regression == "ridge" else 5e-3)


def test_true_costs_are_found_where_the_prior_says_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(30, generator=generator).double()
    absent = torch.rand(300, 30, generator=generator) < 0.5
    losses = 3 + absent.double() @ truth + 0.01 * torch.randn(300, generator=generator).double()
    flat = torch.ones(30).double()
    for regression in ("ridge", "lasso"):
        found = cost_by_unit(absent, losses, flat, flat, regression, 0.01)  # type: ignore[arg-type]
        assert float((found - truth).abs().max()) < 0.1
        assert set(found.argsort()[:10].tolist()) >= set(truth.argsort()[:7].tolist())


def test_the_penalty_of_the_smallest_leave_one_out_error_is_chosen() -> None:
    generator = torch.Generator().manual_seed(1)
    absent = torch.rand(30, 12, generator=generator) < 0.5
    size, flat = torch.tensor([1.0, 4.0] * 6).double(), torch.ones(12).double()
    truth = torch.randn(12, generator=generator).double()
    losses = absent.double() @ truth + 0.5 * torch.randn(30, generator=generator).double()
    found = cost_by_unit(absent, losses, flat, size, "ridge", None)
    # Reference: each sample is left out in turn.
    x, y = absent.double(), losses
    x, y = x - x.mean(0), y - y.mean()
    along = x @ flat
    rest, features = y - max(0.0, float(along @ y / (along @ along))) * along, x * size.sqrt()
    scale, errors = float(features.square().sum(1).mean()), {}
    for penalty in (0.1, 1.0, 10.0, 100.0):
        errors[penalty] = 0.0
        for index in range(30):
            others = [other for other in range(30) if other != index]
            fitted = Ridge(alpha=penalty * scale, fit_intercept=False).fit(features[others], rest[others])
            errors[penalty] += float(rest[index] - features[index] @ torch.from_numpy(fitted.coef_)) ** 2
    best = min(errors, key=lambda penalty: errors[penalty])
    assert errors[best] < float(rest.square().sum())
    torch.testing.assert_close(found, cost_by_unit(absent, losses, flat, size, "ridge", best))
    # Where deviations are noise, only the prior is left.
    noise = torch.randn(30, generator=generator).double()
    costs = torch.stack([cost_by_unit(absent, noise.roll(turn), flat, size, "ridge", None) for turn in range(30)])
    assert int((costs * size == (costs * size)[:, :1]).all(1).sum()) > 10


def test_planted_useless_neurons_are_found_where_the_prior_misses_them() -> None:
    model = build("bert")
    # Without labels it regresses on its own logits, so the loss is smallest, 0, without any pruning.
    model.config.problem_type = "regression"
    data = [{name: value for name, value in batches(model, 1, size=16)[0].items() if name != "labels"}]
    networks = list(feed_forwards(model))
    with torch.no_grad():
        values = prior(model, networks, data)  # type: ignore[arg-type]
        lengths = [unit.output.weight.norm(dim=0) for unit in networks]
        for unit, value, length in zip(networks, values, lengths, strict=True):
            # Neurons 0 to 7 add the same to all hidden dimensions, which the norm behind takes away. Their prior is
            # that of the neuron of rank 3, so that others look less important.
            wanted = value.sort().values[3]
            for neuron in range(8):
                size = float(wanted / (value[neuron] / length[neuron]))
                unit.output.weight[:, neuron] = size / 32**0.5

    def planted_left(small: Any) -> int:
        pairs = zip(small.bert.encoder.layer, model.bert.encoder.layer, strict=True)
        return sum(
            bool((new.intermediate.dense.weight == row).all(1).any())
            for new, old in pairs
            for row in old.intermediate.dense.weight[:8]
        )

    # Eight neurons go, of the sixteen that the prior puts first.
    target = 8 * networks[0].unit_parameters
    with torch.no_grad():
        one = Round(units(model), prior(model, units(model), data), target)  # type: ignore[arg-type]
    layer_of_network = len(list(attentions(model)))
    planted = [layer >= layer_of_network and unit < 8 for layer, unit in one.candidates]
    assert len(planted) == 16
    assert sum(planted[:8]) <= 5  # in the order of the prior
    assert sum(planted) >= 7
    share = target / prunable(model)
    found = pruning.ForwardOnly(share, step=share, samples=120, penalty=0.01).apply(model, data)
    assert planted_left(model) == 24
    assert planted_left(found) <= 24 - 6


def test_saved_is_loaded(tmp_path: Path) -> None:
    model = build("phi3")
    small = pruning.ForwardOnly(0.5, step=0.25, samples=6).apply(model, batches(model))
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = batches(model)[0]
    torch.testing.assert_close(logits(loaded, batch), logits(small, batch))
    assert [unit.groups for unit in units(loaded)] == [unit.groups for unit in units(small)]


def test_misuse_is_refused() -> None:
    model = build("bert")
    for options, message in [
        ({"sparsity": 1.0}, "under 1"),
        ({"sparsity": 0.5, "step": 0}, "step is 0"),
        ({"sparsity": 0.5, "samples": 1}, "samples=1"),
        ({"sparsity": 0.5, "regression": "huber"}, "regression"),
        ({"sparsity": 0.5, "penalty": 0}, "penalty is 0"),
        ({"sparsity": 0.5, "penalty": float("nan")}, "penalty is nan"),
    ]:
        with pytest.raises(DefinitionError, match=message):
            pruning.ForwardOnly(**options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="samples must be a whole number"):
        pruning.ForwardOnly(0.5, samples=2.5)  # type: ignore[arg-type]
    with pytest.raises(EmptyDataset):
        pruning.ForwardOnly(0.5).apply(model, [])
    with pytest.raises(MethodMisfit, match="less than one neuron"):
        pruning.ForwardOnly(0.999).apply(model, batches(model))
    with pytest.raises(MethodMisfit, match="no attention and no feed-forward"):
        pruning.ForwardOnly(0.5).apply(nn.Linear(2, 2), [])
    with pytest.raises(MethodMisfit, match="quantized already"):
        pruning.ForwardOnly(0.5).apply(quantization.DynamicInt8().apply(model), [])
    nothing = [{**batch, "labels": torch.full_like(batch["input_ids"], -100)} for batch in batches(build("llama"))]
    with pytest.raises(DataError, match="infinite or NaN"):
        pruning.ForwardOnly(0.5, samples=2).apply(build("llama"), nothing)
