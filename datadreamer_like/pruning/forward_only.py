"""Structured pruning by forward passes alone: which heads and neurons matter is regressed from masked models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.calibration import (
    answers_with_classes,
    as_list,
    check_measured,
    loss_on,
    on_device,
    predicted,
)
from datadreamer_like.compression.method import already_quantized, check_share
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import DataError, DefinitionError, check_number
from datadreamer_like.formats.modules import weight_of

from .structure import Units, attentions, feed_forwards, masked, record


@dataclass(frozen=True)
class ForwardOnly(CompressionMethod):
    """Removes the heads and neurons that masked models miss least; needs the memory of forward passes, no gradient.

    Dery et al., "Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes" (Bonsai), 2024,
    arXiv:2402.05406. In rounds of a small `step`: a prior orders heads and neurons, from their activations and the
    weights that read them (`||x_j|| ||W_:j||`, relative to their layer's mean). Those of the lowest prior, twice as
    many as the round removes, are candidates. `samples` models of the round's size are drawn, each without some
    candidates, those of a low prior more often. The loss of each on the calibration data is regressed on which
    candidates it lacks, and the candidates of the lowest cost a parameter are removed. In the regression the cost of a
    unit is `c * prior` plus a deviation of its own; only deviations are penalised, by ridge or lasso, so that few
    samples fall back to the prior.

    Time is `rounds * samples` forward passes over the calibration data: use few batches. Without labels, a language
    model's targets are its input, a classifier's those that it predicts before any pruning. Train the result shortly
    to recover. Layers end up with different widths, which no config can say: what is saved loads in transformers after
    `import datadreamer_like.pruning`, not in vLLM or llama.cpp. For these use `Width`.

    Attributes:
        sparsity: Share to remove, in [0, 1), of the parameters of heads and neurons; embeddings are not counted.
        step: Share to remove in one round.
        samples: Models whose loss is measured in one round.
        regression: "ridge" (the paper's text) or "lasso" (its code).
        penalty: Strength of the regularisation, relative to the scale of the data: for ridge a multiple of the mean
            square of a sample's features, for lasso a share of the smallest strength at which no deviation is left.
            None: for ridge the one of the smallest leave-one-out error of 0.1, 1, 10, 100 and none at all; for lasso
            0.5.
        seed: Seed of the drawn models.

    Example:
        >>> pruning.ForwardOnly(sparsity=0.2, samples=50).apply(model, batches)  # doctest: +SKIP
    """

    sparsity: float
    step: float = 0.05
    samples: int = 200
    regression: Literal["ridge", "lasso"] = "ridge"
    penalty: float | None = None
    seed: int = 0

    kind = "pruning"
    needs_calibration = True
    states_widths = False
    papers = ("2402.05406",)

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_number(self.step, "step", 0, 1, over=True)
        check_number(self.samples, "samples", -math.inf, whole=True)
        if self.samples < 2:
            raise DefinitionError(
                f"samples={self.samples} must be at least 2, better a hundred: they are regressed on."
            )
        if self.regression not in ("ridge", "lasso"):
            raise DefinitionError(f'regression={self.regression!r} must be "ridge" or "lasso".')
        check_number(self.penalty, "penalty", 0, over=True, optional=True)
        check_number(self.seed, "seed", 0, whole=True)

    @classmethod
    def example(cls) -> Self:
        """Half of all heads and neurons in two rounds of ten models."""
        return cls(sparsity=0.5, step=0.25, samples=10)

    def fits(self, model: nn.Module) -> str | None:
        """Unquantized transformers models with attentions or feed-forward networks of a known class."""
        if reason := already_quantized(model):
            return reason
        units = _units(model)
        if not units:
            return "no attention and no feed-forward network of a supported class was found in it."
        total = sum(unit.groups * unit.unit_parameters for unit in units)
        stays = sum(unit.at_least * unit.unit_parameters for unit in units)
        if self.sparsity * total > total - stays:
            return f"sparsity={self.sparsity} leaves less than one neuron in each feed-forward network."
        return None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Removes units in place, round by round."""
        with eval_mode(model):
            batches = _with_labels(model, as_list(calibration, model, self))
            units = _units(model)
            total = sum(unit.groups * unit.unit_parameters for unit in units)
            left = self.sparsity * total
            generator = torch.Generator().manual_seed(self.seed)
            while left > 0:
                one_round = Round(units, prior(model, units, batches), min(self.step * total, left))
                if not one_round.least:
                    break  # what is left to remove is less than half of any unit
                absent = one_round.draw(self.samples, generator)
                losses = one_round.losses(model, absent, batches)
                cost = cost_by_unit(absent, losses, one_round.prior, one_round.size, self.regression, self.penalty)
                left -= one_round.remove(cost)
            record(model, units)


class Round:
    """One round: its candidates, the models that are drawn, and the removal of what costs least.

    Attributes:
        candidates: Index of the layer in `units`, and of the unit in the layer.
        prior: Of each candidate, relative to its layer's mean and times its size: fp64 [candidates].
        size: Parameters of each candidate: fp64 [candidates].
        least: Whether a candidate is small enough to be removed in this round.
    """

    def __init__(self, units: Sequence[Units], priors: Sequence[Tensor], target: float) -> None:
        self.units, self.target = units, target
        found = [
            (value, layer, unit)
            for layer, values in enumerate(priors)
            for unit, value in enumerate((values.double() / values.double().mean().clamp_min(1e-30)).tolist())
        ]
        best = {(layer, int(values.argmax())) for layer, values in enumerate(priors) if units[layer].at_least}
        found = sorted(entry for entry in found if entry[1:] not in best)
        reached, count = 0.0, 0
        while count < len(found) and reached < 2 * target:
            reached += units[found[count][1]].unit_parameters
            count += 1
        self.candidates = [(layer, unit) for _, layer, unit in found[:count]]
        self.size = torch.tensor([units[layer].unit_parameters for layer, _ in self.candidates], dtype=torch.float64)
        self.prior = self.size * torch.tensor([value for value, _, _ in found[:count]], dtype=torch.float64)
        self.least = bool((self.size <= 2 * target).any())

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Draws models of the round's size: bool [samples, candidates], True for units that a model lacks.

        A unit is removed before another one with probability in inverse proportion to the priors.
        """
        absent = torch.zeros(samples, len(self.candidates), dtype=torch.bool)
        density = (self.prior / self.size).clamp_min(1e-6)
        for row in absent:
            noise = torch.rand(len(density), generator=generator, dtype=torch.float64).clamp_min(1e-30)
            # An exponential race: of two units, i is before j with probability (1/p_i) / (1/p_i + 1/p_j).
            row[self._first(-noise.log() * density)] = True
        return absent

    def losses(self, model: nn.Module, absent: Tensor, batches: list[Mapping[str, Tensor]]) -> Tensor:
        """The mean loss of each drawn model over the batches: fp64 [samples]."""
        device = next(model.parameters()).device
        masks = [torch.ones(unit.groups, device=device) for unit in self.units]
        losses = []
        with masked(self.units, masks):
            for row in absent:
                for (layer, unit), is_absent in zip(self.candidates, row.tolist(), strict=True):
                    masks[layer][unit] = 1.0 - is_absent
                losses.append(sum(float(loss_on(model, batch)) for batch in batches) / len(batches))
        found = torch.tensor(losses, dtype=torch.float64)
        if not found.isfinite().all():
            raise DataError(
                "The loss of a model without some heads or neurons is infinite or NaN. Calibrate in float32, and check "
                "that each batch has tokens or labels that carry loss."
            )
        return found

    def remove(self, cost: Tensor) -> float:
        """Removes the units of the lowest cost, and returns the number of their parameters."""
        chosen = self._first(cost)
        drop: list[set[int]] = [set() for _ in self.units]
        for index in chosen:
            layer, unit = self.candidates[index]
            drop[layer].add(unit)
        for unit_list, groups in zip(self.units, drop, strict=True):
            if groups:
                unit_list.remove(groups)
        return float(self.size[chosen].sum())

    def _first(self, order: Tensor) -> list[int]:
        """The candidates of the lowest values, until their parameters are as near the target as they get."""
        chosen, reached, sizes = [], 0.0, self.size.tolist()
        for index in order.argsort(stable=True).tolist():
            if reached + sizes[index] / 2 <= self.target:
                chosen.append(index)
                reached += sizes[index]
        return chosen


def prior(model: nn.Module, units: Sequence[Units], batches: list[Mapping[str, Tensor]]) -> list[Tensor]:
    """Measures `||x_j|| ||W_:j||` over tokens that are not padding, joined by unit with the l2 norm: fp32 [groups]."""
    alive = [unit for unit in units if unit.groups]
    squares = {unit: torch.zeros(unit.groups * unit.group_size, device=weight_of(unit.output).device) for unit in alive}
    mask: list[Tensor | None] = [None]

    def add(unit: Units, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        if mask[0] is not None and mask[0].shape == values.shape[:2]:
            values = values * mask[0][..., None].to(values)
        squares[unit] += values.square().flatten(0, -2).sum(0)

    with ExitStack() as hooks:
        for unit in alive:
            hooks.enter_context(unit.output.register_forward_pre_hook(partial(add, unit)))
        for batch in batches:
            batch = on_device(batch, model)
            mask[0] = batch.get("attention_mask")
            model(**batch)
    found = []
    for unit in units:
        if unit.groups:
            check_measured(squares[unit], f'The activations of "{unit.name}"')
            total = squares[unit] * weight_of(unit.output).float().square().sum(0)
            found.append(total.view(unit.groups, unit.group_size).sum(1).sqrt().cpu())
        else:
            found.append(torch.zeros(0))
    return found


def cost_by_unit(
    absent: Tensor,
    losses: Tensor,
    prior: Tensor,
    size: Tensor,
    regression: Literal["ridge", "lasso"],
    penalty: float | None,
) -> Tensor:
    """Regresses the loss of masked models on the units that they lack; returns the cost a parameter, fp64 [units].

    `loss = b + sum over absent units of (c * prior + size * d)`, with `c >= 0` and b by least squares, and the
    deviations d penalised. A deviation is that of a mean over `size` parameters, so its variance falls with the size.

    Args:
        absent: bool [samples, units], True for units that a model lacks.
        losses: [samples].
        prior: The expected cost of each unit, in any scale: [units].
        size: Parameters of each unit: [units].
        regression: The penalty on deviations: their squares or their magnitudes.
        penalty: See `ForwardOnly`.
    """
    lacks = absent.double()
    lacks, loss = lacks - lacks.mean(0), losses.double() - losses.double().mean()
    expected = lacks @ prior.double()
    scale = max(0.0, float(expected @ loss / (expected @ expected).clamp_min(1e-30)))
    rest = loss - scale * expected
    # Features in units of the standard deviation of a unit's cost, which is the root of its size.
    features = lacks * size.double().sqrt()
    weights = (_ridge if regression == "ridge" else _lasso)(features, rest, penalty)
    return scale * prior.double() / size.double() + weights / size.double().sqrt()


def _ridge(features: Tensor, target: Tensor, penalty: float | None) -> Tensor:
    # The dual form: there are fewer samples than units.
    kernel = features @ features.T
    unit = kernel.diagonal().mean().clamp_min(1e-30) * torch.eye(len(kernel), dtype=kernel.dtype)

    def error(strength: float) -> float:
        inverse = torch.linalg.inv(kernel + strength * unit)
        return float((inverse @ target / inverse.diagonal()).square().sum())  # leave one out, in closed form

    if penalty is None:
        penalty = min((0.1, 1.0, 10.0, 100.0), key=error)
        if error(penalty) >= float(target.square().sum()):
            return torch.zeros(features.shape[1], dtype=torch.float64)
    weights: Tensor = features.T @ torch.linalg.solve(kernel + penalty * unit, target)
    return weights


def _lasso(features: Tensor, target: Tensor, penalty: float | None) -> Tensor:
    from sklearn.linear_model import Lasso

    strength = (0.5 if penalty is None else penalty) * float((features.T @ target).abs().max()) / len(target)
    if strength == 0:
        return torch.zeros(features.shape[1], dtype=torch.float64)
    lasso: Any = Lasso(alpha=strength, fit_intercept=False, max_iter=5000, tol=1e-3)
    coefficients: Tensor = torch.tensor(lasso.fit(features.numpy(), target.numpy()).coef_, dtype=torch.float64)
    return coefficients


def _units(model: nn.Module) -> list[Units]:
    return [*attentions(model), *feed_forwards(model)]


def _with_labels(model: nn.Module, batches: list[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """Adds what the whole model predicts to batches without labels, so that masked models are measured against it."""
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return batches
    found: list[Mapping[str, Tensor]] = []
    for batch in batches:
        given = on_device(batch, model)
        logits = None if "labels" in given else getattr(model(**given), "logits", None)
        if logits is not None:
            own = predicted(model, logits, given) if answers_with_classes(model, logits) else logits.squeeze(-1)
            batch = {**given, "labels": own}
        found.append(batch)
    return found
