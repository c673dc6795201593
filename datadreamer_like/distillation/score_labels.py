"""An LLM as a teacher of a classifier, by the probability of each label's text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, did_you_mean

PROMPT = "Classify the text. Answer with one of these labels: {labels}.\n\nText: {text}\n\nLabel:"

Normalisation = Literal["none", "length", "prior"]
"""How `ScoreLabels` makes labels of different length and frequency comparable."""


@dataclass(frozen=True, eq=False, repr=False)
class ScoreLabels:
    """An LLM that teaches a classifier by the probability of each label's text after a prompt: nothing is parsed.

    The logit of a class is `log P(label | prompt)`, the sum over the label's tokens; their softmax over the classes is
    the soft target. All labels of a prompt are scored in one pass that reads the prompt once. Results are cached as the
    LLM's answers are, and as any teacher's logits.

    A label that is the start of another one ("card" and "card lost") is at least as probable as that; give them texts
    that end, such as `{"card": "card.", "card lost": "card lost."}`.

    Args:
        llm: An LLM with `score`: `LlamaCPP`, `HFTransformers`, or a server that returns a prompt's log-probabilities.
        labels: The classes; or a mapping from each class to its text. Where the LLM continues a plain text, a blank is
            put before each unless the prompt ends in one.
        prompt: A text with `{text}` and, optionally, `{labels}`, the labels' texts separated by commas. The LLM's chat
            template is applied to it.
        normalise: "none"; "length" divides a log-probability by the label's number of tokens, so that long labels are
            not unlikely for their length; "prior" subtracts the label's log-probability after the same prompt with
            `content_free` as its text, so that frequent words are not likely for their frequency (domain-conditional
            PMI, Holtzman et al. 2021, arXiv:2104.08315; Zhao et al. 2021, arXiv:2102.09690).
        content_free: The text for "prior".

    Raises:
        DefinitionError: The LLM gives no log-probabilities of given texts, there are fewer than two labels, or the
            prompt has no `{text}`.
        ArgumentTypeError: `llm` is not an LLM, or a label is not a text.
        ModelError: A row failed, such as one whose prompt is too long; raised when it is asked.

    Example:
        >>> teacher = ScoreLabels(llm, ["positive", "negative"], normalise="prior")  # doctest: +SKIP
        >>> student.train(..., objective=SoftTargets(teacher, alpha=1.0))  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 1

    llm: Any
    labels: Sequence[str] | Mapping[str, str]
    prompt: str = PROMPT
    normalise: Normalisation = "none"
    content_free: str = "N/A"

    def __post_init__(self) -> None:
        if not callable(getattr(self.llm, "check_scoring", None)):
            raise ArgumentTypeError(
                f"llm must be an LLM, such as LlamaCPP(...), not {self.llm!r}. Other classifiers teach as they are."
            )
        texts = dict(self.labels) if isinstance(self.labels, Mapping) else None
        if texts is None and not isinstance(self.labels, str):
            texts = {label: label for label in self.labels}
        if texts is None or not all(isinstance(each, str) and each for pair in texts.items() for each in pair):
            raise ArgumentTypeError(f"labels must be texts, such as ['yes', 'no'], not {self.labels!r}.")
        if len(set(texts.values())) < max(2, len(self.labels)):
            raise DefinitionError(f"labels are {self.labels!r}; there must be two or more, with different texts.")
        if not isinstance(self.prompt, str) or "{text}" not in self.prompt:
            raise DefinitionError(f"prompt is {self.prompt!r}; it must contain {{text}}, where the text is put.")
        if self.normalise not in get_args(Normalisation):
            raise DefinitionError(
                f'normalise "{self.normalise}" is unknown.{did_you_mean(self.normalise, get_args(Normalisation))} '
                f"Choose one of {', '.join(get_args(Normalisation))}."
            )
        self.llm.check_scoring()
        object.__setattr__(self, "labels", texts)

    def __repr__(self) -> str:
        return f"ScoreLabels({self.llm!r}, {len(self.labels)} labels)"

    def __fingerprint__(self) -> dict[str, Any]:
        """The LLM, labels, prompt and normalisation."""
        free = self.content_free if self.normalise == "prior" else None
        parts = {"llm": self.llm, "labels": list(self._texts.items()), "prompt": self.prompt}
        return {"class": type(self), **parts, "normalise": self.normalise, "content_free": free}

    @property
    def classes(self) -> Sequence[str]:
        """The labels, in the order of the logits."""
        return list(self._texts)

    def class_logits(self, texts: Sequence[str]) -> Tensor:
        """Returns the normalised log-probabilities of the labels' texts [texts, classes], fp32."""
        found = torch.tensor(list(self._scores(texts)), dtype=torch.float64).reshape(-1, len(self._texts))
        if self.normalise == "prior":
            found = found - self._prior
        return found.float()

    @cached_property
    def _prior(self) -> Tensor:
        return torch.tensor(next(self._scores([self.content_free])), dtype=torch.float64)

    @property
    def _texts(self) -> dict[str, str]:
        assert isinstance(self.labels, dict)
        return self.labels

    def _scores(self, texts: Sequence[str]) -> Iterator[list[float]]:
        listed = ", ".join(text.strip() for text in self._texts.values())
        fixed = [part.replace("{labels}", listed) for part in self.prompt.split("{text}")]
        blank = "" if self.llm.scores_chat or re.search(r"\s$", self.prompt) else " "
        answers = [blank + text if not text[0].isspace() else text for text in self._texts.values()]
        rows = self.llm.scores([text.join(fixed) for text in texts], answers)
        for text, row in zip(texts, rows, strict=True):
            if row.error is not None:
                raise ModelError(
                    f"There are no scores of the text {text[:60]!r}: {row.error} Filter such rows out, or run again if "
                    "the failure is over: scores of other texts are kept."
                ) from row.error
            by_length = self.normalise == "length"
            yield [each / (count if by_length else 1) for each, count in zip(row.logprobs, row.tokens, strict=True)]
