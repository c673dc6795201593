"""Dropping texts that share most of their words in order with a text before them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import check_number
from datadreamer_like.graph.rows import Table
from datadreamer_like.models.words import words_of

from ..base.columns import whole
from ..operations.transforms import table_of
from .rouge_index import RougeIndex
from .row_filter import Judged, RowFilter, texts_of


class DeduplicateByRougeL(RowFilter):
    """Keeps rows whose ROUGE-L with each row kept before, and each text of a pool, is below a threshold.

    Inputs: `inputs` (texts), `pool` (texts that are there already; optional). Args: `threshold` (0.7), `drop`. Outputs:
    all columns of the step that the inputs come from.

    This is the filter of Self-Instruct (Wang et al. 2022, arXiv:2212.10560): rows are looked at in order. ROUGE-L is
    that of `evaluation.rouge_l`, and no pair is missed. A text without words, or a missing one, is never dropped.

    `step.rejected` has the other rows, with the most similar text, `similar_to`, and the score, `similarity`; with
    `drop=False` all rows are kept, with these columns.

    Example:
        >>> texts = {"inputs": new.output["instruction"], "pool": seed.output["instruction"]}  # doctest: +SKIP
        >>> novel = DeduplicateByRougeL("Novel", inputs=texts)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: Chinese and Japanese characters are words
    verdict_columns: ClassVar[dict[str, str]] = {
        "reason": "Why the row is rejected; None for a row that is not.",
        "similar_to": "The most similar text of the pool and of the rows kept before.",
        "similarity": "ROUGE-L with that text.",
    }

    whole_inputs: ClassVar[frozenset[str]] = frozenset({"pool"})

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_input("pool", required=False, help="Texts that are there already, of any step.")
        what = "ROUGE-L from which a row is dropped."
        self.register_arg("threshold", required=False, default=0.7, type=float, help=what)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"inputs": ["Name a bird.", "Name a red bird.", "Sum 2 and 3."]}, "args": {}}

    def configure(self) -> None:
        """Checks the threshold."""
        super().configure()
        check_number(self.args["threshold"], f'"{self.name}": argument "threshold"', 0, 1, over=True)

    def judge(self, table: Table) -> Judged:
        """Compares each text with those before it."""
        kept = [text for text in self._pool() if text is not None]
        texts = list(self.texts(table))
        words = [_words(text) for text in texts]
        known = [_words(text) for text in kept]
        index = RougeIndex(chain(known, words), float(self.args["threshold"]))
        for each in known:
            index.add(each)
        similar: list[tuple[str, float] | None] = []
        for text, each in zip(texts, words, strict=True):
            found = index.find(each)
            similar.append(found and (kept[found[0]], found[1]))
            if found is None and text is not None:
                index.add(each)
                kept.append(text)
        reasons = [each and "similar to an earlier text" for each in similar]
        columns = {
            "reason": pa.array(reasons, pa.string()),
            "similar_to": pa.array([each and each[0] for each in similar], pa.string()),
            "similarity": pa.array([each and each[1] for each in similar], pa.float64()),
        }
        return Judged(np.array([each is not None for each in similar], dtype=bool), columns)

    def _pool(self) -> list[str | None]:
        column = self.inputs.get("pool")
        if column is None:
            return []
        rows = table_of(whole(column).rows).columns(column.column_names)
        return [*chain.from_iterable(texts_of(rows, column.column_names[0], f'"{self.name}": pool'))]


def _words(text: str | None) -> Sequence[str]:
    return words_of(text.lower()) if text else ()
