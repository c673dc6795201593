"""The base of the stages that retrain a model which they have made smaller, or make it smaller while it is trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack, cast

from datadreamer_like.compression import CompressesWhileTraining, CompressionMethod
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.evaluation.columns import check_columns
from datadreamer_like.graph import Node
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune
from datadreamer_like.trainers.training.callbacks import CompressWhileTraining
from datadreamer_like.trainers.training.options import Training
from datadreamer_like.trainers.training.teaching import check_objective, node_of

from .compression import Compression, CompressionOptions

_COLUMNS = ("train_input", "train_output", "validation_input", "validation_output")
_TRAINERS: dict[str, Any] = {
    "text-classification": TrainHFClassifier,
    "text-generation": TrainHFFineTune,
    "text2text-generation": TrainHFFineTune,
}


class RetrainedCompression(Compression):
    """A stage with `retrain`, the arguments of the trainer's `train`; see the subclasses."""

    retrains_results: ClassVar[bool]
    """Whether models that are small already can be retrained; if not, only methods that work while training can be."""

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
        if objective is None and self._while_training:
            objective = cast(CompressesWhileTraining, self.method).objective(self.source)
            if objective is not None:
                self._options["objective"] = objective
        self._teacher = check_objective(objective).teacher
        if self.retrain is None:
            return
        if not self._while_training and not self.retrains_results:
            raise DefinitionError(
                f'"{self.name}": quantized weights cannot be trained, and {self.method} quantizes at once. Leave '
                "retrain out, or use a method that quantizes while training, such as quantization.QAT."
            )
        missing = [column for column in _COLUMNS if column not in self._columns]
        if missing:
            raise DefinitionError(
                f'"{self.name}": retrain lacks {", ".join(missing)}. It takes the arguments of a trainer\'s train: the '
                "columns, optionally an objective, and training options."
            )
        check_columns(self._columns, () if objective is None else _COLUMNS)
        options = {name: value for name, value in self._options.items() if name != "objective"}
        training = Training.from_options(options, f'"{self.name}": retrain')
        if self._while_training and training.early_stopping_patience is not None:
            raise DefinitionError(
                f'"{self.name}": retrain stops early by early_stopping_patience, which compares epochs of different '
                f"models while {self.method} changes it. Leave it out."
            )

    @property
    def _while_training(self) -> bool:
        works_so = isinstance(self.method, CompressesWhileTraining) and self.method.needs_training
        return works_so and self.retrain is not None

    @property
    def needs_calibration(self) -> bool:
        """Whether the method needs calibration data in this stage; not where it learns from the training rows."""
        return super().needs_calibration and not self._while_training

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
        """Returns the smaller model with its tokenizer; if it becomes smaller while it is retrained, as it is."""
        return (source.model, source.tokenizer) if self._while_training else super().apply(source, data)

    def finish(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Retrains the model if `retrain` was given; a killed training run resumes from its checkpoint."""
        if self.retrain is None:
            return model, tokenizer
        folder = self.scratch / "pruned"
        shutil.rmtree(folder, ignore_errors=True)
        start = TrainedModel.save(model, tokenizer, folder)
        if start.task not in _TRAINERS:
            raise MethodMisfit(
                f'"{self.name}": there is no trainer to retrain {type(model).__name__}. Leave retrain out.'
            )
        trainer = _TRAINERS[start.task]("Retraining", model_name=start, device=self.device)
        options: dict[str, Any] = {**self._columns, **self._options}
        if self._while_training:
            given = options.get("callbacks") or ()
            given = given if isinstance(given, list | tuple) else [given]
            options["callbacks"] = [*given, CompressWhileTraining(cast(CompressesWhileTraining, self.method))]
        trainer.train(**options)
        if self._while_training:
            self.method.warn_of_refilled(start.model, trainer.model)
            self.method.warn_of_left(trainer.model)
            start.unload_model()
        self.card.metrics.update(trainer.metrics)
        self.card.citations += [text for text in trainer.card.citations if text not in self.card.citations]
        if isinstance(self._teacher, TrainedModel) and self._teacher.node is None:
            self.card.register("Model Name", self._teacher.path)
        words = ", ".join(f"{name}={value}" for name, value in self._options.items())
        self.card.facts["Retrained with"] = words or "defaults"
        return trainer.model, trainer.tokenizer
