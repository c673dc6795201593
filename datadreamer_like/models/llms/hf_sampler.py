# ruff: noqa: TID253  (loaded only by models that have loaded torch)
"""Samples the next tokens of a batch, each row independently of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .generation import Sampling, TokenLogprob


class RowSampler:
    """A logits processor that makes greedy search pick a token sampled for each row.

    Each row has its own random generator: by the Gumbel-max trick (Gumbel, 1954), the argmax of logits plus independent
    Gumbel noise is a sample of their softmax. So a seed gives the same text in any batch, unlike sampling with torch's
    global generator.

    Args:
        sampling: The options.
        seeds: A seed for each row; None for a random seed.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int | None]) -> None:
        from transformers.generation import logits_process

        self._top = sampling.top_logprobs
        self._shaping: list[Any] = []
        if sampling.repetition_penalty is not None:
            self._shaping.append(logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        self._bias = sampling.logit_bias or {}
        self._cutting: list[Any] = []
        if not sampling.deterministic:
            if sampling.temperature != 1.0:
                self._cutting.append(logits_process.TemperatureLogitsWarper(float(sampling.temperature)))
            if top_k := sampling.extra.get("top_k"):
                self._cutting.append(logits_process.TopKLogitsWarper(top_k))
            if sampling.top_p < 1.0:
                self._cutting.append(logits_process.TopPLogitsWarper(sampling.top_p))
            if min_p := sampling.extra.get("min_p"):
                self._cutting.append(logits_process.MinPLogitsWarper(min_p))
        self._seeds = () if sampling.deterministic else seeds
        self._generators: list[torch.Generator] = []
        # For each step: chosen ids [rows], their log-probabilities [rows], top ids and log-probabilities [rows, k].
        self._steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Returns scores [rows, vocabulary] whose maximum is the token to take."""
        raw: torch.Tensor = scores.float()
        shaped = raw
        for processor in self._shaping:
            shaped = processor(input_ids, shaped)
        if self._bias:
            shaped = shaped.clone()
            for token, bias in self._bias.items():
                shaped[:, int(token)] += float(bias)
        for processor in self._cutting:
            shaped = processor(input_ids, shaped)
        if self._seeds:
            # The device of the logits is known only now if the model is spread over devices.
            self._generators = self._generators or [_generator(seed, raw.device) for seed in self._seeds]
            noise = torch.empty_like(shaped)
            for row, generator in enumerate(self._generators):
                noise[row].exponential_(generator=generator)
            shaped = shaped - noise.log()
        if self._top is not None:
            self._record(raw, shaped.argmax(dim=-1), self._top)
        return shaped

    def _record(self, raw: torch.Tensor, chosen: torch.Tensor, top: int) -> None:
        logprobs = raw.log_softmax(dim=-1)
        best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
        own = logprobs.gather(-1, chosen[:, None])[:, 0]
        self._steps.append((chosen.cpu(), own.cpu(), best.indices.cpu(), best.values.cpu()))

    def logprobs(self, row: int, length: int, tokenizer: Any) -> list[TokenLogprob]:
        """Returns the model's log-probabilities, before sampling options, of a row's first `length` tokens."""
        tokens = []
        for chosen, own, indices, values in self._steps[:length]:
            top = zip(indices[row].tolist(), values[row].tolist(), strict=True)
            tokens.append(
                TokenLogprob(
                    tokenizer.decode([int(chosen[row])]),
                    float(own[row]),
                    tuple((tokenizer.decode([token]), logprob) for token, logprob in top),
                )
            )
        return tokens


class StopTexts:
    """A stopping criterion that ends a row when it contains a stop text.

    Args:
        stop: The stop texts.
        tokenizer: Decodes ids.
        prompt_length: Number of ids at the start of each row to ignore.
    """

    def __init__(self, stop: Sequence[str], tokenizer: Any, prompt_length: int) -> None:
        self._stop = stop
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        # A token has at least one byte, so a stop text is within the last tokens, at most one per byte; a few more,
        # because the first token may decode differently at the start of a text.
        self._reach = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.Tensor:
        """Returns for each row whether it has ended."""
        start = max(self._prompt_length, input_ids.shape[1] - self._reach)
        tails = self._tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        ended = [any(text in tail for text in self._stop) for tail in tails]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
