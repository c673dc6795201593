"""Reward models: one number for an answer to a prompt, learned from pairs of answers or from scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from datadreamer_like.distillation import Outputs
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.distillation.tokens import padded_inputs
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.graph.output import Column

from ..columns import check_varied
from .examples import Examples
from .generation import CausalLM, Preferences
from .task import Batch, Measure, row_limit, run_model


class RewardPairs(Preferences):
    """Prompts, a chosen and a rejected answer, and where there are two more columns the scores of both.

    Logits are [batch, 2]: the rewards of the chosen and of the rejected answers. The difference of the scores is the
    batch's `margins` [batch], 0 without scores.
    """

    fields: ClassVar[tuple[str, ...]] = (*Preferences.fields, "numbers")

    def cut(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[list[Any], ...] | None]]:
        """Tokenizes prompts and both answers, and subtracts the scores; see `Generation.cut`."""
        margins = [chosen - rejected for *_, chosen, rejected in (row[3:] or (0.0, 0.0) for row in rows)]
        for (length, kept), margin in zip(super().cut([row[:3] for row in rows]), margins, strict=True):
            yield length, None if kept is None else (*kept, [margin])

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Returns a batch: `input_ids` and `attention_mask` [2 batch, seq], all chosen answers first; `margins`."""
        batch = super().collate(examples)
        del batch["completion_mask"]
        margins = torch.tensor([row["numbers"][0] for row in examples])
        return {**batch, "margins": margins, **_no_labels(len(examples))}

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, 2], the rewards of the chosen and of the rejected answers."""
        rewards = run_model(model, batch, frozenset({"logits"})).logits
        assert rewards is not None
        return Outputs(logits=rewards.view(2, -1).T)

    def measure(self) -> Measure:
        """Returns a measure of the share of pairs whose chosen answer has the higher reward, and by how much."""
        return _PairMeasure()


class RewardScores(CausalLM):
    """Prompts, answers and the score of each; logits are [batch, 1], the labels the scores [batch]."""

    fields: ClassVar[tuple[str, ...]] = ("input_ids", "numbers")

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads prompts, answers and scores, and refuses training rows of one score; see `Task.encode`."""
        examples = super().encode(columns, path)
        numbers, *_, name = examples.fields["numbers"], *columns
        if name.startswith("train"):  # errors of one score can be measured
            check_varied((float(numbers[row][0]) for row in range(len(examples))), name)
        return examples

    def cut(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[list[Any], ...] | None]]:
        """Tokenizes prompts and answers; see `Generation.cut`."""
        pairs = self.apart([(prompt, answer) for prompt, answer, *_ in rows])
        for (prompt, answer), (*_, score) in zip(pairs, rows, strict=True):
            ids, has_room = prompt + answer, answer and len(prompt) < self.max_length
            yield len(ids), (ids[: self.max_length], [score]) if has_room else None

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Returns a batch; `labels` are the scores [batch]."""
        scores = torch.tensor([row["numbers"][0] for row in examples])
        return {**self.inputs(examples), **_no_labels(len(examples)), "labels": scores}

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, 1], the rewards."""
        return run_model(model, batch, frozenset({"logits"}))

    def measure(self) -> Measure:
        """Returns a measure of the errors of the rewards."""
        return _ScoreMeasure()


def check_reward_model(model: Any, what: str) -> None:
    """Raises `MethodMisfit` if a model, called `what`, does not give one number for a text."""
    if getattr(getattr(model, "config", None), "num_labels", None) != 1 or hasattr(model, "lm_head"):
        raise MethodMisfit(
            f"{what}, {type(model).__name__}, is not a reward model: a sequence classifier with one output "
            "(num_labels=1). Train one with TrainHFRewardModel, or pass a function."
        )


@torch.no_grad()
def rewards_of(
    model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 32
) -> list[float]:
    """Returns a reward model's number for each answer to its prompt, written with the tokenizer's chat template.

    Long answers are cut at the model's limit; a prompt that leaves no room for any of them is cut too.
    """
    task = RewardScores(tokenizer, row_limit(model.config, tokenizer, None))
    rows = [
        (prompt + answer)[: task.max_length] for prompt, answer in task.apart(list(zip(prompts, answers, strict=True)))
    ]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    found = np.zeros(len(rows))
    with eval_mode(model):
        for start in range(0, len(rows), batch_size):
            part = order[start : start + batch_size]
            inputs = padded_inputs([rows[row] for row in part], task.padding)
            inputs = {name: value.to(model.device) for name, value in inputs.items()}
            found[part] = model(**inputs).logits[:, 0].float().cpu().numpy()
    return [float(reward) for reward in found]


def _no_labels(rows: int) -> Batch:
    return {"labels": torch.zeros(rows, dtype=torch.long), "mask": torch.ones(rows, dtype=torch.bool)}


class _PairMeasure(Measure):
    def __init__(self) -> None:
        self.differences: list[torch.Tensor] = []

    def add(self, outputs: Outputs, batch: Batch) -> None:
        assert outputs.logits is not None
        self.differences.append((outputs.logits[:, 0] - outputs.logits[:, 1]).float().cpu())

    def join(self, other: Self) -> None:
        self.differences += other.differences

    def result(self) -> dict[str, float]:
        differences = torch.cat(self.differences)
        return {"accuracy": float((differences > 0).float().mean()), "margin": float(differences.mean())}


class _ScoreMeasure(Measure):
    def __init__(self) -> None:
        self.errors: list[torch.Tensor] = []

    def add(self, outputs: Outputs, batch: Batch) -> None:
        assert outputs.logits is not None
        self.errors.append((outputs.logits[:, 0].float() - batch["labels"]).cpu())

    def join(self, other: Self) -> None:
        self.errors += other.errors

    def result(self) -> dict[str, float]:
        return {"mean_absolute_error": float(torch.cat(self.errors).abs().mean())}
