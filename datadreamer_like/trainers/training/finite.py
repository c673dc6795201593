"""Models whose weights are NaN or infinite: refused before they teach or are trained, and after a training."""

from __future__ import annotations

from typing import Any

from datadreamer_like.compression.method import why_not_finite
from datadreamer_like.errors import DefinitionError, MethodMisfit


def check_weights(model: Any, whose: str) -> None:
    """Raises `MethodMisfit` if a weight of a model, called `whose` in the message, is NaN or infinite."""
    if reason := why_not_finite(model.named_parameters()):
        raise MethodMisfit(f"{whose}, {type(model).__name__}, cannot be used: {reason}")


def diverged(what: str, learning_rate: float) -> DefinitionError:
    """Returns the error of a training after which `what` is not finite."""
    return DefinitionError(f"{what}: the training diverged. Lower learning_rate, which was {learning_rate}.")
