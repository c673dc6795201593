"""The base of tasks: rows to token ids, token ids to batches, batches to a model's outputs and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Outputs, Teacher, check_same_vocabulary
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.graph.output import Column

from .examples import Examples

Batch = dict[str, torch.Tensor]


class Measure(ABC):
    """Collects a model's outputs over batches and computes metrics from them."""

    @abstractmethod
    def add(self, outputs: Outputs, batch: Batch) -> None:
        """Adds one batch."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Returns the metrics by name; empty if no row had a label."""


class Task(ABC):
    """One kind of training and evaluation.

    Args:
        tokenizer: The model's tokenizer; its chat template renders prompts.
        max_length: Maximum length of a row in tokens.
        truncate: Cut longer rows; False refuses them.
    """

    columns: ClassVar[tuple[str, ...]]
    """Names of its columns, without the prefixes `train_` and `validation_` of trainers."""
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "hidden_states", "attentions"})
    """Fields of `Outputs` that `forward` can fill."""
    stored: ClassVar[frozenset[str]] = frozenset()
    """Fields of a teacher's `Outputs` that depend on the text alone, so that `answers` is computed once and stored."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool = True) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncate = truncate
        self.padding = int(tokenizer.pad_token_id or 0)

    # Implemented by subclasses.

    @abstractmethod
    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads, checks and tokenizes columns.

        Args:
            columns: The columns in the order of `self.columns`, by argument name.
            path: File path without suffix for the token ids.

        Raises:
            DataError: A value is missing or too long.
            ArgumentTypeError: A value is of the wrong type.
            LabelError: A label is outside the set.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch of examples.

        It has `input_ids` and `attention_mask` [batch, seq]; `labels` (-100 for none) and `mask` (True where a position
        counts) for the positions of `forward`'s logits; and `rows` [batch], the indices of the rows.
        """

    @abstractmethod
    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Runs a batch through a model: the student, or a teacher with the same tokens.

        Args:
            model: The model.
            batch: A batch from `collate`.
            wants: Fields of `Outputs` to fill; others may be filled too.
        """

    @abstractmethod
    def measure(self) -> Measure:
        """Returns a new measure."""

    @abstractmethod
    def check_teacher(self, teacher: Teacher) -> None:
        """Checks that the teacher's logits fit: the same kind of model, the same classes.

        Raises:
            MethodMisfit: It is another kind of model.
            LabelError: It has other classes.
        """

    def answers(
        self,
        teacher: Teacher,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        device: torch.device | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Returns a teacher's logits [texts, ...], tokenized with its own tokenizer; for tasks with `stored` fields."""
        raise NotImplementedError(f"{type(self).__name__} cannot compute a teacher's answers before training.")

    def aligned(self, teacher: Teacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits in the order of the student's classes or tokens.

        Args:
            teacher: The teacher.
            logits: Its logits [..., classes].
            student_logits: Number of the student's classes or tokens.
        """
        return logits

    # Shared by all tasks.

    def check_wants(self, wants: frozenset[str]) -> None:
        """Checks that this task gives the outputs that an objective needs.

        Raises:
            MethodMisfit: It does not.
        """
        missing = sorted(wants - self.gives)
        if missing:
            raise MethodMisfit(
                f"The objective needs {' and '.join(missing)}, but models for {type(self).__name__} give "
                f"{', '.join(sorted(self.gives)) or 'nothing'} here. Choose another objective, or another trainer."
            )

    def check_tokens(self, teacher: Teacher) -> None:
        """Checks that the teacher has the student's vocabulary, so that it can read the student's batches.

        Raises:
            MethodMisfit: The vocabularies differ.
        """
        check_same_vocabulary(teacher, self.tokenizer)

    def teacher_outputs(self, teacher: Teacher, batch: Batch, wants: frozenset[str], student_logits: int) -> Outputs:
        """Runs a student's batch through its teacher in eval mode, without gradients."""
        with torch.no_grad(), eval_mode(teacher.model):
            outputs = self.forward(teacher.model, batch, wants)
        if outputs.logits is None or "logits" not in wants:
            return outputs
        return replace(outputs, logits=self.aligned(teacher, outputs.logits, student_logits))

    def refuse_long(self, too_long: Mapping[int, int], name: str) -> None:
        """Raises an error if any row is too long.

        Args:
            too_long: Number of tokens of each row that is too long, by row index.
            name: Name of the argument, for the message.

        Raises:
            DataError: `too_long` is not empty.
        """
        if too_long:
            row, length = next(iter(too_long.items()))
            raise DataError(
                f"{name}: {len(too_long):,} of the rows have more than the {self.max_length:,} tokens that fit; the "
                f"first is row {row} with {length:,}. Pass truncate=True to cut them, or filter them out."
            )


def run_model(model: Any, inputs: Mapping[str, torch.Tensor], wants: frozenset[str], **options: Any) -> Any:
    """Calls a transformers model and requests the outputs in `wants`.

    Raises:
        MethodMisfit: The model does not return logits.
    """
    requested = {f"output_{name}": True for name in ("hidden_states", "attentions") if name in wants}
    found = model(**inputs, **requested, **options)
    if "logits" in wants and not isinstance(getattr(found, "logits", None), torch.Tensor):
        raise MethodMisfit(f"{type(model).__name__} returns no logits. Load it as a model with a head for this task.")
    return found


def check_attentions(model: Any, wants: frozenset[str], whose: str) -> None:
    """Checks that a model can return attention weights if the objective needs them; fused kernels cannot.

    Raises:
        MethodMisfit: It cannot.
    """
    kernel = getattr(model.config, "_attn_implementation", None)
    if "attentions" in wants and kernel not in (None, "eager"):
        raise MethodMisfit(
            f'The objective needs attentions, which {whose} does not return with attn_implementation="{kernel}". '
            'Load it with attn_implementation="eager".'
        )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, max_length: int | None = None, special: bool = True
) -> list[list[int]]:
    """Returns the token ids of texts.

    Args:
        tokenizer: The tokenizer.
        texts: The texts.
        max_length: Cut at this many tokens.
        special: Whether to add the tokenizer's special tokens.
    """
    options: dict[str, Any] = {"truncation": True, "max_length": max_length} if max_length else {"truncation": False}
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
