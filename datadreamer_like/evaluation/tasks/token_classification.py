"""Token classification: spans of texts, as BIO tags of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Outputs, Teacher, TextTeacher, align_labels, label_order, tokens_teacher
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.tokens import padded, start_id
from datadreamer_like.errors import DataError, LabelError, MethodMisfit, did_you_mean
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.model_facts import task_of
from datadreamer_like.models.trained.spans import Span, check_fast, spans_of_tags, tag_names, tags_of_spans, units_of

from ..columns import read_rows
from ..labels import warn_of_spellings
from ..quality import span_scores
from ..soft_labels import FloatArray
from .examples import Examples, Ragged
from .task import Batch, Measure, Task, run_model


class TokenClassification(Task):
    """Texts to spans; see `Task`. If labels are `optional`, rows without spans learn from a teacher only.

    Args:
        tokenizer, max_length, truncate: See `Task`.
        tags: The BIO tags, in the order of the model's logits.
        every: Every token has a tag and a loss; otherwise the first of each word.
        snap: Widen spans that cut a token, or a word, to the whole one, instead of refusing them.
        optional: Whether the spans of a row may be None.

    Attributes:
        class_weights: [tags], weights of the loss; None for none.
    """

    kind: ClassVar[str] = "token classification"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tags: Sequence[str],
        max_length: int,
        truncate: bool = True,
        *,
        every: bool = False,
        snap: bool = False,
        optional: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        check_fast(tokenizer)
        self.tags = tuple(tags)
        self.every = every
        self.snap = snap
        self.optional = optional
        self.class_weights: FloatArray | None = None

    @property
    def label2id(self) -> dict[str, int]:
        """The tags and their positions."""
        return {tag: index for index, tag in enumerate(self.tags)}

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads texts and spans, or tokens and tags; see `Task.encode`."""
        text_name, *span_names = columns
        ids, seen = self.label2id, 0
        too_long: dict[int, int] = {}
        with ExitStack() as stack:
            fields = {
                key: stack.enter_context(Ragged(path.with_suffix(f".{key}")))
                for key in ("input_ids", "labels", "counted")
            }
            for part in read_rows(columns, labels=tuple(columns), optional=self.optional):
                for row, (value, *rest) in enumerate(part, seen):
                    text, spans = read_spans(value, rest[0] if rest else None, (text_name, *span_names), row)
                    length, tokens, labels, counted = self._row(
                        text, spans, ids, f"{span_names[0] if span_names else text_name}, row {row}"
                    )
                    if length > self.max_length:
                        too_long[row] = length
                    for field, found in zip(fields.values(), (tokens, labels, counted), strict=True):
                        field.extend([found])
                seen += len(part)
        if not self.truncate:
            self.refuse_long(too_long, text_name)
        return Examples(fields, fields["input_ids"].lengths)

    def _row(
        self, text: str, spans: Sequence[Span] | None, ids: Mapping[str, int], where: str
    ) -> tuple[int, list[int], list[int], list[int]]:
        """Number of tokens before cutting; token ids, labels and where a position counts."""
        asked = {"return_offsets_mapping": True, "verbose": False}
        encoded: Any = self.tokenizer(text, **asked)
        length = len(encoded["input_ids"])
        if length > self.max_length:
            encoded = self.tokenizer(text, truncation=True, max_length=self.max_length, **asked)
        tokens: list[int] = encoded["input_ids"]
        units = units_of(text, encoded["offset_mapping"], encoded.word_ids(), self.every)
        labels, counted = [IGNORED_LABEL] * len(tokens), [0] * len(tokens)
        tags = [None] * len(units) if spans is None else tags_of_spans(spans, units, snap=self.snap, where=where)
        for unit, tag in zip(units, tags, strict=True):
            counted[unit.position] = 1
            if tag is not None:
                if tag not in ids:
                    name, known = tag.partition("-")[2], [each.partition("-")[2] for each in ids]
                    raise LabelError(
                        f'{where}: the label "{name}" is not one of those of the training rows.'
                        f"{did_you_mean(name, known)} Correct it, or leave the span out."
                    )
                labels[unit.position] = ids[tag]
        if not tokens:  # models need one
            return length, [start_id(self.tokenizer)], [IGNORED_LABEL], [0]
        return length, tokens, labels, counted

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch; `labels` and `mask` are [batch, seq]."""
        labels = padded([row["labels"] for row in examples], IGNORED_LABEL)
        counted = padded([row["counted"] for row in examples], 0)
        batch = {**self.inputs(examples), "labels": labels, "mask": counted.bool()}
        if self.class_weights is not None:
            batch["targets"] = torch.from_numpy(np.diag(self.class_weights))[labels.clamp(min=0)]
        return batch

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Sets the weights of the loss by tag, or by label for both its tags; 1 for a tag left out.

        Raises:
            LabelError: A weight is given for an unknown tag.
        """
        self.class_weights = np.ones(len(self.tags), dtype=np.float32)
        for name, weight in weights.items():
            chosen = [tag in (name, f"B-{name}", f"I-{name}") for tag in self.tags]
            if not any(chosen):
                known = [*self.tags, *(tag[2:] for tag in self.tags if tag.startswith("B-"))]
                raise LabelError(
                    f'class_weights has "{name}", which is neither a label nor one of the tags: '
                    f"{', '.join(self.tags[:20])}.{did_you_mean(str(name), known)}"
                )
            self.class_weights[chosen] = weight

    def balance(self, examples: Examples) -> None:
        """Sets the weights of the loss to `tagged tokens / (number of tags · tokens with the tag)` of these rows."""
        labels = np.concatenate([examples[row]["labels"] for row in range(len(examples))])
        counts = np.bincount(labels[labels != IGNORED_LABEL], minlength=len(self.tags))
        self.class_weights = (counts.sum() / (len(self.tags) * counts.clip(1))).astype(np.float32)

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, seq, tags] and hidden states of all tokens."""
        return run_model(model, batch, wants)

    def measure(self) -> Measure:
        """Returns a measure of precision, recall and F1 of spans, on the rows that have spans given."""
        return _SpanMeasure(self.tags)

    def check_teacher(self, teacher: Teacher | TextTeacher) -> None:
        """Refuses a teacher that is not a token classifier of the same tags; see `Task.check_teacher`."""
        model = tokens_teacher(teacher, "logits of tokens").model
        if task_of(model.config) != "token-classification" and "TokenClassification" not in type(model).__name__:
            raise MethodMisfit(
                f"The teacher, {type(model).__name__}, is not a token classifier, so it cannot teach one. Train it "
                "with TrainHFTokenClassifier."
            )
        label_order(model.config.label2id, self.label2id)

    def aligned(self, teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits, reordered to the student's tags by name."""
        return align_labels(logits, cast("Teacher", teacher).model.config.label2id, self.label2id)


