"""Text classification, single-label or multi-label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import (
    Objective,
    Outputs,
    Teacher,
    TextTeacher,
    align_labels,
    classes_of,
    label_order,
    text_teacher,
)
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.teacher import is_multi_label, scaled_logits
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.graph.output import Column

from ..columns import check_varied, read_rows
from ..labels import LabelSet, class_names
from ..quality import macro_f1_of_counts
from ..soft_labels import FloatArray, is_soft, loss_targets, soft_classes, soft_labels
from .examples import Examples, Ragged
from .task import Batch, Measure, Task, run_model, tokenize


class Classification(Task):
    """Texts to classes; see `Task`. If labels are `optional`, rows without one learn from a teacher only.

    `soft_classes` are the classes of labels that are lists of probabilities, in their order. `class_weights` [classes],
    `label_smoothing` and probabilities make targets of a loss, `targets` of a batch, out of labels.
    """

    kind: ClassVar[str] = "classification"
    stored: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: LabelSet,
        max_length: int,
        truncate: bool,
        optional: bool,
        *,
        soft_classes: Sequence[str] | None = None,
        class_weights: FloatArray | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.labels = labels
        self.optional = optional
        self.soft_classes = soft_classes
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads texts and labels, if there is a label column; see `Task.encode`."""
        text_name, *label_names = columns
        label_name = label_names[0] if label_names else ""
        column = columns[label_name] if label_name else None
        fields: list[dict[str, np.ndarray[Any, Any]]] = []
        too_long: dict[int, int] = {}
        start = 0
        with Ragged(path.with_suffix(".ids")) as input_ids:
            for part in read_rows(columns, labels=label_name, optional=self.optional):
                texts, labels = [row[0] for row in part], [row[1] if label_name else None for row in part]
                fields.append(self.label_fields(labels, column, label_name, start))
                ids = tokenize(self.tokenizer, texts, max_length=self.max_length if self.truncate else None)
                too_long.update({start + i: len(x) for i, x in enumerate(ids) if len(x) > self.max_length})
                input_ids.extend(ids)
                start += len(part)
        self.refuse_long(too_long, text_name)
        joined = {name: np.concatenate([part[name] for part in fields]) for name in fields[0]}
        self.check_varied(joined, label_name)
        return Examples({"input_ids": input_ids, **joined}, input_ids.lengths)

    def label_fields(
        self, labels: Sequence[Any], column: Column | None, where: str, start: int = 0
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Returns "labels" of rows as `LabelSet.targets` does, and "probabilities" [rows, classes] of soft labels.

        `column` has the labels, None without any; `where` is its name, and `start` the number of the first row.
        """
        if column is None or not is_soft(column):
            naming = None if column is None else class_names(column)
            return {"labels": self.labels.targets(labels, where, start, naming)}
        own = soft_classes(column, where, self.soft_classes)
        found, shares = soft_labels(labels, own, self.labels, where, start)
        return {"labels": found, "probabilities": shares}

    def check_varied(self, fields: Mapping[str, np.ndarray[Any, Any]], where: str) -> None:
        """Refuses soft labels, as of `label_fields`, that are the same in every row, unless a teacher teaches the rows.

        Raises `DataError`; for validation rows it warns. `find_labels` does so for other labels.
        """
        if not self.optional and "probabilities" in fields:
            check_varied((row.tobytes() for row in fields["probabilities"]), where)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch; `labels` are [batch] or [batch, classes]."""
        names = [name for name in ("labels", "probabilities") if name in examples[0]]
        return {
            **self.inputs(examples),
            **self.label_batch({n: np.asarray([row[n] for row in examples]) for n in names}),
        }

    def label_batch(self, fields: Mapping[str, Any]) -> Batch:
        """Returns the part of a batch that `label_fields` decide: `labels`, `mask`, and `targets` where they differ."""
        labels, shares = np.asarray(fields["labels"]), fields.get("probabilities")
        batch = {"labels": torch.from_numpy(labels), "mask": torch.ones(len(labels), dtype=torch.bool)}
        if shares is not None or self.class_weights is not None or self.label_smoothing:
            if shares is None:
                shares = labels if self.labels.multi else np.eye(len(self.labels), dtype=np.float32)[labels.clip(0)]
            targets = loss_targets(np.asarray(shares), self.class_weights, self.label_smoothing, self.labels.multi)
            batch["targets"] = torch.from_numpy(targets)
        return batch

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, classes] and hidden states of all tokens."""
        return run_model(model, batch, wants)

    def measure(self) -> Measure:
        """Returns a measure of accuracy and macro-F1 on the rows that have labels."""
        return _ClassMeasure(self.labels.multi)

    def check_labels(self, objective: Objective) -> None:
        """Refuses labels that are several to a row, or weighted; see `Task.check_labels`."""
        weighted = self.class_weights is not None or self.label_smoothing > 0
        if objective.single_label and (self.labels.multi or (weighted and objective.needs_labels)):
            raise MethodMisfit(
                f"{type(objective).__name__} learns from rows with one label each. Leave class_weights, label "
                "smoothing and multi-label rows out, or choose SoftTargets(teacher)."
            )

    def check_teacher(self, teacher: Teacher | TextTeacher) -> None:
        """Refuses a teacher that is not a classifier of the same classes and kind; see `Task.check_teacher`."""
        model: Any = None if text_teacher(teacher) is not None else cast("Teacher", teacher).model
        if hasattr(model, "can_generate") and model.can_generate():  # its config may name classes all the same
            raise MethodMisfit(
                f"The teacher, {type(model).__name__}, is a language model and no classifier, so it cannot teach one. "
                "Train it with TrainHFClassifier; an LLM teaches by ScoreLabels."
            )
        label_order(_label2id(teacher), self.labels.label2id)
        both = is_multi_label(teacher), self.labels.multi
        kinds = [f"a {'multi' if each else 'single'}-label classifier" for each in both]
        if kinds[0] != kinds[1]:
            raise MethodMisfit(
                f"The teacher, {teacher!r}, is {kinds[0]}, and the labels make the student {kinds[1]}: logits of one "
                "class among several are no decisions for each class. Choose a teacher of the student's kind. (A "
                "model's config states its kind as problem_type, a TextTeacher as multi_label.)"
            )

    def aligned(self, teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits, reordered to the student's classes by name, at the temperature it was fitted."""
        return align_labels(scaled_logits(teacher, logits), _label2id(teacher), self.labels.label2id)


