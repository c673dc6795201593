"""What LLMs that pass their prompts on to another one share."""

from __future__ import annotations

from typing import Any

from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.models.llms.generation import Answer, GenerationOptions, Prompt, Request, Sampling
from datadreamer_like.models.llms.llm import LLM, overrides_only_run
from datadreamer_like.models.llms.scoring import Scored, ScoreRequest


def checked_llm(llm: Any, where: str) -> LLM:
    """Returns an LLM that answers single requests; refuses other objects."""
    if not isinstance(llm, LLM) or overrides_only_run(llm):
        raise ArgumentTypeError(f"{where} takes an LLM with answer or answer_batch, not {llm!r:.100}.")
    return llm


async def ask_llm(llm: LLM, request: Request) -> Answer:
    """Returns the answer of an LLM of either kind to one request."""
    if type(llm).answer is LLM.answer:
        return llm.answer_batch([request])[0]
    answer: Answer = await llm.within_budget(llm.answer)(request)
    return answer


async def score_llm(llm: LLM, request: ScoreRequest) -> Scored:
    """Returns the scores that an LLM of either kind gives to one request."""
    if type(llm).score_one is LLM.score_one:
        return llm.score_batch([request])[0]
    scored: Scored = await llm.within_budget(llm.score_one)(request)
    return scored


class WrappedLLM(LLM):
    """Base of an LLM in front of another one, `llm`: it takes the same options and prompts."""

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm.cache_folder_path)
        self.llm = llm
        self.model_name = llm.model_name
        self.extra_options = llm.extra_options
        self.enforces_schemas = llm.enforces_schemas
        self.tool_choices = llm.tool_choices
        self.takes_images = llm.takes_images
        self.default_concurrency = llm.default_concurrency
        self.max_context_length = llm.max_context_length
        self.retry_seconds = llm.retry_seconds

    async def end_run(self) -> None:
        """Closes the LLM's connections."""
        await self.llm.end_run()

    def check(self, sampling: Sampling) -> None:
        """Refuses what the LLM does not support."""
        self.llm.check(sampling)

    async def score_one(self, request: ScoreRequest) -> Scored:
        """Returns the LLM's scores."""
        return await score_llm(self.llm, request)

    def check_scoring(self) -> None:
        """Refuses an LLM that gives no scores."""
        self.llm.check_scoring()

    @property
    def scores_chat(self) -> bool:
        """Whether the LLM scores a text as a chat message."""
        return self.llm.scores_chat

    def translated(self, options: GenerationOptions) -> GenerationOptions:
        """Returns the options as the LLM translates them."""
        return self.llm.translated(options)

    def follow_up(self, request: Request, answer: Answer, reason: str) -> Prompt:
        """Returns the LLM's prompt for another attempt."""
        return self.llm.follow_up(request, answer, reason)

    @property
    def takes_chat(self) -> bool:
        """Whether the LLM sends a text as a chat message."""
        return self.llm.takes_chat

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text for the LLM."""
        return self.llm.count_tokens(value)

    def final_count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text as a whole prompt for the LLM."""
        return self.llm.final_count_tokens(value)

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the LLM's maximum number of prompt tokens."""
        return self.llm.get_max_context_length(max_new_tokens)
