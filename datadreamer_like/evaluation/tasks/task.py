"""What a task is: rows to token ids, token ids to batches, batches to a model's outputs and to figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Outputs, Teacher, check_same_vocabulary
from datadreamer_like.distillation.teacher import answering
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.graph.output import Column

from .examples import Examples

Batch = dict[str, torch.Tensor]


class Measure(ABC):
    """Collects a model's outputs over batches and computes figures from them."""

    @abstractmethod
    def add(self, outputs: Outputs, batch: Batch) -> None:
        """Takes in one batch."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Returns the figures, by name; empty where no row had a label."""


class Task(ABC):
    """One kind of training and measuring; a subclass a kind.

    Args:
        tokenizer: The model's tokenizer, whose chat template is how prompts are asked.
        max_length: Longest row in tokens.
        truncate: Cut longer rows; False refuses them.
    """

    columns: ClassVar[tuple[str, ...]]
    """What its columns are called: trainers put `train_` and `validation_` in front."""
    gives: ClassVar[frozenset[str]] = frozenset({"logits", "hidden_states", "attentions"})
    """Fields of `Outputs` that `forward` can fill."""
    stored: ClassVar[frozenset[str]] = frozenset()
    """Fields of a teacher's `Outputs` that `answers` gives once for each text, so that they can be kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool = True) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncate = truncate
        self.padding = int(tokenizer.pad_token_id or 0)

    # What a subclass writes.

    @abstractmethod
    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads, checks and tokenizes columns.

        Args:
            columns: The columns in the order of `self.columns`, by argument name.
            path: Where token ids are put: a file's path without its ending.

        Raises:
            DataError: A value is missing or too long.
            ArgumentTypeError: A value is of the wrong type.
            LabelError: A label is outside the set.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Makes a batch of examples.

        Returns:
            `input_ids` and `attention_mask` [batch, seq]; `labels`, -100 where there is none, and `mask`, True where a
            position counts, for the positions of `forward`'s logits; and `rows` [batch], the numbers of the rows.
        """

    @abstractmethod
    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Runs a batch through a model, the student or a teacher that reads the same tokens.

        Args:
            model: The model.
            batch: What `collate` made.
            wants: Fields of `Outputs` to fill; others may be filled too.
        """

    @abstractmethod
    def measure(self) -> Measure:
        """Returns a new measure."""

    @abstractmethod
    def check_teacher(self, teacher: Teacher) -> None:
        """Refuses a teacher whose logits cannot teach: of another kind of model, or of other classes.

        Raises:
            MethodMisfit: It does not fit.
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
        """Returns a teacher's logits [texts, ...] of texts that it tokenizes itself; for tasks that have `stored`."""
        raise NotImplementedError(f"{type(self).__name__} cannot ask a teacher ahead of the training.")

    def aligned(self, teacher: Teacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits in the order of the student's classes or tokens.

        Args:
            teacher: The teacher.
            logits: Its logits [..., classes].
            student_logits: How many logits the student has.
        """
        return logits

    # What all tasks share.

    def check_wants(self, wants: frozenset[str]) -> None:
        """Refuses an objective that needs outputs that this task does not give.

        Raises:
            MethodMisfit: It does.
        """
        missing = sorted(wants - self.gives)
        if missing:
            raise MethodMisfit(
                f"The objective needs {' and '.join(missing)}, but models for {type(self).__name__} give "
                f"{', '.join(sorted(self.gives)) or 'nothing'} here. Choose another objective, or another trainer."
            )

    def check_tokens(self, teacher: Teacher) -> None:
        """Refuses a teacher that cannot read the student's batches because its token ids mean something else.

        Raises:
            MethodMisfit: The vocabularies differ.
        """
        check_same_vocabulary(teacher, self.tokenizer)

    def teacher_outputs(self, teacher: Teacher, batch: Batch, wants: frozenset[str], student_logits: int) -> Outputs:
        """Runs a student's batch through its teacher, without dropout and without gradients."""
        with torch.no_grad(), answering(teacher.model):
            outputs = self.forward(teacher.model, batch, wants)
        if outputs.logits is None or "logits" not in wants:
            return outputs
        return outputs.replaced(logits=self.aligned(teacher, outputs.logits, student_logits))

    def refuse_long(self, too_long: Mapping[int, int], name: str) -> None:
        """Refuses rows that do not fit.

        Args:
            too_long: Number of tokens by row.
            name: Name of the argument, for the message.

        Raises:
            DataError: There are some.
        """
        if too_long:
            row, length = next(iter(too_long.items()))
            raise DataError(
                f"{name}: {len(too_long):,} of the rows have more than the {self.max_length:,} tokens that fit; the "
                f"first is row {row} with {length:,}. Pass truncate=True to cut them, or filter them out."
            )


def run_model(model: Any, inputs: Mapping[str, torch.Tensor], wants: frozenset[str], **options: Any) -> Any:
    """Calls a transformers model for what is wanted.

    Raises:
        MethodMisfit: The model does not return what is wanted.
    """
    asked = {f"output_{name}": True for name in ("hidden_states", "attentions") if name in wants}
    found = model(**inputs, **asked, **options)
    if "logits" in wants and not isinstance(getattr(found, "logits", None), torch.Tensor):
        raise MethodMisfit(f"{type(model).__name__} returns no logits. Load it as a model with a head for this task.")
    return found


def check_attentions(model: Any, wants: frozenset[str], whose: str) -> None:
    """Refuses a model that computes attention by a kernel that never has the attention weights in memory.

    Raises:
        MethodMisfit: It does, and the objective needs them.
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
