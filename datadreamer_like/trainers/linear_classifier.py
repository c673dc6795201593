"""A logistic regression on TF-IDF features, without a pretrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number
from datadreamer_like.evaluation.columns import SUPERVISED, Columns, check_columns, named_columns, read_rows
from datadreamer_like.evaluation.soft_labels import ClassWeights
from datadreamer_like.evaluation.tasks.classification import Classification
from datadreamer_like.formats.classifiers.linear import (
    LinearConfig,
    LinearForSequenceClassification,
    TermCounts,
    TextFeatures,
)
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import only_known
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.trained_model import TrainedModel

from .classifier import head_options, label_options, labels_and_weights, logistic_example, optional_labels
from .trainer import Trainer
from .training.logistic import Rows, check_logistic, fit_logistic
from .training.saved import ROWS, check_same_logits
from .training.signals import unload_teacher
from .training.teaching import check_objective, node_of, prepare_teacher

_CPU = torch.device("cpu")
_NO_LIMIT = 10**9


class TrainLinearClassifier(Trainer):
    """Fits a logistic regression on TF-IDF features of words and characters: no pretrained model, seconds of work.

    The baseline that every student should beat. The regression minimises any objective on logits (labels, soft or hard
    targets of a teacher) plus `‖weight‖² / (2 C rows)`, by L-BFGS. Rows without labels count for the features too.

    Args:
        word_ngrams: Shortest and longest n-gram of words; None for no words.
        char_ngrams: Shortest and longest n-gram of characters within words; None for none.
        max_features: Maximum number of terms of each kind, the most frequent ones; None for all.
        force, verbose, log_level, progress_interval: See `HFOptions`.

    Example:
        >>> trainer = TrainLinearClassifier("Word counts")
        >>> trainer.train(**columns)  # doctest: +SKIP
        >>> trainer.predict(["A parser for command-line options."]).labels  # doctest: +SKIP
        ['cli']
    """

    @only_known
    def __init__(
        self,
        name: str,
        *,
        word_ngrams: tuple[int, int] | None = (1, 2),
        char_ngrams: tuple[int, int] | None = (2, 5),
        max_features: int | None = 10_000,
        force: bool = False,
        verbose: bool | None = None,
        log_level: int | None = None,
        progress_interval: float | None = 60,
    ) -> None:
        super().__init__(name, force, verbose, log_level, progress_interval=progress_interval)
        self.kinds = {
            analyzer: _checked(ngrams, f"{type(self).__name__}: {argument}")
            for analyzer, argument, ngrams in (
                ("word", "word_ngrams", word_ngrams),
                ("char_wb", "char_ngrams", char_ngrams),
            )
            if ngrams is not None
        }
        if not self.kinds:
            raise DefinitionError(
                f"{type(self).__name__}: word_ngrams and char_ngrams are both None, so there are no features. Pass one "
                "of them, such as word_ngrams=(1, 2)."
            )
        check_number(max_features, f"{type(self).__name__}: max_features", 1, whole=True, optional=True)
        self.max_features = None if max_features is None else int(max_features)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        return logistic_example()

    @only_known
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
        C: float | Sequence[float] | None = None,
    ) -> Self:
        """Fits the classifier, or loads the cached result, and returns the trainer.

        Args:
            train_input: Training texts.
            train_output: Their labels, or soft labels; see `TrainHFClassifier.train`.
            validation_input: Validation texts, used to choose C.
            validation_output: Their labels.
            objective: The objective to minimise, on logits; None for the labels alone.
            classes: The classes of soft labels, in the order of lists; None for the keys of mappings, sorted.
            multi_label: Whether each probability of a soft label is that of a separate yes-or-no decision.
            class_weights: Weights of classes in the loss of the labels; see `TrainHFClassifier.train`.
            C: Inverse strength of the penalty on the weights: a number, or several to choose from by the validation
                loss. None tries 1, 10, 100 and 1,000. They are tried in rising order until the loss rises.

        Raises:
            MethodMisfit: The objective needs hidden states.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        self.need_session()
        objective = check_objective(objective)
        check_logistic(objective, C, f'"{self.name}".train')
        Classification.check_objective(objective)
        arguments = named_columns(SUPERVISED, (train_input, train_output), (validation_input, validation_output))
        columns = check_columns(arguments, optional_labels(self.name, arguments, objective))
        options = label_options(self.name, objective, classes, multi_label, class_weights)
        given = {**columns["train"], **columns["validation"]}
        parts = {**class_part(type(self)), "objective": fingerprint(objective, "objective")}
        parts |= {f"input {name}": fingerprint(column, name) for name, column in given.items()}
        own = {"features": list(self.kinds.items()), "max_features": self.max_features, "C": C, **options}
        parts |= {f"argument {name}": fingerprint(value, name) for name, value in own.items()}
        teacher = node_of(objective.teacher)
        parents = [*(column.step for column in given.values()), *([] if teacher is None else [teacher])]
        return self.work(parts, parents, partial(self._build, columns, objective, options, C))

    def _build(self, columns: Columns, objective: Objective, options: Mapping[str, Any], c: Any, draft: Path) -> Kept:
        with quiet(), unload_teacher(objective.teacher):
            usage = current_usage()
            usage.note = "reading the rows"
            labels, weights = labels_and_weights(self.name, columns, objective, options)
            # It has no tokenizer: of the task, only labels, teacher and metrics are used.
            task = Classification(
                None, labels, _NO_LIMIT, truncate=True, optional=objective.teacher is not None,  # type: ignore[arg-type]
                soft_classes=options.get("classes"), class_weights=weights,
            )  # fmt: skip
            read = {split: _read(task, columns[split]) for split in ("train", "validation")}
            config = LinearConfig(0, **head_options(labels))
            none: Any = dict.fromkeys(read)  # it has no tokens
            teaching = prepare_teacher(objective, task, columns, none, config, _CPU, None, self.scratch)
            usage.note = "counting terms"
            texts = read["train"][0]
            features = TextFeatures(
                tuple(TermCounts.fit(texts, kind, ngrams, self.max_features) for kind, ngrams in self.kinds.items())
            )
            rows = {
                split: Rows(features(texts), batch, teaching.answers[split](batch, len(labels)))
                for split, (texts, batch) in read.items()
            }
            head, history = fit_logistic(
                rows["train"], rows["validation"], objective, len(labels), c, task.measure, self.scratch / "fits"
            )
            model = LinearForSequenceClassification(LinearConfig(len(features), **head_options(labels)))
            with torch.no_grad():
                model.weight.copy_(torch.from_numpy(head.weight.T))
                model.bias.copy_(torch.from_numpy(head.bias))
            model.features = features
            self._fill_card(head.metrics, objective)
            model.train(False)
            saved = TrainedModel.save(model, None, draft / self.MODEL_FOLDER, self.card)
            some = read["validation"][0][:ROWS]
            check_same_logits(model.class_logits(some), saved.model.class_logits(some), saved)  # type: ignore[operator]
            usage.add(rows=len(texts))
        return self.kept(result={"history": history})

    def _fill_card(self, metrics: Mapping[str, float], objective: Objective) -> None:
        self.card.metrics = {name: round(value, 6) for name, value in metrics.items()}
        if objective.teacher is not None:
            self.card.register("Objective", repr(objective))
            if isinstance(objective.teacher, TrainedModel) and objective.teacher.node is None:
                self.card.register("Model Name", objective.teacher.path)


def _read(task: Classification, columns: Mapping[str, Column]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Returns the texts of a split, and a batch of all rows with their labels."""
    label_name = next(iter([*columns][1:]), "")
    rows = [*chain.from_iterable(read_rows(columns, labels=label_name, optional=task.optional))]
    labels = [row[1] if label_name else None for row in rows]
    fields = task.label_fields(labels, columns.get(label_name), label_name)
    task.check_varied(fields, label_name)
    return [row[0] for row in rows], {**task.label_batch(fields), "rows": torch.arange(len(rows))}


def _checked(ngrams: object, what: str) -> tuple[int, int]:
    if not isinstance(ngrams, Sequence) or isinstance(ngrams, str) or len(ngrams) != 2:
        raise ArgumentTypeError(f"{what} must be the shortest and the longest n-gram, such as (1, 2), not {ngrams!r}.")
    for value in ngrams:
        check_number(value, what, 1, whole=True)
    shortest, longest = ngrams
    if longest < shortest:
        raise DefinitionError(f"{what} is {tuple(ngrams)}: the longest n-gram is shorter than the shortest one.")
    return int(shortest), int(longest)
