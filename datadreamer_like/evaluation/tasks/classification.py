"""Text classification, single-label or multi-label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Outputs, Teacher, align_labels, label_order, teacher_logits_for_texts
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.graph.output import Column

from ..columns import check_text, read_rows
from ..labels import LabelSet, class_names
from ..quality import macro_f1_of_counts
from .examples import Examples, Ragged, attention_mask, padded
from .task import Batch, Measure, Task, run_model, tokenize


class Classification(Task):
    """Texts to classes; rows without a label learn from a teacher only.

    Args:
        tokenizer: The model's tokenizer.
        labels: The classes.
        max_length: Maximum length of a text in tokens.
        truncate: Cut longer texts; False refuses them.
        optional: Whether labels may be None.
    """

    columns: ClassVar[tuple[str, ...]] = ("input", "output")
    stored: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: LabelSet,
        max_length: int,
        truncate: bool = True,
        *,
        optional: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.labels = labels
        self.optional = optional

    @property
    def label2id(self) -> dict[str, int]:
        """The classes and their positions."""
        return {name: index for index, name in enumerate(self.labels.names)}

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads texts and labels, if there is a label column; see `Task.encode`."""
        text_name, *label_names = columns
        naming = class_names(columns[label_names[0]]) if label_names else None
        targets: list[Any] = []
        too_long: dict[int, int] = {}
        with Ragged(path.with_suffix(".ids")) as input_ids:
            for part in read_rows(columns, optional=label_names if self.optional else ()):
                start = len(targets)
                texts = [check_text(values[0], text_name, row) for row, values in enumerate(part, start)]
                for row, values in enumerate(part, start):
                    label = values[1] if label_names else None
                    targets.append(
                        self._target(
                            None if label is None else self.labels.positions(label, label_names[0], row, naming)
                        )
                    )
                ids = tokenize(self.tokenizer, texts, max_length=self.max_length if self.truncate else None)
                too_long.update({start + i: len(x) for i, x in enumerate(ids) if len(x) > self.max_length})
                input_ids.extend(ids)
        self.refuse_long(too_long, text_name)
        labels = np.asarray(targets, dtype=np.float32 if self.labels.multi else np.int64)
        return Examples({"input_ids": input_ids, "labels": labels}, input_ids.lengths)

    def _target(self, positions: list[int] | None) -> Any:
        if not self.labels.multi:
            return IGNORED_LABEL if positions is None else positions[0]
        target = np.full(len(self.labels), IGNORED_LABEL if positions is None else 0.0, dtype=np.float32)
        if positions is not None:
            target[positions] = 1.0
        return target

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch: `input_ids` and `attention_mask` [batch, seq], `labels` [batch] or [batch, classes]."""
        ids = [row["input_ids"] for row in examples]
        labels = torch.from_numpy(np.asarray([row["labels"] for row in examples]))
        return {
            "input_ids": padded(ids, self.padding),
            "attention_mask": attention_mask(ids),
            "labels": labels,
            "mask": torch.ones(len(ids), dtype=torch.bool),
            "rows": torch.tensor([row["row"] for row in examples]),
        }

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, classes] and hidden states of all tokens."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = run_model(model, inputs, wants)
        return Outputs(
            logits=found.logits if "logits" in wants else None,
            hidden_states=getattr(found, "hidden_states", None),
            attentions=getattr(found, "attentions", None),
            mask=batch["attention_mask"].bool(),
        )

    def measure(self) -> Measure:
        """Returns a measure of accuracy and macro-F1 on the rows that have labels."""
        return _ClassMeasure(self.labels)

    def check_teacher(self, teacher: Teacher) -> None:
        """Refuses a teacher that is not a classifier of the same classes; see `Task.check_teacher`."""
        label_order(_label2id(teacher), self.label2id)

    def answers(
        self,
        teacher: Teacher,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        device: torch.device | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Returns a teacher's logits [texts, classes], in the order of the teacher's classes."""
        return teacher_logits_for_texts(teacher, texts, max_length=max_length, device=device, on_rows=on_rows)

    def aligned(self, teacher: Teacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits, reordered to the student's classes by name."""
        return align_labels(logits, _label2id(teacher), self.label2id)


def _label2id(teacher: Teacher) -> dict[str, int]:
    config = getattr(teacher.model, "config", None)
    found = getattr(config, "label2id", None)
    if not found:
        raise MethodMisfit(f"The teacher, {type(teacher.model).__name__}, has no classes, so it cannot teach them.")
    return dict(found)


class _ClassMeasure(Measure):
    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.predicted: list[np.ndarray[Any, Any]] = []
        self.wanted: list[np.ndarray[Any, Any]] = []

    def add(self, outputs: Outputs, batch: Batch) -> None:
        assert outputs.logits is not None
        labels = batch["labels"]
        has_label = (labels.reshape(len(labels), -1) != IGNORED_LABEL).all(1)
        logits, labels = outputs.logits[has_label], labels[has_label]
        multi = self.labels.multi
        self.predicted.append((logits > 0 if multi else _one_hot(logits.argmax(-1), logits)).cpu().numpy())
        self.wanted.append((labels > 0 if multi else _one_hot(labels, logits)).cpu().numpy())

    def result(self) -> dict[str, float]:
        predicted, wanted = np.concatenate(self.predicted), np.concatenate(self.wanted)
        if not len(wanted):
            return {}
        hits, said, classes = (part.sum(0).astype(np.float64) for part in (predicted & wanted, predicted, wanted))
        f1 = float(macro_f1_of_counts(hits, said, classes))
        return {"accuracy": float((predicted == wanted).all(1).mean()), "macro_f1": f1}


def _one_hot(classes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return F.one_hot(classes, logits.shape[-1]).bool()
