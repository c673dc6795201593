"""Fine-tuning a pretrained model as a text classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, Unpack

import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective, classes_of, text_teacher
from datadreamer_like.distillation.teacher import is_multi_label
from datadreamer_like.errors import DefinitionError, check_number
from datadreamer_like.evaluation.columns import SUPERVISED, Columns, named_columns
from datadreamer_like.evaluation.labels import VECTORS, LabelSet, find_labels, warn_of_spellings
from datadreamer_like.evaluation.soft_labels import (
    ClassWeights,
    FloatArray,
    checked_weights,
    is_soft,
    soft_classes,
    weights_of_classes,
)
from datadreamer_like.evaluation.tasks.classification import Classification
from datadreamer_like.evaluation.tasks.task import Task, row_limit
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.model_facts import task_of

from .training.hf import HFTrainer
from .training.options import Training, TrainingOptions, takes_training_options
from .training.teaching import check_objective, itself


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

    several_devices = True
    _label_options: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        texts, labels = ["a cat", "a dog", "the cat", "the dog"], ["cat", "dog"] * 2
        columns = named_columns(SUPERVISED, *[(texts, labels)] * 2)
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
        classes: Sequence[str] | None = None,
        multi_label: bool = False,
        class_weights: ClassWeights = None,
        label_smoothing_factor: float = 0.0,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the classifier, or loads the cached result, and returns the trainer.

        Args:
            train_input: Training texts.
            train_output: Their labels, or soft labels: mappings from class to probability, or lists of one probability
                per class in the order of `classes`. With a teacher, labels may be None: such rows learn from the
                teacher only. The whole column may be None if the objective needs no labels.
            validation_input: Validation texts, used to choose the best epoch.
            validation_output: Their labels, from the classes of the training rows or the teacher; optional in the same
                cases as `train_output`.
            objective: The objective to minimise; None for the supervised loss. If it needs only a teacher's logits,
                they are computed once for all students; the teacher's classes are matched by name.
            classes: The classes of soft labels, in the order of lists; None for the keys of mappings, sorted.
            multi_label: Whether each probability of a soft label is that of a separate yes-or-no decision; else those
                of a row sum to 1.
            class_weights: Weights of the terms of the labels' loss by class, 1 for a class left out; "balanced" for
                `rows / (number of classes · rows of the class)`, so that rare classes count as much as frequent ones.
                For multi-label rows the weight of a yes, "balanced" being `rows without the class / rows with it`. The
                loss is the mean over rows, not divided by the sum of the weights.
            label_smoothing_factor: Share of each label that is spread evenly over all classes, from 0 to less than 1.
            **options: See `TrainingOptions`.

        Raises:
            SessionError, EmptyDataset: The trainer was made outside a session; there are no rows.
            DefinitionError, ArgumentTypeError: Columns do not go together, an option is unknown or of the wrong type,
                or the trainer was already trained with other arguments.
            LabelError: A label of the validation rows is not among those of the training rows, there is only one, or a
                class weight is that of an unknown class.
            DataError: A value is missing, or probabilities are negative, not numbers, or do not sum to 1.
            NotTrained, MethodMisfit: The teacher, or the model to start from, is not trained yet, or does not fit.
        """
        objective = check_objective(objective)
        columns = named_columns(SUPERVISED, (train_input, train_output), (validation_input, validation_output))
        optional = optional_labels(self.name, columns, objective)
        of_labels = label_options(self.name, objective, classes, multi_label, class_weights)
        check_number(label_smoothing_factor, f'"{self.name}".train: label_smoothing_factor', 0)
        if label_smoothing_factor >= 1:
            raise DefinitionError(f'"{self.name}".train: label_smoothing_factor must be below 1.')
        smoothing = {"label_smoothing_factor": label_smoothing_factor} if label_smoothing_factor else {}
        self._label_options = {**of_labels, **smoothing}
        return self.run_training(columns, options, objective, self._label_options, optional)

    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> Classification:
        """Returns a classification task with the classes of the training rows or the teacher."""
        given, own = self._label_options, _classes_of(config) if task_of(config) == "text-classification" else None
        labels, weights = labels_and_weights(self.name, columns, objective, given, own)
        return Classification(
            tokenizer,
            labels,
            row_limit(config, tokenizer, training.max_length),
            training.truncate,
            optional=objective.teacher is not None,
            soft_classes=given.get("classes"),
            class_weights=weights,
            label_smoothing=given.get("label_smoothing_factor", 0.0),
        )

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


def logistic_example() -> dict[str, Any]:
    """Returns the smallest arguments of `train` of a trainer that fits a logistic regression."""
    columns = {name: value for name, value in TrainHFClassifier.example().items() if isinstance(value, list)}
    return {**columns, "C": 1.0}


