"""Shared parts of language modelling tasks: prompts rendered by the chat template, and losses per token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from datadreamer_like.distillation import Outputs, Teacher
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.prompt_template import render

from ..columns import check_text, read_rows
from ..likelihood import perplexity
from .examples import Examples, Ragged, attention_mask, padded
from .task import Batch, Measure, Task


class Generation(Task):
    """Prompts to answers; only the answers' tokens carry loss. See `CausalLM` and `Seq2SeqLM`."""

    columns: ClassVar[tuple[str, ...]] = ("input", "output")
    encoder_decoder: ClassVar[bool]

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers without cutting.

        Yields:
            Input ids and target ids. For a causal model both have the same length, with targets of -100 for the prompt;
            for an encoder-decoder the targets are the answer's ids.
        """
        raise NotImplementedError

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads prompts and answers; see `Task.encode`."""
        names = list(columns)
        too_long: dict[int, int] = {}
        seen = dropped = 0
        with Ragged(path.with_suffix(".ids")) as input_ids, Ragged(path.with_suffix(".labels")) as labels:
            for part in read_rows(columns):
                pairs = [
                    (check_text(prompt, names[0], row), check_text(answer, names[1], row))
                    for row, (prompt, answer) in enumerate(part, seen)
                ]
                for row, (ids, target) in enumerate(self.encoded(pairs), seen):
                    longest = max(len(ids), len(target))
                    if longest > self.max_length:
                        too_long[row] = longest
                    kept = target[: self.max_length]
                    if all(token == IGNORED_LABEL for token in kept):
                        dropped += 1
                        continue
                    input_ids.extend([ids[: self.max_length]])
                    labels.extend([kept])
                seen += len(part)
        if not self.truncate:
            self.refuse_long(too_long, names[0])
        refuse_if_all_dropped(len(input_ids), seen, names[0], self.max_length)
        return Examples({"input_ids": input_ids, "labels": labels}, input_ids.lengths, dropped)

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

    def rendered(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Returns prompts and answers, rendered with the tokenizer's chat template if it has one."""
        written = [render(self.tokenizer, prompt, answer) for prompt, answer in pairs]
        return [prompt for prompt, _ in written], [answer for _, answer in written]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch; `labels` and `mask` are [batch, positions of the logits]."""
        ids = [row["input_ids"] for row in examples]
        labels = self.placed(padded([row["labels"] for row in examples], IGNORED_LABEL))
        return {
            "input_ids": padded(ids, self.padding),
            "attention_mask": attention_mask(ids),
            "labels": labels,
            "mask": labels != IGNORED_LABEL,
            "rows": torch.tensor([row["row"] for row in examples]),
        }

    def placed(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns target tokens [batch, target], aligned with the logits that predict them."""
        return targets

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


def refuse_if_all_dropped(kept: int, seen: int, name: str, max_length: int) -> None:
    """Checks that at least one row is left.

    Raises:
        DataError: None is.
    """
    if not kept:
        raise DataError(
            f"{name}: none of the {seen:,} rows has any part of its answer left after cutting at {max_length:,} "
            "tokens. Raise max_length, or shorten the prompts."
        )


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
