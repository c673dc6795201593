"""The stage that prunes a model."""

from __future__ import annotations

from typing import Any

from datadreamer_like.errors import DefinitionError
from datadreamer_like.pruning import Magnitude

from .retraining import RetrainedCompression


class Prune(RetrainedCompression):
    """Prunes a model with a method of `datadreamer_like.pruning`, and optionally retrains it.

    A method with a schedule, such as `pruning.Movement` or `Magnitude(0.9, schedule=Cubic())`, prunes while it
    retrains: a killed run resumes with the same masks, and the best epoch is one of those with the final sparsity.
    `pruning.CoarseToFine` also brings an objective, whose teacher is `model`, if none is given.

    Args:
        name, model, method, calibration, calibration_labels: See `Compression`, also for `**options`.
        retrain: Arguments of the trainer's `train`: the four columns, optionally an objective, and training options.
            Pruned weights stay zero. None does not retrain. With a schedule, `early_stopping_patience` is refused: it
            would compare epochs of different sparsity.

    Raises:
        DataDreamerError: See `Compression` and the trainer's `train`.

    Example:
        >>> slim = Prune(  # doctest: +SKIP
        ...     "Half the heads", model=student, method=pruning.Heads(sparsity=0.5), calibration=train.output["text"],
        ...     retrain={"train_input": ..., "train_output": ..., "validation_input": ..., "validation_output": ...,
        ...              "epochs": 1, "learning_rate": 5e-5},
        ... )
    """

    result_version = 2
    method_kind = "pruning"
    retrains_results = True

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        return {"model": model, "method": Magnitude.example()}

    def prepare(self) -> None:
        """Checks the retraining arguments, before any work."""
        super().prepare()
        if self.retrain is None and isinstance(self.method, Magnitude) and self.method.schedule is not None:
            raise DefinitionError(
                f'"{self.name}": {self.method} removes weights during a training. Pass retrain={{...}}, or leave '
                "the schedule out."
            )
