"""Instructions made harder, or replaced by rarer ones, over several rounds."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError, did_you_mean
from datadreamer_like.graph.origin import From, Traced
from datadreamer_like.graph.output import Batch, Column
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.models.llms.llm import LLM

from ..base.columns import columns_together
from ..base.lazy_rows import LazyRowBatches
from ..base.step import Step
from ..operations.combining import concat
from ..prompting.answer_readers import read_yes_or_no
from .prompt_rounds import PromptRounds, Row, is_blank, not_a_text

IN_DEPTH = {
    "constraints": "Add one more constraint or requirement to it.",
    "deepen": "If it asks about certain issues, increase the depth and breadth of what it asks.",
    "concretize": "Replace general concepts in it by more specific ones.",
    "reasoning": "If it can be solved in a few simple steps, ask explicitly for reasoning in several steps.",
    "complicate": "Add input data to it, such as a table, code, a formula or a text, that the answer has to use.",
}
"""The in-depth operations: each makes an instruction harder."""

IN_BREADTH = {
    "breadth": "Write a new instruction from the same domain, but rarer. It must be about as long and as difficult.",
}
"""The in-breadth operation: it makes another instruction."""

OPERATIONS = IN_DEPTH | IN_BREADTH

_EVOLVE = """\
{% if in_depth %}
Rewrite an instruction into a more complex version that is a bit harder for AI assistants, but reasonable, and that \
people can understand and answer. Keep its non-text parts, such as tables and code. Add 10 to 20 words at most.
{% else %}
Take an instruction as inspiration for a new one, which must be reasonable, and which people can understand and answer.
{% endif %}
{{ method }}

Instruction:
{{ instruction }}

Write the {{ "rewritten" if in_depth else "new" }} instruction only."""

_COMPARE = """\
First instruction:
{{ instruction }}

Second instruction:
{{ evolved }}

