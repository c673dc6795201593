"""The base of every LLM: one engine method below, `run` and `answers` above, everything in between in the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from typing_extensions import Unpack

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, PromptTooLong
from datadreamer_like.graph.usage import current_usage

from ..calls.cache import model_answers
from ..calls.llm_calls import answer_prompts
from ..model import Model
from .generation import Answer, Generation, GenerationOptions, Prompt, Request, Sampling

Generated: TypeAlias = str | None | list[str | None]
"""What `run` gives for one prompt: a text, a list of texts where `n > 1`, None for a failed row."""


class LLM(Model):
    """A model that answers prompts.

    A provider implements one of two methods and inherits the rest (caching, retries, order, limits, errors by row):

    - `async answer(request)`, for engines that take many requests at once (APIs, llama.cpp);
    - `answer_batch(requests)`, for engines that take a batch and return when all of it is done (transformers).

    It also says what decides its answers (`identity`). It raises this package's `ModelError`s and does not retry.

    Example:
        >>> class Shout(LLM):
        ...     model_name = "shout"
        ...
        ...     def answer_batch(self, requests):
        ...         return [Answer([str(request.prompt).upper()]) for request in requests]
        >>> Shout().run(["hello"])
        ['HELLO']

    Args:
        cache_folder_path: Folder for the answers, in place of the session's.
    """

    icon = " 🤖 "
    retry_on_fail: bool = True

    extra_options: ClassVar[frozenset[str]] = frozenset()
    """Names of generation options that only this provider takes; they arrive in `request.sampling.extra`."""

    default_concurrency: int = 32
    """Requests at once where a run does not say."""

    max_context_length: int | None = None
    """The context window in tokens, where the script gave one: it decides how many examples a prompt shows."""

    max_tries: int = 8
    """Times that a request is sent before its row fails; only failures that may pass are retried."""

    def __init__(self, cache_folder_path: str | Path | None = None) -> None:
        self.cache_folder_path = cache_folder_path

    # What a provider writes.

    async def answer(self, request: Request) -> Answer:
        """Answers one request; many of these calls run at once in one event loop.

        Raises:
            ModelError: Its subclass says whether the pipeline retries, fails the row or ends the run.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither answer nor answer_batch.")

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Answers requests of similar length together, in their order; a single failure is an `Answer.failed(error)`.

        Raises:
            MemoryError: The batch is too large (also torch's `OutOfMemoryError`); the pipeline halves it if it may.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither answer nor answer_batch.")

    async def end_run(self) -> None:
        """Called in a run's event loop when the run ends; closes what `answer` opened there."""

    def check(self, sampling: Sampling) -> None:
        """Refuses, before anything is sent, sampling options that this engine cannot honour.

        Raises:
            DefinitionError: An option is not supported here.
        """

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text; a cautious estimate where the tokenizer is not at hand."""
        # English takes about four characters a token; a text of other scripts takes about one byte in two.
        return max(1, -(-len(value.encode("utf-8", "replace")) // 3)) if value else 0

    def final_count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text as a whole prompt, with the chat template's own tokens."""
        return self.count_tokens(value)

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns how many tokens a prompt may have when `max_new_tokens` are to be generated.

        Raises:
            NotImplementedError: This model does not know its context window.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how long its context window is.")

    # What users call.

    def run(self, prompts: Iterable[Prompt], **options: Unpack[GenerationOptions]) -> Any:
        """Answers prompts, in their order.

        Answers are cached by what decides them: this model's identity, the sampling options, the prompt, and, when
        sampling is random, how many times the same prompt came before in this run. So a rerun asks nothing twice,
        while the same prompt given five times at `temperature=1.0, top_p=1.0` gets five different answers. Where
        sampling is deterministic (`temperature=0` or `top_p=0`) equal prompts are sent once. With `seed`, the k-th
        repetition is sent with a seed of its own derived from it.

        Args:
            prompts: Texts or lists of chat messages; any iterable, read in the calling thread a bounded way ahead.
            **options: See `GenerationOptions`.

        Returns:
            A list, or a generator where `return_generator=True`, with a text for each prompt; a list of `n` texts
            where `n > 1`; None for a prompt that failed.

        Raises:
            ArgumentTypeError: One text stands in place of a list of prompts.
            AuthenticationFailed: The key is wrong; what was answered before is kept in the cache, here and below.
            UnknownModel: The provider does not know the model.
            Unavailable: The provider answers nobody.
            ModelError: A row failed and `on_error="raise"`.
        """
        generation = Generation.from_options(options, self.extra_options)
        single = generation.sampling.n == 1
        generated = (_generated(answer, single) for answer in self.answers(prompts, **options))
        return generated if generation.return_generator else list(generated)

    def answers(self, prompts: Iterable[Prompt], **options: Unpack[GenerationOptions]) -> Iterator[Answer]:
        """Like `run`, but yields whole answers: texts, tokens, finish reasons, log-probabilities, error."""
        if isinstance(prompts, str):
            raise ArgumentTypeError(
                f"prompts is one text, {prompts[:40]!r}; it must be a list of prompts. Put it into a list."
            )
        generation = Generation.from_options(options, self.extra_options)
        usage = current_usage()
        if overrides_only_run(self):
            return _answers_from_run(self, prompts, options)
        self.check(generation.sampling)
        return answer_prompts(self, prompts, generation, model_answers(self), usage, batched=answers_in_batches(self))

    def format_prompt(
        self,
        max_new_tokens: int | None = None,
        beg_instruction: str | None = None,
        in_context_examples: list[str] | None = None,
        end_instruction: str | None = None,
        sep: str = "\n",
        min_in_context_examples: int | None = None,
        max_in_context_examples: int | None = None,
    ) -> str:
        """Joins instructions and as many in-context examples, in their order, as the context window takes.

        Raises:
            PromptTooLong: Not even `min_in_context_examples` fit.
            DefinitionError: The two bounds contradict each other.
        """
        examples = list(in_context_examples or [])
        least = min_in_context_examples or 0
        most = len(examples) if max_in_context_examples is None else min(max_in_context_examples, len(examples))
        if max_in_context_examples is not None and least > max_in_context_examples:
            raise DefinitionError(
                f"min_in_context_examples ({least}) is more than max_in_context_examples ({max_in_context_examples})."
            )

        def joined(count: int) -> str:
            parts = [beg_instruction, *examples[:count], end_instruction]
            return sep.join(part for part in parts if part is not None)

        try:
            room = self.get_max_context_length(max_new_tokens)
        except NotImplementedError:
            return joined(most)
        # The length grows with the count, so the largest count that fits is found by bisection.
        low, high = -1, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.final_count_tokens(joined(middle)) <= room:
                low = middle
            else:
                high = middle - 1
        if low < least or low < 0:
            needed = max(least, 0)
            raise PromptTooLong(
                f"The prompt with {needed} in-context examples has {self.final_count_tokens(joined(needed))} tokens; "
                f"{self.display_name} has room for {room}. Shorten the instruction or the examples, or lower "
                f"max_new_tokens."
            )
        return joined(low)


def answers_in_batches(llm: LLM) -> bool:
    """Whether the LLM takes batches, in place of many requests at once."""
    kind = type(llm)
    return kind.answer_batch is not LLM.answer_batch and kind.answer is LLM.answer


def overrides_only_run(llm: LLM) -> bool:
    """Whether the LLM was written against `run` itself and has no engine method."""
    kind = type(llm)
    return kind.run is not LLM.run and kind.answer is LLM.answer and kind.answer_batch is LLM.answer_batch


def _generated(answer: Answer, single: bool) -> Generated:
    if single:
        return answer.text
    return None if answer.error is not None else list(answer.texts)


def _answers_from_run(llm: LLM, prompts: Iterable[Prompt], options: GenerationOptions) -> Iterator[Answer]:
    given: GenerationOptions = {**options, "return_generator": True}
    for generated in llm.run(prompts, **given):
        if generated is None:
            yield Answer.failed(ModelError(f"{llm.display_name} gave no answer."))
        else:
            yield Answer([generated] if isinstance(generated, str) else list(generated))
