"""Answers that a teacher writes to the prompts before training, in the place of references or next to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, repeat, tee
from typing import Any

import pyarrow as pa

from datadreamer_like.distillation import Objective
from datadreamer_like.distillation.generated import Beams
from datadreamer_like.errors import ArgumentTypeError, DataError
from datadreamer_like.evaluation.columns import Columns, read_rows, read_texts
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.origin import Origin
from datadreamer_like.graph.output import Column, OutputIterableDatasetColumn
from datadreamer_like.graph.rows import BATCH_SIZE, Rows
from datadreamer_like.models import HFTransformers

WRITTEN = "written"
"""Suffix of the column with the teacher's answers where references are learnt too."""


def with_written_answers(objective: Objective, columns: Columns, device: Any) -> Columns:
    """Returns the columns, prompts and references, with the answers that the objective's teacher writes.

    They replace the references, or are a third column where references are learnt too. They are generated while the
    column is read, and kept in the session's cache by teacher, prompt and options: a killed run loses at most a batch.

    Raises:
        ArgumentTypeError: The teacher is not saved in a folder or on the Hub.
        DataError: The teacher could not answer a prompt; raised when the column is read.
    """
    beams = objective.beams
    if beams is None:
        return columns
    if not isinstance(getattr(objective.teacher, "path", None), str):
        raise ArgumentTypeError(
            f"{objective.teacher!r} cannot write answers, because its answers are stored by its folder. Save the model "
            "and its tokenizer, and pass TrainedModel(folder), a trainer or a stage."
        )
    writer = HFTransformers(objective.teacher, device=device)
    found: dict[str, dict[str, Column]] = {}
    for split, given in columns.items():
        written = _column(objective, beams, writer, given)
        name = f"{split}_{WRITTEN}" if beams.keep_reference else [*given, f"{split}_output"][1]
        found[split] = {**given, name: written}
    return found


def _column(objective: Objective, beams: Beams, writer: HFTransformers, given: Mapping[str, Column]) -> Column:
    """The answers to the first column; the second, if there is one, has the references."""
    (name, prompts), *rest = given.items()
    reference = rest[0][1] if rest else None
    needed = {name: prompts, **dict(rest[:1] if beams.needs_reference else ())}
    options: dict[str, Any] = {"max_new_tokens": beams.max_new_tokens, "temperature": 0.0, "n": beams.candidates}
    if beams.size > 1:
        options["num_beams"] = beams.size

    def answers() -> Iterator[str]:
        usage = current_usage()
        for _ in read_rows(needed):  # before the teacher works
            pass
        texts, shown = tee(read_texts(prompts, name))
        references = repeat(None) if reference is None else reference.values()
        try:
            answered = writer.answers(texts, total_num_prompts=prompts.num_rows, **options)
            for row, (answer, prompt, own) in enumerate(zip(answered, shown, references, strict=False)):
                if answer.error is not None:
                    raise DataError(
                        f"{name}: the teacher could not answer row {row}, {prompt[:60]!r}: {answer.error} Filter such "
                        "rows out, or lower max_new_tokens."
                    )
                usage.note = f"the teacher answers, {row + 1:,} rows so far"
                yield objective.target(own, [text or "" for text in answer.texts])
        finally:
            writer.unload_model()

    def read() -> Iterator[pa.RecordBatch]:
        texts = answers()
        while portion := list(islice(texts, BATCH_SIZE)):
            yield pa.record_batch({"answer": pa.array(portion, pa.string())})

    schema = pa.schema([pa.field("answer", pa.string())])
    return OutputIterableDatasetColumn(prompts.step, Rows(schema, prompts.num_rows, read, Origin()))


def reading_order(columns: Mapping[str, Column]) -> tuple[dict[str, Column], dict[str, Column] | None]:
    """Returns prompts with references, and prompts with the teacher's answers if both are learnt."""
    names = list(columns)
    if len(names) < 3 or not names[2].endswith(WRITTEN):
        return dict(columns), None
    return {name: columns[name] for name in names[:2]}, {name: columns[name] for name in (names[0], names[2])}