def _label2id(teacher: Teacher | TextTeacher) -> dict[str, int]:
    found = classes_of(teacher)
    if not found:
        raise MethodMisfit(f"The teacher, {teacher!r}, has no classes, so it cannot teach them.")
    return found


class _ClassMeasure(Measure):
    def __init__(self, multi: bool) -> None:
        self.multi = multi
        self.predicted: list[np.ndarray[Any, Any]] = []
        self.wanted: list[np.ndarray[Any, Any]] = []

    def add(self, outputs: Outputs, batch: Batch) -> None:
        assert outputs.logits is not None
        labels = batch["labels"]
        has_label = (labels.reshape(len(labels), -1) != IGNORED_LABEL).all(1)
        logits, labels = outputs.logits[has_label], labels[has_label]
        self.predicted.append((logits > 0 if self.multi else _one_hot(logits.argmax(-1), logits)).cpu().numpy())
        self.wanted.append((labels > 0 if self.multi else _one_hot(labels, logits)).cpu().numpy())

    def join(self, other: Self) -> None:
        self.predicted += other.predicted
        self.wanted += other.wanted

    def result(self) -> dict[str, float]:
        predicted, wanted = np.concatenate(self.predicted), np.concatenate(self.wanted)
        if not len(wanted):
            return {}
        hits, said, classes = (part.sum(0).astype(np.float64) for part in (predicted & wanted, predicted, wanted))
        f1 = float(macro_f1_of_counts(hits, said, classes))
        return {"accuracy": float((predicted == wanted).all(1).mean()), "macro_f1": f1}


def _one_hot(classes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return F.one_hot(classes, logits.shape[-1]).bool()
