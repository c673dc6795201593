# ruff: noqa: TID253  (loaded only by models that have loaded torch)
"""One call of transformers' `generate` for a batch of prompts with different lengths, each row sampled by its seed."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation import logits_process

from datadreamer_like.distillation.tokens import padded_inputs, padding_id, token_text
from datadreamer_like.errors import ModelError

from .answer_text import AnswerText, answer_of, answer_text
from .generation import Answer, Sampling, TokenLogprob
from .hf_calls import CallReader


def generate(
    model: Any,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int | None],
    context_length: int,
    readers: Sequence[CallReader | None] = (),
) -> list[Answer]:
    """Returns the answer to each prompt.

    The tokenizer pads on the side that the model needs. `ids` are each prompt's token ids; all fit the context, which
    holds `context_length` tokens of a prompt and its answer together. A prompt's n answers use its seed and the
    following ones, and are read by its reader, if it has one.
    """
    beams = sampling.extra.get("num_beams") or 1
    # Greedy answers are identical, so one is enough for any n. A beam search gives its n best from one row.
    repeats = sampling.n if beams > 1 or not sampling.deterministic else 1
    rows = [list(row) for row in ids for _ in range(1 if beams > 1 else repeats)]
    row_seeds = [None if seed is None else seed + j for seed in seeds for j in range(repeats)]
    batch = padded_inputs(rows, padding_id(tokenizer), left=tokenizer.padding_side == "left")
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    decoder_only = not model.config.is_encoder_decoder
    prompt_length = batch["input_ids"].shape[1] if decoder_only else 1
    room = context_length - prompt_length if decoder_only else context_length
    sampler = _RowSampler(sampling, row_seeds)
    configured = model.generation_config.eos_token_id
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    ends = (ends - {tokenizer.pad_token_id} | {tokenizer.eos_token_id}) - {None}
    with torch.inference_mode():
        output = model.generate(
            **batch,
            generation_config=_config(model, tokenizer, sampling, room, ends),
            logits_processor=[sampler],
            stopping_criteria=[_stop_texts(sampling.stop, tokenizer, prompt_length)] if sampling.stop else None,
        )
    # Rows that ended before the longest one are padded; without an end token none ends, but at a stop text.
    closing = ends | ({tokenizer.pad_token_id} - {None})
    texts = [_Text(row, closing, sampling.stop, tokenizer) for row in output[:, prompt_length:]]
    broken = sampler.broken(beams, [text.tokens for text in texts])
    answers = []
    for index, prompt in enumerate(ids):
        first = index * repeats
        own = texts[first : first + repeats] * (sampling.n // repeats)
        logprobs = None
        if sampling.top_logprobs is not None:
            logprobs = [sampler.logprobs(first + j % repeats, len(own[j].ids), tokenizer) for j in range(sampling.n)]
        answers.append(
            answer_of(
                [
                    AnswerText(None, error=ModelError(_NO_NUMBERS))
                    if broken[first + j % repeats]
                    else text.read(readers[index] if readers else None)
                    for j, text in enumerate(own)
                ],
                prompt_tokens=len(prompt),
                completion_tokens=sum(text.tokens for text in own),
                cost=0.0,
                finish_reasons=[text.finish_reason for text in own],
                logprobs=logprobs,
            )
        )
    return answers


_NO_NUMBERS = (
    "The model's probabilities of the next token are NaN or infinite. Check its weights: such a model diverged in "
    "training, or overflows in its dtype; try dtype=torch.float32."
)


class _Text:
    """One row's ids, cut at the end token or stop text."""

    def __init__(self, row: torch.Tensor, ends: set[int], stop: Sequence[str], tokenizer: Any) -> None:
        ids = row.tolist()
        length = next((position for position, token in enumerate(ids) if token in ends), len(ids))
        self.ids = ids[:length]
        # The end token was generated too.
        self.tokens = min(length + 1, len(ids))
        text = tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cuts = [text.find(end) for end in stop if end in text]
        self.text = text[: min(cuts)] if cuts else text
        self.finish_reason = "stop" if cuts or length < len(ids) else "length"

    def read(self, reader: CallReader | None) -> AnswerText:
        """Returns the text as an answer, with the calls that a reader finds."""
        if reader is None:
            return answer_text(self.text, self.finish_reason)
        return reader.read(self.ids, self.text, self.finish_reason)


