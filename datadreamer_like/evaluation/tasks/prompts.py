"""Prompts alone, to which a policy writes the answers itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation.tokens import padded_inputs

from .examples import Examples
from .generation import CausalLM
from .task import Batch


class Prompts(CausalLM):
    """Prompts for a causal model; one that leaves no room for `new_tokens` in `max_length` is left out."""

    fields: ClassVar[tuple[str, ...]] = ("input_ids", "text")
    texts: ClassVar[int] = 1

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool = True, new_tokens: int = 1
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.new_tokens = new_tokens

    def cut(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
        """Tokenizes prompts, and keeps their texts; see `Generation.cut`."""
        for (text,), (prompt, _) in zip(rows, self.apart([(text, "") for (text,) in rows]), strict=True):
            length = len(prompt) + self.new_tokens
            written = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
            yield length, (prompt, written) if length <= self.max_length else None

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Returns a batch, padded on the left: `input_ids` and `attention_mask` [batch, seq]; `rows`."""
        ids = [row["input_ids"] for row in examples]
        rows = torch.tensor([row["row"] for row in examples])
        return {**padded_inputs(ids, self.padding, left=True), "rows": rows}


def text_of(examples: Examples, row: int) -> str:
    """Returns the text of a prompt, as it was in its column."""
    return bytes(examples.fields["text"][row]).decode("utf-8", "surrogatepass")
