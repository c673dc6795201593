"""The stage that prunes a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, Unpack, cast

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.evaluation.columns import check_columns
from datadreamer_like.graph import Node
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Magnitude, PrunesWhileTraining
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune
from datadreamer_like.trainers.training.callbacks import PruneWhileTraining
from datadreamer_like.trainers.training.options import Training
from datadreamer_like.trainers.training.teaching import check_objective, node_of

from .compression import Compression, CompressionOptions

_COLUMNS = ("train_input", "train_output", "validation_input", "validation_output")
_TRAINERS: dict[str, Any] = {
    "text-classification": TrainHFClassifier,
    "text-generation": TrainHFFineTune,
    "text2text-generation": TrainHFFineTune,
}


class Prune(Compression):
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

    method_kind = "pruning"

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        return {"model": model, "method": Magnitude.example()}

    def __init__(
        self,
        name: str,
        model: object,
        method: CompressionMethod,
        calibration: Column | None = None,
        calibration_labels: Column | None = None,
        *,
        retrain: Mapping[str, Any] | None = None,
        **options: Unpack[CompressionOptions],
    ) -> None:
        self._options = dict(retrain or {})
        self._columns = {name: self._options.pop(name) for name in _COLUMNS if name in self._options}
        self.retrain = retrain
        super().__init__(name, model, method, calibration, calibration_labels, **options)

    def prepare(self) -> None:
        """Checks the retraining arguments, before any work."""
        objective = self._options.get("objective")
        self._teacher = check_objective(objective).teacher
        if self.retrain is None:
            if isinstance(self.method, Magnitude) and self.method.schedule is not None:
                raise DefinitionError(
                    f'"{self.name}": {self.method} removes weights during a training. Pass retrain={{...}}, or leave '
                    "the schedule out."
                )
            return
        if objective is None and isinstance(self.method, PrunesWhileTraining) and self._prunes_while_training:
            objective = self.method.objective(self.source)
            if objective is not None:
                self._options["objective"], self._teacher = objective, objective.teacher
                self.retrain = {**self.retrain, "objective": objective}
        missing = [column for column in _COLUMNS if column not in self._columns]
        if missing:
            raise DefinitionError(
                f'"{self.name}": retrain lacks {", ".join(missing)}. It takes the arguments of a trainer\'s train: the '
                "columns, optionally an objective, and training options."
            )
        check_columns(self._columns, () if objective is None else _COLUMNS)
        options = {name: value for name, value in self._options.items() if name != "objective"}
        training = Training.from_options(options, f'"{self.name}": retrain')
        if self._prunes_while_training and training.early_stopping_patience is not None:
            raise DefinitionError(
                f'"{self.name}": retrain stops early by early_stopping_patience, which compares epochs of different '
                f"sparsity while {self.method} removes weights. Leave it out."
            )

    @property
    def _prunes_while_training(self) -> bool:
        scheduled = isinstance(self.method, PrunesWhileTraining) and self.method.schedule is not None
        return scheduled and self.retrain is not None

    @property
    def needs_calibration(self) -> bool:
        """Whether the method needs calibration data in this stage; not where it learns from the training rows."""
        return super().needs_calibration and not self._prunes_while_training

    def columns(self) -> dict[str, Column]:
        """Returns the stage's columns by argument name."""
        given = {f"retrain {name}": column for name, column in self._columns.items() if column is not None}
        return super().columns() | given

    def origins(self) -> list[Node]:
        """Returns the parent nodes, including the teacher of the retraining."""
        nodes = [*super().origins(), node_of(self._teacher)]
        return list(dict.fromkeys(node for node in nodes if node is not None))

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that determines the result, by name."""
        own = {f"argument retrain {key}": fingerprint(value, f"retrain {key}") for key, value in self._options.items()}
        return super().fingerprint_parts() | own

    def apply(self, source: TrainedModel, data: Any) -> tuple[Any, Any]:
        """Returns the smaller model with its tokenizer; if it is pruned while it is retrained, as it is."""
        return (source.model, source.tokenizer) if self._prunes_while_training else super().apply(source, data)

    def finish(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Retrains the pruned model if `retrain` was given; a killed training run resumes from its checkpoint."""
        if self.retrain is None:
            return model, tokenizer
        folder = self.scratch / "pruned"
        shutil.rmtree(folder, ignore_errors=True)
        pruned = TrainedModel.save(model, tokenizer, folder)
        if pruned.task not in _TRAINERS:
            raise MethodMisfit(
                f'"{self.name}": there is no trainer to retrain {type(model).__name__}. Leave retrain out.'
            )
        trainer = _TRAINERS[pruned.task]("Retraining", model_name=pruned, device=self.device)
        options = dict(self.retrain)
        if self._prunes_while_training:
            given = options.get("callbacks") or ()
            given = given if isinstance(given, list | tuple) else [given]
            options["callbacks"] = [*given, PruneWhileTraining(cast(PrunesWhileTraining, self.method))]
        trainer.train(**options)
        self.card.metrics.update(trainer.metrics)
        self.card.citations += [text for text in trainer.card.citations if text not in self.card.citations]
        if isinstance(self._teacher, TrainedModel) and self._teacher.node is None:
            self.card.register("Model Name", self._teacher.path)
        words = ", ".join(f"{name}={value}" for name, value in self._options.items())
        self.card.facts["Retrained with"] = words or "defaults"
        return trainer.model, trainer.tokenizer
