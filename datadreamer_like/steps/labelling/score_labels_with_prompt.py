"""Labels by their probability after a prompt, without generating a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError
from datadreamer_like.models.llms.generation import Prompt
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.models.llms.scoring import Scored, ScoreOptions

from ..base.model_step import ModelStep
from ..base.row_answers import AnsweredRows, Questions, RowAnswers, is_sent
from ..prompting.cell_text import cell_text

PROMPT = "{text}\n\nWhich of these fits best: {labels}? Answer with one of them."


@dataclass
class _LabelChances:
    value: dict[str, Any] | None
    error: ModelError | None = None


class ScoreLabelsWithPrompt(ModelStep):
    """Labels each text by the probability that an LLM gives each label as its answer; nothing is generated or parsed.

    Inputs: `texts`. Args: `llm` (one with `score`), `labels` (a list, or a dictionary of the text of each label),
    `prompt` (a text with `{text}` and, optionally, `{labels}`), `normalise` ("none", or "length": a log-probability is
    divided by its label's number of tokens), `lazy`, and the options of `llm.score`. Outputs: `texts`, `labels` (the
    likeliest), `probabilities` (of all labels, a dictionary).

    `probabilities` are the softmax of `log P(label | prompt)`, all labels of a prompt scored in one pass that reads the
    prompt once. A label that is the start of another one ("card" and "card lost") is at least as probable as that; give
    them texts that end. Trainers learn from the same probabilities without a step: `distillation.ScoreLabels`.

    Reference: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, section 2.4, for scoring
    choices and its normalisation by length.

    Example:
        >>> scored = ScoreLabelsWithPrompt(  # doctest: +SKIP
        ...     "Moods", inputs={"texts": reviews.output["text"]}, args={"llm": llm, "labels": ["good", "bad"]}
        ... )
        >>> sure = scored.filter(lambda row: max(row["probabilities"].values()) > 0.9)  # doctest: +SKIP
    """

    model_arg = "llm"
    answers_to = ("texts", "scores")

    normalisations: ClassVar[tuple[str, ...]] = ("none", "length")

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="The texts.")
        self.register_model(LLM, "An LLM that scores given texts.")
        self.register_arg("labels", type=(list, tuple, dict), help="The labels, or the text of each label.")
        help = "A text with {text}, and {labels} where they are listed."
        self.register_arg("prompt", required=False, default=PROMPT, type=str, help=help)
        self.register_arg("normalise", required=False, default="none", type=str, help='"none" or "length".')
        self.register_output("texts", help="The texts.")
        self.register_output("labels", help="The likeliest label of each.")
        self.register_output("probabilities", help="The probability of each label.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"texts": ["one text", "another text"]}, "args": {"labels": ["good", "bad"]}}

    def configure(self) -> None:
        """Rejects labels that are not different texts, a prompt without its text, and an LLM that does not score."""
        where, prompt = f'"{self.name}"', self._args["prompt"]
        pairs = list(self.label_texts().items())
        if not all(isinstance(each, str) and each for pair in pairs for each in pair):
            raise ArgumentTypeError(
                f"{where}: labels must be texts, such as ['yes', 'no'], not {self._args['labels']!r}."
            )
        if len({text for _, text in pairs}) < max(2, len(self._args["labels"])):
            raise DefinitionError(
                f"{where}: labels are {self._args['labels']!r}; expected two or more different texts."
            )
        if "{text}" not in prompt:
            raise DefinitionError(f"{where}: prompt is {prompt!r}; it must contain {{text}}, where the text is put.")
        if self._args["normalise"] not in self.normalisations:
            raise DefinitionError(f'{where}: normalise is "{self._args["normalise"]}"; expected "none" or "length".')
        for name in self._args:
            if name not in self._arg_specs and name not in ScoreOptions.__annotations__:
                super().configure()  # names the option meant
                raise DefinitionError(f'{where} has no argument "{name}": no text is generated.')
        self._args["llm"].check_scoring()

    def label_texts(self) -> dict[str, str]:
        """Returns the text of each label."""
        given = self._args["labels"]
        return dict(given) if isinstance(given, dict) else {label: label for label in given}

    def prompt(self, text: Any) -> Prompt:
        """Returns the prompt of a text."""
        labels = ", ".join(self.label_texts().values())
        parts = self._args["prompt"].replace("{labels}", labels).split("{text}")
        return cell_text(text).join(parts)

    def answers(self, questions: Iterable[Questions]) -> Iterator[AnsweredRows]:
        """Yields rows with labels and probabilities, in order; uses only the LLM and the arguments."""
        llm, texts = self._args["llm"], list(self.label_texts().values())
        if not llm.scores_chat and not self._args["prompt"][-1:].isspace():
            texts = [f" {text}" for text in texts]  # a plain text goes on
        rows = RowAnswers(self._asked(each) for each in questions)
        options = {name: value for name, value in self._args.items() if name in ScoreOptions.__annotations__}
        for found in rows.joined(llm.scores(rows.values(), texts, **options)):
            yield found._replace(answers=[None if each is None else self._found(each) for each in found.answers])

    def output_columns(self, values: list[Any]) -> dict[str, list[Any]]:
        """Returns the columns of results."""
        return {
            "labels": [None if value is None else max(value, key=value.__getitem__) for value in values],
            "probabilities": values,
        }

    def _asked(self, questions: Questions) -> Questions:
        return questions._replace(values=[self.prompt(one) if is_sent(one) else one for one in questions.values])

    def _found(self, scored: Scored) -> _LabelChances:
        if scored.error is not None:
            return _LabelChances(None, scored.error)
        logits = np.array(scored.logprobs, dtype=np.float64)
        if self._args["normalise"] == "length":
            logits /= np.array(scored.tokens)
        chances = np.exp(logits - logits.max())
        return _LabelChances(dict(zip(self.label_texts(), (chances / chances.sum()).tolist(), strict=True)))
