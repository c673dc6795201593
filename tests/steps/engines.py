"""LLMs of the tests' own: what they answer is computed from the prompt, through the package's real pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from datadreamer_like.errors import BadRequest
from datadreamer_like.models import LLM, Answer, Request


class Echo(LLM):
    """Answers each prompt with its last line in capitals, or with what `reply` makes of it; None fails the row."""

    model_name = "echo"
    takes_chat = True

    def __init__(
        self, reply: Callable[[str], str | None] | None = None, context: int | None = None, system_prompt: str = ""
    ) -> None:
        super().__init__()
        self.reply = reply or (lambda prompt: prompt.splitlines()[-1].upper())
        self.context = context
        self.system_prompt = system_prompt
        self.asked: list[Request] = []

    def identity(self) -> dict[str, object]:
        return {"system prompt": self.system_prompt}

    def answer_batch(self, requests: Sequence[Request]) -> list[Answer]:
        self.asked.extend(requests)
        answers = []
        for request in requests:
            text = self.reply(str(request.prompt))
            if text is None:
                answers.append(Answer.failed(BadRequest("it will not say")))
            else:
                n = request.sampling.n
                answers.append(Answer([text] if n == 1 else [f"{text} {index}" for index in range(n)]))
        return answers

    def count_tokens(self, value: str) -> int:
        return len(re.findall(r"\w+", value))

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        if self.context is None:
            return super().get_max_context_length(max_new_tokens)
        return self.context - (max_new_tokens or 0)

    @property
    def prompts(self) -> list[str]:
        """What it was asked, in order of the texts."""
        return sorted(str(request.prompt) for request in self.asked)
