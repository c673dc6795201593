"""Causal language modelling: the answer follows its prompt in one sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from datadreamer_like.distillation import Outputs
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.models.trained.prompt_template import has_template, render

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
        """Yields the token ids of each prompt, and of its answer with the end-of-text token, without cutting."""
        by_template = has_template(self.tokenizer)
        written = [render(self.tokenizer, *pair) for pair in pairs]
        # A template writes the special tokens itself; the tokenizer adds them to a bare prompt.
        prompts = tokenize(self.tokenizer, [prompt for prompt, _ in written], special=not by_template)
        answers = tokenize(self.tokenizer, [answer for _, answer in written], special=False)
        for prompt, answer in zip(prompts, answers, strict=True):
            if not by_template and prompt and prompt[-1] == self.tokenizer.eos_token_id:
                prompt = prompt[:-1]
            yield prompt, self.ended(answer, by_template)

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, seq - 1, vocabulary], each for the next token, and hidden states of all tokens."""
        found = run_model(model, batch, wants, use_cache=False)
        return found if found.logits is None else found.replaced(logits=found.logits[:, :-1])
