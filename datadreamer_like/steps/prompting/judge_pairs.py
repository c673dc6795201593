"""Judging pairs of texts with an LLM, in random order to cancel its position bias."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from datadreamer_like.graph.output import Batch
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer

from ..base.row_answers import AnsweredRows
from .answer_readers import read_winner
from .prompt_step import PromptStep, RowPrompt


class JudgePairsWithPrompt(PromptStep):
    """Asks an LLM which of two inputs is better.

    Inputs: `a`, `b`. Args: `instruction`, `judgement_func` (takes an answer's text and returns `"a"` or `"b"`, or the
    label, of the candidate as shown), `randomize_order` (True), `a_label`, `b_label`, `instruction_label`,
    `max_new_tokens`, `sep`, and those of `PromptStep`. Outputs: `a`, `b`, `judge_prompts`, `judge_generations`,
    `judgements`.

    A judgement is the winning input, `"a"` or `"b"`, independent of the order shown; None if there is none.
    With `n > 1` the majority wins. With `output_schema`, its only string property names the winner, unless
    `judgement_func` reads the dictionary.
    """

    labels: ClassVar[dict[str, str]] = {"a": "Input A:", "b": "Input B:"}
    """The inputs in the order shown, and the defaults of their labels."""

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_llm()
        self.register_arg(
            "instruction", required=False, type=str, help="How to judge.", default_help="asks which one is better"
        )
        what = "A function of an answer that names the winner."
        self.register_arg("judgement_func", required=False, help=what, default_help="reads the label of one candidate")
        self.register_arg("randomize_order", required=False, default=True, type=bool, help="Show either first.")
        for name, label in self.labels.items():
            self.register_input(name, help="Shown with each pair." if name == "prompts" else f"Candidate {name}.")
            self.register_arg(_label_of(name), required=False, default=label, type=str, help=f"Before {name}.")
            self.register_output(name, help="As it came in.")
        self.register_format("\n", instruction_label="Instruction:")
        self.register_arg("seed", required=False, type=int, help="For the order, and for the LLM.")
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
        """Returns each pair with the instruction; a row with a missing value has no prompt."""
        labels = [_label_of(name) for name in self.labels]
        instruction = self.labelled("instruction_label", self._instruction())
        prompts: list[RowPrompt] = []
        for *context, a, b, swapped in zip(*(batch[name] for name in [*self.labels, "swapped"]), strict=True):
            texts = [*context, b, a] if swapped else [*context, a, b]
            parts = [*map(self.labelled, labels, texts), instruction]
            prompts.append(None if any(text is None for text in texts) else str(self._args["sep"].join(parts)))
        return prompts

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns the position that an answer prefers: "a" is the candidate shown with the first label."""
        said = self.read(answer)
        if isinstance(said, Rejected):
            return said
        if self._args["judgement_func"] is not None:
            said = self.call("judgement_func", said)
        winner = read_winner(said, self._args["a_label"], self._args["b_label"])
        return Rejected(f"No winner can be read in it. {self._how_to_answer()}") if winner is None else winner

    def combine(self, values: list[Any]) -> Any:
        """Returns the position that most answers prefer; None for a tie."""
        a, b = values.count("a"), values.count("b")
        return None if a == b else "a" if a > b else "b"

    def output_batch(self, rows: AnsweredRows) -> Batch:
        """Returns the pairs with their judgements."""
        columns = {name: rows.rows[name] for name in self.labels}
        other = {"a": "b", "b": "a"}
        places = zip(self.values(rows), rows.rows["swapped"], strict=True)
        return {
            **columns,
            "judge_prompts": rows.values,
            "judge_generations": self.texts(rows),
            "judgements": [other[place] if swapped and place in ("a", "b") else place for place, swapped in places],
            **self.field_columns(rows),
        }

    def _instruction(self) -> str:
        if self._args["instruction"] is not None:
            return str(self._args["instruction"])
        what = " for this prompt" if "prompts" in self.labels else ""
        return f"Which of the two is better{what}? {self._how_to_answer()}"

    def _how_to_answer(self) -> str:
        a, b = (self._args[label].rstrip(": ") for label in ("a_label", "b_label"))
        return f'Answer with "{a}" or "{b}" and nothing else.'


class JudgeGenerationPairsWithPrompt(JudgePairsWithPrompt):
    """Asks an LLM which of two answers to a prompt is better.

    Inputs: `prompts`, `a`, `b`. Args: those of `JudgePairsWithPrompt` and `prompt_label`; the labels of the candidates
    are "Response A:" and "Response B:". Outputs: `prompts`, `a`, `b`, `judge_prompts`, `judge_generations`,
    `judgements`.
    """

    labels: ClassVar[dict[str, str]] = {"prompts": "Prompt:", "a": "Response A:", "b": "Response B:"}


def _label_of(name: str) -> str:
    return f"{name.removesuffix('s')}_label"
