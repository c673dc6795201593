"""Causal language modelling: the answer follows its prompt in one sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch

from datadreamer_like.distillation import Outputs
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.models.trained.prompt_template import has_template

from .generation import Generation
from .task import Batch, run_model, tokenize


class CausalLM(Generation):
    """Prompt and answer in one sequence; `max_length` counts both. See `Generation`."""

    encoder_decoder: ClassVar[bool] = False

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers without cutting; see `Generation.encoded`."""
        for prompt, answer in self.apart(pairs):
            yield prompt + answer, [IGNORED_LABEL] * len(prompt) + answer

    def apart(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers without cutting.

        Yields:
            Token ids of a prompt, and of its answer with the end-of-text token.
        """
        by_template = has_template(self.tokenizer)
        prompts, answers = self.rendered(pairs)
        # A template writes the special tokens itself; the tokenizer adds them to a bare prompt.
        prompt_ids = tokenize(self.tokenizer, prompts, special=not by_template)
        for prompt, answer in zip(prompt_ids, tokenize(self.tokenizer, answers, special=False), strict=True):
            if not by_template and prompt and prompt[-1] == self.tokenizer.eos_token_id:
                prompt = prompt[:-1]
            yield prompt, self.ended(answer, by_template)

    def placed(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns the target tokens [batch, seq - 1] shifted to the positions that predict them."""
        return targets[:, 1:]

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, seq - 1, vocabulary], each for the next token, and hidden states of all tokens."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = run_model(model, inputs, wants, use_cache=False)
        return Outputs(
            logits=found.logits[:, :-1] if "logits" in wants else None,
            hidden_states=getattr(found, "hidden_states", None),
            attentions=getattr(found, "attentions", None),
            mask=batch["attention_mask"].bool(),
        )
