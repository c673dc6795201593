"""Answers improved by a critic's feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from datadreamer_like.graph.output import Batch, Column
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.models.llms.llm import LLM

from ..base.lazy_rows import LazyRowBatches
from ..prompting.answer_readers import read_yes_or_no
from ..prompting.prompt import Prompt
from ..prompting.prompt_step import RowPrompt
from .prompt_rounds import PromptRounds, Row, is_blank, literal

_CRITIQUE = """\
{% if answer %}
Task:
{{ prompt }}

Answer:
{{ answer }}

<criteria>
Is this answer good as it is? Say yes or no first. If no, list what has to change, concretely.
{%- endif %}"""

_REVISE = """\
{% if critique and not critique.content %}
Task:
{{ prompt }}

Answer:
{{ answer }}

Criticism:
{{ critique.text }}

Write the answer anew so that it meets the criticism. Write the new answer only.
{%- endif %}"""


class CritiqueAndRevise(PromptRounds):
    """Has a critic judge each answer and the LLM revise it, until the critic is content or the rounds are over.

    Inputs: `prompts` (texts or chats; the critic reads a chat as lines of `role: content`), `answers` (optional; the
    LLM answers the prompts first). Args: `llm`, `critic` (an LLM; by
    default `llm`), `criteria` (a text that the critic is shown), `rounds` (2), `max_follow_ups`, and the options of
    `llm.run`. Outputs: `prompts`, `answers` (the first ones), `revised` (the last ones), `critiques` (a list of texts),
    `content` (whether the last critique was content with the last answer it saw; None if there is none).

    Each round is a critique of every answer that its last critique did not accept, and a revision of those criticised.
    The last revision is not judged again. A criticism that says neither yes nor no is asked for again. A missing or
    blank prompt is not sent, nor is a blank answer to it judged.

    Reference: Madaan et al. 2023, "Self-Refine: Iterative Refinement with Self-Feedback", arXiv:2303.17651.

    Example:
        >>> better = CritiqueAndRevise(  # doctest: +SKIP
        ...     "Better answers", inputs={"prompts": questions.output["text"]}, args={"llm": llm, "rounds": 2}
        ... )
    """

    # 2: blank prompts and answers are not sent; 3: an empty answer is none; 4: a chat without words is blank
    result_version: ClassVar[int] = 4
    least: ClassVar[dict[str, int]] = {"rounds": 1}

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("prompts", help="The prompts.")
        self.register_input("answers", required=False, help="Their answers, to start with.")
        self.register_rounds("The LLM that answers and revises.")
        self.register_arg("critic", required=False, type=LLM, help="The LLM that judges.", default_help="llm")
        self.register_arg("criteria", required=False, type=str, help="What the critic is to look at.")
        self.register_arg("rounds", required=False, default=2, type=int, help="Most critiques of an answer.")
        self.register_output("prompts", help="The prompts.")
        self.register_output("answers", help="The first answers.")
        self.register_output("revised", help="The last answers.")
        self.register_output("critiques", help="The critiques of each answer, in order.")
        self.register_output("content", help="Whether the last critique accepted its answer.")

    def run(self) -> LazyRowBatches:
        """Asks critic and LLM in turn."""
        prompt = self.inputs["prompts"]
        answer = self.inputs.get("answers")
        if answer is None:
            args = {"llm": self.args["llm"], "parse": read_words, **self.options()}
            first = FirstAnswer("Answer", inputs={"prompts": prompt}, args=args, force=self.force)
            answer = first.output["generations"]
        criteria = self.args["criteria"]
        critique = _CRITIQUE.replace("<criteria>\n", f"{literal(criteria)}\n\n" if criteria else "")
        columns: dict[str, Column] = {"prompt": prompt, "answer 0": answer}
        for number in range(1, self.args["rounds"] + 1):
            last = columns[f"answer {number - 1}"]
            judged = self.ask(f"Critique {number}", critique, read_critique, "critic", prompt=prompt, answer=last)
            columns[f"critique {number}"] = said = judged.output["generations"]
            revised = self.ask(f"Revision {number}", _REVISE, read_words, prompt=prompt, answer=last, critique=said)
            columns[f"answer {number}"] = revised.output["generations"]
        return self.rows(self.row, **columns)

    def row(self, row: Row) -> Row:
        """Returns the output row of one prompt, with its answers and critiques by round."""
        answers = [value for name, value in row.items() if name.startswith("answer ")]
        said = [value for name, value in row.items() if name.startswith("critique ") and value is not None]
        return {
            "prompts": row["prompt"],
            "answers": answers[0],
            "revised": next((answer for answer in reversed(answers) if answer is not None), None),
            "critiques": [each["text"] for each in said],
            "content": said[-1]["content"] if said else None,
        }


class FirstAnswer(Prompt):
    """The answer to each prompt that is not blank."""

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the prompts."""
        made = zip(batch["prompts"], super().prompts(batch), strict=True)
        return [None if is_blank(given) else prompt for given, prompt in made]


def read_words(answer: Answer, row: Row) -> Any:
    """Returns an answer that has a text."""
    return Rejected("It is empty. Write an answer.") if is_blank(answer.text) else answer.text


def read_critique(answer: Answer, row: Row) -> Any:
    """Returns whether a critique accepts its answer, and its text."""
    content = read_yes_or_no(answer.text)
    if content is None:
        return Rejected("It must start with yes, if the answer is good as it is, or with no.")
    return {"content": content, "text": answer.text}