def _config(model: Any, tokenizer: Any, sampling: Sampling, room: int, ends: set[int]) -> Any:
    beams = sampling.extra.get("num_beams") or 1
    config = copy.deepcopy(model.generation_config)
    # Override the model's sampling defaults, but keep its start and end tokens.
    config.update(
        do_sample=False, num_beams=beams, num_return_sequences=sampling.n if beams > 1 else 1,
        return_dict_in_generate=False,
        temperature=None, top_p=None, top_k=None, min_p=None, typical_p=None, max_length=None, min_length=None,
        max_new_tokens=min(sampling.max_new_tokens or room, room),
        eos_token_id=sorted(ends) or None, pad_token_id=padding_id(tokenizer),
    )  # fmt: skip
    if sampling.repetition_penalty is not None:
        config.repetition_penalty = None  # applied by the sampler, after it recorded the log-probabilities
    return config


class _RowSampler:
    """A logits processor that makes greedy search pick a token sampled for each row.

    Each row has its own random generator, with its seed or a random one: by the Gumbel-max trick (Gumbel, 1954), the
    argmax of logits plus independent Gumbel noise is a sample of their softmax. So a seed gives the same text in any
    batch, unlike sampling with torch's global generator.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int | None]) -> None:
        self._top = sampling.top_logprobs
        self._bias = sampling.logit_bias or {}
        self._shaping: list[Any] = []
        if sampling.repetition_penalty is not None:
            self._shaping.append(logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
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
        self._broken: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Returns scores [rows, vocabulary] whose maximum is the token to take."""
        raw: torch.Tensor = scores.float()
        self._broken.append(~raw.amax(dim=-1).isfinite())  # the maximum of a NaN is NaN
        shaped = raw
        for processor in self._shaping:
            shaped = processor(input_ids, shaped)
        if self._bias:
            shaped = shaped.clone()
            for token, bias in self._bias.items():
                shaped[:, token] += bias
        for processor in self._cutting:
            shaped = processor(input_ids, shaped)
        if self._seeds:
            # The device of the logits is known only now if the model is spread over devices.
            self._generators = self._generators or [
                torch.Generator(raw.device).manual_seed(secrets.randbits(63) if seed is None else seed)
                for seed in self._seeds
            ]
            noise = torch.empty_like(shaped)
            for row, generator in enumerate(self._generators):
                noise[row].exponential_(generator=generator)
            shaped = shaped - noise.log()
        if self._top is not None:
            logprobs, chosen = raw.log_softmax(dim=-1), shaped.argmax(dim=-1)
            best = logprobs.topk(min(self._top, logprobs.shape[-1]), dim=-1)
            own = logprobs.gather(-1, chosen[:, None])[:, 0]
            self._steps.append((chosen.cpu(), own.cpu(), best.indices.cpu(), best.values.cpu()))
        return shaped

    def broken(self, beams: int, lengths: Sequence[int]) -> list[bool]:
        """Returns for each text whether it was chosen by scores that are NaN or infinite, given their `lengths`.

        A beam search compares all beams of a prompt, so that one of them breaks all.
        """
        if not self._broken:
            return [False] * len(lengths)
        steps = torch.stack(self._broken).cpu()  # [steps, rows]
        if beams > 1:
            prompts = steps.view(len(steps), -1, beams).any(-1).any(0)
            return prompts.repeat_interleave(len(lengths) // len(prompts)).tolist()
        return [bool(steps[:length, row].any()) for row, length in enumerate(lengths)]

    def logprobs(self, row: int, length: int, tokenizer: Any) -> list[TokenLogprob]:
        """Returns the model's log-probabilities, before sampling options, of a row's first `length` tokens."""
        tokens = []
        for chosen, own, indices, values in self._steps[:length]:
            likeliest = zip(indices[row].tolist(), values[row].tolist(), strict=True)
            top = tuple((token_text(tokenizer, token), logprob) for token, logprob in likeliest)
            tokens.append(TokenLogprob(token_text(tokenizer, int(chosen[row])), float(own[row]), top))
        return tokens


def _stop_texts(stop: Sequence[str], tokenizer: Any, prompt_length: int) -> Callable[..., torch.Tensor]:
    """Returns a stopping criterion that ends a row when it contains a stop text after its prompt."""
    # A token has at least one byte, so a stop text is within the last tokens, at most one per byte; a few more, because
    # the first token may decode differently at the start of a text.
    reach = max(len(text.encode()) for text in stop) + 4

    def ended(input_ids: torch.LongTensor, scores: object, **_: object) -> torch.Tensor:
        start = max(prompt_length, input_ids.shape[1] - reach)
        tails = tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        return torch.tensor([any(text in tail for text in stop) for tail in tails], device=input_ids.device)

    return ended
