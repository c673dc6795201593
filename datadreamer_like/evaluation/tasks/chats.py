"""Language modelling of whole conversations: all turns of the assistant carry loss, or the last one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args

from transformers import PreTrainedTokenizerBase

from datadreamer_like.distillation import Teacher
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit
from datadreamer_like.models.trained.prompt_template import has_template, marks_answers, render_chat

from .generation import CausalLM
from .task import row_limit, tokenize

Message = dict[str, Any]

Turns = Literal["all", "last"]
"""Which turns of the assistant carry loss."""


class Chats(CausalLM):
    """Conversations, each a list of messages that ends with a turn of the assistant.

    The turns that carry loss are those that the chat template marks with `{% generation %}`; where it marks none, what
    it writes after the prompt of each turn.
    """

    texts: ClassVar[int] = 1
    columns_of_texts: ClassVar[bool] = False

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool = True, turns: Turns = "all"
    ) -> None:
        super().__init__(tokenizer, max_length, truncate)
        if turns not in get_args(Turns):
            raise DefinitionError(f'assistant_turns must be "all" or "last", not {turns!r}.')
        if not has_template(tokenizer):
            raise MethodMisfit(
                "The tokenizer has no chat template, so it cannot write conversations. Pass chat_prompt_template: "
                "Jinja code over `messages`."
            )
        self.turns = turns

    def checked(self, rows: Sequence[tuple[Any, ...]], name: str, first: int) -> Sequence[tuple[Any, ...]]:
        """Returns the conversations, without missing keys of messages; see `Generation.checked`."""
        return [(_conversation(row[0], name, number),) for number, row in enumerate(rows, first)]

    def encoded(self, pairs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[list[int], list[int]]]:
        """Yields token ids and targets of conversations, -100 for what carries no loss; see `Generation.encoded`."""
        by_marks = marks_answers(self.tokenizer)
        for (messages,) in pairs:
            ids, answers = self._marked(messages) if by_marks else self._in_parts(messages)
            # The first token has none before it that could predict it.
            yield (
                ids,
                [
                    token if answer and place else IGNORED_LABEL
                    for place, (token, answer) in enumerate(zip(ids, answers, strict=True))
                ],
            )

    def of_teacher(self, teacher: Teacher, max_length: int | None) -> Chats:
        """Returns the task with the teacher's tokenizer and chat template; see `Task.of_teacher`."""
        config = self._language_model(teacher).config
        if config.is_encoder_decoder:
            raise MethodMisfit("A teacher of conversations must be a causal model; this is an encoder-decoder.")
        return Chats(teacher.tokenizer, row_limit(config, teacher.tokenizer, max_length), self.truncate, self.turns)

    def _marked(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        found: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        answers = [bool(marked) for marked in found["assistant_masks"]]
        if self.turns == "last":
            last = max((place for place, marked in enumerate(answers) if marked), default=-1)
            start = last
            while start > 0 and answers[start - 1]:
                start -= 1
            answers = [start <= place <= last for place in range(len(answers))]
        return list(found["input_ids"]), answers

    def _in_parts(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        texts: list[str] = []  # of prompts and answers in turn
        end_token, written = self.tokenizer.eos_token or "", ""
        for place in places if self.turns == "all" else places[-1:]:
            prompt = render_chat(self.tokenizer, messages[:place], add_generation_prompt=True)
            whole = render_chat(self.tokenizer, messages[: place + 1])
            if not prompt.startswith(written):
                raise MethodMisfit(
                    "The chat template writes the turns before the last one differently, as those do that drop "
                    'thoughts, so what the model reads is not what it wrote. Pass assistant_turns="last", or a '
                    "chat_prompt_template that marks the answers with {% generation %}."
                )
            between = prompt[len(written) :]
            if texts and end_token and end_token not in texts[-1] and between.startswith(end_token):
                # It is written behind a turn that another one follows: part of the turn, so that the model stops.
                texts[-1] += end_token
                between = between.removeprefix(end_token)
            answer = whole[len(prompt) :] if whole.startswith(prompt) else str(messages[place]["content"])
            texts += [between, answer]
            written = prompt + answer
        parts = tokenize(self.tokenizer, texts, special=False)
        parts[-1] = self.ended(parts[-1], rendered=True)
        answers = [bool(place % 2) for place, part in enumerate(parts) for _ in part]
        return [token for part in parts for token in part], answers


def _conversation(value: object, name: str, row: int) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ArgumentTypeError(
            f"{name}: row {row} is {str(value)[:60]!r}, of type {type(value).__name__}. Without answers in a column of "
            'their own, each row must be a list of messages, such as [{"role": "user", "content": "Hi"}, ...].'
        )
    messages = [{key: part for key, part in message.items() if part is not None} for message in value]
    for place, message in enumerate(messages):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise DataError(
                f'{name}: message {place} of row {row} must have the texts "role" and "content"; it has '
                f"{', '.join(message) or 'nothing'}."
            )
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(
            f"{name}: the conversation of row {row} does not end with a turn of the assistant, so there is no last "
            "answer to learn. Cut such rows after the last answer, or filter them out."
        )
    return messages
