"""Rows of several texts with a target, for losses that compare embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Outputs, Teacher, TextTeacher
from datadreamer_like.distillation.tokens import padded_inputs
from datadreamer_like.errors import ArgumentTypeError, DataError, MethodMisfit
from datadreamer_like.graph.output import Column

from ..columns import check_varied, read_rows
from .examples import Examples, Ragged, same_rows
from .task import Batch, Measure, Task, tokenize

Targets = Callable[[Mapping[str, Column], Path], np.ndarray[Any, Any]]
"""Returns the targets of rows [rows, ...], fp32, from columns of texts by argument name; the file is for large ones."""


class Texts(Task):
    """Rows of one or more texts, whose embeddings sentence-transformers' losses compare; those run the model.

    Args:
        tokenizer, max_length, truncate: See `Task`.
        scores: Name of the column of numbers, without its split; "" for none.
        targets: Computes the targets from the texts, such as a teacher's embeddings; None for none.
        alike: Batches have rows of similar length, to reduce padding. Not for losses that compare the rows of a batch
            with each other, whose batches are drawn at random.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncate: bool = True,
        *,
        scores: str = "",
        targets: Targets | None = None,
        alike: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.scores = scores
        self.targets = targets
        self.alike = alike

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads texts and numbers; see `Task.encode`."""
        scores = next((name for name in columns if self.scores and name.endswith(f"_{self.scores}")), "")
        names = [name for name in columns if name != scores]
        numbers: list[float] = []
        seen = 0
        with ExitStack() as stack:
            files = [path.with_suffix(f".{index}.ids") for index in range(len(names))]
            fields = {f"text{i}": stack.enter_context(Ragged(file)) for i, file in enumerate(files)}
            for part in read_rows(
                {name: columns[name] for name in [*names, *([scores] if scores else [])]}, labels=scores
            ):
                for index, (name, field) in enumerate(zip(names, fields.values(), strict=True)):
                    ids = self._ids([row[index] for row in part], name, seen)
                    field.extend(ids)
                if scores:
                    numbers += [_number(row[-1], scores, seen + index) for index, row in enumerate(part)]
                seen += len(part)
        self._check_learnable(fields, names, numbers, scores)
        found: dict[str, Any] = dict(fields)
        if scores:
            found["target"] = np.asarray(numbers, dtype=np.float32)
        if self.targets is not None:
            found["target"] = self.targets({name: columns[name] for name in names}, path.with_suffix(".targets"))
        lengths = np.max([field.lengths for field in fields.values()], axis=0)
        return Examples(found, lengths if self.alike else np.ones_like(lengths))

    def _check_learnable(
        self, fields: Mapping[str, Ragged], names: Sequence[str], numbers: Sequence[float], scores: str
    ) -> None:
        """Refuses training rows that differ in nothing that is compared; see `Task.refuse_same`.

        Pairs without numbers may be of a text and itself: dropout makes their embeddings differ.
        """
        if scores:
            check_varied(numbers, scores)
        if len(names) < 2:
            return
        *_, first, second = fields.values()
        if scores or len(names) > 2:
            self.refuse_same(same_rows(first, second), names[-2:])
        else:
            for name, field in zip(names, fields.values(), strict=True):
                check_varied((field[row].tobytes() for row in range(len(field))), name)

    def _ids(self, texts: list[str], name: str, start: int) -> list[list[int]]:
        ids = tokenize(self.tokenizer, texts, max_length=self.max_length if self.truncate else None)
        self.refuse_long({start + i: len(x) for i, x in enumerate(ids) if len(x) > self.max_length}, name)
        return ids

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch as sentence-transformers' losses take it.

        It has `text0_input_ids` and `text0_attention_mask` [batch, seq] for each text, `label` [batch, ...] for the
        targets, and `rows` [batch].
        """
        batch = {"rows": torch.tensor([row["row"] for row in examples])}
        for name in (name for name in examples[0] if name.startswith("text")):
            inputs = padded_inputs([row[name] for row in examples], self.padding)
            batch |= {f"{name}_{key}": value for key, value in inputs.items()}
        if "target" in examples[0]:
            batch["label"] = torch.from_numpy(np.stack([row["target"] for row in examples]))
        return batch

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Refused: the losses of sentence-transformers run the model."""
        raise MethodMisfit("Objectives are for logits; embeddings are compared by the losses of sentence-transformers.")

    def measure(self) -> Measure:
        """Refused: evaluators of sentence-transformers measure embeddings."""
        raise MethodMisfit("Embeddings are measured by the evaluators of sentence-transformers.")

    def check_teacher(self, teacher: Teacher | TextTeacher) -> None:
        """Refused: see `forward`."""
        raise MethodMisfit("An embedder is taught by an embedder or a cross-encoder, not through an objective.")

    def aligned(self, teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Refused: see `forward`."""
        raise MethodMisfit("An embedder has no classes.")


def _number(value: Any, name: str, row: int) -> float:
    if not isinstance(value, int | float):
        raise ArgumentTypeError(
            f"{name} must contain numbers; row {row} has {value!r}, of type {type(value).__name__}. Use 1 for similar "
            "and 0 for different texts, or a similarity."
        )
    if not np.isfinite(value):
        raise DataError(f"{name} is {value} in row {row}; a similarity must be finite. Filter such rows out first.")
    return float(value)
