"""Calibration data: a column of texts, and optionally one of labels, as batches for a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253  (imported with the first stage that compresses, whose methods need it anyway)

from datadreamer_like.evaluation.columns import read_rows, read_texts
from datadreamer_like.evaluation.labels import LabelSet, class_names
from datadreamer_like.evaluation.tasks.examples import padded_inputs
from datadreamer_like.evaluation.tasks.task import row_limit
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.trained_model import TrainedModel


class Calibration:
    """Rows of one or two columns, read again at each pass, so that only one batch is in memory.

    Args:
        columns: `calibration`, a column of texts, and optionally `calibration_labels`.
        trained: The model to calibrate.
        batch_size: Texts in a batch.
        max_length: Texts are cut at this many tokens; None for the model's own limit.
    """

    def __init__(
        self, columns: dict[str, Column], trained: TrainedModel, batch_size: int, max_length: int | None
    ) -> None:
        self.columns, self.trained, self.batch_size = columns, trained, batch_size
        self.max_length = row_limit(trained.config, trained.tokenizer, max_length)

    def texts(self) -> Iterator[str]:
        """Yields the texts; for the errors see `read_rows`."""
        return read_texts(self.columns["calibration"], "calibration")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields batches: `input_ids` and `attention_mask` [batch, seq], and `labels` where there are any."""
        tokenizer: Any = self.trained.tokenizer
        name = "calibration_labels"
        known, naming = None, None
        if name in self.columns:
            known = LabelSet(tuple(self.trained.labels), self.trained.is_multi_label)
            naming = class_names(self.columns[name])
        usage = current_usage()
        usage.rows, usage.total_rows = 0, self.columns["calibration"].num_rows
        start = 0
        for rows in read_rows(self.columns, labels=name, portion=self.batch_size):
            usage.note = f"measuring on batches of {self.batch_size}"
            ids = tokenizer([row[0] for row in rows], truncation=True, max_length=self.max_length)["input_ids"]
            batch = padded_inputs(ids, int(tokenizer.pad_token_id or 0))
            if known is not None:
                batch["labels"] = torch.from_numpy(known.targets([row[1] for row in rows], name, start, naming))
            yield batch
            start += len(rows)
            usage.add(rows=len(rows))
