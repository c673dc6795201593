"""Sequence-to-sequence language modelling: an encoder reads the prompt, a decoder writes the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from datadreamer_like.distillation import Outputs
from datadreamer_like.models.trained.prompt_template import has_template, render

from .generation import Generation
from .task import Batch, run_model, tokenize


class Seq2SeqLM(Generation):
    """Prompts for the encoder and answers for the decoder, each up to `max_length` tokens. See `Generation`."""

    encoder_decoder: ClassVar[bool] = True

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers without cutting; see `Generation.encoded`."""
        prompts = [render(self.tokenizer, *pair)[0] for pair in pairs]
        prompt_ids = tokenize(self.tokenizer, prompts, special=not has_template(self.tokenizer))
        answers = self.tokenizer(text_target=[answer for _, answer in pairs], verbose=False)["input_ids"]
        for prompt, answer in zip(prompt_ids, answers, strict=True):
            yield prompt, self.ended(answer, rendered=False)

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, target, vocabulary], and the decoder's hidden states."""
        decoder_ids = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return run_model(model, batch, wants, "decoder_", decoder_input_ids=decoder_ids, use_cache=False)
