"""Text classification, single-label or multi-label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Outputs, Teacher, TextTeacher, align_labels, classes_of, label_order
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.graph.output import Column

from ..columns import read_rows
from ..labels import LabelSet, class_names
from ..quality import macro_f1_of_counts
from .examples import Examples, Ragged
from .task import Batch, Measure, Task, run_model, tokenize


class Classification(Task):
    """Texts to classes; see `Task`. If labels are `optional`, rows without one learn from a teacher only."""

    kind: ClassVar[str] = "classification"
    stored: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, labels: LabelSet, max_length: int, truncate: bool, optional: bool
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.labels = labels
        self.optional = optional

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads texts and labels, if there is a label column; see `Task.encode`."""
        text_name, *label_names = columns
        label_name = label_names[0] if label_names else ""
        naming = class_names(columns[label_name]) if label_name else None
        targets: list[np.ndarray[Any, Any]] = []
        too_long: dict[int, int] = {}
        start = 0
        with Ragged(path.with_suffix(".ids")) as input_ids:
            for part in read_rows(columns, labels=label_name, optional=self.optional):
                texts, labels = [row[0] for row in part], [row[1] if label_name else None for row in part]
                targets.append(self.labels.targets(labels, label_name, start, naming))
                ids = tokenize(self.tokenizer, texts, max_length=self.max_length if self.truncate else None)
                too_long.update({start + i: len(x) for i, x in enumerate(ids) if len(x) > self.max_length})
                input_ids.extend(ids)
                start += len(part)
        self.refuse_long(too_long, text_name)
        return Examples({"input_ids": input_ids, "labels": np.concatenate(targets)}, input_ids.lengths)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch; `labels` are [batch] or [batch, classes]."""
        labels = torch.from_numpy(np.asarray([row["labels"] for row in examples]))
        return {**self.inputs(examples), "labels": labels, "mask": torch.ones(len(labels), dtype=torch.bool)}

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, classes] and hidden states of all tokens."""
        return run_model(model, batch, wants)

    def measure(self) -> Measure:
        """Returns a measure of accuracy and macro-F1 on the rows that have labels."""
        return _ClassMeasure(self.labels.multi)

    def check_teacher(self, teacher: Teacher | TextTeacher) -> None:
        """Refuses a teacher that is not a classifier of the same classes; see `Task.check_teacher`."""
        label_order(_label2id(teacher), self.labels.label2id)

    def aligned(self, teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits, reordered to the student's classes by name."""
        return align_labels(logits, _label2id(teacher), self.labels.label2id)


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

    def result(self) -> dict[str, float]:
        predicted, wanted = np.concatenate(self.predicted), np.concatenate(self.wanted)
        if not len(wanted):
            return {}
        hits, said, classes = (part.sum(0).astype(np.float64) for part in (predicted & wanted, predicted, wanted))
        f1 = float(macro_f1_of_counts(hits, said, classes))
        return {"accuracy": float((predicted == wanted).all(1).mean()), "macro_f1": f1}


def _one_hot(classes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return F.one_hot(classes, logits.shape[-1]).bool()
