"""Movement pruning against the paper's equations written out in float64, and what must hold for its result."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, batches, build
from torch import nn
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats import layouts
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.pruning import Cubic, Magnitude, Movement, cubic_sparsity
from datadreamer_like.pruning.while_training import masked
from datadreamer_like.quantization import DynamicInt8

QUICK = Cubic(warmup=0.0, cooldown=0.25)


class Net(nn.Module):
    """Two layers without blocks, whose forward gives a loss."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = (self.two(torch.tanh(self.one(x))) - labels).square().mean()
        return type("Outputs", (), {"loss": loss})()  # type: ignore[no-any-return]


def data(*sizes: int, rows: int = 32, count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(sizes[0], sizes[2], generator=generator)
    xs = [torch.randn(rows, sizes[0], generator=generator) for _ in range(count)]
    return [{"x": x, "labels": x @ teacher} for x in xs]


def written_out(model: Net, batches: list[dict[str, torch.Tensor]], method: Movement) -> dict[str, np.ndarray]:
    """`W' = W ⊙ Top_v(S)`, `∂L/∂S = ∂L/∂W' ⊙ W`, both learned by Adam, in float64.

    Compare after some steps of warm-up: Adam's first step moves all scores equally far, up to rounding.
    """
    values = {name: value.detach().double() for name, value in model.named_parameters()}
    scores = {name: torch.zeros_like(values[name]) for name in ("one.weight", "two.weight")}
    masks = {name: torch.ones_like(score) for name, score in scores.items()}
    moments: dict[str, list[torch.Tensor]] = {}

    def adam(name: str, value: torch.Tensor, gradient: torch.Tensor, step: int) -> torch.Tensor:
        first, second = moments.get(name, [torch.zeros_like(value)] * 2)
        moments[name] = [0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2]
        first, second = (m / (1 - decay**step) for m, decay in zip(moments[name], (0.9, 0.999), strict=True))
        return value - method.learning_rate * first / (second.sqrt() + 1e-8)

    steps = method.epochs * len(batches)
    for step in range(1, steps + 1):
        batch = batches[(step - 1) % len(batches)]
        seen = {name: (value * masks.get(name, 1)).requires_grad_() for name, value in values.items()}
        hidden = torch.tanh(F.linear(batch["x"].double(), seen["one.weight"], seen["one.bias"]))
        out = F.linear(hidden, seen["two.weight"], seen["two.bias"])
        (out - batch["labels"].double()).square().mean().backward()
        for name, value in dict(values).items():
            gradient = seen[name].grad
            assert gradient is not None
            if name in scores:
                scores[name] = adam(f"{name} scores", scores[name], gradient * value, step)
            values[name] = adam(name, value, gradient * masks.get(name, 1), step)
        begin, end = round(method.schedule.warmup * steps), round((1 - method.schedule.cooldown) * steps)
        share = method.sparsity * (1 - (1 - min(1, max(0, step - begin) / (end - begin))) ** 3)
        for name, score in scores.items():
            lowest = score.flatten().argsort(stable=True)[: round(share * score.numel())]
            masks[name] = torch.ones_like(score).flatten().index_fill(0, lowest, 0).view(score.shape)
    return {name: (value * masks.get(name, 1)).numpy() for name, value in values.items()}


@pytest.mark.parametrize(
    "method",
    [
        Movement(0.6, Cubic(warmup=0.3, cooldown=0.4), learning_rate=0.02, epochs=5),
        Movement(0.9, Cubic(warmup=0.2, cooldown=0.2), learning_rate=0.05, epochs=10),
    ],
    ids=["60 %", "90 %"],
)
def test_it_is_the_papers_algorithm(method: Movement) -> None:
    model, given = Net(7, 12, 3), data(7, 12, 3)
    expected = written_out(model, given, method)
    found = method.apply(model, given)
    for name, value in found.named_parameters():
        assert np.array_equal(value.detach().numpy() == 0, expected[name] == 0), name
        np.testing.assert_allclose(value.detach().numpy(), expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert type(found.one) is nn.Linear


def test_the_gradient_of_the_scores_goes_straight_through_the_choice() -> None:
    model = Net(5, 6, 2).double()
    batch = {name: value.double() for name, value in data(5, 6, 2)[0].items()}
    method = Movement(0.5, QUICK)
    method.begin(model)
    for each in masked(model):
        torch.manual_seed(1)
        each.mask.mask.copy_(torch.rand(each.weight.shape) > 0.5)
    model(**batch).loss.backward()
    plain = Net(5, 6, 2).double()
    for each in masked(model):
        plain.get_parameter(each.name).data.mul_(each.mask.mask)
    plain(**batch).loss.backward()
    for each in masked(model):
        of_masked = plain.get_parameter(each.name).grad
        assert of_masked is not None
        torch.testing.assert_close(each.weight.grad, of_masked * each.mask.mask)
        torch.testing.assert_close(each.mask.scores.grad, (of_masked * each.weight).float())


def test_a_small_weight_that_grows_stays_and_a_large_one_that_shrinks_goes() -> None:
    model = Net(2, 2, 1)
    with torch.no_grad():
        model.one.weight.copy_(torch.tensor([[0.1, 0.8], [0.1, 0.8]]))
        model.two.weight.fill_(1.0)
        model.one.bias.zero_()
        model.two.bias.zero_()
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(64, 2, generator=generator) for _ in range(4)]
    given = [{"x": x, "labels": 2 * torch.tanh(x[:, :1])} for x in xs]  # only the first input counts
    method = Movement(0.5, Cubic(warmup=0.5, cooldown=0.25), exclude=("two",), learning_rate=0.02, epochs=10)
    found = method.apply(model, given)
    assert (found.one.weight[:, 0] != 0).all()
    assert (found.one.weight[:, 1] == 0).all()
    assert (Magnitude(0.5, exclude=("two.*",)).apply(model).one.weight[:, 0] == 0).all()


def test_what_was_removed_may_come_back() -> None:
    model, given = Net(7, 12, 3), data(7, 12, 3)
    method = Movement(0.7, Cubic(warmup=0.0, cooldown=0.8))
    method.begin(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ever_removed = {each.name: torch.zeros_like(each.mask.mask) for each in masked(model)}
    back = 0
    for step in range(1, 31):
        model(**given[step % 3]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, step, 30)
        for each in masked(model):
            back += int((ever_removed[each.name] & each.mask.mask).sum())
            ever_removed[each.name] |= ~each.mask.mask
            assert int((~each.mask.mask).sum()) == round(
                cubic_sparsity(step, final=0.7, steps=6) * each.mask.mask.numel()
            )
    assert back > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_of_the_blocks_has_exactly_the_zeros_asked_for_and_embeddings_rest(family: str) -> None:
    model = build(family)
    found = Movement(0.75, QUICK, learning_rate=1e-3, epochs=4).apply(model, batches(model))
    inside = block_linears(found)
    assert set(layouts(found)[0]["modules"]) == set(inside)
    for name, layer in inside.items():
        assert int((weight_of(layer) == 0).sum()) == round(0.75 * weight_of(layer).numel()), name
    for name, module in found.named_modules():
        if isinstance(module, nn.Embedding):
            assert torch.equal(module.weight, model.get_submodule(name).weight)
            assert module.weight.requires_grad
    moved = [name for name, value in found.named_parameters() if not torch.equal(value, model.get_parameter(name))]
    assert any("norm" in name.lower() or "ln_" in name for name in moved)


def test_dropout_and_the_random_generator_change_nothing() -> None:
    model = build("bert")
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(Movement.example().apply(copy.deepcopy(model).train(), batches(model)))
    assert results[0].training
    for one, two in zip(*(found.parameters() for found in results), strict=True):
        assert torch.equal(one, two)


def test_the_cubic_schedule_rises_between_its_bounds_and_holds_between_refreshes() -> None:
    schedule = Cubic(every=7, warmup=0.1, cooldown=0.25, initial=0.2)
    assert schedule.bounds(200) == (20, 150)
    for step in range(201):
        held = (min(max(step - 20, 0), 130) // 7) * 7
        expected = 0.9 if step >= 150 else 0.9 + (0.2 - 0.9) * (1 - held / 130) ** 3
        assert schedule.sparsity(step, 200, 0.9) == pytest.approx(expected)
    rising = [step for step in range(1, 151) if schedule.is_due(step, 200)]
    assert rising == [*range(20, 150, 7), 150]
    assert Cubic(warmup=0.0, cooldown=0.5).bounds(1) == (0, 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cubic(every=0), "at least 1"),
        (lambda: Cubic(warmup=0.6, cooldown=0.4), "no step to remove weights in"),
        (lambda: Cubic(initial=1.0), "under 1"),
        (lambda: Movement(1.5), "under 1"),
        (lambda: Movement(0.5, schedule=None), "Movement needs one"),
        (lambda: Movement(0.5, epochs=0), "number of passes"),
        (lambda: Movement(0.5, learning_rate=0.0), "above 0"),
        (lambda: Movement(0.5, exclude="query"), "tuple of patterns"),
        (lambda: Magnitude(0.5, schedule=Cubic(), include=("norms",)), "Leave pattern and include out"),
        (lambda: Magnitude(pattern=(2, 4), schedule=Cubic()), "Leave pattern and include out"),
        (lambda: Magnitude(0.5, schedule=10), "must be a pruning.Cubic"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: object, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        make()  # type: ignore[operator]


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    model = build("bert")
    with pytest.raises(MethodMisfit, match="no linear layers"):
        Movement(0.5).apply(nn.Sequential(nn.ReLU()), [{}])
    with pytest.raises(MethodMisfit, match="quantized already"):
        Movement(0.5).apply(DynamicInt8().apply(model), [{}])
    for method in (Movement(0.5), Magnitude(0.5, schedule=Cubic())):
        assert "sparse already" in str(method.fits(Magnitude(0.5).apply(model)))
    with pytest.raises(EmptyDataset, match="no calibration batch"):
        Movement(0.5).apply(model, [])
    with pytest.raises(DefinitionError, match="removes weights during a training, and there is none"):
        Magnitude(0.5, schedule=Cubic()).apply(model)
