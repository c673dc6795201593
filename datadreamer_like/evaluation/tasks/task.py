"""The base of tasks: rows to token ids, token ids to batches, batches to a model's outputs and metrics."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from datadreamer_like.distillation import (
    Completions,
    Objective,
    Outputs,
    Teacher,
    TextTeacher,
    attention_layers,
    capture_factors,
    capture_projections,
)
from datadreamer_like.distillation.tokens import never_empty, padded_inputs, padding_id
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.model_facts import model_max_length

from .examples import Examples

Batch = dict[str, torch.Tensor]

logger = logging.getLogger("datadreamer_like")

_GIVEN = {"logits", "hidden_states", "attentions", "projections"}
_TRAINERS = {"generation": "TrainHFFineTune", "masked": "TrainHFMaskedLM", "classification": "TrainHFClassifier"}


class Measure(ABC):
    """Collects a model's outputs over batches and computes metrics from them."""

    @abstractmethod
    def add(self, outputs: Outputs, batch: Batch) -> None:
        """Adds one batch."""

    @abstractmethod
    def join(self, other: Self) -> None:
        """Adds what another measure has collected of other batches."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Returns the metrics by name; empty if no row had a label."""


class Task(ABC):
    """One kind of training and evaluation; the tokenizer's chat template renders prompts.

    Rows of more than `max_length` tokens are cut; they are refused if `truncate` is False.
    """

    kind: ClassVar[str] = ""
    """Which objectives fit; see `Objective.fits`."""
    draws: ClassVar[bool] = False
    """Whether `drawn` changes batches."""
    stored: ClassVar[frozenset[str]] = frozenset()
    """Fields of a teacher's `Outputs` that depend on the text alone, so that they are computed once and stored."""

    optional: bool = False
    """Whether a position that counts may have no label."""
    read_by_model: ClassVar[tuple[str, ...]] = ("input_ids",)
    """Fields of the examples that decide a model's outputs for a row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool = True) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncate = truncate
        self.padding = padding_id(tokenizer)

    @abstractmethod
    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads, checks and tokenizes columns, in the order of the task; token ids go to `path` with a suffix.

        For errors see `read_rows`, `refuse_long` and `LabelSet.targets`.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch of examples.

        It has `input_ids` and `attention_mask` [batch, seq]; `labels` (-100 for none) and `mask` (True where a position
        counts) for the positions of `forward`'s logits; and `rows` [batch], the indices of the rows.
        """

    @abstractmethod
    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns the outputs in `wants` for a batch: of the student, or of a teacher with the same tokens.

        "factors" are given instead of the logits, of a model that passes `has_plain_head`.
        """

    @abstractmethod
    def measure(self) -> Measure:
        """Returns a new measure."""

    @abstractmethod
    def check_teacher(self, teacher: Teacher | TextTeacher) -> None:
        """Raises `MethodMisfit` if the teacher is another kind of model, `LabelError` if it has other classes."""

    @abstractmethod
    def aligned(self, teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits [..., classes] in the order of the student's classes or tokens."""

    def drawn(self, batch: Batch, random: torch.Generator) -> Batch:
        """Returns the batch to learn from, in which a task may change tokens at random, such as masking some."""
        return batch

    def sampled(self, model: Any, batch: Batch, completions: Completions) -> Batch:
        """Returns the batch with answers that the model samples, by torch's default generator, and without labels."""
        raise NotImplementedError(f"{type(self).__name__} has no answers to sample.")

    def of_teacher(self, teacher: Teacher, max_length: int | None) -> Task:
        """Returns the task of the same columns for a teacher with a tokenizer of its own."""
        raise NotImplementedError(f"{type(self).__name__} has no teachers with other tokens.")

    def state_mask(self, batch: Batch) -> torch.Tensor:
        """Returns where hidden states and attentions of a batch are no padding: bool [batch, seq]."""
        return batch["attention_mask"].bool()

    def inputs(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns the part of a batch that all tasks share: `input_ids`, `attention_mask` and `rows`."""
        rows = torch.tensor([row["row"] for row in examples])
        return {**padded_inputs([row["input_ids"] for row in examples], self.padding), "rows": rows}

    def check_labels(self, objective: Objective) -> None:  # noqa: B027  # most tasks have labels of one kind
        """Raises `MethodMisfit` if an objective cannot learn from labels of the kind that the rows have."""

    @classmethod
    def check_objective(cls, objective: Objective) -> None:
        """Raises `MethodMisfit` if an objective is for other tasks, or needs outputs that tasks do not give."""
        fits, missing = objective.fits, sorted(objective.wants - _GIVEN)
        spoken = "masked language modelling" if cls.kind == "masked" else cls.kind
        if fits is not None and cls.kind not in fits:
            fitting = [trainer for kind, trainer in _TRAINERS.items() if kind in fits]
            raise MethodMisfit(
                f"{type(objective).__name__} is an objective for {' and '.join(fitting) or 'other trainers'}, not for "
                f"{spoken}. Choose another objective, such as SoftTargets(teacher), or another trainer."
            )
        if missing:
            raise MethodMisfit(
                f"The objective needs {' and '.join(missing)}, but models for {spoken} give "
                f"{', '.join(sorted(_GIVEN))} here. Choose another objective, or another trainer."
            )

    def refuse_same(self, same: Sequence[bool] | np.ndarray[Any, Any], names: Sequence[str]) -> None:
        """Raises `DataError` if two arguments, of which a row is to tell the difference, are the same in every row.

        `same` says so for each row, after tokenizing. Fewer rows, and validation rows, are counted in a warning.
        """
        count, train = int(np.count_nonzero(same)), names[0].startswith("train")
        if not count:
            return
        pair, cut = " and ".join(names), f"after cutting at {self.max_length:,} tokens"
        if train and count == len(same):
            raise DataError(
                f"{pair} are the same in every row, {cut}, so there is nothing to learn. Pass two columns of different "
                "texts, or raise max_length."
            )
        logger.warning(
            "%s are the same in %s of %s rows, %s: these %s nothing.",
            pair, f"{count:,}", f"{len(same):,}", cut, "teach" if train else "measure",
        )  # fmt: skip

    def refuse_long(self, too_long: Mapping[int, int], name: str) -> None:
        """Raises `DataError` if any row of the argument `name` is too long; `too_long` has their numbers of tokens."""
        if too_long:
            row, length = next(iter(too_long.items()))
            raise DataError(
                f"{name}: {len(too_long):,} of the rows have more than the {self.max_length:,} tokens that fit; the "
                f"first is row {row} with {length:,}. Pass truncate=True to cut them, or filter them out."
            )


def row_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Returns the maximum number of tokens of a row: `max_length`, but no more than the model takes."""
    most = model_max_length(config, tokenizer)
    return min(max_length or most, most)


def run_model(model: Any, batch: Batch, wants: frozenset[str], prefix: str = "", **options: Any) -> Outputs:
    """Runs a transformers model on a batch, with further options of the model, and returns the outputs in `wants`.

    With `prefix` "decoder_", hidden states and attentions are those of the decoder, at the positions of `mask`.
    """
    requested = {f"output_{name}": True for name in ("hidden_states", "attentions") if name in wants}
    with (
        capture_projections(model) if "projections" in wants else nullcontext() as projections,
        capture_factors(model) if "factors" in wants else nullcontext() as factors,
    ):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = model(**{**inputs, **requested, **options})
    if "logits" in wants and not isinstance(getattr(found, "logits", None), torch.Tensor):
        raise MethodMisfit(f"{type(model).__name__} returns no logits. Load it as a model with a head for this task.")
    return Outputs(
        logits=found.logits if "logits" in wants and not factors else None,
        factors=factors[0] if factors else None,
        hidden_states=getattr(found, f"{prefix}hidden_states", None),
        attentions=getattr(found, f"{prefix}attentions", None),
        projections=tuple(projections) if projections else None,
        mask=batch["mask" if prefix else "attention_mask"].bool(),
    )


def check_student(model: Any, wants: frozenset[str], task: Task, examples: Iterable[Examples]) -> None:
    """Checks a student, once loaded, before its first step; see `check_attentions`.

    Raises `MethodMisfit` also if the rows or the padding have tokens that its embedding lacks.
    """
    check_attentions(model, wants, "the student")
    reader: Any = next((each for each in model.modules() if hasattr(each, "get_input_embeddings")), None)
    known = None
    with suppress(NotImplementedError):  # of code that comes with a model
        known = None if reader is None else getattr(reader.get_input_embeddings(), "num_embeddings", None)
    if known is None:
        return
    token = max(task.padding, *(each.highest_token() for each in examples))
    if token >= known:
        raise MethodMisfit(
            f"The tokenizer gives the token {task.tokenizer.convert_ids_to_tokens(token)!r} the id {token}, and "
            f"{type(model).__name__} has embeddings for the ids 0 to {known - 1}. Use the tokenizer of this model, or "
            "save the model with an embedding for each token: model.resize_token_embeddings(len(tokenizer))."
        )


def check_attentions(model: Any, wants: frozenset[str], whose: str) -> None:
    """Raises `MethodMisfit` if an objective needs parts of attentions that a model does not give.

    Fused kernels return no attention weights.
    """
    if "projections" in wants:
        attention_layers(model)
    kernel = getattr(model.config, "_attn_implementation", None)
    if "attentions" in wants and kernel not in (None, "eager"):
        raise MethodMisfit(
            f'The objective needs attentions, which {whose} does not return with attn_implementation="{kernel}". '
            'Load it with attn_implementation="eager".'
        )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, max_length: int | None = None, special: bool = True
) -> list[list[int]]:
    """Returns the token ids of texts, cut at `max_length`; `special` adds the tokenizer's special tokens.

    With `special`, a text without tokens has one.
    """
    flags = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    cut = {"truncation": max_length is not None, "max_length": max_length}
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=special, **flags, **cut)["input_ids"]
    return never_empty(ids, tokenizer) if special else ids
