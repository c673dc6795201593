"""The stage that prunes a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.graph import Node
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Magnitude
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune
from datadreamer_like.trainers.training.options import Training
from datadreamer_like.trainers.training.teaching import check_objective, node_of

from .compression import Compression

if TYPE_CHECKING:
    import torch

_COLUMNS = ("train_input", "train_output", "validation_input", "validation_output")


class Prune(Compression):
    """Prunes a model with a method of `datadreamer_like.pruning`, and optionally retrains it.

    Args:
        name: Name of the stage.
        model: The model to prune: a trainer, a stage, a `TrainedModel`, a folder, or an id on the Hub. It is not
            changed.
        method: The method with its options. One that changes the tokenizer, such as `pruning.Vocabulary`, gets the
            calibration texts themselves, others get batches of tokens.
        calibration: Column of texts for methods that measure activations or gradients.
        calibration_labels: Column of their labels, for classifiers. Without it, a method that needs a loss uses a
            classifier's most likely class, or a language model's input, as the label.
        retrain: Arguments of the trainer's `train`: the four columns, optionally an objective, and training options.
            Pruned weights stay zero. None does not retrain.
        batch_size: Texts in a calibration batch.
        max_length: Calibration texts are cut at this many tokens; None for the model's own limit.
        device: Device for the work and the result, such as "cuda"; None for the device of `model`.
        force: Make the result again even if it exists.
        progress_interval: Seconds between progress lines without a terminal; None for none.

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
        """Returns a minimal set of arguments except the name, for tests and documentation."""
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
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | int | torch.device | None = None,
        force: bool = False,
        progress_interval: float | None = 60,
    ) -> None:
        self.retrain = None if retrain is None else dict(retrain)
        super().__init__(
            name,
            model,
            method,
            calibration,
            calibration_labels,
            batch_size=batch_size,
            max_length=max_length,
            device=device,
            force=force,
            progress_interval=progress_interval,
        )

    def prepare(self) -> None:
        """Checks the retraining arguments, before any work."""
        if self.retrain is None:
            return
        missing = [column for column in _COLUMNS if column not in self.retrain]
        if missing:
            raise DefinitionError(
                f'"{self.name}": retrain lacks {", ".join(missing)}. It takes the arguments of a trainer\'s train: the '
                "columns, optionally an objective, and training options."
            )
        optional = _COLUMNS if self.retrain.get("objective") is not None else ()
        Columns.checked(optional, **{column: self.retrain[column] for column in _COLUMNS})
        options = {key: value for key, value in self.retrain.items() if key not in (*_COLUMNS, "objective")}
        Training.from_options(options, f'"{self.name}": retrain')
        if self.retrain.get("objective") is not None:
            check_objective(self.retrain["objective"])

    def columns(self) -> dict[str, Column]:
        """Returns the stage's columns by argument name."""
        given = {} if self.retrain is None else {f"retrain {key}": self.retrain[key] for key in _COLUMNS}
        return super().columns() | {name: column for name, column in given.items() if column is not None}

    def origins(self) -> list[Node]:
        """Returns the parent nodes, including the teacher of the retraining."""
        teacher = node_of(self._teacher())
        return list(dict.fromkeys([*super().origins(), *([] if teacher is None else [teacher])]))

    def _teacher(self) -> Any:
        objective = (self.retrain or {}).get("objective")
        return None if objective is None else objective.teacher

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that decides the result, by name."""
        parts = super().fingerprint_parts()
        for name, value in (self.retrain or {}).items():
            if name not in _COLUMNS:
                parts[f"argument retrain {name}"] = fingerprint(value, f"retrain {name}")
        return parts

    def finish(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Retrains the pruned model if `retrain` was given; a killed training run resumes from its checkpoint."""
        if self.retrain is None:
            return model, tokenizer
        folder = self.scratch / "pruned"
        shutil.rmtree(folder, ignore_errors=True)
        pruned = TrainedModel.save(model, tokenizer, folder)
        trainers = {
            "text-classification": TrainHFClassifier,
            "text-generation": TrainHFFineTune,
            "text2text-generation": TrainHFFineTune,
        }
        if pruned.task not in trainers:
            raise MethodMisfit(
                f'"{self.name}": there is no trainer to retrain {type(model).__name__}. Leave retrain out.'
            )
        trainer: Any = trainers[pruned.task]("Retraining", model_name=pruned, device=self.device)
        trainer.train(**self.retrain)
        self.card.metrics.update(trainer.metrics)
        self.card.citations += [text for text in trainer.card.citations if text not in self.card.citations]
        teacher = self._teacher()
        if isinstance(teacher, TrainedModel) and teacher.node is None:
            self.card.register("Model Name", teacher.path)
        options = {key: value for key, value in self.retrain.items() if key not in _COLUMNS}
        self.card.facts["Retrained with"] = ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"
        return trainer.model, trainer.tokenizer
