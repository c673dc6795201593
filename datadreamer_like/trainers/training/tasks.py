"""How rows of a task become tensors, and how well a model does on them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from datadreamer_like.errors import DataError
from datadreamer_like.models.llms.chat_template import AUTO, AutoText, fill, given_text, is_text_template

from .columns import Column, check_text, read_pairs
from .examples import IGNORED, Examples, Ragged, attention_mask, padded
from .labels import LabelSet, class_names

Batch = dict[str, torch.Tensor]


class Measure(ABC):
    """Collects what a model gives over batches and says how good it is."""

    @abstractmethod
    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Takes in one batch."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Returns the figures, by name."""


class Task(ABC):
    """One kind of training: rows to token ids, token ids to batches, batches to figures.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Longest row in tokens.
        truncate: Cut longer rows; False refuses them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool = True) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncate = truncate
        self.padding = int(tokenizer.pad_token_id or 0)

    @abstractmethod
    def read(self, inputs: Column, outputs: Column, names: tuple[str, str], path: Path) -> Examples:
        """Reads, checks and tokenizes two columns.

        Args:
            inputs: What the model is given.
            outputs: What it is to give.
            names: What the two are called, for messages.
            path: Where token ids are put: a file's path without its ending.

        Raises:
            DataError: A value is missing or too long.
            ArgumentTypeError: A value is of the wrong type.
            LabelError: A label is outside the set.
        """

    @abstractmethod
    def collate(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Makes a batch as the model takes it, with `labels`, and `teacher_logits` where there are any."""

    @abstractmethod
    def measure(self) -> Measure:
        """Returns a new measure."""

    def _refuse_long(self, too_long: dict[int, int], name: str) -> None:
        if too_long:
            row, length = next(iter(too_long.items()))
            raise DataError(
                f"{name}: {len(too_long):,} of the rows have more than the {self.max_length:,} tokens that fit; the "
                f"first is row {row} with {length:,}. Pass truncate=True to cut them, or filter them out."
            )


class Classification(Task):
    """Texts to classes.

    Args:
        tokenizer: The model's tokenizer.
        labels: The classes.
        max_length: Longest text in tokens.
        truncate: Cut longer texts; False refuses them.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, labels: LabelSet, max_length: int, truncate: bool = True
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.labels = labels

    def read(self, inputs: Column, outputs: Column, names: tuple[str, str], path: Path) -> Examples:
        """Reads texts and labels; see `Task.read`."""
        classes: list[Any] = []
        too_long: dict[int, int] = {}
        naming = class_names(outputs)
        with Ragged(path.with_suffix(".ids")) as input_ids:
            for part in read_pairs(inputs, outputs, names):
                start = len(classes)
                texts = [check_text(text, names[0], row) for row, (text, _) in enumerate(part, start)]
                for row, (_, label) in enumerate(part, start):
                    classes.append(self._target(self.labels.positions(label, names[1], row, naming)))
                ids = _tokens(self.tokenizer, texts, max_length=self.max_length if self.truncate else None)
                too_long.update({start + i: len(x) for i, x in enumerate(ids) if len(x) > self.max_length})
                input_ids.extend(ids)
        self._refuse_long(too_long, names[0])
        return Examples(input_ids, np.asarray(classes, dtype=np.float32 if self.labels.multi else np.int64))

    def _target(self, positions: list[int]) -> Any:
        if not self.labels.multi:
            return positions[0]
        target = np.zeros(len(self.labels), dtype=np.float32)
        target[positions] = 1.0
        return target

    def collate(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Makes a batch: `input_ids` and `attention_mask` [batch, seq], `labels` [batch] or [batch, classes]."""
        ids = [row["input_ids"] for row in rows]
        batch = {
            "input_ids": padded(ids, self.padding),
            "attention_mask": attention_mask(ids),
            "labels": torch.from_numpy(np.asarray([row["labels"] for row in rows])),
        }
        if "teacher_logits" in rows[0]:
            batch["teacher_logits"] = torch.from_numpy(np.stack([row["teacher_logits"] for row in rows]))
        return batch

    def measure(self) -> Measure:
        """Returns a measure of accuracy and macro-F1."""
        return _ClassMeasure(self.labels)


