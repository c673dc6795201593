"""Shared parts of language modelling tasks: rows cut to the maximum length, and losses per token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from datadreamer_like.distillation import Outputs, Teacher
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.graph.output import Column

from ..columns import read_rows
from ..quality import perplexity
from .examples import Examples, Ragged, padded
from .task import Batch, Measure, Task


class Generation(Task):
    """Prompts to answers; only the answers' tokens carry loss. See `CausalLM` and `Seq2SeqLM`."""

    encoder_decoder: ClassVar[bool]
    fields: ClassVar[tuple[str, ...]] = ("input_ids", "labels")
    """Names of the fields of `cut`."""

    @abstractmethod
    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers without cutting.

        Yields:
            Input ids and target ids. For a causal model both have the same length, with targets of -100 for the prompt;
            for an encoder-decoder the targets are the answer's ids.
        """

    def cut(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[list[int], ...] | None]]:
        """Yields the number of tokens of each row, and its fields cut to the maximum; None if no answer is left."""
        for ids, target in self.encoded(rows):
            kept = target[: self.max_length]
            has_answer = any(token != IGNORED_LABEL for token in kept)
            yield max(len(ids), len(target)), (ids[: self.max_length], kept) if has_answer else None

    def lengths(self, fields: Mapping[str, Ragged]) -> np.ndarray[Any, Any]:
        """Returns the length of each row, by which rows are batched."""
        return fields["input_ids"].lengths

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads prompts and answers; see `Task.encode`."""
        name = next(iter(columns))
        too_long: dict[int, int] = {}
        seen = dropped = 0
        with ExitStack() as stack:
            fields = {key: stack.enter_context(Ragged(path.with_suffix(f".{key}"))) for key in self.fields}
            for part in read_rows(columns):
                for row, (length, kept) in enumerate(self.cut(part), seen):
                    if length > self.max_length:
                        too_long[row] = length
                    if kept is None:
                        dropped += 1
                        continue
                    for field, ids in zip(fields.values(), kept, strict=True):
                        field.extend([ids])
                seen += len(part)
        if not self.truncate:
            self.refuse_long(too_long, name)
        if dropped == seen:
            raise DataError(
                f"{name}: none of the {seen:,} rows has any part of its answer left after cutting at "
                f"{self.max_length:,} tokens. Raise max_length, or shorten the prompts."
            )
        return Examples(fields, self.lengths(fields), dropped)

    def ended(self, answer: list[int], rendered: bool) -> list[int]:
        """Appends the end-of-text token if an answer has none, so that the model learns to stop.

        Args:
            answer: Token ids.
            rendered: Whether a chat template wrote the answer; it may put the end token before a final line break.
        """
        end = self.tokenizer.eos_token_id
        if end is None or (rendered and end in answer) or answer[-1:] == [end]:
            return answer
        return [*answer, end]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch; `labels` and `mask` are [batch, positions of the logits]."""
        labels = padded([row["labels"] for row in examples], IGNORED_LABEL)
        if not self.encoder_decoder:
            labels = labels[:, 1:]  # each position predicts the next token
        return {**self.inputs(examples), "labels": labels, "mask": labels != IGNORED_LABEL}

    def measure(self) -> Measure:
        """Returns a measure of perplexity over the answers' tokens."""
        return _TokenMeasure()

    def check_teacher(self, teacher: Teacher) -> None:
        """Refuses a teacher that is not a language model of the student's kind; see `Task.check_teacher`."""
        model = teacher.model
        if not hasattr(model, "generate"):
            raise MethodMisfit(
                f"The teacher, {type(model).__name__}, is not a language model, so it cannot teach one. Load it as a "
                "model for causal or sequence-to-sequence language modelling."
            )
        is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        if is_encoder_decoder != self.encoder_decoder:
            kinds = "an encoder-decoder", "causal"
            theirs, ours = kinds if is_encoder_decoder else kinds[::-1]
            raise MethodMisfit(
                f"The teacher, {type(model).__name__}, is {theirs}, and the student is {ours}: their outputs cannot be "
                "matched. Use a teacher of the student's kind, or train on answers that the teacher generates."
            )

    def aligned(self, teacher: Teacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits, cut to the student's vocabulary size (the rest is padding of the embedding).

        Raises:
            MethodMisfit: The student lacks logits for some of the teacher's tokens.
        """
        if logits.shape[-1] <= student_logits:
            return logits
        tokens = len(teacher.tokenizer)
        if student_logits < tokens:
            raise MethodMisfit(
                f"The student has logits for {student_logits:,} tokens, but its teacher's vocabulary has {tokens:,}. "
                "Token-level distillation needs models with the same vocabulary."
            )
        return logits[..., :student_logits]


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of every token that has a label.

    Args:
        logits: A model's outputs [batch, seq, vocabulary].
        labels: Target tokens [batch, seq]; -100 for none.

    Returns:
        Losses in nats [tokens], and the index of each token's row in the batch [tokens].
    """
    kept = labels != IGNORED_LABEL
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="none"), kept.nonzero()[:, 0]


class _TokenMeasure(Measure):
    def __init__(self) -> None:
        self.total = 0.0
        self.tokens = 0

    def add(self, outputs: Outputs, batch: Batch) -> None:
        assert outputs.logits is not None
        losses, _ = token_losses(outputs.logits, batch["labels"])
        self.total += float(losses.sum())
        self.tokens += len(losses)

    def result(self) -> dict[str, float]:
        entropy = self.total / max(1, self.tokens)
        return {"cross_entropy": entropy, "perplexity": perplexity(entropy)}
