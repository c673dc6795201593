"""The judges of all kinds of tasks, and the choice of a judge for the models of a comparison."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch  # noqa: TID253  (imported with the first comparison, whose models need it anyway)

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import DataError, DefinitionError, LabelError, MethodMisfit, did_you_mean
from datadreamer_like.models.llms.chat_template import AUTO
from datadreamer_like.models.trained.prompt_template import set_prompt_template
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.report import Column, Interval

from .columns import read_rows, read_texts
from .judge import NAMES, Judge
from .labels import class_names, label_name
from .quality import bits_per_byte, paired_bits_per_byte, paired_differences, perplexity, scores, token_loss
from .tasks.generation import CausalLM, Generation, Seq2SeqLM, token_losses
from .tasks.task import row_limit

_ENCODED_AT_ONCE = 1000

Row = tuple[str, str]
"""A prompt (empty for plain texts) and its answer."""

Encoded = tuple[list[int], list[int]]
"""Input ids and target ids, as in `Generation.encoded`."""


class ClassificationJudge(Judge):
    """Compares predicted labels by name, so models may order their classes differently; see `Judge`.

    Raises:
        DefinitionError: There are no labels.
        MethodMisfit: A model is a multi-label classifier.
        LabelError: A model lacks one of the labels.
        DataError: A text or label is missing.
    """

    kind = "classification"
    tasks = frozenset({"text-classification"})
    figures = (
        Column("accuracy", "accuracy", "%", ".1f", 100),
        Column("accuracy_difference", "difference", "points [95 %]", "+.1f", 100),
        Column("macro_f1", "macro-F1", "%", ".1f", 100),
    )
    axis = "accuracy (%)"
    timed = "from text to answer"

    def read(self) -> None:
        """Reads texts and label names."""
        if self.labels is None:
            name = next(iter(self.models))
            raise DefinitionError(f"{name} is a classifier, and there are no labels to compare by. Pass labels=...")
        naming = class_names(self.labels)
        columns = dict(zip(NAMES, (self.inputs, self.labels), strict=True))
        pairs = [pair for part in read_rows(columns, labels=NAMES[1]) for pair in part]
        self.rows = [text for text, _ in pairs]
        self.truth = [label_name(label, NAMES[1], row, naming) for row, (_, label) in enumerate(pairs)]
        self.columns = {"text": self.rows, "label": self.truth}
        first_rows = {label: row for row, label in reversed(list(enumerate(self.truth)))}
        self.facts = {"classes": len(first_rows)}
        for name, model in self.models.items():
            if model.is_multi_label:
                raise MethodMisfit(
                    f"{name} is a multi-label classifier; only single-label ones are compared. Leave it out."
                )
            known = model.labels
            for label, row in sorted(first_rows.items(), key=lambda item: item[1]):
                if label not in known:
                    raise LabelError(
                        f'Row {row} has the label "{label}", which {name} does not know; its labels are '
                        f"{', '.join(known)}.{did_you_mean(label, known)} Fix the label, filter such rows out, or "
                        "leave the model out."
                    )

    def answers(self, model: TrainedModel, rows: Sequence[str], batch_size: int) -> list[str]:
        """Returns the model's most likely label for each text."""
        return model.predict(rows, batch_size=batch_size, max_length=self.max_length).labels

    def quality(self, answers: Sequence[str]) -> dict[str, float]:
        """Returns "accuracy" and "macro_f1"."""
        return scores(self.truth, answers)

    def differences(self, first: Sequence[str], other: Sequence[str]) -> dict[str, Interval]:
        """Returns the differences in "accuracy" and "macro_f1", `other - first`."""
        return paired_differences(self.truth, first, other, resamples=self.resamples, seed=self.seed)

    @classmethod
    def note(cls, rows: int, facts: Mapping[str, Any], first: str) -> str:
        """Returns the number of classes and what the difference column shows."""
        return (
            f"{rows:,} rows of {facts['classes']} classes. Difference: of accuracy, to {first} on the same rows; "
            "95 % interval by paired bootstrap."
        )


class AnswerLoss(NamedTuple):
    """A model's loss on one answer in nats, summed over the answer's tokens, and the number of tokens."""

    nats: float
    tokens: int


