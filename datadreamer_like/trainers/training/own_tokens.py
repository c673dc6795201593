"""A teacher that reads the rows with its own tokenizer, next to a student with another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from datadreamer_like.distillation import Outputs, Teacher
from datadreamer_like.distillation.teacher import Named, check_logits, eval_mode, move_teacher
from datadreamer_like.errors import DataError
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Batch, Task

_WANTS = frozenset({"logits"})


def own_tokens_teacher(
    teacher: Teacher,
    task: Task,
    columns: Columns,
    examples: Mapping[str, Examples],
    max_length: int | None,
    scratch: Path,
) -> Mapping[str, Callable[[Batch, int], Outputs | None]]:
    """Returns the teacher's outputs by split, each for the rows of the student's batch in the teacher's own tokens.

    `positions` of the outputs are those that count. Both splits are tokenized for the teacher at once.

    Raises:
        MethodMisfit: The teacher is not a language model.
        DataError: Nothing is left of a row's answer after cutting it at `max_length` of the teacher's tokens.
    """
    own = task.of_teacher(teacher, max_length)

    def answers(split: str) -> Callable[[Batch, int], Outputs | None]:
        rows = own.encode(columns[split], scratch / f"teacher-{split}")
        numbers = examples[split].numbers
        if len(missing := np.setdiff1d(numbers, rows.numbers)):
            raise DataError(
                f"{next(iter(columns[split]))}: in the tokens of the teacher nothing is left of the answers of "
                f"{len(missing):,} rows after cutting at {own.max_length:,} tokens; the first is row {missing[0]}. "
                "Raise max_length, or filter such rows out."
            )
        places = np.searchsorted(rows.numbers, numbers)

        def live(batch: Batch, student_logits: int) -> Outputs:
            read = own.collate([rows[int(places[row])] for row in batch["rows"].tolist()])
            device = batch["input_ids"].device
            read = {name: part.to(device) for name, part in read.items()}
            move_teacher(teacher.model, device)
            with torch.no_grad(), eval_mode(teacher.model):
                found = own.forward(teacher.model, read, _WANTS)
            if found.logits is not None:
                check_logits(found.logits, read["mask"], named_row(split, examples[split], batch))
            return replace(found, positions=read["mask"])

        return live

    return {split: answers(split) for split in columns}


def named_row(split: str, examples: Examples, batch: Batch) -> Named:
    """Returns what a message calls a row of a batch, by its index in the batch."""
    return lambda index: f"row {int(examples.numbers[int(batch['rows'][index])])} of the {split} rows"
