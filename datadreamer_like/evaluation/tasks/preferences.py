"""Preferences: prompts, each with a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from datadreamer_like.graph.output import Column

from ..columns import check_text, read_rows
from .causal_lm import CausalLM
from .examples import Examples, Ragged, attention_mask, padded
from .generation import refuse_if_all_dropped
from .task import Batch


class Preferences(CausalLM):
    """Pairs of answers to a prompt; batches list all chosen answers, then all rejected ones, as trl expects.

    A pair is left out if its prompt leaves no room for an answer in `max_length`.
    """

    columns: ClassVar[tuple[str, ...]] = ("prompts", "chosen", "rejected")

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads prompts and both answers; see `Task.encode`."""
        names = list(columns)
        too_long: dict[int, int] = {}
        seen = dropped = 0
        with (
            Ragged(path.with_suffix(".prompts")) as prompts,
            Ragged(path.with_suffix(".chosen")) as chosen,
            Ragged(path.with_suffix(".rejected")) as rejected,
        ):
            for part in read_rows(columns):
                rows = [
                    [check_text(value, name, row) for name, value in zip(names, values, strict=True)]
                    for row, values in enumerate(part, seen)
                ]
                better = self.apart([(prompt, answer) for prompt, answer, _ in rows])
                worse = self.apart([(prompt, answer) for prompt, _, answer in rows])
                for row, ((prompt, good), (_, bad)) in enumerate(zip(better, worse, strict=True), seen):
                    longest = len(prompt) + max(len(good), len(bad))
                    if longest > self.max_length:
                        too_long[row] = longest
                    room = self.max_length - len(prompt)
                    if room <= 0:
                        dropped += 1
                        continue
                    for field, ids in ((prompts, prompt), (chosen, good[:room]), (rejected, bad[:room])):
                        field.extend([ids])
                seen += len(part)
        if not self.truncate:
            self.refuse_long(too_long, names[0])
        refuse_if_all_dropped(len(prompts), seen, names[0], self.max_length)
        lengths = prompts.lengths + np.maximum(chosen.lengths, rejected.lengths)
        fields = {"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected}
        return Examples(fields, lengths, dropped)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch: `input_ids`, `attention_mask` and `completion_mask` [2 batch, seq]."""
        ids, answers = [], []
        for kind in ("chosen_ids", "rejected_ids"):
            for row in examples:
                ids.append(np.concatenate([row["prompt_ids"], row[kind]]))
                answers.append(np.concatenate([np.zeros_like(row["prompt_ids"]), np.ones_like(row[kind])]))
        return {
            "input_ids": padded(ids, self.padding),
            "attention_mask": attention_mask(ids),
            "completion_mask": padded(answers, 0),
            "rows": torch.tensor([row["row"] for row in examples]),
        }