class _ClassMeasure(Measure):
    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.said: list[np.ndarray[Any, Any]] = []
        self.wanted: list[np.ndarray[Any, Any]] = []

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        self.said.append((logits > 0 if self.labels.multi else _one_hot(logits.argmax(-1), logits)).cpu().numpy())
        labels = batch["labels"]
        self.wanted.append((labels > 0 if self.labels.multi else _one_hot(labels, logits)).cpu().numpy())

    def result(self) -> dict[str, float]:
        said, wanted = np.concatenate(self.said), np.concatenate(self.wanted)
        together, either = (said & wanted).sum(0), said.sum(0) + wanted.sum(0)
        # As scikit-learn has it: a class that neither side names counts for nothing where a row has one label.
        counted = np.ones(len(self.labels), dtype=bool) if self.labels.multi else either > 0
        f1 = 2 * together[counted] / np.maximum(either[counted], 1)
        return {"accuracy": float((said == wanted).all(1).mean()), "macro_f1": float(f1.mean())}


def _one_hot(classes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return F.one_hot(classes, logits.shape[-1]).bool()


class Writing(Task):
    """Texts to texts: the prompt is given, the answer is learnt; prompt and padding carry no loss.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Longest row in tokens: prompt and answer together, or each of them for an encoder-decoder.
        truncate: Cut longer rows; False refuses them.
        encoder_decoder: Whether the prompt goes to an encoder.
        chat_prompt_template: Jinja code over messages, a text with the hole `{{prompt}}`, AUTO for the tokenizer's own
            template where it has one, None for the bare prompt.
        system_prompt: The system prompt; AUTO leaves it to the template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncate: bool = True,
        *,
        encoder_decoder: bool = False,
        chat_prompt_template: AutoText = AUTO,
        system_prompt: AutoText = AUTO,
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        self.encoder_decoder = encoder_decoder
        self.template = chat_prompt_template
        self.system_prompt = given_text(system_prompt)

    def read(self, inputs: Column, outputs: Column, names: tuple[str, str], path: Path) -> Examples:
        """Reads prompts and answers; see `Task.read`."""
        too_long: dict[int, int] = {}
        seen = dropped = 0
        with Ragged(path.with_suffix(".ids")) as input_ids, Ragged(path.with_suffix(".labels")) as labels:
            for part in read_pairs(inputs, outputs, names):
                pairs = [
                    (check_text(prompt, names[0], row), check_text(answer, names[1], row))
                    for row, (prompt, answer) in enumerate(part, seen)
                ]
                for row, (ids, target) in enumerate(self.encoded(pairs), seen):
                    longest = max(len(ids), len(target))
                    if longest > self.max_length:
                        too_long[row] = longest
                    kept = target[: self.max_length]
                    if all(token == IGNORED for token in kept):
                        dropped += 1
                        continue
                    input_ids.extend([ids[: self.max_length]])
                    labels.extend([kept])
                seen += len(part)
        if not self.truncate:
            self._refuse_long(too_long, names[0])
        if not len(input_ids):
            raise DataError(
                f"{names[0]}: in none of the {seen:,} rows any of the answer is left after cutting at "
                f"{self.max_length:,} tokens. Raise max_length, or shorten the prompts."
            )
        return Examples(input_ids, labels, dropped)

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> Iterable[tuple[list[int], list[int]]]:
        """Tokenizes prompts and answers, however long.

        Yields:
            Token ids that the model reads, and what it is to give: as many of them for a causal model, with -100 where
            the prompt stands, and the answer's alone for an encoder-decoder.
        """
        if self.encoder_decoder:
            prompts = _tokens(self.tokenizer, [self._dressed(p, a)[0] for p, a in pairs])
            answers = self.tokenizer(text_target=[answer for _, answer in pairs], verbose=False)["input_ids"]
            yield from ((p, self._ended(a)) for p, a in zip(prompts, answers, strict=True))
            return
        dressed = [self._dressed(prompt, answer) for prompt, answer in pairs]
        # A template writes the special tokens itself; a bare prompt gets those that the tokenizer puts first.
        prompts = _tokens(self.tokenizer, [prompt for prompt, _ in dressed], special=not self._uses_chat)
        answers = _tokens(self.tokenizer, [answer for _, answer in dressed], special=False)
        for prompt, answer in zip(prompts, answers, strict=True):
            if not self._uses_chat and prompt and prompt[-1] == self.tokenizer.eos_token_id:
                prompt = prompt[:-1]
            answer = self._ended(answer)
            yield prompt + answer, [IGNORED] * len(prompt) + answer

    @property
    def _uses_chat(self) -> bool:
        if self.template is AUTO:
            return bool(self.tokenizer.chat_template)
        return isinstance(self.template, str) and not is_text_template(self.template)

    def _dressed(self, prompt: str, answer: str) -> tuple[str, str]:
        if not self._uses_chat:
            if isinstance(self.template, str):
                return fill(self.template, prompt, self.system_prompt), answer
            return (f"{self.system_prompt}\n\n{prompt}" if self.system_prompt else prompt), answer
        messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        messages.append({"role": "user", "content": prompt})
        options: dict[str, Any] = {"chat_template": given_text(self.template), "tokenize": False}
        asked = str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options))
        messages.append({"role": "assistant", "content": answer})
        whole = str(self.tokenizer.apply_chat_template(messages, **options))
        # Some templates write a conversation's past otherwise than its end: then the answer follows as it is.
        return asked, whole[len(asked) :] if whole.startswith(asked) else answer

    def _ended(self, answer: list[int]) -> list[int]:
        """Puts the end-of-text token behind an answer that has none, so that the model learns to stop."""
        end = self.tokenizer.eos_token_id
        if end is None or (self._uses_chat and not self.encoder_decoder and end in answer) or answer[-1:] == [end]:
            return answer
        return [*answer, end]

    def collate(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Makes a batch: `input_ids`, `attention_mask` and `labels` [batch, seq]."""
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": padded(ids, self.padding),
            "attention_mask": attention_mask(ids),
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }

    def model_inputs(self, model: Any, batch: Batch) -> Batch:
        """Returns what of a batch the model is called with, to give logits for `labels`."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self.encoder_decoder:
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return inputs

    def measure(self) -> Measure:
        """Returns a measure of perplexity, by the tokens of the answers."""
        return _TokenMeasure(shift=not self.encoder_decoder)


def token_losses(logits: torch.Tensor, labels: torch.Tensor, *, shift: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of every token that carries one.

    Args:
        logits: What the model gives [batch, seq, vocabulary].
        labels: What it is to give [batch, seq]; -100 carries no loss.
        shift: Whether a position's logits are a guess of the next one's label, as with a causal model.

    Returns:
        Losses in nats [tokens], and the row of the batch that each stands in [tokens].
    """
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != IGNORED
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="none"), kept.nonzero()[:, 0]


class _TokenMeasure(Measure):
    def __init__(self, shift: bool) -> None:
        self.shift = shift
        self.total = 0.0
        self.tokens = 0

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        losses, _ = token_losses(logits, batch["labels"], shift=self.shift)
        self.total += float(losses.sum())
        self.tokens += len(losses)

    def result(self) -> dict[str, float]:
        entropy = self.total / max(1, self.tokens)
        return {"cross_entropy": entropy, "perplexity": math.exp(min(entropy, 700.0))}


def _tokens(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, max_length: int | None = None, special: bool = True
) -> list[list[int]]:
    options = {"truncation": True, "max_length": max_length} if max_length else {"truncation": False}
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
