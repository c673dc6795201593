"""Drawing rows so that labels have given shares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datadreamer_like.errors import DefinitionError, EmptyDataset, LabelError, check_number, did_you_mean
from datadreamer_like.graph.origin import From, Traced

from ..base.columns import whole
from ..base.lazy_rows import LazyRowBatches
from ..base.step import Step
from ..operations.transforms import table_of

_BY = ("down", "up")


class Balance(Step):
    """Draws rows so that the labels have equal shares, or given ones.

    Inputs: `inputs` (labels). Args: `shares` (weights by label; by default the same for all), `by`, `n`, `seed`.
    Outputs: all columns of the step that the inputs come from; the rows keep their order, repeated ones follow each
    other.

    - `by="down"`, the default, draws without repetition: as many rows as there can be.
    - `by="up"` keeps all rows, and repeats as few as are needed.
    - `n` draws that many rows: without repetition where a label has enough, else each row once or more, none more than
      once more often than another.

    Counts are exact: the shares of the total, rounded by largest remainder. The distribution before and after is in the
    data card, under "Distribution".

    Raises:
        LabelError: A label is missing, or occurs and is not in `shares`, or has a share and no rows.
        DefinitionError: A share is negative, or all are 0.

    Example:
        >>> even = Balance("Even", {"inputs": rows.output["label"]}, {"by": "down"})  # doctest: +SKIP
        >>> args = {"shares": {"spam": 1, "ham": 3}, "n": 10_000}  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("inputs", help="The labels. All columns of their step are kept.")
        what = "Weights by label, of any sum; 0 leaves a label out."
        self.register_arg("shares", required=False, type=Mapping, help=what, default_help="the same for all labels")
        what = 'Whether to draw without repetition ("down") or to keep all rows and repeat some ("up").'
        self.register_arg("by", required=False, default="down", type=str, help=what)
        self.register_arg("n", required=False, type=int, help="Number of rows to draw; `by` is then ignored.")
        self.register_arg("seed", required=False, default=0, type=int, help="Seed of the draw.")
        self.register_output("*", help="All columns of the step that the inputs come from.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"inputs": ["a", "a", "b"]}, "args": {}}

    def configure(self) -> None:
        """Checks the arguments, and registers the columns of the input's step as outputs."""
        self.replace_output("*", whole(self._inputs["inputs"]).column_names)
        by, shares = self.args["by"], self.args["shares"]
        if by not in _BY:
            raise DefinitionError(f'"{self.name}": by is {by!r}; expected "down" or "up".{did_you_mean(by, _BY)}')
        check_number(self.args["n"], f'"{self.name}": n', 1, whole=True, optional=True)
        check_number(self.args["seed"], f'"{self.name}": seed', 0, whole=True)
        for label, share in (shares or {}).items():
            check_number(share, f'"{self.name}": the share of {label!r}', 0)
        if shares is not None and not any(shares.values()):
            raise DefinitionError(f'"{self.name}": no label in shares has a share. Give weights such as {{"a": 1}}.')

    def run(self) -> LazyRowBatches:
        """Draws the rows."""
        column = self._inputs["inputs"]
        table = table_of(whole(column).rows)
        places: dict[Any, list[int]] = {}
        for row, label in enumerate(self._labels()):
            places.setdefault(label, []).append(row)
        counts = self._counts({label: len(rows) for label, rows in places.items()})
        if len(places) == 1 and self.args["shares"] is None and self.preview_rows is None:
            self.logger.warning(
                '"%s": all rows have the label %r, so there is nothing to balance. Check the column.',
                self.name, *places,
            )  # fmt: skip
        draw = np.random.default_rng(self.args["seed"])
        drawn = [_drawn(np.array(places[label]), count, draw) for label, count in sorted(counts.items(), key=repr)]
        taken = np.sort(np.concatenate(drawn))
        before = Counter({label: len(rows) for label, rows in places.items()})
        self.register_data_card("Distribution", f"{_shown(Counter(counts))}; before: {_shown(before)}")

        def batches() -> Iterator[Traced]:
            place = 0
            for batch in table.select(taken).batches():
                yield Traced(batch, From("inputs", taken[place : place + batch.num_rows]))
                place += batch.num_rows

        return LazyRowBatches(batches, len(taken), save=True, like=whole(column).rows.schema)

    def _labels(self) -> Iterator[Any]:
        shares = self.args["shares"]
        for row, label in enumerate(self.inputs["inputs"]):
            if label is None or isinstance(label, list | dict) or label != label:
                raise LabelError(
                    f'"{self.name}": row {row} has the label {label!r:.100}; expected one label. Filter first.'
                )
            if shares is not None and label not in shares:
                known = ", ".join(map(repr, shares))
                raise LabelError(
                    f'"{self.name}": row {row} has the label {label!r}, which is not in shares ({known}). Give it a '
                    f"share, 0 to leave it out.{did_you_mean(str(label), map(str, shares))}"
                )
            yield label

    def _counts(self, available: dict[Any, int]) -> dict[Any, int]:
        """Returns how many rows to draw of each label."""
        if not available:
            raise EmptyDataset(f'"{self.name}": there are no rows to draw from.')
        weights = self.args["shares"] or dict.fromkeys(available, 1)
        shares = {label: weight / sum(weights.values()) for label, weight in weights.items() if weight}
        if lacking := [repr(label) for label in shares if label not in available]:
            raise LabelError(f'"{self.name}": no row has the label {", ".join(lacking)}, which has a share.')
        totals = [available[label] / share for label, share in shares.items()]
        total = math.floor(min(totals) + 1e-9) if self.args["by"] == "down" else math.ceil(max(totals) - 1e-9)
        total = self.args["n"] or total
        exact = {label: total * share for label, share in shares.items()}
        counts = {label: math.floor(count + 1e-9) for label, count in exact.items()}
        rest = sorted(exact, key=lambda label: (counts[label] - exact[label], repr(label)))
        for label in rest[: total - sum(counts.values())]:
            counts[label] += 1
        return counts


def _drawn(rows: np.ndarray[Any, Any], count: int, draw: np.random.Generator) -> np.ndarray[Any, Any]:
    """Returns `count` of some rows: each as often as it fits in, and the rest at random."""
    times, rest = divmod(count, len(rows))
    return np.concatenate([np.repeat(rows, times), draw.choice(rows, rest, replace=False)])


def _shown(counts: Counter[Any]) -> str:
    total = max(1, counts.total())
    return ", ".join(f"{label} {count:,} ({100 * count / total:.1f} %)" for label, count in counts.most_common())
