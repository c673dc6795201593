"""Finding labels that are likely wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DataError, EmptyDataset, check_number, require_extra
from datadreamer_like.evaluation.label_suspects import label_suspects
from datadreamer_like.graph.rows import Table

from ..base.preview import fail_unless_preview
from .row_filter import Judged, RowFilter, column_of_same_step


class FindLabelErrors(RowFilter):
    """Finds labels that are likely wrong: confident learning, Northcutt, Jiang and Chuang 2021, arXiv:1911.00068.

    Inputs: `inputs` (texts, or vectors such as the output of `Embed`), `labels`, `trusted` (optional: whether a label
    is known to be right). Args: `classifier` (of scikit-learn; by default logistic regression), `folds`, `seed`, `drop`
    (False by default: nothing is dropped). Outputs: all columns of the step that the inputs come from, and unless
    `drop`, the columns `reason`, `error_probability` and `suggested_label`.

    `step.rejected` has the suspects with the same columns: for a person to look at, see `ReviewFile`. The method, and
    what it cannot find, is described at `evaluation.label_suspects`. Rows without a label or text are no suspects; in a
    preview of too few rows of a class, none is.

    Raises:
        MissingExtra: scikit-learn is not installed: `pip install "datadreamer-like[train]"`.
        DataError: A class has fewer rows than there are folds; see `evaluation.label_suspects`.

    Example:
        >>> columns = {"inputs": rows.output["text"], "labels": rows.output["label"]}  # doctest: +SKIP
        >>> found = FindLabelErrors("Suspects", inputs=columns)  # doctest: +SKIP
        >>> found.rejected.output["suggested_label"]  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: through cleanlab, which rounds counts of the joint distribution
    verdict_columns: ClassVar[dict[str, str]] = {
        "reason": "Why the label is a suspect; None for a row that is not.",
        "error_probability": "Probability that the label is wrong; None for a row without a label or text.",
        "suggested_label": "The likeliest label, as text.",
    }

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_input("labels", help="The labels, of the same step.")
        self.register_input("trusted", required=False, help="Whether a label is known to be right, of the same step.")
        what = "A scikit-learn classifier with predict_proba, trained on copies."
        self.register_arg("classifier", required=False, help=what, default_help="logistic regression")
        self.register_arg("folds", required=False, default=5, type=int, help="Number of folds of cross-validation.")
        self.register_arg("seed", required=False, default=0, type=int, help="Seed of the folds.")
        what = "Drop the suspects. False keeps them, and adds the columns of `rejected`."
        self.register_arg("drop", required=False, default=False, type=bool, help=what)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        vectors = [[10.0 * (row % 2), row / 10] for row in range(20)]
        labels = ["right" if row % 2 else "left" for row in range(19)] + ["left"]
        inputs = {"inputs": vectors, "labels": labels}
        return {"inputs": inputs, "args": {"folds": 2}}

    def configure(self) -> None:
        """Checks the arguments."""
        super().configure()
        require_extra("quality", "cleanlab", what="FindLabelErrors")
        check_number(self.args["folds"], f'"{self.name}": folds', 2, whole=True)
        column_of_same_step(self, "labels")
        column_of_same_step(self, "trusted")

    def judge(self, table: Table) -> Judged:
        """Cross-validates a classifier, and counts where it is confident of another label."""
        columns = {
            name: table.columns([column.column_names[0]]).whole().column(0).to_pylist()
            for name, column in self._inputs.items()
        }
        known = [
            row
            for row, (given, label) in enumerate(zip(columns["inputs"], columns["labels"], strict=True))
            if given is not None and label is not None
        ]
        try:
            return self._suspects(len(table), columns, known)
        except DataError as error:
            named = error if f'"{self.name}"' in str(error) else type(error)(f'"{self.name}": {error}')
            fail_unless_preview(self, named, "no label is a suspect")
            kinds = {"reason": pa.string(), "error_probability": pa.float64(), "suggested_label": pa.string()}
            return Judged(np.zeros(len(table), bool), {name: pa.nulls(len(table), kinds[name]) for name in kinds})

    def _suspects(self, size: int, columns: dict[str, list[Any]], known: list[int]) -> Judged:
        if not known:
            raise EmptyDataset(f'"{self.name}": no row has both an input and a label, so there is nothing to check.')
        given = [columns["inputs"][row] for row in known]
        trusted = [columns["trusted"][row] for row in known] if "trusted" in columns else None
        found = label_suspects(
            given if given and isinstance(given[0], str) else np.asarray(given, dtype=np.float64),
            [columns["labels"][row] for row in known],
            classifier=self.args["classifier"],
            trusted=trusted,
            folds=self.args["folds"],
            seed=self.args["seed"],
        )
        noise = f"{100 * found.noise_rate:.1f} %"
        self.register_data_card("Label noise", f"{noise} of the labels are estimated to be wrong")
        reasons: list[str | None] = [None] * size
        chances: list[float | None] = [None] * size
        suggested: list[str | None] = [None] * size
        for place, row in enumerate(known):
            chances[row], suggested[row] = float(found.error_probabilities[place]), found.suggested[place]
            if found.is_suspect[place]:
                reasons[row] = "label suspect"
        is_rejected = np.array([reason is not None for reason in reasons], dtype=bool)
        return Judged(
            is_rejected,
            {
                "reason": pa.array(reasons, pa.string()),
                "error_probability": pa.array(chances, pa.float64()),
                "suggested_label": pa.array(suggested, pa.string()),
            },
        )
