"""An LLM whose answers a test gives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, check_number
from datadreamer_like.models.llms.generation import Answer, Prompt, Request, TokenLogprob
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.models.llms.scoring import Scored, ScoreRequest
from datadreamer_like.models.llms.tool_calls import tool_call
from datadreamer_like.models.llms.tools import TOOL_CHOICES, ToolCall

from .schema_values import made_up_call, value_for

Reply: TypeAlias = Any
"""What an answer is made of: a text, a value (as JSON), an `Answer`, an exception, or None for a row that fails."""

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")


class FakeLLM(LLM):
    r"""An LLM that answers as a test says, at once, through the real pipeline: cache, retries, failed rows, schemas.

    Args:
        answers: One of

            - a function from a prompt's text (of a chat: of its last message, without images) to the answer;
            - a list of answers to new prompts, in the order in which they are first asked;
            - a dictionary from regular expressions to answers; the first that is found in the prompt counts, and an
              answer may be a function of the match;
            - None: a made-up value if there is a schema, else "Answer to: " and the prompt.

            An answer is a text, another value (as JSON), an `Answer`, an exception to raise, or None for a row that
            fails. Where there are tools, a list of dictionaries with "name" and "arguments" are calls of them, and a
            made-up answer is a call unless `tool_choice` is "none".
        logprob: The log-probability of each token of an answer, or a function from a token's text to it. Tokens are
            words and punctuation marks.
        score: A function from a prompt's text and a continuation to the log-probability that `LLM.score` gives; by
            default the sum over its tokens of `logprob`.
        seconds: How long each answer takes.
        context_length: Maximum number of tokens of a prompt and its answer; None for any.

    Raises:
        DefinitionError: When asked: the list has no further answer, or no pattern fits.

    Attributes:
        asked: The requests, in order, follow-ups included.

    Example:
        >>> llm = FakeLLM({r"capital of (\w+)": lambda found: f"{found[1]} City"})
        >>> llm.run(["What is the capital of Guatemala?"])
        ['Guatemala City']
        >>> llm.prompts
        ['What is the capital of Guatemala?']
    """

    model_name = "fake"
    enforces_schemas = True
    takes_chat = takes_images = True
    tool_choices = TOOL_CHOICES
    retry_seconds = 0.0  # it gets no better by waiting

    def __init__(
        self,
        answers: Callable[[str], Reply] | Sequence[Reply] | Mapping[str, Any] | None = None,
        *,
        logprob: float | Callable[[str], float] = -0.1,
        score: Callable[[str, str], float] | None = None,
        seconds: float = 0.0,
        context_length: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(answers, str) or not (
            answers is None or callable(answers) or isinstance(answers, Sequence | Mapping)
        ):
            raise ArgumentTypeError(f"answers must be a function, a list, a dictionary or None, not {answers!r:.100}.")
        check_number(seconds, "seconds")
        self._answers = list(answers) if isinstance(answers, Sequence) else answers
        if isinstance(answers, Mapping):
            self._patterns = [(_pattern(each), reply) for each, reply in answers.items()]
        self._logprob = logprob
        self._score = score
        self._seconds = seconds
        self.max_context_length = context_length
        self._given = 0
        self.asked: list[Request] = []

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns the default, for tests and documentation."""
        return cls()

    def identity(self) -> dict[str, Any]:
        """Returns what decides the answers."""
        answers = self._answers
        if isinstance(answers, list):
            answers = [repr(each) if isinstance(each, Answer | Exception) else each for each in answers]
        return {"answers": answers, "logprob": self._logprob, "score": self._score}

    @property
    def prompts(self) -> list[str]:
        """The texts of the prompts that it was asked, in order."""
        return [text_of(request.prompt) for request in self.asked]

    async def answer(self, request: Request) -> Answer:
        """Answers one request."""
        self.asked.append(request)
        prompt = text_of(request.prompt)
        # Taken before waiting, so that a list's answers are given in the prompts' order.
        replies = [self._reply(prompt, request, index) for index in range(request.sampling.n)]
        if self._seconds:
            await asyncio.sleep(self._seconds)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, Answer):
                return reply
            if reply is None:
                return Answer.failed(ModelError(f"FakeLLM was given no answer to {prompt[:80]!r}."))
        most = request.sampling.max_new_tokens
        texts: list[str | None] = []
        reasons: list[str] = []
        tokens: list[list[str]] = []
        calls = [_calls(reply) if request.tools else [] for reply in replies]
        for reply, own in zip(replies, calls, strict=True):
            if own:
                texts.append(None)
                reasons.append("tool_calls")
                tokens.append(tokens_of(json.dumps(own)))
                continue
            text = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
            text = _until(text, request.sampling.stop)
            pieces = tokens_of(text)
            is_cut = most is not None and len(pieces) > most
            pieces = pieces[:most] if is_cut else pieces
            texts.append("".join(pieces) if is_cut else text)
            reasons.append("length" if is_cut else "stop")
            tokens.append(pieces)
        top = request.sampling.top_logprobs
        return Answer(
            texts,
            prompt_tokens=sum(self.count_tokens(text_of([message])) for message in request.messages()),
            completion_tokens=sum(map(len, tokens)),
            finish_reasons=reasons,
            logprobs=None if top is None else [[self._token(piece, top) for piece in pieces] for pieces in tokens],
            cost=0.0,
            tool_calls=calls if any(calls) else None,
        )

    async def score_one(self, request: ScoreRequest) -> Scored:
        """Scores the continuations of one prompt."""
        prompt = text_of(request.prompt)
        pieces = [tokens_of(text) for text in request.continuations]
        if self._score is not None:
            logprobs = [float(self._score(prompt, text)) for text in request.continuations]
        else:
            logprobs = [sum(map(self._of_token, each)) for each in pieces]
        return Scored(tuple(logprobs), tuple(map(len, pieces)), self.count_tokens(prompt))

    def count_tokens(self, value: str) -> int:
        """Returns the number of words and punctuation marks."""
        return len(tokens_of(value))

    def _reply(self, prompt: str, request: Request, index: int) -> Reply:
        answers = self._answers
        if answers is None:
            if request.sampling.schema is not None:
                return value_for(request.sampling.schema, f"{prompt}\0{request.seed}\0{index}")
            if request.tools and request.sampling.tool_choice != "none":
                return made_up_call(request, f"{prompt}\0{request.seed}\0{index}")
            return f"Answer to: {prompt}" + (f" ({index + 1})" if request.sampling.n > 1 else "")
        if isinstance(answers, list):
            self._given += 1
            if self._given > len(answers):
                raise DefinitionError(
                    f"FakeLLM was given {len(answers)} answers and is asked for another one, to {prompt[:200]!r}. "
                    "Add it to the list, or give a function."
                )
            return answers[self._given - 1]
        if isinstance(answers, Mapping):
            for pattern, reply in self._patterns:
                if found := pattern.search(prompt):
                    return reply(found) if callable(reply) else reply
            raise DefinitionError(
                f"FakeLLM has no pattern for the prompt {prompt[:200]!r}; its patterns are {', '.join(answers)}. Add "
                'one, or ".*" as the last.'
            )
        return answers(prompt)

    def _of_token(self, piece: str) -> float:
        return float(self._logprob(piece) if callable(self._logprob) else self._logprob)

    def _token(self, piece: str, top: int) -> TokenLogprob:
        logprob = self._of_token(piece)
        likely = [(piece, logprob), *((f"{piece}~{rank}", logprob - rank) for rank in range(1, top))]
        return TokenLogprob(piece, logprob, tuple(likely[:top]))


def _calls(reply: Reply) -> list[ToolCall]:
    """Returns the calls that a reply gives; none if it is not a list of calls."""
    if not isinstance(reply, list) or not reply:
        return []
    if not all(isinstance(each, Mapping) and {"name", "arguments"} <= each.keys() for each in reply):
        return []
    return [
        tool_call(each.get("id"), each["name"], each["arguments"], index, each.get("thought"))
        for index, each in enumerate(reply)
    ]


def _pattern(text: Any) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise DefinitionError(
            f"answers has {text!r:.100} among its patterns, which is not a regular expression: {error}. Characters "
            "with a meaning of their own need a backslash, as re.escape gives it."
        ) from error


def text_of(prompt: Prompt) -> str:
    """Returns a prompt's text; of a chat, that of its last message."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1].get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content)


def tokens_of(text: str) -> list[str]:
    """Returns the parts of a text that count as tokens, with the blanks before them."""
    return _TOKEN.findall(text)


def _until(text: str, stop: Sequence[str]) -> str:
    ends = [place for each in stop if (place := text.find(each)) >= 0]
    return text[: min(ends)] if ends else text
