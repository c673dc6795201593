"""Language modelling: causal, where the answer follows its prompt; encoder-decoder; and preferences among answers."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn import functional as F

from datadreamer_like.distillation import Completions, Outputs, Teacher, TextTeacher, tokens_teacher
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.outputs import logits_of
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.distillation.tokens import never_empty, padded, padded_inputs, start_id
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.prompt_template import has_template, render

from ..columns import read_rows
from ..quality import perplexity
from .examples import Examples, Ragged, same_rows
from .packing import as_batch, packed_inputs
from .task import Batch, Measure, Task, row_limit, run_model, tokenize

_DTYPES: dict[str, type[np.generic]] = {"numbers": np.float32, "text": np.uint8}


class Generation(Task):
    """Prompts to answers; only the answers' tokens carry loss."""

    kind: ClassVar[str] = "generation"
    encoder_decoder: ClassVar[bool]
    fields: ClassVar[tuple[str, ...]] = ("input_ids", "labels")
    """Names of the fields of `cut`."""
    read_by_model: ClassVar[tuple[str, ...]] = ("input_ids", "labels")
    texts: ClassVar[int] = 2
    """How many columns are texts; further ones are numbers, and what `cut` makes of them is the field `numbers`."""

    columns_of_texts: ClassVar[bool] = True
    """False if the first columns have other values, which `checked` checks."""

    def checked(self, rows: Sequence[tuple[Any, ...]], name: str, first: int) -> Sequence[tuple[Any, ...]]:
        """Returns rows of the column `name`, of which `first` is the number of the first, after checking them."""
        return rows

    @abstractmethod
    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Yields the input ids and target ids of prompts and answers, without cutting.

        For a causal model both have the same length, with targets of -100 for the prompt; for an encoder-decoder the
        targets are the answer's ids.
        """

    def cut(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[list[Any], ...] | None]]:
        """Yields the number of tokens of each row, and its fields cut to the maximum; None if no answer is left."""
        for ids, target in self.encoded(rows):
            kept = target[: self.max_length]
            has_answer = any(token != IGNORED_LABEL for token in kept)
            yield max(len(ids), len(target)), (ids[: self.max_length], kept) if has_answer else None

    def lengths(self, fields: Mapping[str, Ragged]) -> np.ndarray[Any, Any]:
        """Returns the length of each row, by which rows are batched."""
        return fields["input_ids"].lengths

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads prompts and answers; see `Task.encode`."""
        name = next(iter(columns))
        too_long: dict[int, int] = {}
        seen, dropped = 0, list[int]()
        with ExitStack() as stack:
            fields = {
                key: stack.enter_context(Ragged(path.with_suffix(f".{key}"), _DTYPES.get(key, np.int32)))
                for key in self.fields
            }
            untyped = () if self.columns_of_texts else list(columns)[: self.texts]
            for part in read_rows(columns, labels=untyped, numbers=list(columns)[self.texts :]):
                for row, (length, kept) in enumerate(self.cut(self.checked(part, name, seen)), seen):
                    if length > self.max_length:
                        too_long[row] = length
                    if kept is None:
                        dropped.append(row)
                        continue
                    for field, ids in zip(fields.values(), kept, strict=True):
                        field.extend([ids])
                seen += len(part)
        if not self.truncate:
            self.refuse_long(too_long, name)
        if len(dropped) == seen:
            raise DataError(
                f"{name}: none of the {seen:,} rows has any part of its answer left after cutting at "
                f"{self.max_length:,} tokens. Raise max_length, or shorten the prompts."
            )
        return Examples(fields, self.lengths(fields), dropped)

    def ended(self, answer: list[int], rendered: bool) -> list[int]:
        """Appends the end-of-text token if an answer has none, so that the model learns to stop.

        An answer that is `rendered` by a chat template may have it before a final line break.
        """
        end = self.tokenizer.eos_token_id
        if end is None or (rendered and end in answer) or answer[-1:] == [end]:
            return answer
        return [*answer, end]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Returns a batch; `labels` and `mask` are [batch, positions of the logits].

        Rows with two answers are in it twice, and `written` [batch] is True for the second ones.
        """
        second = [row["written"] for row in examples if "written" in row]
        rows = [*examples, *second]
        labels = padded([row["labels"] for row in rows], IGNORED_LABEL)
        if not self.encoder_decoder:
            labels = labels[:, 1:]  # each position predicts the next token
        batch = {**self.inputs(rows), "labels": labels, "mask": labels != IGNORED_LABEL}
        if rows and "position_ids" in rows[0]:
            batch["position_ids"] = padded([row["position_ids"] for row in rows], 0)
        return {**batch, "written": torch.arange(len(rows)) >= len(examples)} if second else batch

    def of_teacher(self, teacher: Teacher, max_length: int | None) -> Generation:
        """Returns the task of the teacher's kind, with its tokenizer and chat template; see `Task.of_teacher`."""
        config = self._language_model(teacher).config
        kind = Seq2SeqLM if config.is_encoder_decoder else CausalLM
        return kind(teacher.tokenizer, row_limit(config, teacher.tokenizer, max_length), self.truncate)

    def measure(self) -> Measure:
        """Returns a measure of perplexity over the answers' tokens."""
        return TokenMeasure()

    def check_teacher(self, teacher: Teacher | TextTeacher) -> None:
        """Refuses a teacher that is not a language model of the student's kind; see `Task.check_teacher`."""
        model = self._language_model(teacher)
        is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        if is_encoder_decoder != self.encoder_decoder:
            kinds = "an encoder-decoder", "causal"
            theirs, ours = kinds if is_encoder_decoder else kinds[::-1]
            raise MethodMisfit(
                f"The teacher, {type(model).__name__}, is {theirs}, and the student is {ours}: their outputs cannot be "
                "matched. Use a teacher of the student's kind, or train on answers that the teacher generates."
            )

    def _language_model(self, teacher: Teacher | TextTeacher) -> Any:
        model = tokens_teacher(teacher, "next-token logits").model
        if not hasattr(model, "generate"):
            raise MethodMisfit(
                f"The teacher, {type(model).__name__}, is not a language model, so it cannot teach one. Load it as a "
                "model for causal or sequence-to-sequence language modelling."
            )
        return model

    def sampled(self, model: Any, batch: Batch, completions: Completions) -> Batch:
        """Returns the batch with answers that the model samples; see `Task.sampled`.

        They end with an end token, after `max_new_tokens`, or where prompt and answer reach the maximum length. Labels
        are -100, and `mask` is True for the tokens of the answers.
        """
        prompts = self.prompts_of(batch)
        longest = 0 if self.encoder_decoder else max(len(prompt) for prompt in prompts)
        device = batch["input_ids"].device
        read = padded_inputs(prompts, self.padding, left=not self.encoder_decoder)
        read = {name: part.to(device) for name, part in read.items()}
        ends = {self.tokenizer.eos_token_id} - {None}
        config = copy.deepcopy(model.generation_config)
        config.update(
            do_sample=True, temperature=completions.temperature, top_k=0, top_p=1.0, min_p=None, typical_p=None,
            num_beams=1, num_return_sequences=1, repetition_penalty=None, max_length=None, min_length=None,
            max_new_tokens=min(completions.max_new_tokens, self.max_length - longest),
            eos_token_id=sorted(ends) or None, pad_token_id=self.padding, return_dict_in_generate=False,
        )  # fmt: skip
        with torch.no_grad(), eval_mode(model):
            output = model.generate(**read, generation_config=config)
        answers = [_ended(row, ends) for row in output[:, 1 if self.encoder_decoder else longest :].tolist()]
        rows = [
            {"row": row, **dict(zip(("input_ids", "labels"), self.joined(prompt, answer), strict=True))}
            for row, prompt, answer in zip(batch["rows"].tolist(), prompts, answers, strict=True)
        ]
        found = {name: part.to(device) for name, part in self.collate(rows).items()}
        labels = found["labels"]
        if self.encoder_decoder:
            found["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return {**found, "labels": torch.full_like(labels, IGNORED_LABEL)}

    @abstractmethod
    def joined(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Returns the input ids and target ids of one prompt and its answer."""

    @abstractmethod
    def prompts_of(self, batch: Batch) -> list[list[int]]:
        """Returns the token ids of the prompts in a batch, without padding."""

    def aligned(self, teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
        """Returns a teacher's logits, cut to the student's vocabulary size (the rest is padding of the embedding)."""
        return cut_to_tokens(teacher, logits, student_logits)


class CausalLM(Generation):
    """Prompt and answer in one sequence; `max_length` counts both."""

    encoder_decoder: ClassVar[bool] = False

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers without cutting; see `Generation.encoded`."""
        for pair in self.apart(pairs):
            yield self.joined(*pair)

    def joined(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Returns both in one sequence, and the targets, -100 for the prompt; see `Generation.joined`."""
        return prompt + answer, [IGNORED_LABEL] * len(prompt) + answer

    def prompts_of(self, batch: Batch) -> list[list[int]]:
        """Returns what is before the first token to predict; see `Generation.prompts_of`."""
        starts = (batch["labels"] != IGNORED_LABEL).int().argmax(1) + 1
        return [ids[:start] for ids, start in zip(batch["input_ids"].tolist(), starts.tolist(), strict=True)]

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
            yield prompt or [start_id(self.tokenizer)], self.ended(answer, by_template)

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, seq - 1, vocabulary], each for the next token, and hidden states of all tokens."""
        places = batch.get("position_ids")
        packed = {} if places is None else packed_inputs(model, batch["input_ids"], places)
        found = run_model(model, batch, wants, use_cache=False, **packed)
        if packed:  # perhaps one sequence of all
            found = as_batch(found, len(batch["input_ids"]))
        return found.at(lambda tokens: tokens[:, :-1])


class Seq2SeqLM(Generation):
    """Prompts for the encoder and answers for the decoder, each up to `max_length` tokens."""

    encoder_decoder: ClassVar[bool] = True

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers without cutting; see `Generation.encoded`."""
        prompts = [render(self.tokenizer, *pair)[0] for pair in pairs]
        prompt_ids = tokenize(self.tokenizer, prompts, special=not has_template(self.tokenizer))
        answers = self.tokenizer(text_target=[answer for _, answer in pairs], verbose=False)["input_ids"]
        for prompt, answer in zip(never_empty(prompt_ids, self.tokenizer), answers, strict=True):
            yield self.joined(prompt, self.ended(answer, rendered=False))

    def joined(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Returns the encoder's input and the decoder's targets; see `Generation.joined`."""
        return prompt, answer

    def prompts_of(self, batch: Batch) -> list[list[int]]:
        """Returns the encoder's inputs; see `Generation.prompts_of`."""
        lengths = batch["attention_mask"].sum(1).tolist()
        return [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)]

    def forward(self, model: Any, batch: Batch, wants: frozenset[str]) -> Outputs:
        """Returns logits [batch, target, vocabulary], and the decoder's hidden states."""
        decoder_ids = batch.get("decoder_input_ids")
        if decoder_ids is None:
            decoder_ids = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return run_model(model, batch, wants, "decoder_", decoder_input_ids=decoder_ids, use_cache=False)

    def state_mask(self, batch: Batch) -> torch.Tensor:
        """Returns where the decoder's states are no padding."""
        return batch["mask"]


class Preferences(CausalLM):
    """Pairs of answers to a prompt; batches list all chosen answers, then all rejected ones, as trl expects.

    A pair is left out if one of its answers has no token, or no room after the prompt in `max_length`.
    """

    kind: ClassVar[str] = "preferences"
    fields: ClassVar[tuple[str, ...]] = ("prompt_ids", "chosen_ids", "rejected_ids")
    texts: ClassVar[int] = 3

    def encode(self, columns: Mapping[str, Column], path: Path) -> Examples:
        """Reads prompts and both answers, and refuses training rows where they never differ; see `Task.encode`."""
        examples = super().encode(columns, path)
        _, chosen, rejected = (examples.fields[name] for name in Preferences.fields)
        self.refuse_same(same_rows(chosen, rejected), list(columns)[1:3])
        return examples

    def cut(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, tuple[list[Any], ...] | None]]:
        """Tokenizes prompts and both answers; see `Generation.cut`."""
        better = self.apart([(prompt, answer) for prompt, answer, _ in rows])
        worse = self.apart([(prompt, answer) for prompt, _, answer in rows])
        for (prompt, good), (_, bad) in zip(better, worse, strict=True):
            room = self.max_length - len(prompt)
            length = len(prompt) + max(len(good), len(bad))
            yield length, (prompt, good[:room], bad[:room]) if room > 0 and good and bad else None

    def lengths(self, fields: Mapping[str, Ragged]) -> np.ndarray[Any, Any]:
        """Returns the length of each prompt with the longer of its answers."""
        prompts, chosen, rejected = (fields[name].lengths for name in Preferences.fields)
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


def cut_to_tokens(teacher: Teacher | TextTeacher, logits: torch.Tensor, student_logits: int) -> torch.Tensor:
    """Returns a teacher's logits, cut to the size of the student's head, which must have all tokens.

    Raises:
        MethodMisfit: The student's head lacks tokens of the teacher's vocabulary.
    """
    if logits.shape[-1] <= student_logits:
        return logits
    tokens = len(tokens_teacher(teacher, "next-token logits").tokenizer)
    if student_logits < tokens:
        raise MethodMisfit(
            f"The student has logits for {student_logits:,} tokens, but its teacher's vocabulary has {tokens:,}. "
            "Token-level distillation needs models with the same vocabulary."
        )
    return logits[..., :student_logits]


def _ended(ids: list[int], ends: set[int]) -> list[int]:
    """Returns a generated row up to its first end token; the rest is padding."""
    last = next((position for position, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: last + 1]


def token_losses(outputs: Outputs, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of every token with a label, in nats [tokens], and the index of its row in the batch [tokens].

    The outputs have logits [batch, seq, vocabulary] or their factors; `labels` are [batch, seq], -100 for none.
    """
    kept = labels != IGNORED_LABEL
    factors, wanted = outputs.factors, labels[kept]
    parts = [logits_of(outputs, "model")[kept]] if factors is None else factors.logits_by_part(kept)
    losses = list[torch.Tensor]()
    for logits in parts:
        losses.append(F.cross_entropy(logits.float(), wanted[: len(logits)], reduction="none"))
        wanted = wanted[len(logits) :]
    return torch.cat(losses), kept.nonzero()[:, 0]


class TokenMeasure(Measure):
    """Cross-entropy and perplexity over all tokens with labels."""

    def __init__(self) -> None:
        self.total = 0.0
        self.tokens = 0

    def add(self, outputs: Outputs, batch: Batch) -> None:
        """Adds the tokens of a batch."""
        losses, _ = token_losses(outputs, batch["labels"])
        self.total += float(losses.sum())
        self.tokens += len(losses)

    def join(self, other: Self) -> None:
        """Adds the tokens of another measure."""
        self.total += other.total
        self.tokens += other.tokens

    def result(self) -> dict[str, float]:
        """Returns the mean cross-entropy in nats, and its exponential."""
        entropy = self.total / max(1, self.tokens)
        return {"cross_entropy": entropy, "perplexity": perplexity(entropy)}
