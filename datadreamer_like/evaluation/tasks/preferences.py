"""Preferences: prompts, each with a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from .causal_lm import CausalLM
from .examples import Ragged, padded, padded_inputs
from .task import Batch


class Preferences(CausalLM):
    """Pairs of answers to a prompt; batches list all chosen answers, then all rejected ones, as trl expects.

    A pair is left out if its prompt leaves no room for an answer in `max_length`.
    """

    fields: ClassVar[tuple[str, ...]] = ("prompt_ids", "chosen_ids", "rejected_ids")

    def cut(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[list[int], ...] | None]]:
        """Tokenizes prompts and both answers; see `Generation.cut`."""
        better = self.apart([(prompt, answer) for prompt, answer, _ in rows])
        worse = self.apart([(prompt, answer) for prompt, _, answer in rows])
        for (prompt, good), (_, bad) in zip(better, worse, strict=True):
            room = self.max_length - len(prompt)
            length = len(prompt) + max(len(good), len(bad))
            yield length, (prompt, good[:room], bad[:room]) if room > 0 else None

    def lengths(self, fields: Mapping[str, Ragged]) -> np.ndarray[Any, Any]:
        """Returns the length of each prompt with the longer of its answers."""
        prompts, chosen, rejected = (fields[name].lengths for name in self.fields)
        longest: np.ndarray[Any, Any] = prompts + np.maximum(chosen, rejected)
        return longest

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch: `input_ids`, `attention_mask` and `completion_mask` [2 batch, seq]."""
        pairs = [(row["prompt_ids"], row[kind]) for kind in ("chosen_ids", "rejected_ids") for row in examples]
        answers = [np.repeat([0, 1], [len(prompt), len(answer)]) for prompt, answer in pairs]
        return {
            **padded_inputs([np.concatenate(pair) for pair in pairs], self.padding),
            "completion_mask": padded(answers, 0),
            "rows": torch.tensor([row["row"] for row in examples]),
        }
