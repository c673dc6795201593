"""Conversations between a simulated user and an assistant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError, ModelError
from datadreamer_like.graph.identity import class_id
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.models.llms.llm import LLM

from ..base.lazy_rows import LazyRowBatches
from ..base.registration import ANY_ARGUMENT
from ..prompting.cell_text import cell_text
from ..prompting.prompt_step import PromptStep, RowPrompt
from .prompt_rounds import PromptRounds, Row, is_blank, not_a_text

END = "<END>"
"""What the simulated user writes to end a conversation."""

USER = (
    "You play a person who talks with an AI assistant. Write only what this person says next: one short message. "
    "Ask about what is unclear or still missing, and stay in your role. Write {end} alone when everything is answered."
)


class Conversation(PromptRounds):
    """Lets a simulated user and an assistant talk: a column of chat messages.

    Inputs: `openings` (the user's first messages), `personas` (optional; texts that describe each user). Args: `llm`
    (the assistant), `user` (an LLM that plays the user; by default `llm`), `turns` (3: most messages of the assistant),
    `system_prompt` (the assistant's), `user_instruction` (the user's system prompt; `{end}` in it is replaced by the
    text that ends a conversation), `end` ("<END>"), `keep_system` (False: whether the messages start with the
    assistant's system prompt), `max_follow_ups`, and the options of `llm.run`. Outputs: `messages` (a list of `role`
    and `content`, the last one of the assistant; None where it never spoke), `turns` (messages of the assistant),
    `ended` (whether the user ended it).

    A conversation ends when the user writes `end`, when `turns` are over, or when an answer fails: what was said up to
    then is kept, and its row is in `step.errors`. A row with a missing or blank opening fails. The user's LLM sees the
    conversation with the roles exchanged.
    `TrainHFFineTune` takes the column as it is.

    Reference: Ding et al. 2023, "Enhancing Chat Language Models by Scaling High-quality Instructional Conversations"
    (UltraChat), arXiv:2305.14233.

    Example:
        >>> talks = Conversation(  # doctest: +SKIP
        ...     "Talks", inputs={"openings": questions.output["text"]}, args={"llm": llm, "turns": 2}
        ... )
    """

    result_version: ClassVar[int] = 3  # 2: None where the assistant never spoke; 3: blank openings are not sent
    least: ClassVar[dict[str, int]] = {"turns": 1}
    texts: ClassVar[tuple[str, ...]] = ("openings",)

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("openings", help="The user's first messages.")
        self.register_input("personas", required=False, help="Who each user is.")
        self.register_rounds("The assistant.")
        self.register_arg("user", required=False, type=LLM, help="The LLM that plays the user.", default_help="llm")
        self.register_arg("turns", required=False, default=3, type=int, help="Most messages of the assistant.")
        self.register_arg("system_prompt", required=False, type=str, help="The assistant's.")
        self.register_arg("user_instruction", required=False, default=USER, type=str, help="The user's system prompt.")
        self.register_arg("end", required=False, default=END, type=str, help="What ends a conversation.")
        help = "Whether the messages start with the system prompt."
        self.register_arg("keep_system", required=False, default=False, type=bool, help=help)
        self.register_output("messages", help="The conversation.")
        self.register_output("turns", help="Messages of the assistant.")
        self.register_output("ended", help="Whether the user ended it.")

    def configure(self) -> None:
        """Rejects an empty end."""
        super().configure()
        if not (self._args["end"] or "").strip():
            raise DefinitionError(f'"{self.name}": end is empty, but every message contains it. Give a text.')

    def run(self) -> LazyRowBatches:
        """Asks assistant and user in turn."""
        said = {"said_0": self.inputs["openings"]}
        self.fail_blank(self.inputs["openings"])
        who = {} if self.inputs.get("personas") is None else {"persona": self.inputs["personas"]}
        for number in range(self._args["turns"]):
            said |= self._next(f"Assistant {number + 1}", {}, said)
            if number + 1 < self._args["turns"]:
                said |= self._next(f"User {number + 1}", who, said)
        return self.rows(self.row, **said)

    def _next(self, name: str, who: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
        role = "assistant" if len(said) % 2 else "user"
        given = {arg: self._args[arg] for arg in ("system_prompt", "user_instruction", "end")}
        args = {"llm": self._args["llm" if role == "assistant" else "user"] or self._args["llm"], "role": role}
        args |= {"speaks_with": given, "asked_by": class_id(type(self)), **self.options()}
        step = Speak(name, inputs={**said, **who}, args=args, force=self.force)
        return {f"said_{len(said)}": step.output["generations"]}

    def row(self, row: Row) -> Row:
        """Returns the conversation of a row, given what was said in order."""
        said = [text for text in row.values() if text is not None]
        ended = len(said) % 2 == 1 and len(said) > 1 and self._args["end"] in said[-1]
        whole = said[: len(said) // 2 * 2]  # the last word is the assistant's
        system = self._args["system_prompt"]
        if not whole:
            return {"messages": None, "turns": 0, "ended": False}
        messages = [{"role": "system", "content": system}] if self._args["keep_system"] and system else []
        messages += [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(whole)]
        return {"messages": messages, "turns": len(whole) // 2, "ended": ended}


class Speak(PromptStep):
    """One message of each conversation that goes on; inputs are what was said so far, in order, and `persona`."""

    result_version: ClassVar[int] = 3  # that of Conversation

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input(ANY_ARGUMENT)
        self.register_llm()
        self.register_arg("role", type=str, help="Who speaks.")
        self.register_arg("speaks_with", type=dict, help="The instructions of both.")
        self.register_arg("asked_by", type=str, help="The identity of the step that asks.")
        self.register_prompt_outputs()

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the messages so far, as the speaker sees them."""
        names = [name for name in batch if name != "persona"]
        people = batch.get("persona", [None] * len(batch[names[0]]))
        return [self._prompt(said, who) for *said, who in zip(*(batch[name] for name in names), people, strict=True)]

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns a message without a role before it."""
        text = (answer.text or "").strip()
        for label in ("User:", "Assistant:", "Person:"):
            text = text.removeprefix(label).strip()
        return text or Rejected("Write a message.")

    def _prompt(self, said: list[Any], who: Any) -> RowPrompt:
        given = self._args["speaks_with"]
        if is_blank(said[0]) or any(text is None for text in said):
            return None
        if isinstance(said[0], list | dict):
            return ModelError(not_a_text("openings"))
        texts = [str(text) for text in said]
        system, roles = given["system_prompt"], ("user", "assistant")
        if self._args["role"] == "assistant":
            if len(texts) > 1 and given["end"] in texts[-1]:
                return None
        else:
            system = given["user_instruction"].replace("{end}", given["end"])
            system = f"{system}\n\nThe person: {cell_text(who)}" if who else system
            # Chat templates want the role "user" to speak first.
            texts.insert(0, "Say your first message.")
        messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
        return [{"role": "system", "content": system}, *messages] if system else messages
