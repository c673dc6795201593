"""Judging pairs of texts with an LLM, in random order to cancel its position bias."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from datadreamer_like.graph.output import Batch
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer

from ..base.row_answers import AnsweredRows
from .answer_readers import read_winner
from .prompt_step import PromptStep, RowPrompt
from .prompt_text import labelled


class JudgePairsWithPrompt(PromptStep):
    """Asks an LLM which of two inputs is better.

    Inputs: `a`, `b`. Args: `instruction`, `judgement_func` (takes an answer's text and returns `"a"` or `"b"`, or the
    label, of the candidate as shown), `randomize_order` (True), `a_label`, `b_label`, `instruction_label`,
    `max_new_tokens`, `sep`, and those of `PromptStep`. Outputs: `a`, `b`, `judge_prompts`, `judge_generations`,
    `judgements`, and a column for each property of `output_schema`.

    A judgement is the winning input, `"a"` or `"b"`, independent of the order shown; None if there is none.
    With `n > 1` the majority wins. With `output_schema`, its only string property names the winner, unless
    `judgement_func` reads the dictionary.
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
            help="A function of an answer that names the winner.",
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
                help=f"Before the {name.removesuffix('s')}.",
            )
        for side, label in zip("ab", self.default_labels, strict=True):
            self.register_arg(f"{side}_label", required=False, default=label, type=str, help="Before a candidate.")
        self.register_arg(
            "instruction_label",
            required=False,
            default="Instruction:",
            type=str,
            help="Before the instruction.",
        )
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("sep", required=False, default="\n", type=str, help="Between the parts of a prompt.")
        self.register_arg("seed", required=False, type=int, help="For the order, and for the LLM.")
        for name in (*self.shown_first, "a", "b"):
            self.register_output(name, help="As it came in.")
        self.register_output("judge_prompts", help="The prompts as they were sent.")
        self.register_output("judge_generations", help="The answers.")
        self.register_output("judgements", help='The winner, "a" or "b"; None where there is none.')

    def configure(self) -> None:
        """Finds the property of `output_schema` that names the winner."""
        super().configure()
        if self.schema is not None and self._args["judgement_func"] is None:
            self.verdict_field = self.schema.only_field(("string",), self.name, "names the winner")

    def input_batches(self) -> Iterator[Batch]:
        """Yields the pairs, and whether each is swapped."""
        rng = random.Random(self.args["seed"] or 0)
        for batch in super().input_batches():
            yield {**batch, "swapped": [self.args["randomize_order"] and rng.random() < 0.5 for _ in batch["a"]]}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns each pair with the instruction."""
        names = [*self.shown_first, "a", "b"]
        rows = zip(*(batch[name] for name in names), strict=True)
        return [
            self._prompt(dict(zip(names, row, strict=True)), swapped)
            for row, swapped in zip(rows, batch["swapped"], strict=True)
        ]

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns the position that an answer prefers: "a" is the candidate shown with the first label."""
        said = self.read(answer)
        if isinstance(said, Rejected):
            return said
        if self._args["judgement_func"] is not None:
            said = self.call("judgement_func", said)
        elif self.schema is not None:
            said = said[self.verdict_field]
        a_label, b_label = self._args["a_label"], self._args["b_label"]
        winner = read_winner(said, a_label, b_label)
        if winner is None:
            a, b = a_label.rstrip(": "), b_label.rstrip(": ")
            return Rejected(f'No winner can be read in it. Answer with "{a}" or "{b}" and nothing else.')
        return winner

    def combine(self, values: list[Any]) -> Any:
        """Returns the position that most answers prefer; None for a tie."""
        a, b = values.count("a"), values.count("b")
        return None if a == b else "a" if a > b else "b"

    def output_batch(self, rows: AnsweredRows) -> Batch:
        """Returns the pairs with their judgements."""
        columns = {name: values for name, values in rows.rows.items() if name != "swapped"}
        places = zip(self.values(rows), rows.rows["swapped"], strict=True)
        return {
            **columns,
            "judge_prompts": rows.values,
            "judge_generations": self.texts(rows),
            "judgements": [{"a": "b", "b": "a"}.get(place, place) if swapped else place for place, swapped in places],
            **self.field_columns(rows),
        }

    def _prompt(self, row: dict[str, Any], swapped: bool) -> RowPrompt:
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


class JudgeGenerationPairsWithPrompt(JudgePairsWithPrompt):
    """Asks an LLM which of two answers to a prompt is better.

    Inputs: `prompts`, `a`, `b`. Args: those of `JudgePairsWithPrompt` and `prompt_label`; the labels of the candidates
    are "Response A:" and "Response B:". Outputs: `prompts`, `a`, `b`, `judge_prompts`, `judge_generations`,
    `judgements`.
    """

    shown_first = ("prompts",)
    default_labels = ("Response A:", "Response B:")
