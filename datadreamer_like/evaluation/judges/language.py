"""The judge of language models: the likelihood of answers to prompts, or of texts."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch  # noqa: TID253  (imported with the first comparison, whose models need it anyway)

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import DataError, DefinitionError, MethodMisfit
from datadreamer_like.models.llms.chat_template import AUTO
from datadreamer_like.models.llms.generation import Sampling
from datadreamer_like.models.trained.prompt_template import set_prompt_template
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.report import Interval, TableColumn

from ..columns import read_rows, read_texts
from ..generated import exact_match, rouge_l, win_rate
from ..judge import NAMES, Further, Judge
from ..quality import bits_per_byte, mean_interval, paired_bits_per_byte, perplexity, token_loss
from ..tasks.generation import CausalLM, Generation, Seq2SeqLM, token_losses
from ..tasks.task import row_limit

_ENCODED_AT_ONCE = 1000

Row = tuple[str, str]
"""A prompt (empty for plain texts) and its answer."""

Encoded = tuple[list[int], list[int]]
"""Input ids and target ids, as in `Generation.encoded`."""


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

    With `rejected`, worse answers to the same prompts, the win rate is the share of rows whose label the model finds
    likelier, in bits per byte; ties count half. With `generate`, that many rows, evenly spread, are answered by greedy
    decoding: exact match is the share of answers that are the label, but for white space at the ends, and ROUGE-L
    compares the longest common subsequence of words; see `rouge_l`. With a `judge`, a model is preferred in the share
    of these rows in which its answer is found better than the baseline's; ties count half.

    Raises:
        MethodMisfit: There are no labels, and a model needs prompts.
        DefinitionError: There are no labels, and `rejected` or `generate` need them; or an option is for classifiers.
        DataError: A prompt or answer is missing, no row fits all the models, all answers are empty, or a loss is NaN.
    """

    kind = "language modelling"
    tasks = frozenset({"text-generation", "text2text-generation"})
    figures = (
        TableColumn("bits_per_byte", "bits/byte", format=".3f"),
        TableColumn("bits_per_byte_difference", "difference", "bits/byte [95 %]", "+.3f"),
        TableColumn("loss", "loss", "nats/token", ".3f"),
        TableColumn("perplexity", "perplexity", "by token", ",.2f"),
        TableColumn("win_rate", "win rate", "% of pairs", ".1f", 100),
        TableColumn("exact_match", "exact match", "%", ".1f", 100),
        TableColumn("rouge_l", "ROUGE-L", "%", ".1f", 100),
        TableColumn("preferred", "preferred", "% [95 %]", ".0f", 100),
    )
    axis = "bits per byte (less is better)"
    timed = "from text to loss, one forward pass without generation"
    foreign: ClassVar = ("teacher", "max_error")

    def read(self) -> None:
        """Reads the texts, or prompts and answers, and keeps the rows that fit all models."""
        self.prompted = self.labels is not None
        rows: list[Row]
        worse: list[str] = []
        if self.labels is None:
            for option in ("rejected", "generate"):
                if getattr(self, option) not in (None, 0):
                    raise DefinitionError(f"{option} needs answers to compare with. Pass them as labels.")
            for name, model in self.models.items():
                if model.config.is_encoder_decoder:
                    raise MethodMisfit(
                        f"{name} answers prompts ({model.task}), and there are only texts. Pass the prompts as inputs "
                        "and the answers as labels, or leave the model out."
                    )
            rows = [("", text) for text in read_texts(self.inputs, NAMES[0])]
        else:
            columns = dict(zip(NAMES, (self.inputs, self.labels), strict=True))
            if self.rejected is not None:
                columns["rejected"] = self.rejected
            read = [row for part in read_rows(columns) for row in part]
            rows, worse = [row[:2] for row in read], [row[2] for row in read if self.rejected is not None]
        counts = [self._counts(model, rows) for model in self.models.values()]
        pairs = [(prompt, answer) for (prompt, _), answer in zip(rows, worse, strict=False)]
        counts += [self._counts(model, pairs) for model in self.models.values() if pairs]
        fit = [row for row, tokens in enumerate(zip(*counts, strict=True)) if None not in tokens]
        if not fit:
            takes = [sum(tokens is not None for tokens in one) for one in counts]
            fewest, name = min(zip(takes, [*self.models] * 2, strict=False), key=lambda pair: pair[0])
            raise DataError(
                f"None of the {len(rows):,} rows fits all the models uncut; {name} takes {fewest:,} of them. Compare "
                "on shorter rows, raise max_length, or leave that model out."
            )
        self.rows = [rows[row] for row in fit]
        self.worse = [pairs[row] for row in fit] if pairs else []
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
            "same_tokens": all(one[row] == counts[0][row] for one in counts[: len(self.models)] for row in fit),
            "generated": min(self.generate, len(fit)),
            "judged": self.judge is not None,
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
        for row, answer in found.items():
            if math.isnan(answer.nats):
                raise DataError(
                    f"The loss of {model!r} for the answer {rows[row][1]!r:.80} is NaN. Check its weights, its dtype "
                    f"({model.model.dtype}) and how it was trained."
                )
        return [found[row] for row in range(len(rows))]

    def kept(self, answers: Sequence[AnswerLoss]) -> list[float]:
        """Returns the loss of each answer in nats, summed over its tokens."""
        return [answer.nats for answer in answers]

    def quality(self, answers: Sequence[AnswerLoss]) -> dict[str, float]:
        """Returns "bits_per_byte", and "loss" and "perplexity" per token."""
        nats = self.kept(answers)
        loss = token_loss(nats, [answer.tokens for answer in answers])
        return {"bits_per_byte": bits_per_byte(nats, self.sizes), "loss": loss, "perplexity": perplexity(loss)}

    def further(self, model: TrainedModel, answers: Sequence[AnswerLoss], batch_size: int) -> Further:
        """Returns "win_rate", "exact_match" and "rouge_l" where they were asked for, and the generated answers."""
        figures: dict[str, float] = {}
        texts: list[str | None] = []
        if self.worse:
            others = self.answers(model, self.worse, batch_size)
            sizes = [len(answer.encode()) for _, answer in self.worse]
            figures["win_rate"] = win_rate(
                [-loss.nats / max(1, size) for loss, size in zip(answers, self.sizes, strict=True)],
                [-loss.nats / max(1, size) for loss, size in zip(others, sizes, strict=True)],
            )
        if count := int(self.facts["generated"]):
            chosen = [index * len(self.rows) // count for index in range(count)]
            found = self._generated(model, [self.rows[row] for row in chosen], batch_size)
            labels = [self.rows[row][1] for row in chosen]
            figures["exact_match"] = exact_match(found, labels)
            figures["rouge_l"] = sum(map(rouge_l, found, labels)) / count
            said = dict(zip(chosen, found, strict=True))
            texts = [said.get(row) for row in range(len(self.rows))]
        return Further(figures, texts)

    def preferred(self, first: Sequence[str | None], other: Sequence[str | None]) -> Interval | None:
        """Returns the share of the generated answers that the judge prefers to the baseline's, with its interval."""
        if self.judge is None:
            return None
        pairs = [
            (self.rows[row][0], b, a) for row, (a, b) in enumerate(zip(first, other, strict=True)) if a is not None
        ]
        prompts, said, base = (list(part) for part in zip(*pairs, strict=True))
        return mean_interval(self.judge(prompts, said, base), resamples=self.resamples, seed=self.seed)

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
        if facts.get("generated"):
            parts.append(f"Exact match and ROUGE-L: of greedy answers to {facts['generated']:,} rows.")
        if facts.get("judged"):
            parts.append(f"Preferred: answers that the judge finds better than those of {first}; ties count half.")
        return " ".join(parts)

    def _generated(self, model: TrainedModel, rows: Sequence[Row], batch_size: int) -> list[str]:
        """Answers by greedy decoding; prompts are those of the likelihood."""
        from datadreamer_like.models.llms.hf_generate import generate

        task, sampling = self._task(model), Sampling(max_new_tokens=self.max_new_tokens, temperature=0.0)
        pairs = task.apart(rows) if isinstance(task, CausalLM) else task.encoded(rows)
        ids = [prompt for prompt, _ in pairs]
        tokenizer: Any = copy.copy(model.tokenizer)
        if not task.encoder_decoder:
            tokenizer.padding_side = "left"
        found: list[str] = []
        for start in range(0, len(ids), batch_size):
            part = ids[start : start + batch_size]
            said = generate(model.model, tokenizer, part, sampling, [None] * len(part), task.max_length)
            found += [answer.texts[0] or "" for answer in said]
        return found

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
        outputs = task.forward(network, batch, frozenset({"logits"}))
        losses, places = token_losses(outputs, batch["labels"])
        nats = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, places.cpu(), losses.double().cpu())
    tokens = torch.bincount(places.cpu(), minlength=len(rows))
    return [AnswerLoss(*pair) for pair in zip(nats.tolist(), tokens.tolist(), strict=True)]
