"""Language models, judged by the likelihood of the target texts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch  # noqa: TID253  (imported with the first comparison, whose models need it anyway)

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.graph.output import Column as Rows
from datadreamer_like.models.llms.chat_template import AUTO
from datadreamer_like.models.trained.model_facts import model_max_length
from datadreamer_like.models.trained.prompt_template import set_prompt_template
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.report import Interval, TableColumn

from .judge import Judge, PromptOptions
from .likelihood import bits_per_byte, paired_bits_per_byte, perplexity, token_loss
from .rows import NAMES, read_prompts, read_texts
from .tasks.causal_lm import CausalLM
from .tasks.generation import Generation, token_losses
from .tasks.seq2seq_lm import Seq2SeqLM

_ENCODED_AT_ONCE = 1000

Row = tuple[str, str]
"""A prompt (empty for plain texts) and its answer."""

Encoded = tuple[list[int], list[int]]
"""Input ids and target ids, as in `evaluation.tasks.generation.Generation.encoded`."""


class AnswerLoss(NamedTuple):
    """A model's loss on one answer.

    Attributes:
        nats: Loss in nats, summed over the answer's tokens.
        tokens: Number of tokens.
    """

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
        TableColumn("bits_per_byte", "bits/byte", format=".3f"),
        TableColumn("bits_per_byte_difference", "difference", "bits/byte [95 %]", "+.3f"),
        TableColumn("loss", "loss", "nats/token", ".3f"),
        TableColumn("perplexity", "perplexity", "by token", ",.2f"),
    )
    axis = "bits per byte (less is better)"
    timed = "from text to loss, one forward pass without generation"

    def __init__(
        self,
        inputs: Rows,
        labels: Rows | None,
        models: Sequence[TrainedModel],
        names: Sequence[str],
        options: PromptOptions,
    ) -> None:
        self.options, self.prompted = options, labels is not None
        if labels is None:
            for model, name in zip(models, names, strict=True):
                if model.config.is_encoder_decoder:
                    raise MethodMisfit(
                        f"{name} answers prompts ({model.task}), and there are only texts. Pass the prompts as inputs "
                        "and the answers as labels, or leave the model out."
                    )
            rows = [("", text) for text in read_texts(inputs, NAMES[0])]
        else:
            rows = list(zip(*read_prompts(inputs, labels), strict=True))
        counts = [self._counts(model, rows) for model in models]
        fit = [row for row, tokens in enumerate(zip(*counts, strict=True)) if None not in tokens]
        if not fit:
            takes = [sum(tokens is not None for tokens in one) for one in counts]
            raise DataError(
                f"None of the {len(rows):,} rows fits all the models uncut; {names[takes.index(min(takes))]} takes "
                f"{min(takes):,} of them. Compare on shorter rows, raise max_length, or leave that model out."
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

    def differences(
        self, first: Sequence[AnswerLoss], other: Sequence[AnswerLoss], *, resamples: int, seed: int
    ) -> dict[str, Interval]:
        """Returns the difference in "bits_per_byte", `other - first`."""
        found = paired_bits_per_byte(self.kept(first), self.kept(other), self.sizes, resamples=resamples, seed=seed)
        return {"bits_per_byte": found}

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
        template, system_prompt = self.options.chat_prompt_template, self.options.system_prompt
        if template is not AUTO or isinstance(system_prompt, str):
            tokenizer = copy.deepcopy(tokenizer)
            set_prompt_template(tokenizer, template, system_prompt, encoder_decoder=is_encoder_decoder)
        most = model_max_length(model.config, tokenizer)
        kind = Seq2SeqLM if is_encoder_decoder else CausalLM
        return kind(tokenizer, min(self.options.max_length or most, most))

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
