"""Fine-tuning a pretrained model to sort texts into classes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from datadreamer_like.distillation import Objective, Supervised
from datadreamer_like.graph import current_usage
from datadreamer_like.models.trained.model_facts import model_max_length, task_of

from .training.columns import Column, Columns
from .training.examples import Examples
from .training.hf import HFTrainer
from .training.labels import LabelSet, class_names, find_labels
from .training.loading import HFOptions
from .training.objectives import borrowed, teacher_of
from .training.options import Training, TrainingOptions
from .training.tasks import Classification, Task

_PORTION = 2048


class TrainHFClassifier(HFTrainer):
    """Fine-tunes a pretrained model to give each text its class, or its classes.

    The classes are those of the training rows (texts, whole numbers, or truth values; a list of them a row makes a
    model of several labels), in order; where the model that training starts from is a classifier that knows all of
    them, its own classes stay, and its head with them. Their names end up in the model's config.

    Args:
        name: The trainer's name.
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` to start from.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

    Raises:
        DefinitionError: An option is unknown.
        ArgumentTypeError: A value is of the wrong type.

    Example:
        >>> trainer = TrainHFClassifier("Topics", model_name="microsoft/xtremedistil-l6-h256-uncased")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_input=train.output["text"], train_output=train.output["topic"],
        ...     validation_input=validation.output["text"], validation_output=validation.output["topic"],
        ...     epochs=3, batch_size=16, learning_rate=5e-5,
        ... )
        >>> trainer.predict(["A parser for command-line options."]).labels  # doctest: +SKIP
        ['cli']
    """

    PEFT_TASK = "SEQ_CLS"

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`, for tests and documentation; columns are lists of values."""
        texts, labels = ["a cat", "a dog", "the cat", "the dog"], ["cat", "dog"] * 2
        columns = {"train_input": texts, "train_output": labels, "validation_input": texts, "validation_output": labels}
        return {**columns, "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    def __init__(self, name: str, model_name: Any, **options: Unpack[HFOptions]) -> None:
        super().__init__(name, model_name, options)

    def train(
        self,
        train_input: Column,
        train_output: Column,
        validation_input: Column,
        validation_output: Column,
        *,
        objective: Objective | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the classifier, or finds it trained.

        Args:
            train_input: Texts to learn from.
            train_output: Their labels.
            validation_input: Texts by which the best epoch is chosen.
            validation_output: Their labels, each of them one that the training rows have.
            objective: What is minimised; None for the supervised loss. With `HardTargets` or `SoftTargets` the
                teacher is asked once for all rows, before training; its classes are matched by name.
            **options: See `TrainingOptions`.

        Returns:
            The trainer, which now is a model.

        Raises:
            SessionError: The trainer was made outside a session.
            DefinitionError: Columns do not go together, an option is unknown, or the trainer is trained on other
                things already.
            ArgumentTypeError: An argument or a value in a column is of the wrong type.
            EmptyDataset: There are no rows.
            LabelError: A label of the validation rows is not among those of the training rows, or there is only one.
            DataError: A value is missing.
            NotTrained: The teacher, or the model to start from, is not trained yet.
            MethodMisfit: The model, or the teacher, does not fit.
        """
        self.need_session()
        training = Training.from_options(options, f'"{self.name}".train')
        columns = Columns.checked(train_input, train_output, validation_input, validation_output)
        return self._run(columns, training, Supervised() if objective is None else objective)

    def _task(
        self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, columns: Columns, training: Training
    ) -> Task:
        labels = find_labels(columns.train_output.values(), "train_output", class_names(columns.train_output))
        most = model_max_length(config, tokenizer)
        length = min(training.max_length or most, most)
        return Classification(tokenizer, _kept_labels(config, labels), length, training.truncate)

    def _load(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        assert isinstance(task, Classification)
        names = dict(enumerate(task.labels.names))
        model: PreTrainedModel = transformers.AutoModelForSequenceClassification.from_pretrained(
            self._source(),
            **{
                "num_labels": len(names),
                "id2label": names,
                "label2id": {name: index for index, name in names.items()},
                "problem_type": f"{'multi' if task.labels.multi else 'single'}_label_classification",
                "ignore_mismatched_sizes": True,
                **options,
            },
        )
        return model

    def _teach(
        self, objective: Objective, task: Task, examples: Examples, column: Column, path: Path, device: torch.device
    ) -> None:
        assert isinstance(task, Classification)
        if not path.exists():
            usage, done = current_usage(), 0

            def say(rows: int) -> None:
                nonlocal done
                done += rows
                usage.note = f"asking the teacher, {done:,} of {len(examples):,}"

            ask: Any = objective
            label2id = {name: index for index, name in enumerate(task.labels.names)}
            values, portions = column.values(), []
            with borrowed(teacher_of(objective)):
                while texts := list(islice(values, _PORTION)):
                    found = ask.teacher_logits(texts, label2id=label2id, device=device, on_rows=say)
                    portions.append(found.numpy())
            draft = path.with_suffix(".draft.npy")
            np.save(draft, np.concatenate(portions))
            draft.replace(path)
        examples.teacher_logits = np.load(path, mmap_mode="r")

    @property
    def auto_cls(self) -> Any:
        """The transformers class that loads the model."""
        return transformers.AutoModelForSequenceClassification


def _kept_labels(config: PretrainedConfig, labels: LabelSet) -> LabelSet:
    """Keeps the classes of a model that is a classifier of these already."""
    if task_of(config) != "text-classification":
        return labels
    known = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    is_multi = config.problem_type == "multi_label_classification"
    return LabelSet(known, labels.multi) if {*labels.names} <= {*known} and is_multi == labels.multi else labels
