"""Single-label text classifiers, judged by accuracy and macro-F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import DefinitionError, LabelError, MethodMisfit, did_you_mean
from datadreamer_like.graph.output import Column as Rows
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.report import Interval, TableColumn

from .judge import Judge, PromptOptions
from .quality import accuracy, macro_f1, paired_differences
from .rows import read_labelled


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
        TableColumn("accuracy", "accuracy", "%", ".1f", 100),
        TableColumn("accuracy_difference", "difference", "points [95 %]", "+.1f", 100),
        TableColumn("macro_f1", "macro-F1", "%", ".1f", 100),
    )
    axis = "accuracy (%)"
    timed = "from text to answer"

    def __init__(
        self,
        inputs: Rows,
        labels: Rows | None,
        models: Sequence[TrainedModel],
        names: Sequence[str],
        options: PromptOptions,
    ) -> None:
        if labels is None:
            raise DefinitionError(f"{names[0]} is a classifier, and there are no labels to compare by. Pass labels=...")
        self.rows, self.labels = read_labelled(inputs, labels)
        self.max_length = options.max_length
        self.columns = {"text": list(self.rows), "label": self.labels}
        self.facts = {"classes": len(set(self.labels))}
        first_rows = {label: row for row, label in reversed(list(enumerate(self.labels)))}
        for model, name in zip(models, names, strict=True):
            _check(model, name, first_rows)

    def answers(self, model: TrainedModel, rows: Sequence[str], batch_size: int) -> list[str]:
        """Returns the model's most likely label for each text."""
        return model.predict(rows, batch_size=batch_size, max_length=self.max_length).labels

    def kept(self, answers: Sequence[str]) -> list[str]:
        """Returns the labels."""
        return list(answers)

    def quality(self, answers: Sequence[str]) -> dict[str, float]:
        """Returns "accuracy" and "macro_f1"."""
        return {"accuracy": accuracy(self.labels, answers), "macro_f1": macro_f1(self.labels, answers)}

    def differences(
        self, first: Sequence[str], other: Sequence[str], *, resamples: int, seed: int
    ) -> dict[str, Interval]:
        """Returns the differences in "accuracy" and "macro_f1", `other - first`."""
        return paired_differences(self.labels, first, other, resamples=resamples, seed=seed)

    @classmethod
    def note(cls, rows: int, facts: Mapping[str, Any], first: str) -> str:
        """Returns the number of classes and what the difference column shows."""
        return (
            f"{rows:,} rows of {facts['classes']} classes. Difference: of accuracy, to {first} on the same rows; "
            "95 % interval by paired bootstrap."
        )


def _check(model: TrainedModel, name: str, first_rows: Mapping[str, int]) -> None:
    if model.is_multi_label:
        raise MethodMisfit(f"{name} is a multi-label classifier; only single-label ones are compared. Leave it out.")
    known = model.labels
    for label, row in sorted(first_rows.items(), key=lambda item: item[1]):
        if label not in known:
            raise LabelError(
                f'Row {row} has the label "{label}", which {name} does not know; its labels are '
                f"{', '.join(known)}.{did_you_mean(label, known)} Fix the label, filter such rows out, or leave "
                "the model out."
            )