class LanguageJudge(Judge):
    """Computes the likelihood of the answers as a trainer does; see `Judge` and `tasks.generation.Generation`.

    With prompts, the loss covers the answer's tokens and the token that ends it, as in training; without labels, all
    tokens of the inputs and no end token. If nothing precedes a text, the tokenizer's BOS token (or EOS, if it has no
    BOS) is put first, so that the text's first token is predicted too.

    All models must see the same bytes, so rows that are too long for one model are left out for all; the notes report
    how many. Bits per byte assume that a tokenizer can represent any text: an unknown token hides what it replaces, so
    a tokenizer that needs it scores too well.

    Raises:
        MethodMisfit: There are no labels, and a model needs prompts.
        DataError: A prompt or answer is missing, no row fits all the models, or all answers are empty.
    """

    kind = "language modelling"
    tasks = frozenset({"text-generation", "text2text-generation"})
    figures = (
        Column("bits_per_byte", "bits/byte", format=".3f"),
        Column("bits_per_byte_difference", "difference", "bits/byte [95 %]", "+.3f"),
        Column("loss", "loss", "nats/token", ".3f"),
        Column("perplexity", "perplexity", "by token", ",.2f"),
    )
    axis = "bits per byte (less is better)"
    timed = "from text to loss, one forward pass without generation"

    def read(self) -> None:
        """Reads the texts, or prompts and answers, and keeps the rows that fit all models."""
        self.prompted = self.labels is not None
        rows: list[Row]
        if self.labels is None:
            for name, model in self.models.items():
                if model.config.is_encoder_decoder:
                    raise MethodMisfit(
                        f"{name} answers prompts ({model.task}), and there are only texts. Pass the prompts as inputs "
                        "and the answers as labels, or leave the model out."
                    )
            rows = [("", text) for text in read_texts(self.inputs, NAMES[0])]
        else:
            columns = dict(zip(NAMES, (self.inputs, self.labels), strict=True))
            rows = [(prompt, answer) for part in read_rows(columns) for prompt, answer in part]
        counts = [self._counts(model, rows) for model in self.models.values()]
        fit = [row for row, tokens in enumerate(zip(*counts, strict=True)) if None not in tokens]
        if not fit:
            takes = [sum(tokens is not None for tokens in one) for one in counts]
            fewest, name = min(zip(takes, self.models, strict=True), key=lambda pair: pair[0])
            raise DataError(
                f"None of the {len(rows):,} rows fits all the models uncut; {name} takes {fewest:,} of them. Compare "
                "on shorter rows, raise max_length, or leave that model out."
            )
        self.rows = [rows[row] for row in fit]
        self.sizes = [len(answer.encode()) for _, answer in self.rows]
        if not any(self.sizes):
            raise DataError(
                f"{NAMES[self.prompted]} contains only empty texts, so there is nothing to predict. "
                "Choose another column."
            )
        prompts, answers = (list(part) for part in zip(*self.rows, strict=True))
        self.columns = {"text": prompts, "label": answers} if self.prompted else {"text": answers}
        self.facts = {
            "bytes": sum(self.sizes),
            "left_out": len(rows) - len(fit),
            "prompted": self.prompted,
            "same_tokens": all(one[row] == counts[0][row] for one in counts for row in fit),
        }

    def answers(self, model: TrainedModel, rows: Sequence[Row], batch_size: int) -> list[AnswerLoss]:
        """Returns the model's loss on each answer."""
        task = self._task(model)
        encoded = self._encoded(task, model, rows)
        order = sorted(range(len(rows)), key=lambda row: -len(encoded[row][0]))
        found: dict[int, AnswerLoss] = {}
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            found.update(zip(part, _answer_losses(model, task, [encoded[row] for row in part]), strict=True))
        return [found[row] for row in range(len(rows))]

    def kept(self, answers: Sequence[AnswerLoss]) -> list[float]:
        """Returns the loss of each answer in nats, summed over its tokens."""
        return [answer.nats for answer in answers]

    def quality(self, answers: Sequence[AnswerLoss]) -> dict[str, float]:
        """Returns "bits_per_byte", and "loss" and "perplexity" per token."""
        nats = self.kept(answers)
        loss = token_loss(nats, [answer.tokens for answer in answers])
        return {"bits_per_byte": bits_per_byte(nats, self.sizes), "loss": loss, "perplexity": perplexity(loss)}

    def differences(self, first: Sequence[AnswerLoss], other: Sequence[AnswerLoss]) -> dict[str, Interval]:
        """Returns the difference in "bits_per_byte", `other - first`."""
        options = {"resamples": self.resamples, "seed": self.seed}
        return {"bits_per_byte": paired_bits_per_byte(self.kept(first), self.kept(other), self.sizes, **options)}

    @classmethod
    def note(cls, rows: int, facts: Mapping[str, Any], first: str) -> str:
        """Returns what was predicted, what the difference shows, and whether losses per token can be compared."""
        parts = [
            f"{rows:,} {'answers' if facts['prompted'] else 'texts'} of {facts['bytes']:,} bytes in all.",
            f"Difference: of bits per byte, to {first} on the same rows, below 0 is better; 95 % interval by paired "
            "bootstrap.",
        ]
        if facts["left_out"]:
            parts.insert(1, f"{facts['left_out']:,} more were too long for one of the models and are left out.")
        if not facts["same_tokens"]:
            parts.append("Loss and perplexity are per token, and these models split texts into different tokens.")
        return " ".join(parts)

    def _task(self, model: TrainedModel) -> Generation:
        tokenizer: Any = model.tokenizer
        is_encoder_decoder = bool(model.config.is_encoder_decoder)
        template, system_prompt = self.chat_prompt_template, self.system_prompt
        if template is not AUTO or isinstance(system_prompt, str):
            tokenizer = copy.deepcopy(tokenizer)
            set_prompt_template(tokenizer, template, system_prompt, encoder_decoder=is_encoder_decoder)
        kind = Seq2SeqLM if is_encoder_decoder else CausalLM
        return kind(tokenizer, row_limit(model.config, tokenizer, self.max_length))

    def _encoded(self, task: Generation, model: TrainedModel, rows: Sequence[Row]) -> list[Encoded]:
        if self.prompted:
            pairs = list(task.encoded(rows))
        else:
            ids = task.tokenizer([text for _, text in rows], add_special_tokens=False, verbose=False)["input_ids"]
            pairs = [(row, row) for row in ids]
        return [_started(task, model, *pair) for pair in pairs]

    def _counts(self, model: TrainedModel, rows: Sequence[Row]) -> list[int | None]:
        """Token count of each answer; None if the row is too long."""
        task = self._task(model)
        counts: list[int | None] = []
        for start in range(0, len(rows), _ENCODED_AT_ONCE):
            for ids, target in self._encoded(task, model, rows[start : start + _ENCODED_AT_ONCE]):
                fits = max(len(ids), len(target)) <= task.max_length
                counts.append(sum(token != IGNORED_LABEL for token in target) if fits else None)
        return counts


