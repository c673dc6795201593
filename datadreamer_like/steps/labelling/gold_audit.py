"""Labels that are measured on hidden gold labels before they are used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset
from datadreamer_like.evaluation.abstention import rows_needed
from datadreamer_like.evaluation.agreement import exact_interval
from datadreamer_like.evaluation.votes import ABSTAINED, Votes
from datadreamer_like.graph.output import Column
from datadreamer_like.report import Interval, Table, TableColumn

from ..base.preview import fail_unless_preview
from ..base.step import Step

_COLUMNS = (
    TableColumn("label", "gold label", align="left"),
    TableColumn("gold", "gold rows", "", ",d"),
    TableColumn("labelled", "labelled", "", ",d"),
    TableColumn("accuracy", "accuracy", "%", ".1f", 100),
)


class GoldAudit(Step):
    """Passes labels on if they are shown to be accurate on gold labels that the labeller has not seen.

    Inputs: `labels` (of any labeller: `LabelModel`, `Predict`, an LLM's answers, people), `gold` (the true labels of a
    random sample of these rows, None for others). Args: `min_accuracy` (the bar), `confidence` (0.95). Outputs:
    `labels`, as they came in: what uses them depends on the audit.

    The step fails (in a preview it warns) unless the whole exact interval of the accuracy is at or above
    `min_accuracy`. The labeller sees all rows alike, so it cannot know which are measured; they must not be among those
    that it was trained or calibrated on, and count once: a labeller that was changed until it passes needs a new
    sample. Rows without a label count as not answered, not as wrong; `coverage` says how many there are.

    Example:
        >>> audit = GoldAudit(  # doctest: +SKIP
        ...     "Audit", inputs={"labels": labels.output["labels"], "gold": checked.output["topic"]},
        ...     args={"min_accuracy": 0.8},
        ... )
        >>> print(audit.summary())  # doctest: +SKIP
        >>> rows = zipped(texts, audit)  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("labels", help="The labels to measure.")
        self.register_input("gold", help="True labels of a sample of the rows, None for others.")
        self.register_arg("min_accuracy", type=float, help="The accuracy that must be shown.")
        self.register_arg("confidence", required=False, default=0.95, type=float, help="Of the interval.")
        self.register_output("labels", help="The labels.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        labels = ["cat", "dog"] * 10
        return {"inputs": {"labels": labels, "gold": [*labels[:-2], None, None]}, "args": {"min_accuracy": 0.7}}

    def configure(self) -> None:
        """Checks the arguments."""
        for name in ("min_accuracy", "confidence"):
            value = self.args[name]
            if not 0 < value < 1:
                raise DefinitionError(f'"{self.name}": {name} is {value}; it must be between 0 and 1.')

    @cached_property
    def _audited(self) -> Votes:
        return Votes.of(self._inputs, None, f'"{self.name}"')

    def run(self) -> Column:
        """Measures the labels, and passes them on; a preview has too few gold rows to fail, and warns."""
        try:
            self._measure()
        except DataError as error:
            fail_unless_preview(self, error, "the labels are passed on")
        return self._inputs["labels"]

    def _measure(self) -> None:
        if (self._audited.codes[:, 1] == ABSTAINED).all():
            raise EmptyDataset(f'"{self.name}": gold has no label in any row. Label a random sample of the rows first.')
        found, bar, confidence = self.accuracy, self.args["min_accuracy"], self.args["confidence"]
        rows = self._right(None)[1]
        given, gold = (
            {self._audited.classes[code] for code in set(codes) - {ABSTAINED}} for codes in self._audited.codes.T
        )
        if len(given) > 1 and len(gold) > 1 and not given & gold:
            raise DataError(
                f'"{self.name}": no label is a gold label: the labels are {", ".join(sorted(given)[:5])}, the gold '
                f"ones {', '.join(sorted(gold)[:5])}. Map one to the names of the other."
            )
        if len(gold) == 1 and len(given) > 1:
            self.logger.warning(
                '"%s": all %d gold rows have the label "%s", so nothing is measured of the other labels: %s. A random '
                "sample of the rows has other labels too, unless they are rare.",
                self.name, rows, *gold, ", ".join(sorted(given - gold)[:10]),
            )  # fmt: skip
        if found.low < bar:
            needed = rows_needed(1 - bar, (1 + confidence) / 2)
            verdict = "is below the bar" if found.high < bar else "is not shown to reach the bar"
            advice = (
                "Improve the labeller, and audit it on new gold rows."
                if found.value < bar
                else "Label more gold rows, or improve the labeller."
            )
            raise DataError(
                f'"{self.name}": the accuracy {found.scaled(100):.1f} % on {rows:,} gold rows {verdict} of '
                f"{100 * bar:.1f} % (interval at {100 * confidence:.0f} %; {needed:,} rows without an error "
                f"would show it). {advice}"
            )
        self.register_data_card("Audited accuracy", f"{found.scaled(100):.1f} % on {rows:,} hidden gold rows")

    def _right(self, gold: int | None) -> tuple[int, int]:
        """The numbers of right labels and of labels among rows with a gold label, or one of them."""
        labels, truth = self._audited.codes.T
        asked = (labels != ABSTAINED) & (truth != ABSTAINED if gold is None else truth == gold)
        return int((labels == truth)[asked].sum()), int(asked.sum())

    @cached_property
    def accuracy(self) -> Interval:
        """The accuracy of the labels on the gold rows, with its exact interval."""
        right, rows = self._right(None)
        if not rows:
            raise EmptyDataset(f'"{self.name}": no row with a gold label has a label, so there is nothing to measure.')
        return exact_interval(right, rows, confidence=self.args["confidence"])

    @property
    def coverage(self) -> float:
        """The share of all rows that have a label."""
        return float(np.mean(self._audited.codes[:, 0] != ABSTAINED))

    def summary(self) -> Table:
        """Returns the accuracy over all gold rows, and for each gold label."""
        truth = self._audited.codes[:, 1]
        rows: list[dict[str, Any]] = []
        for place, name in [(None, "all"), *enumerate(self._audited.classes)]:
            of_label = truth != ABSTAINED if place is None else truth == place
            right, labelled = self._right(place)
            if of_label.any():
                found = exact_interval(right, labelled, confidence=self.args["confidence"]) if labelled else None
                rows.append({"label": name, "gold": int(of_label.sum()), "labelled": labelled, "accuracy": found})
        note = f"Accuracy: of the labels, with an exact interval at {100 * self.args['confidence']:.0f} %. "
        return Table(_COLUMNS, rows, self.name, [note + f"{100 * self.coverage:.1f} % of all rows have a label."])
