"""Masked language modelling: tokens of a text are hidden at random, and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Outputs, Teacher, TextTeacher, tokens_teacher
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.graph.output import Column

from ..columns import read_rows
from .examples import Examples, Ragged
from .generation import TokenMeasure, cut_to_tokens
from .task import Batch, Measure, Task, run_model, tokenize


class MaskedLM(Task):
    """Texts with a `share` of their tokens hidden; see `Task`.

    Of the hidden tokens four in five are replaced by the mask token, one in ten by a random token, and the rest left
    (Devlin et al. 2018, arXiv:1810.04805). Special tokens are never hidden. `mask` is True for all tokens that are not
    padding, while `labels` are those of the hidden ones.
    """

    kind: ClassVar[str] = "masked"
    draws: ClassVar[bool] = True
    optional = True  # the tokens that are not hidden

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool, share: float) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.share = share
        self._special = torch.tensor(sorted(tokenizer.all_special_ids))

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads texts; see `Task.encode`."""
        (name,) = columns
        too_long: dict[int, int] = {}
        start = 0
        with Ragged(path.with_suffix(".ids")) as input_ids:
            for part in read_rows(columns):
                limit = self.max_length if self.truncate else None
                ids = tokenize(self.tokenizer, [text for (text,) in part], max_length=limit)
                too_long.update({start + i: len(x) for i, x in enumerate(ids) if len(x) > self.max_length})
                input_ids.extend(ids)
                start += len(part)
        self.refuse_long(too_long, name)
        return Examples({"input_ids": input_ids}, input_ids.lengths)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch in which no token is hidden yet, so that all `labels` [batch, seq] are -100."""
        batch = self.inputs(examples)
        labels = torch.full_like(batch["input_ids"], IGNORED_LABEL)
        return {**batch, "labels": labels, "mask": batch["attention_mask"].bool()}

    def drawn(self, batch: Batch, random: torch.Generator) -> Batch:
        """Returns the batch with hidden tokens; see the class."""
        ids = batch["input_ids"].cpu()
        hidden, how = torch.rand(ids.shape, generator=random), torch.rand(ids.shape, generator=random)
        others = torch.randint(len(self.tokenizer), ids.shape, generator=random)
        chosen = (hidden < self.share) & batch["mask"].cpu() & ~torch.isin(ids, self._special)
        seen = torch.where(chosen & (how < 0.8), int(self.tokenizer.mask_token_id), ids)
        seen = torch.where(chosen & (how >= 0.9), others, seen)
        found = {"input_ids": seen, "labels": ids.masked_fill(~chosen, IGNORED_LABEL)}
        return {**batch, **{name: part.to(batch["input_ids"].device) for name, part in found.items()}}

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, seq, vocabulary] and hidden states of all tokens."""
        return run_model(model, batch, wants)

    def measure(self) -> Measure:
        """Returns a measure of perplexity over the hidden tokens."""
        return TokenMeasure()

    def check_teacher(self, teacher: Teacher | TextTeacher) -> None:
        """Refuses a teacher that is not a masked language model; see `Task.check_teacher`."""
        model = tokens_teacher(teacher, "logits of masked tokens").model
        if not type(model).__name__.endswith("ForMaskedLM"):
            raise MethodMisfit(
                f"The teacher, {type(model).__name__}, is not a masked language model, so it cannot teach one. Load it "
                "with AutoModelForMaskedLM, or train one with TrainHFMaskedLM."
            )

    def aligned(self, teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits, cut to the student's vocabulary size (the rest is padding of the embedding)."""
        return cut_to_tokens(teacher, logits, student_logits)
