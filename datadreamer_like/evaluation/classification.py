"""Single-label text classifiers, judged by accuracy and macro-F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import DefinitionError, LabelError, MethodMisfit, did_you_mean
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.report import Column, Interval

from .columns import read_rows
from .judge import NAMES, Judge
from .labels import class_names, label_name
from .quality import paired_differences, scores


class ClassificationJudge(Judge):
    """Compares predicted labels by name, so models may order their classes differently; see `Judge`.

    Raises:
        DefinitionError: There are no labels.
        MethodMisfit: A model is a multi-label classifier.
        LabelError: A model lacks one of the labels.
        DataError: A text or label is missing.
    """

    kind = "classification"
    tasks = frozenset({"text-classification"})
    figures = (
        Column("accuracy", "accuracy", "%", ".1f", 100),
        Column("accuracy_difference", "difference", "points [95 %]", "+.1f", 100),
        Column("macro_f1", "macro-F1", "%", ".1f", 100),
    )
    axis = "accuracy (%)"
    timed = "from text to answer"

    def read(self) -> None:
        """Reads texts and label names."""
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
        for name, model in self.models.items():
            if model.is_multi_label:
                raise MethodMisfit(
                    f"{name} is a multi-label classifier; only single-label ones are compared. Leave it out."
                )
            known = model.labels
            for label, row in sorted(first_rows.items(), key=lambda item: item[1]):
                if label not in known:
                    raise LabelError(
                        f'Row {row} has the label "{label}", which {name} does not know; its labels are '
                        f"{', '.join(known)}.{did_you_mean(label, known)} Fix the label, filter such rows out, or "
                        "leave the model out."
                    )

    def answers(self, model: TrainedModel, rows: Sequence[str], batch_size: int) -> list[str]:
        """Returns the model's most likely label for each text."""
        return model.predict(rows, batch_size=batch_size, max_length=self.max_length).labels

    def kept(self, answers: Sequence[str]) -> list[str]:
        """Returns the labels."""
        return list(answers)

    def quality(self, answers: Sequence[str]) -> dict[str, float]:
        """Returns "accuracy" and "macro_f1"."""
        return scores(self.truth, answers)

    def differences(
        self, first: Sequence[str], other: Sequence[str], *, resamples: int, seed: int
    ) -> dict[str, Interval]:
        """Returns the differences in "accuracy" and "macro_f1", `other - first`."""
        return paired_differences(self.truth, first, other, resamples=resamples, seed=seed)

    @classmethod
    def note(cls, rows: int, facts: Mapping[str, Any], first: str) -> str:
        """Returns the number of classes and what the difference column shows."""
        return (
            f"{rows:,} rows of {facts['classes']} classes. Difference: of accuracy, to {first} on the same rows; "
            "95 % interval by paired bootstrap."
        )