Do the two have the same constraints and requirements, and the same depth and breadth of what they ask? \
Answer with one word: yes or no."""

# Words of the prompt above that an evolved instruction has from it alone.
_COPIED = re.compile(
    r"\b(?:given|rewritten|new|first|second|original) (?:instruction|prompt)s?\b"
    r"|#\s*(?:the )?(?:given|rewritten|created) prompt|that answer cannot be used",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^\W*(?:the )?(?:(?:re)?written|new)?\s*(?:instruction|prompt)\W*:\W*\s", re.IGNORECASE)
_SORRY = re.compile(r"\b(?:sorry|apologi[sz]e)\b", re.IGNORECASE)
_STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "from", "has", "have", "i", "in", "is", "it", "its",
    "me", "my", "no", "not", "of", "on", "or", "so", "that", "the", "their", "them", "then", "there", "these", "they",
    "this", "to", "was", "we", "were", "will", "with", "yes", "you", "your",
})  # fmt: skip


class Evolve(PromptRounds):
    """Evolves instructions by an LLM: each round makes each one harder, or another, and answers it.

    Inputs: `instructions`. Args: `llm`, `answerer` (an LLM; by default `llm`), `rounds` (4), `operations` (names; by
    default all: `constraints`, `deepen`, `concretize`, `reasoning`, `complicate` in depth, `breadth`), `draw_seed` (0;
    for the operation of each row and round), `max_follow_ups`, and the options of `llm.run`. Outputs: `seeds`,
    `rounds`, `operations`, `instructions` (evolved), `answers`, `eliminated` (why an evolution failed, else None).

    A row for each instruction and round: those of the first round come first. An evolution fails, and the next round
    starts from what it started from, if (the paper's four cases) an LLM finds it equal to the earlier one; the answer
    is "sorry" and shorter than 80 words; the answer has only punctuation and stop words; it has copied words of the
    prompt, also when asked again. So does one that the limit of tokens cut off, and one that was not compared or
    answered since its LLM failed; `step.errors` has the reason. A missing or blank instruction is not sent: its rows
    fail.
    `evolved.filter(lambda row: row["eliminated"] is None)` keeps the others.

    Reference: Xu et al. 2023, "WizardLM: Empowering Large Language Models to Follow Complex Instructions",
    arXiv:2304.12244.

    Example:
        >>> evolved = Evolve(  # doctest: +SKIP
        ...     "Harder questions", inputs={"instructions": seeds.output["text"]}, args={"llm": llm, "rounds": 2}
        ... )
    """

    # 2: what was not compared is eliminated; 3: blank instructions are not evolved; 4: nor are those that were cut off
    result_version: ClassVar[int] = 4
    least: ClassVar[dict[str, int]] = {"rounds": 1}
    texts: ClassVar[tuple[str, ...]] = ("instructions",)

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("instructions", help="The instructions to start from.")
        self.register_rounds("The LLM that evolves and compares instructions.")
        self.register_arg("answerer", required=False, type=LLM, help="The LLM that answers.", default_help="llm")
        self.register_arg("rounds", required=False, default=4, type=int, help="Evolutions of each instruction.")
        self.register_arg("operations", required=False, type=(list, tuple), help="Names.", default_help="all six")
        help = "For the operation of each row and round."
        self.register_arg("draw_seed", required=False, default=0, type=int, help=help)
        self.register_output("seeds", help="The instruction of the input.")
        self.register_output("rounds", help="The round, from 1.")
        self.register_output("operations", help="How it was evolved.")
        self.register_output("instructions", help="The evolved instruction; None if there is none.")
        self.register_output("answers", help="Its answer.")
        self.register_output("eliminated", help="Why it failed; None if it did not.")

    def configure(self) -> None:
        """Rejects unknown operations."""
        super().configure()
        for name in self.names():
            if name not in OPERATIONS:
                raise DefinitionError(
                    f'"{self.name}": there is no operation {name!r}.{did_you_mean(str(name), OPERATIONS)} '
                    f"The operations are: {', '.join(OPERATIONS)}."
                )
        if not self.names():
            raise DefinitionError(f'"{self.name}": operations is empty. Name some of {", ".join(OPERATIONS)}.')

    def names(self) -> list[str]:
        """Returns the names of the operations."""
        given = self._args["operations"]
        return list(OPERATIONS) if given is None else list(given)

    def run(self) -> Any:
        """Evolves, answers and compares in each round."""
        self.register_model_facts(self._args["llm"])
        seeds = self.inputs["instructions"]
        current, rounds = seeds, []
        for number in range(1, self._args["rounds"] + 1):
            given = {"names": self.names(), "draw_seed": self._args["draw_seed"], "round": number}
            drawn = DrawOperations(f"Operations {number}", inputs={"instructions": current}, args=given).output
            evolved = self.ask(
                f"Evolution {number}", _EVOLVE, read_evolved,
                instruction=current, in_depth=drawn["in_depth"], method=drawn["method"],
            )  # fmt: skip
            made = evolved.output["generations"]
            answered = self.ask(f"Answers {number}", "{{ evolved }}", None, "answerer", evolved=made)
            compared = self.ask(f"Comparison {number}", _COMPARE, read_equal, instruction=current, evolved=made)
            kept = Survivors(
                f"Round {number}",
                inputs={
                    "seeds": seeds, "current": current, "operations": drawn["operations"], "instructions": made,
                    "answers": answered.output["generations"], "equal": compared.output["generations"],
                },
                args={"round": number},
            )  # fmt: skip
            self.fail_in_round(number, current, evolved, answered, compared)
            rounds.append(kept)
            current = kept.output["next"]
        return concat(*(step.select_columns(list(self._output_specs)) for step in rounds), name="Rounds").output

    def fail_in_round(self, number: int, given: Column, *asked: Any) -> None:
        """Counts failed rows of a round, at their place among the rows of all rounds."""
        start = (number - 1) * len(asked[0].output)
        self.fail_blank(given, start)
        self.fail_with(list(asked), lambda step, index: start + index)


class DrawOperations(Step):
    """Draws an operation for each instruction."""

    result_version: ClassVar[int] = 4  # that of Evolve

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("instructions", help="The instructions.")
        self.register_arg("names", help="The operations to draw from.")
        self.register_arg("draw_seed", type=int, help="The seed.")
        self.register_arg("round", type=int, help="The round.")
        self.register_output("operations", help="The operation of each.")
        self.register_output("in_depth", help="Whether it makes the instruction harder.")
        self.register_output("method", help="It in words.")

    def run(self) -> LazyRowBatches:
        """Draws in the order of the rows."""

        def batches() -> Iterator[Traced]:
            rng = random.Random(f"{self.args['draw_seed']} {self.args['round']}")
            for batch in columns_together(self._inputs, f'"{self.name}"'):
                if any(isinstance(text, list | dict) for text in batch["instructions"]):
                    raise DefinitionError(f'"{self.name}": {not_a_text("instructions")}')
                drawn = [rng.choice(self.args["names"]) for _ in batch["instructions"]]
                depth, methods = [name in IN_DEPTH for name in drawn], [OPERATIONS[name] for name in drawn]
                made: Batch = {"operations": drawn, "in_depth": depth, "method": methods}
                yield Traced(made, From("instructions"))

        return LazyRowBatches(batches, self._inputs["instructions"].num_rows, save=True)


class Survivors(Step):
    """Eliminates failed evolutions of a round, and gives what the next round starts from."""

    result_version: ClassVar[int] = 4  # that of Evolve

    def setup(self) -> None:
        """Registers the step's names."""
        for name in ("seeds", "current", "operations", "instructions", "answers", "equal"):
            self.register_input(name, help="A column of the round.")
        self.register_arg("round", type=int, help="The round.")
        for name in ("seeds", "rounds", "operations", "instructions", "answers", "eliminated", "next"):
            self.register_output(name, help="A column of the round.")

    def process(self, batch: Batch) -> Batch:
        """Judges each evolution."""
        found = zip(batch["instructions"], batch["answers"], batch["equal"], strict=True)
        why = [
            "there is no instruction" if is_blank(current) else eliminated(*row)
            for current, row in zip(batch["current"], found, strict=True)
        ]
        pairs = zip(batch["current"], batch["instructions"], why, strict=True)
        return {
            "seeds": batch["seeds"],
            "rounds": [self.args["round"]] * len(why),
            "operations": batch["operations"],
            "instructions": batch["instructions"],
            "answers": batch["answers"],
            "eliminated": why,
            "next": [current if reason is not None else made for current, made, reason in pairs],
        }


def eliminated(instruction: str | None, answer: str | None, equal: bool | None) -> str | None:
    """Returns why an evolution fails; None if it does not."""
    if instruction is None:
        return "no usable instruction was written"
    if equal:
        return "no more than the earlier instruction"
    if equal is None:
        return "not compared with the earlier instruction"
    if answer is None:
        return "no answer"
    words = re.findall(r"[^\W_]+", answer.lower())
    if _SORRY.search(answer) and len(words) < 80:
        return "the answer is an apology"
    if all(word in _STOP_WORDS for word in words):
        return "the answer has only punctuation and stop words"
    return None


def read_evolved(answer: Answer, row: Row) -> Any:
    """Returns an evolved instruction without a label before it."""
    text = _LABEL.sub("", answer.text or "").strip().strip('"').strip()
    if not text:
        return Rejected("Write the instruction.")
    if answer.cut_off:
        return Rejected("It was cut off. Write a shorter instruction.")
    if _COPIED.search(text) and not _COPIED.search(row["instruction"]):
        return Rejected("It repeats words of this task. Write the instruction only.")
    return text


def read_equal(answer: Answer, row: Row) -> Any:
    """Returns whether two instructions are equal."""
    equal = read_yes_or_no(answer.text)
    return Rejected("It must be one word: yes or no.") if equal is None else equal