def _started(task: Generation, model: TrainedModel, ids: list[int], target: list[int]) -> Encoded:
    """Puts a start token before a text without a prompt."""
    if ids and (task.encoder_decoder or target[0] == IGNORED_LABEL):
        return ids, target
    tokenizer = task.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise MethodMisfit(
            f"The tokenizer of {model!r} has neither a BOS nor an EOS token to put before a text without a prompt. "
            "Pass prompts that are not empty."
        )
    return [start, *ids], target if task.encoder_decoder else [IGNORED_LABEL, *target]


def _answer_losses(model: TrainedModel, task: Generation, rows: Sequence[Encoded]) -> list[AnswerLoss]:
    examples = [{"row": row, "input_ids": ids, "labels": target} for row, (ids, target) in enumerate(rows)]
    network: Any = model.model
    batch = {name: tensor.to(network.device) for name, tensor in task.collate(examples).items()}
    with torch.inference_mode():
        logits = task.forward(network, batch, frozenset({"logits"})).logits
        assert logits is not None
        losses, places = token_losses(logits, batch["labels"])
        nats = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, places.cpu(), losses.double().cpu())
    tokens = torch.bincount(places.cpu(), minlength=len(rows))
    return [AnswerLoss(*pair) for pair in zip(nats.tolist(), tokens.tolist(), strict=True)]


JUDGES: dict[str, type[Judge]] = {judge.kind: judge for judge in (ClassificationJudge, LanguageJudge)}
"""The judges, by kind of task."""


def judge_for(models: Mapping[str, TrainedModel]) -> type[Judge]:
    """Returns the judge for the models' common task, without loading one; raises `MethodMisfit` if there is none."""
    judges: dict[str, type[Judge]] = {}
    for name, model in models.items():
        found = [judge for judge in JUDGES.values() if model.task in judge.tasks]
        if not found:
            raise MethodMisfit(
                f"{name} does {model.task}; only classifiers and language models can be compared. Leave it out."
            )
        (judges[name],) = found
    common = Counter(judges.values()).most_common(1)[0][0]
    other = next(name for name in models if judges[name] is common)
    for name, model in models.items():
        if judges[name] is not common:
            raise MethodMisfit(
                f"{name} does {model.task}, but {other} does {models[other].task}; models are compared on one task. "
                f"Leave {name} out, or compare it with models for the same task."
            )
    return common
