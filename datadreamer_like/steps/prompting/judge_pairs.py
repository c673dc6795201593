"""Judging pairs of texts with an LLM, in random order to cancel its position bias."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError, RejectedAnswer
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer

from ..base.row_answers import AnsweredRows
from .answer_readers import read_winner
from .prompt_step import PromptStep, RowPrompt
from .value_column import shown
from .winner_text import label_name


class JudgePairsWithPrompt(PromptStep):
    """Asks an LLM which of two inputs is better.

    Inputs: `a`, `b`. Args: `instruction`, `judgement_func`, `randomize_order` (True), `a_label`, `b_label`,
    `instruction_label`, `max_new_tokens`, `sep`, and those of `PromptStep`. Outputs: `a`, `b`, `judge_prompts`,
    `judge_generations`, `judgements`.

    A judgement is the label of the winning input without its colon, "Input A" for the input `a`, independent of the
    order shown; None if there is none. With `n > 1` the majority wins. A `judgement_func` takes an answer's text and
    returns the label, or `"a"` or `"b"`, of the candidate as shown; one that takes two arguments also gets whether the
    order was swapped, and what it returns is the judgement. `parse` returns what a `judgement_func` of one argument
    does. With `output_schema`, its only string property names the winner, unless `judgement_func` reads the dictionary.

    Example:
        >>> texts = {"a": rows.output["a"], "b": rows.output["b"]}  # doctest: +SKIP
        >>> judged = JudgePairsWithPrompt("Better", inputs=texts, args={"llm": llm})  # doctest: +SKIP
        >>> first = judged.filter(lambda row: row["judgements"] == "Input A")  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2

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
        self.register_output("judgements", help="The winner's label; None where there is none.")

    def configure(self) -> None:
        """Refuses equal labels, and finds the property of `output_schema` that names the winner."""
        super().configure()
        self._names = {side: label_name(self._args[f"{side}_label"] or "") or side for side in ("a", "b")}
        judge = self._args["judgement_func"]
        self._takes_order = judge is not None and _takes_two(judge)
        if self._names["a"].lower() == self._names["b"].lower() and not self._takes_order:
            raise DefinitionError(
                f'"{self.name}": a_label and b_label are both "{self._names["a"]}", so an answer cannot name the '
                "winner. Give two different labels."
            )
        if self.schema is not None and self._args["judgement_func"] is None:
            self.verdict_field = self.schema.only_field(("string",), self.name, "names the winner")

    def input_batches(self) -> Iterator[Batch]:
        """Yields the pairs, and whether each is swapped."""
        rng = random.Random(self.args["seed"] or 0)
        for batch in super().input_batches():
            yield {**batch, "swapped": [self.args["randomize_order"] and rng.random() < 0.5 for _ in batch["a"]]}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns each pair with the instruction, two `sep` between parts; None for a row with a missing value."""
        labels = [_label_of(name) for name in self.labels]
        instruction = self.labelled("instruction_label", self._instruction())
        prompts: list[RowPrompt] = []
        for *context, a, b, swapped in zip(*(batch[name] for name in [*self.labels, "swapped"]), strict=True):
            texts = [*context, b, a] if swapped else [*context, a, b]
            parts = [*map(self.labelled, labels, texts), instruction]
            prompts.append(None if any(text is None for text in texts) else str((2 * self._args["sep"]).join(parts)))
        return prompts

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns the label of the input that an answer prefers; one without a winner is rejected."""
        return self.value_of(self.read(answer), row)

    def value_of(self, said: Any, row: dict[str, Any], alone: bool = False) -> Any:
        """Returns the label of the preferred input: "a" is the candidate shown with the first label."""
        if isinstance(said, Rejected):
            return said
        if self._takes_order:
            return self.call("judgement_func", said, row["swapped"])
        if self._args["judgement_func"] is not None:
            said = self.call("judgement_func", said)
        return self._judgement(said, row)

    def call(self, name: str, *values: Any) -> Any:
        """Calls a function given as an argument; a row fails if it names the winner by anything but a text."""
        value = super().call(name, *values)
        if name == "post_process" or self._takes_order or isinstance(value, str | Rejected | None):
            return self._judgement(value, values[1]) if name == "parse" and isinstance(value, str) else value
        text = values[0].text if isinstance(values[0], Answer) else str(values[0])
        expected = f'"{self._names["a"]}", "{self._names["b"]}", "a" or "b"'
        raise RejectedAnswer.of(text, f"{name} returned {shown(value)}; expected {expected}.")

    def _judgement(self, said: Any, row: dict[str, Any]) -> str | Rejected:
        winner = read_winner(said, self._args["a_label"] or "", self._args["b_label"] or "")
        if winner is None:
            return Rejected(f"No winner can be read in it. {self._how_to_answer()}")
        return self._names["a" if (winner == "a") != row["swapped"] else "b"]

    def combine(self, values: list[Any]) -> Any:
        """Returns the label of the input that most answers prefer; None for a tie."""
        given = [value for value in values if value is not None]
        most = max(map(given.count, given), default=0)
        winners = [
            value for index, value in enumerate(given) if given.count(value) == most and value not in given[:index]
        ]
        return winners[0] if len(winners) == 1 else None

    def reader_name(self) -> str:
        """Returns the name of the function that makes the judgements, for messages."""
        return "judgement_func" if self._takes_order else super().reader_name()

    def values_are_a_column(self) -> bool:
        """Whether a function makes the column `judgements`."""
        return self._takes_order

    def output_batch(self, rows: AnsweredRows) -> Batch:
        """Returns the pairs with their judgements."""
        columns = {name: rows.rows[name] for name in self.labels}
        return {
            **columns,
            "judge_prompts": rows.values,
            "judge_generations": self.texts(rows),
            "judgements": self.values(rows),
            **self.field_columns(rows),
        }

    def _instruction(self) -> str:
        if self._args["instruction"] is not None:
            return str(self._args["instruction"])
        what = "response" if "prompts" in self.labels else "input"
        return f"Which {what} is better? {self._how_to_answer()}"

    def _how_to_answer(self) -> str:
        return f"Respond with '{self._names['a']}' or '{self._names['b']}'."


class JudgeGenerationPairsWithPrompt(JudgePairsWithPrompt):
    """Asks an LLM which of two answers to a prompt is better.

    Inputs: `prompts`, `a`, `b`. Args: those of `JudgePairsWithPrompt` and `prompt_label`; the labels of the candidates
    are "Response A:" and "Response B:". Outputs: `prompts`, `a`, `b`, `judge_prompts`, `judge_generations`,
    `judgements`.

    Example:
        >>> answers = {"prompts": rows.output["text"], "a": rows.output["a"], "b": rows.output["b"]}  # doctest: +SKIP
        >>> judged = JudgeGenerationPairsWithPrompt("Better", inputs=answers, args={"llm": llm})  # doctest: +SKIP
    """

    labels: ClassVar[dict[str, str]] = {"prompts": "Prompt:", "a": "Response A:", "b": "Response B:"}


def _label_of(name: str) -> str:
    return f"{name.removesuffix('s')}_label"


def _takes_two(function: Callable[..., Any]) -> bool:
    """Returns whether a function takes two arguments: a generation, and whether the order was swapped."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtin functions
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [parameter for parameter in parameters if parameter.kind in kinds]
    needed = [parameter for parameter in taken if parameter.default is inspect.Parameter.empty]
    return len(needed) == 2 or (len(taken) > 1 and taken[1].name == "swapped")
