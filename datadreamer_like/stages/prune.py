"""The stage that takes out of a model what it can do without."""

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
    """Prunes a model with a method of `datadreamer_like.pruning`, and trains what is left if asked to.

    Args:
        name: The name that the script gives.
        model: What is pruned: a trainer, a stage, a `TrainedModel`, a folder, or an id on the Hub. It stays as it is.
        method: The method with its options. One that changes the tokenizer, such as `pruning.Vocabulary`, gets the
            calibration texts themselves, the others batches of tokens.
        calibration: Column of texts for methods that look at what the model does.
        calibration_labels: Column of their labels, for classifiers. Without it a method that needs a loss takes the
            model's own most likely class for the label, and a language model's input for its answer.
        retrain: What the trainer's `train` takes: the four columns, an objective if wanted, and training options.
            What was pruned stays pruned. None leaves the weights as the method leaves them.
        batch_size: Texts in a calibration batch.
        max_length: Calibration texts are cut at this many tokens; None for what the model takes.
        device: Where the work is done and the result is used, such as "cuda"; None for where `model` is used.
        force: Make the result again although it is there.
        progress_interval: Seconds between progress lines where there is no terminal; None for none.

    Raises:
        DataDreamerError: As `Compression` and the trainer's `train` say.

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
        """Returns the smallest arguments beside the name, for tests and documentation."""
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
        """Checks what the retraining is to take, before any work."""
        if self.retrain is None:
            return
        missing = [column for column in _COLUMNS if column not in self.retrain]
        if missing:
            raise DefinitionError(
                f'"{self.name}": retrain lacks {", ".join(missing)}. It takes what a trainer\'s train takes: the '
                "columns, an objective if wanted, and training options."
            )
        optional = _COLUMNS if self.retrain.get("objective") is not None else ()
        Columns.checked(optional, **{column: self.retrain[column] for column in _COLUMNS})
        options = {key: value for key, value in self.retrain.items() if key not in (*_COLUMNS, "objective")}
        Training.from_options(options, f'"{self.name}": retrain')
        if self.retrain.get("objective") is not None:
            check_objective(self.retrain["objective"])

    def columns(self) -> dict[str, Column]:
        """Returns the columns that the stage reads, by argument name."""
        given = {} if self.retrain is None else {f"retrain {key}": self.retrain[key] for key in _COLUMNS}
        return super().columns() | {name: column for name, column in given.items() if column is not None}

    def origins(self) -> list[Node]:
        """Returns the nodes that the result comes from, each once; the teacher of the retraining is one."""
        teacher = node_of(self._teacher())
        return list(dict.fromkeys([*super().origins(), *([] if teacher is None else [teacher])]))

    def _teacher(self) -> Any:
        objective = (self.retrain or {}).get("objective")
        return None if objective is None else objective.teacher

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns what decides the result, by name, each with its fingerprint."""
        parts = super().fingerprint_parts()
        for name, value in (self.retrain or {}).items():
            if name not in _COLUMNS:
                parts[f"argument retrain {name}"] = fingerprint(value, f"retrain {name}")
        return parts

    def finish(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Trains the pruned model, if that was asked for; a training that is killed goes on where it was."""
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
                f'"{self.name}": {type(model).__name__} is of no kind that can be retrained here. Leave retrain out.'
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
