"""Pairs of texts judged by an LLM, in random order so that its liking for the first place evens out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from datadreamer_like.graph.output import Batch

from ..base.row_answers import Portion, answered
from .answer_readers import read_winner
from .prompt_step import PromptStep, labelled


class JudgePairsWithPrompt(PromptStep):
    """Asks an LLM which of two inputs is better.

    Inputs: `a`, `b`. Args: `llm`, `instruction`, `judgement_func` (takes an answer and says `"a"` or `"b"`, or gives
    back the label, of the candidate as it was shown), `randomize_order` (True), `a_label`, `b_label`,
    `instruction_label`, `max_new_tokens`, `sep`, `post_process`, `lazy`, and the options of `llm.run`. Outputs: `a`,
    `b`, `judge_prompts`, `judge_generations`, `judgements`.

    A judgement is `"a"` or `"b"`, the input that won whatever the order in which the two were shown; None where there
    is no answer or it names no winner. With `n > 1` the majority wins.
    """

    shown_first: tuple[str, ...] = ()
    default_labels = ("Input A:", "Input B:")

    def setup(self) -> None:
        """Registers the step's names."""
        for name in (*self.shown_first, "a", "b"):
            self.register_input(name, help=f"The {name}." if name in self.shown_first else f"Candidate {name}.")
        self.register_llm()
        self.register_arg(
            "instruction", required=False, type=str, help="How to judge.", default_help="asks which one is better"
        )
        self.register_arg(
            "judgement_func",
            required=False,
            help="A function of an answer that says which candidate won.",
            default_help="reads the label or letter of one candidate",
        )
        self.register_arg(
            "randomize_order", required=False, default=True, type=bool, help="Show either of the two first, at random."
        )
        for name in self.shown_first:
            self.register_arg(
                f"{name.removesuffix('s')}_label",
                required=False,
                default=f"{name.removesuffix('s').capitalize()}:",
                type=str,
                help=f"Stands before the {name.removesuffix('s')}.",
            )
        for side, label in zip("ab", self.default_labels, strict=True):
            self.register_arg(
                f"{side}_label", required=False, default=label, type=str, help="Stands before a candidate."
            )
        self.register_arg(
            "instruction_label",
            required=False,
            default="Instruction:",
            type=str,
            help="Stands before the instruction.",
        )
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("sep", required=False, default="\n", type=str, help="Stands between the parts of a prompt.")
        self.register_arg("seed", required=False, type=int, help="For the order, and for the LLM.")
        for name in (*self.shown_first, "a", "b"):
            self.register_output(name, help="As it came in.")
        self.register_output("judge_prompts", help="The prompts as they were sent.")
        self.register_output("judge_generations", help="The answers.")
        self.register_output("judgements", help='"a" or "b", whichever won; None where that is not known.')

    def prompted(self) -> Iterator[Portion]:
        """Yields each pair with the instruction; the last column says whether the two changed places."""
        rng = random.Random(self.args["seed"] or 0)
        for batch in self.input_batches():
            swapped = [self.args["randomize_order"] and rng.random() < 0.5 for _ in batch["a"]]
            prompts = [
                self._prompt(dict(zip(batch, row, strict=True)), swap)
                for *row, swap in zip(*batch.values(), swapped, strict=True)
            ]
            yield prompts, {**batch, "judge_prompts": prompts, "swapped": swapped}

    def asked(self) -> Iterator[Batch]:
        """Yields the rows with the judgements."""
        for answers, rows in answered(self.prompted(), self.generate):
            swapped = rows.pop("swapped")
            judgements = [self._winner(answer, swap) for answer, swap in zip(answers, swapped, strict=True)]
            yield {**rows, "judge_generations": answers, "judgements": judgements}

    def _prompt(self, row: dict[str, Any], swapped: bool) -> str | None:
        if any(value is None for value in row.values()):
            return None
        first, second = ("b", "a") if swapped else ("a", "b")
        parts = [labelled(self.args[f"{name.removesuffix('s')}_label"], row[name]) for name in self.shown_first]
        parts += [labelled(self.args["a_label"], row[first]), labelled(self.args["b_label"], row[second])]
        parts.append(labelled(self.args["instruction_label"], self._instruction()))
        return str(self.args["sep"].join(parts))

    def _instruction(self) -> str:
        if self.args["instruction"] is not None:
            return str(self.args["instruction"])
        a, b = (self.args[label].rstrip(": ") for label in ("a_label", "b_label"))
        what = f" for this {self.shown_first[0].removesuffix('s')}" if self.shown_first else ""
        return f'Which of the two is better{what}? Answer with "{a}" or "{b}" and nothing else.'

    def _winner(self, answer: Any, swapped: bool) -> str | None:
        votes = [self._read(text) for text in (answer if isinstance(answer, list) else [answer])]
        a, b = votes.count("a"), votes.count("b")
        if a == b:
            return None
        return "a" if (a > b) != swapped else "b"

    def _read(self, answer: Any) -> str | None:
        """Returns which of the two places an answer prefers: "a" for what was shown under the first label."""
        if answer is None:
            return None
        function: Callable[[Any], Any] | None = self.args["judgement_func"]
        said = answer if function is None else function(answer)
        return read_winner(said, self.args["a_label"], self.args["b_label"])


class JudgeGenerationPairsWithPrompt(JudgePairsWithPrompt):
    """Asks an LLM which of two answers to a prompt is better.

    Inputs: `prompts`, `a`, `b`. Args: those of `JudgePairsWithPrompt` and `prompt_label`; the labels of the candidates
    are "Response A:" and "Response B:". Outputs: `prompts`, `a`, `b`, `judge_prompts`, `judge_generations`,
    `judgements`.
    """

    shown_first = ("prompts",)
    default_labels = ("Response A:", "Response B:")
