"""Fine-tuning a pretrained model as a text classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, Unpack

import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective, classes_of, text_teacher
from datadreamer_like.errors import DefinitionError
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.labels import LabelSet, find_labels
from datadreamer_like.evaluation.tasks.classification import Classification
from datadreamer_like.evaluation.tasks.task import Task, row_limit
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.model_facts import task_of

from .training.hf import HFTrainer
from .training.options import Training, TrainingOptions, takes_training_options
from .training.teaching import check_objective


class TrainHFClassifier(HFTrainer):
    """Fine-tunes a pretrained model as a single-label or multi-label text classifier.

    The classes are the sorted labels of the training rows (texts, integers or booleans; lists of them make a
    multi-label model). If training starts from a classifier that has all of them, its classes and head are kept. The
    class names are saved in the model's config.

    Args:
        model_name: Id on the Hub, folder, GGUF file, trainer, stage or `TrainedModel` to start from.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

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

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        texts, labels = ["a cat", "a dog", "the cat", "the dog"], ["cat", "dog"] * 2
        columns = {"train_input": texts, "train_output": labels, "validation_input": texts, "validation_output": labels}
        return {**columns, "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    @takes_training_options
    def train(
        self,
        train_input: Column,
        train_output: Column | None,
        validation_input: Column,
        validation_output: Column | None,
        *,
        objective: Objective | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the classifier, or loads the cached result, and returns the trainer.

        Args:
            train_input: Training texts.
            train_output: Their labels. With a teacher, labels may be None: such rows learn from the teacher only. The
                whole column may be None if the objective needs no labels.
            validation_input: Validation texts, used to choose the best epoch.
            validation_output: Their labels, from the classes of the training rows or the teacher; optional in the same
                cases as `train_output`.
            objective: The objective to minimise; None for the supervised loss. If it needs only a teacher's logits,
                they are computed once for all students; the teacher's classes are matched by name.
            **options: See `TrainingOptions`.

        Raises:
            SessionError, EmptyDataset: The trainer was made outside a session; there are no rows.
            DefinitionError, ArgumentTypeError: Columns do not go together, an option is unknown or of the wrong type,
                or the trainer was already trained with other arguments.
            LabelError: A label of the validation rows is not among those of the training rows, or there is only one.
            DataError: A value is missing.
            NotTrained, MethodMisfit: The teacher, or the model to start from, is not trained yet, or does not fit.
        """
        objective = check_objective(objective)
        labels = {"train_output": train_output, "validation_output": validation_output}
        columns = {"train_input": train_input, "validation_input": validation_input, **labels}
        return self.run_training(columns, options, objective, optional=optional_labels(self.name, labels, objective))

    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> Classification:
        """Returns a classification task with the classes of the training rows or the teacher."""
        labels = classes_to_learn(self.name, columns, objective)
        if task_of(config) == "text-classification":
            own = _classes_of(config)
            if own.multi == labels.multi and {*labels.names} <= {*own.names}:
                labels = own
        length = row_limit(config, tokenizer, training.max_length)
        return Classification(tokenizer, labels, length, training.truncate, optional=objective.teacher is not None)

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the model with a head for the classes."""
        assert isinstance(task, Classification)
        head = head_options(task.labels)
        return super().load_model(config, task, {**head, "ignore_mismatched_sizes": True, **options})

    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class that loads the model."""
        return transformers.AutoModelForSequenceClassification

    def peft_task(self, config: PretrainedConfig) -> str:
        """Returns the task type of an adapter, by peft's name."""
        return "SEQ_CLS"


def head_options(labels: LabelSet) -> dict[str, Any]:
    """Returns the options of a config that name a classifier's classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels.names)),
        "label2id": labels.label2id,
        "problem_type": f"{'multi' if labels.multi else 'single'}_label_classification",
    }


def optional_labels(name: str, labels: Mapping[str, object], objective: Objective) -> tuple[str, ...]:
    """Returns the label columns of a trainer, called `name`, that may be None: all of them with a teacher.

    Raises:
        DefinitionError: One is None, and the objective needs labels besides its teacher.
    """
    missing = [argument for argument, column in labels.items() if column is None]
    if missing and objective.needs_labels and objective.teacher is not None:
        raise DefinitionError(
            f'"{name}": {missing[0]} is None, and {type(objective).__name__} needs labels. Pass {missing[0]}, '
            "or learn from the teacher alone: SoftTargets(teacher, alpha=1.0)."
        )
    return () if objective.teacher is None else tuple(labels)


def classes_to_learn(name: str, columns: Columns, objective: Objective) -> LabelSet:
    """Returns the classes of the training rows or the teacher; `name` is the trainer's, for messages.

    Raises:
        DefinitionError: No row has a label, and the objective needs some.
        LabelError: See `find_labels`.
    """
    teacher, output = objective.teacher, columns["train"].get("train_output")
    labels = LabelSet(()) if output is None else find_labels(output, "train_output", optional=teacher is not None)
    theirs = LabelSet(())
    if teacher is not None:
        taught: Any = None if text_teacher(teacher) else getattr(getattr(teacher, "model", None), "config", None)
        if taught is None:
            theirs = LabelSet(tuple(classes_of(teacher)))
        elif "logits" in objective.teacher_wants or task_of(taught) == "text-classification":
            theirs = _classes_of(taught)
    if not labels.names and (objective.needs_labels or not theirs.names):
        raise DefinitionError(
            f'"{name}": none of the training rows has a label, and {type(objective).__name__} needs some. '
            "Pass train_output, or learn from the teacher alone: SoftTargets(teacher, alpha=1.0)."
        )
    if not labels.names:
        return theirs
    if "logits" in objective.teacher_wants and {*labels.names} < {*theirs.names}:
        return LabelSet(theirs.names, labels.multi)  # a small number of labelled rows may lack some classes
    return labels


def _classes_of(config: Any) -> LabelSet:
    """Returns the classes of a classifier, in its order."""
    names = tuple(str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items()))
    return LabelSet(names, getattr(config, "problem_type", None) == "multi_label_classification")
