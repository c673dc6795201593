"""The stage that fits a classifier's temperature, so that its probabilities are those of being right."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datadreamer_like.evaluation.calibration import (
    LEAST,
    MOST,
    expected_calibration_error,
    fit_temperature,
    fit_temperatures,
)
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import only_known
from datadreamer_like.models.trained.confidence import Confidence
from datadreamer_like.models.trained.predictions import probabilities

from .held_out import HeldOutRows, HeldOutStage

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("datadreamer_like")

_SHOWN = 5
_EFFECTS = {LEAST: "almost exactly 0 and 1", MOST: "almost the same for all classes"}


class Calibrate(HeldOutStage):
    """Fits a classifier's temperature on held-out rows; the result is the same model with calibrated probabilities.

    Temperature scaling, Guo et al. 2017, arXiv:1706.04599: `predict` divides logits by the temperature, by one for each
    class of a multi-label model. Labels and `logits` stay as they are. As a teacher, or a member of an
    ensemble, the model gives its calibrated probabilities. The temperature is saved next to the weights of this model
    only: after pruning, quantization or further training it is fitted again.

    A temperature is at least 0.01 and at most 100. One at a limit says that the rows do not determine it, as when all
    are right, all are wrong, or there is one: it is warned of, since the probabilities are then almost all 0 and 1, or
    almost equal.

    Args:
        model: The classifier: a trainer, a stage, a `TrainedModel`, a folder, or an id on the Hub. It is not changed.
        inputs: Column of texts that the model was not trained on.
        labels: Column of their labels.
        batch_size: Texts in a batch.
        max_length: Texts are cut at this many tokens; None for the model's own limit.
        device: Device for the work and the result, such as "cuda"; None for the device of `model`.

    Raises:
        SessionError: There is no session.
        NotTrained: The model is a trainer that was not trained yet.
        MethodMisfit: The model is not a classifier.
        LabelError: A label is not one of the model's classes.
        DataError, EmptyDataset, DefinitionError: A value is missing, or the columns do not fit together.

    Example:
        >>> calibrated = Calibrate(  # doctest: +SKIP
        ...     "Calibrated", small, validation.output["text"], validation.output["topic"]
        ... )
        >>> calibrated.temperature  # doctest: +SKIP
        1.62
    """

    result_version = 2
    papers = ("1706.04599",)

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        return {"model": model, "inputs": ["a cat", "a dog", "the cat"], "labels": ["cat", "dog", "dog"]}

    @only_known
    def __init__(
        self,
        name: str,
        model: object,
        inputs: Column,
        labels: Column,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | int | torch.device | None = None,
        force: bool = False,
        progress_interval: float | None = 60,
    ) -> None:
        super().__init__(
            name, model, inputs, labels, {}, batch_size=batch_size, max_length=max_length, device=device, force=force,
            progress_interval=progress_interval,
        )  # fmt: skip

    @property
    def temperature(self) -> float | list[float]:
        """The temperature, one per class for a multi-label model."""
        found = self.trained.confidence.temperature
        assert found is not None
        return found

    @property
    def at_limit(self) -> bool:
        """Whether a temperature is at a limit of the search, so that the rows did not determine it."""
        return bool(_at_limit(self.temperature))

    def fit(self, rows: HeldOutRows, before: Confidence) -> Confidence:
        """Fits the temperature; a threshold on the former probabilities is dropped."""
        multi = rows.multi_label
        fitted: Any = fit_temperatures if multi else fit_temperature
        temperature = fitted(rows.logits, rows.targets)
        found = replace(before, temperature=temperature, threshold=None)
        for key, logits in (("ece_before", rows.logits), ("ece", found.scaled(rows.logits))):
            error = expected_calibration_error(probabilities(logits, multi), rows.targets)
            self.card.metrics[key] = round(error, 6)
        self.card.facts["Temperature"] = str(found.temperature)
        if limits := _at_limit(temperature):
            self._warn_of_limits(limits, rows)
        return found

    def _warn_of_limits(self, limits: dict[int, float], rows: HeldOutRows) -> None:
        right, count = int(rows.correct.sum()), len(rows.correct)
        names = [self.source.labels[index] for index in limits] if rows.multi_label else []
        of = f" of {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}" if names else ""
        found = {*limits.values()}
        effects = [_EFFECTS[limit] for limit in (LEAST, MOST) if limit in found]
        self.card.facts["Temperature"] += " (at a limit of the search)"
        logger.warning(
            "%s: the temperature%s is at a limit of the search, %s: the rows do not determine it (the model is right "
            "in %s of %s). Its probabilities are now %s, and wrong for later rows. Pass more held-out rows, of which "
            "it gets some right and some wrong, or use the model without this stage.",
            self.name, of, " or ".join(f"{limit:g}" for limit in sorted(found)), f"{right:,}", f"{count:,}",
            " or ".join(effects),
        )  # fmt: skip


def _at_limit(temperature: float | list[float]) -> dict[int, float]:
    """Returns the temperatures at a limit, by position."""
    each = temperature if isinstance(temperature, list) else [temperature]
    return {index: value for index, value in enumerate(each) if value in (LEAST, MOST)}
