"""Personas from texts, and from each other."""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer

from ..operations.combining import concat
from ..prompting.prompt_step import PromptStep
from .prompt_rounds import PromptRounds, Row, literal

_FROM_TEXT = """\
Text:
{{ text }}

Who is likely to <verb> this text? Describe that person in one or two specific sentences, without a name."""

_FROM_PERSONA = """\
Persona:
{{ persona }}

Describe, in one or two specific sentences and without a name, another person who is a <relation> of this persona."""

_COPIED = re.compile("in one or two specific sentences", re.IGNORECASE)  # words of the prompts above
_REFUSED = re.compile(r"\b(?:as an ai|i cannot|i can't|i'm sorry|i am sorry)\b", re.IGNORECASE)


class Personas(PromptRounds):
    r"""Derives personas from texts (text-to-persona), and further ones from those (persona-to-persona).

    Inputs: `texts`. Args: `llm`, `verb` ("read, write, like or dislike": how the person relates to the text),
    `expansions` (0: how often each persona leads to another one), `relations` (lists what the other one is; by default
    "colleague", "patient or client", "friend", "relative" and "opponent", drawn by `draw_seed`), `draw_seed` (0),
    `max_follow_ups`, and the options of `llm.run`. Outputs: `texts`, `personas`, `expansions` (0 for the personas of
    the texts; rows are in this order).

    There are `expansions + 1` rows for each text. Seed prompts with personas for variety, by `TemplatePrompt`.

    Reference: Ge et al. 2024, "Scaling Synthetic Data Creation with 1,000,000,000 Personas", arXiv:2406.20094.

    Example:
        >>> people = Personas("People", inputs={"texts": rows.output["text"]}, args={"llm": llm})  # doctest: +SKIP
        >>> asked = TemplatePrompt(  # doctest: +SKIP
        ...     "Questions",
        ...     inputs={"persona": people.output["personas"]},
        ...     args={"llm": llm, "template": "{{ persona }}\n\nWrite a question that this person would ask a doctor."},
        ... )
    """

    result_version: ClassVar[int] = 3  # 2: a blank text has no persona; 3: nor is a repeated prompt one

    texts = ("texts",)
    least: ClassVar[dict[str, int]] = {"expansions": 0}

    relations: ClassVar[tuple[str, ...]] = ("colleague", "patient or client", "friend", "relative", "opponent")

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="Texts that people read or write.")
        self.register_rounds()
        verb = "read, write, like or dislike"
        self.register_arg("verb", required=False, default=verb, type=str, help="How a person relates to a text.")
        help = "How often each persona leads to another one."
        self.register_arg("expansions", required=False, default=0, type=int, help=help)
        help = "What another persona may be."
        self.register_arg("relations", required=False, default=self.relations, type=(list, tuple), help=help)
        self.register_arg("draw_seed", required=False, default=0, type=int, help="For the relation of each expansion.")
        self.register_output("texts", help="The texts.")
        self.register_output("personas", help="The personas.")
        self.register_output("expansions", help="How many personas are between it and the text.")

    def configure(self) -> None:
        """Rejects relations that are no texts."""
        super().configure()
        relations = self._args["relations"]
        if not relations or not all(isinstance(each, str) and each for each in relations):
            raise DefinitionError(f'"{self.name}": relations is {relations!r}; expected a list of texts.')

    def run(self) -> Any:
        """Asks for personas of texts, then of personas."""
        self.register_model_facts(self._args["llm"])
        text = self.inputs["texts"]
        first = _FROM_TEXT.replace("<verb>", literal(self._args["verb"]))
        asked: list[PromptStep] = [self.ask("Personas", first, read_persona, text=text)]
        rng = random.Random(self._args["draw_seed"])
        for number in range(1, self._args["expansions"] + 1):
            template = _FROM_PERSONA.replace("<relation>", literal(rng.choice(list(self._args["relations"]))))
            persona = asked[-1].output["generations"]
            asked.append(self.ask(f"Expansion {number}", template, read_persona, persona=persona, text=text))
        size = asked[0].output.num_rows or 0
        for number in range(len(asked)):
            self.fail_blank(text, number * size)
        self.fail_with(asked, lambda step, index: asked.index(step) * size + index)
        parts = [
            step.map(Labelled(number), remove_columns=step.output.column_names, lazy=False, name=f"Part {number}")
            for number, step in enumerate(asked)
        ]
        return concat(*parts, name="All").output


class Labelled:
    """Gives a persona's row its output columns."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, row: Row) -> Row:
        """Returns the output row."""
        return {"texts": row["text"], "personas": row["generations"], "expansions": self.number}


def read_persona(answer: Answer, row: Row) -> Any:
    """Returns a persona; a refusal, or the prompt once more, is asked again."""
    text = (answer.text or "").strip().strip('"')
    return Rejected("Describe a person.") if not text or _REFUSED.search(text) or _COPIED.search(text) else text
