"""Calibration data: a column of texts, and optionally one of labels, as batches for a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253  (imported with the first stage that compresses, whose methods need it anyway)

from datadreamer_like.evaluation.columns import check_text, read_rows
from datadreamer_like.evaluation.labels import LabelSet, class_names
from datadreamer_like.evaluation.rows import read_texts
from datadreamer_like.evaluation.tasks.examples import attention_mask, padded
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.model_facts import model_max_length
from datadreamer_like.models.trained.trained_model import TrainedModel


class Calibration:
    """Rows of one or two columns, read again at each pass, so that only one batch is in memory.

    Args:
        inputs: Column of texts.
        labels: Column of labels, or None.
        trained: The model to calibrate.
        batch_size: Texts in a batch.
        max_length: Texts are cut at this many tokens; None for the model's own limit.
    """

    def __init__(
        self, inputs: Column, labels: Column | None, trained: TrainedModel, batch_size: int, max_length: int | None
    ) -> None:
        self.inputs, self.labels, self.trained = inputs, labels, trained
        self.batch_size = batch_size
        most = model_max_length(trained.config, trained.tokenizer)
        self.max_length = min(max_length or most, most)

    def texts(self) -> Iterator[str]:
        """Yields the texts.

        Raises:
            DataError: A text is None.
            ArgumentTypeError: A value is not a text.
            EmptyDataset: There are none.
        """
        return read_texts(self.inputs, "calibration")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields batches: `input_ids` and `attention_mask` [batch, seq], and `labels` where there are any."""
        usage = current_usage()
        usage.rows, usage.total_rows = 0, self.inputs.num_rows
        for texts, labels in self._portions():
            usage.note = f"measuring on batches of {self.batch_size}"
            yield self._batch(texts) | labels
            usage.add(rows=len(texts))

    def _portions(self) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
        if self.labels is None:
            texts: list[str] = []
            for text in self.texts():
                texts.append(text)
                if len(texts) == self.batch_size:
                    yield texts, {}
                    texts = []
            if texts:
                yield texts, {}
            return
        known = LabelSet(tuple(self.trained.labels), self.trained.is_multi_label)
        naming = class_names(self.labels)
        names = ("calibration", "calibration_labels")
        start = 0
        columns = dict(zip(names, (self.inputs, self.labels), strict=True))
        for pairs in read_rows(columns, portion=self.batch_size):
            texts = [check_text(text, names[0], row) for row, (text, _) in enumerate(pairs, start)]
            found = [known.positions(label, names[1], row, naming) for row, (_, label) in enumerate(pairs, start)]
            start += len(pairs)
            yield texts, {"labels": self._targets(found, len(known))}

    def _targets(self, found: list[list[int]], classes: int) -> torch.Tensor:
        if not self.trained.is_multi_label:
            return torch.tensor([positions[0] for positions in found])
        targets = torch.zeros(len(found), classes)
        for row, positions in enumerate(found):
            targets[row, positions] = 1.0
        return targets

    def _batch(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokenizer: Any = self.trained.tokenizer
        ids = tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        return {"input_ids": padded(ids, int(tokenizer.pad_token_id or 0)), "attention_mask": attention_mask(ids)}
