"""The judge of classifiers: right labels, calibration, coverage at a bound, agreement with a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from datadreamer_like.distillation.teacher import label_order
from datadreamer_like.errors import DataError, DefinitionError, LabelError, MethodMisfit, did_you_mean
from datadreamer_like.models.trained.predictions import decisions, log_odds, log_probabilities
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded
from datadreamer_like.report import Interval, TableColumn

from ..abstention import fit_threshold, rows_needed
from ..calibration import expected_calibration_error
from ..columns import read_rows
from ..judge import NAMES, Further, Judge
from ..labels import class_names, label_name
from ..quality import paired_differences, scores


class ClassAnswer(NamedTuple):
    """A classifier's label for a text, and the log-probabilities of its classes at its temperature, fp32 [classes]."""

    label: str
    log_probabilities: np.ndarray[Any, np.dtype[np.float32]]


class ClassificationJudge(Judge):
    """Compares predicted labels by name, so models may order their classes differently; see `Judge`.

    With `max_error`, the coverage is the share of the rows that a model would answer above a threshold that is fitted
    on these rows; see `fit_threshold`. With a teacher, the agreement is the share of rows with the same label, and the
    divergence the mean of KL(teacher ‖ model) in nats.

    Raises:
        DefinitionError: There are no labels, or an option is one of language models.
        MethodMisfit: A model or the teacher is a multi-label classifier, or a model is a reward model.
        LabelError: A model lacks one of the labels, or has other classes than the teacher.
        DataError: A text or label is missing, or there are fewer rows than the bound needs.
    """

    kind = "classification"
    tasks = frozenset({"text-classification"})
    figures = (
        TableColumn("accuracy", "accuracy", "%", ".1f", 100),
        TableColumn("accuracy_difference", "difference", "points [95 %]", "+.1f", 100),
        TableColumn("macro_f1", "macro-F1", "%", ".1f", 100),
        TableColumn("calibration_error", "ECE", "%", ".1f", 100),
        TableColumn("coverage", "coverage", "% at bound", ".0f", 100),
        TableColumn("agreement", "agreement", "% of rows", ".1f", 100),
        TableColumn("divergence", "KL", "nats", ".3f"),
    )
    axis = "accuracy (%)"
    timed = "from text to answer"
    foreign: ClassVar = ("rejected", "generate", "judge")

    def read(self) -> None:
        """Reads texts and label names."""
        self._taught: list[ClassAnswer] | None = None  # the teacher's answers
        if self.labels is None:
            name = next(iter(self.models))
            raise DefinitionError(f"{name} is a classifier, and there are no labels to compare by. Pass labels=...")
        naming = class_names(self.labels)
        columns = dict(zip(NAMES, (self.inputs, self.labels), strict=True))
        pairs = [pair for part in read_rows(columns, labels=NAMES[1]) for pair in part]
        self.rows = [text for text, _ in pairs]
        self.truth = [label_name(label, NAMES[1], row, naming) for row, (_, label) in enumerate(pairs)]
        self.columns = {"text": self.rows, "label": self.truth}
        first_rows = {label: row for row, label in reversed(list(enumerate(self.truth)))}
        self.facts = {"classes": len(first_rows)}
        if self.max_error is not None:
            self._check_bound()
        for name, model in self.models.items():
            if model.is_multi_label:
                raise MethodMisfit(
                    f"{name} is a multi-label classifier; only single-label ones are compared. Leave it out."
                )
            known = model.labels
            if len(known) == 1:
                raise MethodMisfit(
                    f'{name} gives one number a text, "{known[0]}", and is no classifier, so it cannot be compared. '
                    "Leave it out. A reward model compares answers of language models: pass it as judge=."
                )
            for label, row in sorted(first_rows.items(), key=lambda item: item[1]):
                if label not in known:
                    raise LabelError(
                        f'Row {row} has the label "{label}", which {name} does not know; its labels are '
                        f"{', '.join(known)}.{did_you_mean(label, known)} Fix the label, filter such rows out, or "
                        "leave the model out."
                    )
        if self.teacher is not None:
            self._check_teacher(self.teacher)

    def answers(self, model: TrainedModel, rows: Sequence[str], batch_size: int) -> list[ClassAnswer]:
        """Returns the model's most likely label for each text, with the log-probabilities of all."""
        logits = model.logits(rows, batch_size=batch_size, max_length=self.max_length).astype(np.float64)
        found = log_probabilities(model.confidence.scaled(logits)).astype(np.float32)
        labels = decisions(logits, model.labels, False)
        return [ClassAnswer(label, row) for label, row in zip(labels, found, strict=True)]

    def kept(self, answers: Sequence[ClassAnswer]) -> list[str]:
        """Returns the labels."""
        return [answer.label for answer in answers]

    def quality(self, answers: Sequence[ClassAnswer]) -> dict[str, float]:
        """Returns "accuracy" and "macro_f1"."""
        return scores(self.truth, self.kept(answers))

    def further(self, model: TrainedModel, answers: Sequence[ClassAnswer], batch_size: int) -> Further:
        """Returns "calibration_error", and "coverage", "agreement" and "divergence" where they were asked for."""
        found = np.stack([answer.log_probabilities for answer in answers]).astype(np.float64)
        classes = model.label2id
        positions = [classes[label] for label in self.truth]
        figures = {"calibration_error": expected_calibration_error(np.minimum(np.exp(found), 1.0), positions)}
        if self.max_error is not None:
            bound = {"max_error": self.max_error, "confidence": self.confidence}
            right = [said == label for said, label in zip(self.kept(answers), self.truth, strict=True)]
            figures["coverage"] = fit_threshold(log_odds(found, False), right, **bound).coverage
        if self.teacher is not None:
            if self._taught is None:
                with loaded(self.teacher) as teacher:
                    self._taught = self.answers(teacher, self.rows, batch_size)
            same = [answer.label == said.label for answer, said in zip(answers, self._taught, strict=True)]
            theirs = np.stack([said.log_probabilities for said in self._taught]).astype(np.float64)
            theirs = theirs[:, label_order(self.teacher.label2id, classes)]
            figures["agreement"] = float(np.mean(same))
            # Rounding can make the divergence of equal models negative.
            figures["divergence"] = max(0.0, float((np.exp(theirs) * (theirs - found)).sum(1).mean()))
        return Further(figures)

    def differences(self, first: Sequence[ClassAnswer], other: Sequence[ClassAnswer]) -> dict[str, Interval]:
        """Returns the differences in "accuracy" and "macro_f1", `other - first`."""
        options = {"resamples": self.resamples, "seed": self.seed}
        return paired_differences(self.truth, self.kept(first), self.kept(other), **options)

    @classmethod
    def note(cls, rows: int, facts: Mapping[str, Any], first: str) -> str:
        """Returns the number of classes and what the columns show."""
        parts = [
            f"{rows:,} rows of {facts['classes']} classes. Difference: of accuracy, to {first} on the same rows; "
            "95 % interval by paired bootstrap. ECE: expected calibration error, 15 bins."
        ]
        if facts.get("max_error") is not None:
            parts.append(
                f"Coverage: rows above a threshold fitted on them, so that at most {100 * facts['max_error']:g} % of "
                f"further answers are wrong, with {100 * facts['confidence']:g} % confidence."
            )
        if facts.get("teacher"):
            parts.append(f"Agreement: the same label as {facts['teacher']}; KL: from it to the model.")
        return " ".join(parts)

    def _check_bound(self) -> None:
        assert self.max_error is not None
        needed = rows_needed(self.max_error, self.confidence)
        if len(self.rows) < needed:
            raise DataError(
                f"There are {len(self.rows):,} rows, and the coverage at max_error={self.max_error} with "
                f"confidence={self.confidence} needs at least {needed:,}. Pass more rows, or raise max_error."
            )
        self.facts = {**self.facts, "max_error": self.max_error, "confidence": self.confidence}

    def _check_teacher(self, teacher: TrainedModel) -> None:
        if teacher.is_multi_label:
            raise MethodMisfit("The teacher is a multi-label classifier; only single-label models are compared.")
        for model in self.models.values():
            label_order(teacher.label2id, model.label2id)
        self.facts = {**self.facts, "teacher": Path(teacher.path).name if teacher.node is None else teacher.node.name}
