# ruff: noqa: TID253  (loaded only by models that have loaded torch)
"""One call of transformers' `generate` for a batch of prompts with different lengths and seeds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from .answer_text import answer_of, answer_text
from .generation import Answer, Sampling
from .hf_sampler import RowSampler, StopTexts


def generate(
    model: Any,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int | None],
    context_length: int,
) -> list[Answer]:
    """Returns the answer to each prompt.

    Args:
        model: A causal or sequence-to-sequence model in evaluation mode.
        tokenizer: Its tokenizer, padding on the side that the model needs.
        ids: Each prompt's token ids; all fit the context.
        sampling: The options.
        seeds: Each prompt's seed; its n answers use that seed and the following ones.
        context_length: Maximum number of tokens of a prompt and its answer together.
    """
    # Greedy answers are identical, so one is enough for any n.
    repeats = 1 if sampling.deterministic else sampling.n
    rows = [row for row in ids for _ in range(repeats)]
    row_seeds = [None if seed is None else seed + j for seed in seeds for j in range(repeats)]
    batch = tokenizer.pad({"input_ids": [list(row) for row in rows]}, return_tensors="pt").to(model.device)
    decoder_only = not model.config.is_encoder_decoder
    prompt_length = batch["input_ids"].shape[1] if decoder_only else 1
    room = context_length - prompt_length if decoder_only else context_length
    sampler = RowSampler(sampling, row_seeds)
    with torch.inference_mode():
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=_config(model, tokenizer, sampling, room),
            logits_processor=[sampler],
            stopping_criteria=[StopTexts(sampling.stop, tokenizer, prompt_length)] if sampling.stop else None,
        )
    new_ids = output[:, prompt_length:].tolist()
    ends = _ends(model, tokenizer)
    texts = [_Text(row, ends, sampling.stop, tokenizer) for row in new_ids]
    answers = []
    for index, prompt in enumerate(ids):
        own = texts[index * repeats : (index + 1) * repeats] * (sampling.n // repeats)
        logprobs = None
        if sampling.top_logprobs is not None:
            first = index * repeats
            logprobs = [sampler.logprobs(first + j % repeats, len(own[j].ids), tokenizer) for j in range(sampling.n)]
        answers.append(
            answer_of(
                [answer_text(text.text, text.finish_reason) for text in own],
                prompt_tokens=len(prompt),
                completion_tokens=sum(text.tokens for text in own),
                cost=0.0,
                finish_reasons=[text.finish_reason for text in own],
                logprobs=logprobs,
            )
        )
    return answers


class _Text:
    """One row's ids, cut at the end token or stop text."""

    def __init__(self, row: list[int], ends: set[int], stop: Sequence[str], tokenizer: Any) -> None:
        length = next((position for position, token in enumerate(row) if token in ends), len(row))
        self.ids = row[:length]
        # The end token was generated too.
        self.tokens = min(length + 1, len(row))
        text = tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cuts = [position for position in (text.find(end) for end in stop) if position >= 0]
        self.text = text[: min(cuts)] if cuts else text
        self.finish_reason = "stop" if cuts or length < len(row) else "length"


def _ends(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    # Rows that ended before the longest one are padded.
    return {token for token in (*ends, tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None}


def _config(model: Any, tokenizer: Any, sampling: Sampling, room: int) -> Any:
    config = copy.deepcopy(model.generation_config)
    # Override the model's sampling defaults, but keep its start and end tokens.
    own = {
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "min_p": None,
        "typical_p": None,
        "max_length": None,
        "min_length": None,
        "max_new_tokens": min(sampling.max_new_tokens or room, room),
        "return_dict_in_generate": False,
    }
    if sampling.repetition_penalty is not None:
        own["repetition_penalty"] = None  # applied by the sampler, after it recorded the log-probabilities
    for name, value in own.items():
        setattr(config, name, value)
    ends = sorted(_ends(model, tokenizer) - {tokenizer.pad_token_id} | {tokenizer.eos_token_id} - {None})
    config.eos_token_id = ends or None
    config.pad_token_id = tokenizer.pad_token_id
    return config