class _SpanMeasure(Measure):
    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = tags
        self.predicted: list[list[tuple[int, int, str]]] = []
        self.wanted: list[list[tuple[int, int, str]]] = []
        self.right = self.counted = 0

    def add(self, outputs: Outputs, batch: Batch) -> None:
        assert outputs.logits is not None
        predicted, labels = outputs.logits.argmax(-1).cpu(), batch["labels"].cpu()
        for said, wanted in zip(predicted, labels, strict=True):
            kept = wanted != IGNORED_LABEL
            self.right += int((said[kept] == wanted[kept]).sum())
            self.counted += int(kept.sum())
            if kept.any():
                for found, ids in ((self.predicted, said), (self.wanted, wanted)):
                    found.append(spans_of_tags([self.tags[index] for index in ids[kept].tolist()]))

    def join(self, other: Self) -> None:
        self.predicted += other.predicted
        self.wanted += other.wanted
        self.right, self.counted = self.right + other.right, self.counted + other.counted

    def result(self) -> dict[str, float]:
        if not self.counted:
            return {}
        return {**span_scores(self.wanted, self.predicted), "token_accuracy": self.right / self.counted}


def read_spans(value: Any, given: Any, names: Sequence[str], row: int) -> tuple[str, list[Span] | None]:
    """Returns the text and spans of a row: a text with spans, or a list of tokens with a list of BIO tags.

    Tokens are joined by spaces. The spans of None are None.

    Raises:
        DataError: A row has neither form, or a span is outside its text.
    """
    where = f"{names[-1]}, row {row}"
    if isinstance(value, str):
        return value, None if given is None else [_span(each, value, where) for each in _listed(given, where)]
    tokens = _listed(value, f"{names[0]}, row {row}")
    if not all(isinstance(token, str) for token in tokens):
        raise DataError(f"{names[0]}, row {row}: {value!r} is neither a text nor a list of tokens.")
    text = " ".join(tokens)
    if given is None:
        return text, None
    tags = [str(tag) for tag in _listed(given, where)]
    if len(tags) != len(tokens) or not all(tag == "O" or tag[:2] in ("B-", "I-") for tag in tags):
        raise DataError(
            f"{where}: {len(tokens)} tokens need as many BIO tags, such as B-place, I-place and O, not {given!r}."
        )
    ends = np.cumsum([len(token) + 1 for token in tokens]) - 1
    starts = [int(end) - len(token) for end, token in zip(ends, tokens, strict=True)]
    spans = [Span(start=starts[a], end=int(ends[b - 1]), label=label) for a, b, label in spans_of_tags(tags)]
    return text, spans


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{where}: {value!r} is not a list. Texts need lists of spans {{start, end, label}}; lists of tokens need "
            "lists of tags."
        )
    return list(value)


def _span(value: Any, text: str, where: str) -> Span:
    try:
        start, end, label = value["start"], value["end"], value["label"]
    except (TypeError, KeyError) as error:
        raise DataError(f"{where}: {value!r} is not a span; it needs start, end and label.") from error
    whole = isinstance(start, int) and isinstance(end, int)
    if not whole or not 0 <= start < end <= len(text) or not isinstance(label, str) or not label:
        raise DataError(
            f"{where}: the span {start!r}:{end!r} ({label!r}) is not a labelled part of its text of {len(text)} "
            "characters."
        )
    return Span(start=start, end=end, label=label)


def find_span_labels(columns: Mapping[str, Column], *, optional: bool = False) -> tuple[str, ...]:
    """Collects the labels of the spans of training rows, sorted, and returns their BIO tags.

    `columns` are the texts and their spans; without spans, or if all are None and they are `optional`, there are none.

    Raises:
        LabelError: No row has a span.
        DataError: See `read_spans`.
    """
    if len(columns) < 2:
        return ()
    found: set[str] = set()
    given = row = 0
    for part in read_rows(columns, labels=tuple(columns), optional=optional):
        for value, spans in part:
            read = read_spans(value, spans, tuple(columns), row)[1]
            given += read is not None
            found |= {span["label"] for span in read or ()}
            row += 1
    if given and not found:
        raise LabelError(f"{tuple(columns)[-1]} has no span in any row, so there is nothing to learn.")
    warn_of_spellings(found, tuple(columns)[-1])
    return tag_names(sorted(found)) if found else ()