def head_options(labels: LabelSet) -> dict[str, Any]:
    """Returns the options of a config that name a classifier's classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels.names)),
        "label2id": labels.label2id,
        "problem_type": f"{'multi' if labels.multi else 'single'}_label_classification",
    }


def label_options(
    name: str, objective: Objective, classes: Sequence[str] | None, multi_label: bool, class_weights: ClassWeights
) -> dict[str, Any]:
    """Returns the options of `train` that describe labels, by name, without those that are not given.

    Raises:
        ArgumentTypeError, DefinitionError: The weights are none, or make no sense; see `check_weights`.
    """
    check_weights(name, class_weights, objective)
    given = {"classes": classes, "multi_label": multi_label or None, "class_weights": class_weights}
    return {option: value for option, value in given.items() if value is not None}


def labels_and_weights(
    name: str, columns: Columns, objective: Objective, given: Mapping[str, Any], own: LabelSet | None = None
) -> tuple[LabelSet, FloatArray | None]:
    """Returns the classes to learn and their weights, given a trainer's `label_options`; `name` is the trainer's.

    `own` are the classes of the model to start from, which are kept if they have all of the others.

    Raises:
        DefinitionError: Options describe probabilities, and no label is one; or see `classes_to_learn`.
        LabelError: See `find_labels` and `weights_of_classes`.
    """
    output = columns["train"].get("train_output")
    outputs = [column for split in columns.values() for argument, column in split.items() if "output" in argument]
    needless = [option for option in ("classes", "multi_label") if option in given]
    if needless and not any(map(is_soft, outputs)):
        lists = any(isinstance(next(iter(column.values()), None), list) for column in outputs)
        raise DefinitionError(
            f'"{name}": {" and ".join(needless)} describe labels that are probabilities, decimal numbers, but the '
            f"columns of labels have none. Leave {'them' if len(needless) > 1 else 'it'} out."
            f"{f' {VECTORS}' if lists else ''}"
        )
    of_lists: tuple[str, ...] = ()
    if output is not None and is_soft(output):
        of_lists = soft_classes(output, "train_output", given.get("classes"))
    soft = LabelSet(of_lists, given.get("multi_label", False)) if of_lists else None
    labels = classes_to_learn(name, columns, objective, soft)
    if own is not None and own.multi == labels.multi and {*labels.names} <= {*own.names}:
        labels = own
    if output is None:
        return labels, None
    return labels, weights_of_classes(given.get("class_weights"), labels, output, of_lists, "train_output")


def check_weights(name: str, weights: object, objective: Objective) -> None:
    """Checks the `class_weights` of a trainer called `name`; see `checked_weights` for the errors.

    Raises:
        DefinitionError: The objective uses no labels.
    """
    checked_weights(weights, f'"{name}".train')
    if weights is not None and not objective.needs_labels:
        raise DefinitionError(
            f'"{name}": class_weights weigh labels, and {type(objective).__name__} uses none. Leave them out.'
        )


def optional_labels(name: str, columns: Mapping[str, object], objective: Objective) -> tuple[str, ...]:
    """Returns the outputs among the columns of a trainer, called `name`, that may be None: all of them with a teacher.

    Raises:
        DefinitionError: One is None, and the objective needs labels besides its teacher.
    """
    labels = tuple(argument for argument in columns if argument.endswith("_output"))
    missing = [argument for argument in labels if columns[argument] is None]
    if missing and objective.needs_labels and objective.teacher is not None:
        raise DefinitionError(
            f'"{name}": {missing[0]} is None, and {type(objective).__name__} needs labels. Pass {missing[0]}, '
            "or learn from the teacher alone: SoftTargets(teacher, alpha=1.0)."
        )
    return () if objective.teacher is None else labels


def classes_to_learn(name: str, columns: Columns, objective: Objective, soft: LabelSet | None = None) -> LabelSet:
    """Returns the classes of the training rows or the teacher; `name` is the trainer's, for messages.

    `soft` are the classes of training labels that are probabilities.

    Raises:
        DefinitionError: No row has a label, and the objective needs some.
        LabelError: See `find_labels`.
    """
    teacher: Any = itself(objective.teacher)
    output = columns["train"].get("train_output")
    labels = soft or LabelSet(())
    if soft is None and output is not None:
        labels = find_labels(output, "train_output", optional=teacher is not None)
    elif output is not None and teacher is None:
        warn_of_spellings(labels.names, "train_output")
    theirs = LabelSet(())
    if teacher is not None:
        taught: Any = None if text_teacher(teacher) else getattr(getattr(teacher, "model", None), "config", None)
        if taught is None:
            theirs = LabelSet(tuple(classes_of(teacher)), is_multi_label(teacher))
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
