"""The base of all LLMs: providers implement one engine method, users call `run` or `answers`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from typing_extensions import Unpack

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.positions import by_position

from ..calls.batch_engine import BatchEngine
from ..calls.concurrent_engine import ConcurrentEngine
from ..calls.failures import Rejected, log_failures
from ..calls.llm_calls import LLMCalls, Repeated
from ..calls.pipeline import Engine, Recorder, run_calls
from ..model import Model
from .answer_text import plain_answered, plain_answers
from .generation import (
    GENERATION_DEFAULTS,
    Answer,
    Generation,
    GenerationOptions,
    Prompt,
    Request,
    Sampling,
    ToolPrompt,
)
from .own_run import answers_from_run
from .prompt_format import formatted_prompt
from .scoring import ScoreCalls, Scored, ScoreOptions, ScoreRequest, check_score_options, checked_continuations
from .tool_calls import answer_words

if TYPE_CHECKING:
    from ..logs.call_log import CallLog
    from ..logs.paid_answers import PaidAnswers


class LLM(Model):
    """A model that answers prompts.

    A provider implements one of two methods and inherits caching, retries, ordering, limits and errors per row:

    - `async answer(request)`, for engines that handle concurrent requests (APIs, llama.cpp);
    - `answer_batch(requests)`, for engines that process a batch at a time (transformers).

    Its texts are then read the same way for all engines: without blanks around them and without thoughts, and an answer
    that is empty because its tokens ran out is a failed row (`answer_text`). With `schema`, an answer that does not fit
    it is asked for again with the reason, also if the engine ignored the schema.

    It also defines what decides its answers (`identity`). It raises this package's `ModelError`s and does not retry.

    Example:
        >>> class Shout(LLM):
        ...     model_name = "shout"
        ...
        ...     def answer_batch(self, requests):
        ...         return [Answer([str(request.prompt).upper()]) for request in requests]
        >>> Shout().run(["hello"])
        ['HELLO']
    """

    icon = " 🤖 "
    retry_on_fail: bool = True

    extra_options: frozenset[str] = frozenset()
    """Names of provider-specific generation options; they are passed in `request.sampling.extra`."""

    default_concurrency: int = 32
    max_concurrency: int | None = None
    """How many requests at once a run without `concurrency` may grow to; None for `default_concurrency`."""

    default_adaptive_batch_size: bool = False

    enforces_schemas: bool = False
    """Whether the engine itself constrains answers to a JSON schema."""

    takes_images: bool = False
    """Whether messages may have images as parts, in OpenAI's form (`image_url`)."""

    tool_choices: frozenset[str] = frozenset()
    """What `tool_choice` may be: "auto", "none", "required", "name"; empty if the engine takes no tools."""

    max_context_length: int | None = None
    """The context window in tokens, if the script gave one; it limits the number of in-context examples."""

    max_tries: int = 8
    """Number of attempts before a row fails; only temporary failures are retried."""

    retry_seconds: float = 0.5
    """Mean seconds before the second attempt; the mean doubles with each further one, and no pause is above a minute.

    A provider that says how long to wait is waited for.
    """

    paid: PaidAnswers | None = None
    """The answers of a log that were paid for elsewhere, if `reuse` gave one."""

    # Implemented by providers.

    async def answer(self, request: Request) -> Answer:
        """Answers one request; many calls run concurrently in one event loop.

        Raises:
            ModelError: Its subclass decides whether the pipeline retries, fails the row or ends the run.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither answer nor answer_batch.")

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Answers requests of similar length, in order; return `Answer.failed(error)` for a request that fails.

        Raises:
            MemoryError: The batch is too large (also torch's `OutOfMemoryError`); see `adaptive_batch_size`.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither answer nor answer_batch.")

    async def score_one(self, request: ScoreRequest) -> Scored:
        """Scores the continuations of one prompt, for engines that implement `answer`; see `scores`.

        Raises:
            ModelError: As for `answer`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement score_one.")

    def score_batch(self, requests: Sequence[ScoreRequest]) -> Sequence[Scored]:
        """Scores the continuations of several prompts, for engines that implement `answer_batch`; see `scores`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement score_batch.")

    async def end_run(self) -> None:
        """Called in the event loop when a run ends; closes connections that `answer` opened."""

    def check(self, sampling: Sampling) -> None:
        """Raises `DefinitionError`, before any request, if the engine does not support a sampling option."""

    def check_scoring(self) -> None:
        """Raises `DefinitionError`, before any request, if the engine gives no log-probabilities of given texts."""
        if type(self).score_one is LLM.score_one and type(self).score_batch is LLM.score_batch:
            raise DefinitionError(
                f"{self.display_name} gives no log-probabilities of given texts. Use LlamaCPP, HFTransformers, or a "
                "server that returns those of a prompt (vLLM) through OpenAI(model, base_url=...)."
            )

    def translated(self, options: GenerationOptions) -> GenerationOptions:
        """Returns the options of a call, with those that only this engine spells differently by their common names."""
        return options

    def check_room(self, sampling: Sampling, context_length: int) -> None:
        """Refuses, for `check`, a `max_new_tokens` that leaves no room for a prompt in the context."""
        if sampling.max_new_tokens is not None and sampling.max_new_tokens >= context_length:
            raise DefinitionError(
                f"max_new_tokens={sampling.max_new_tokens} leaves no room for a prompt: {self.display_name} has a "
                f"context of {context_length} tokens. Lower it, or use a longer context."
            )

    def follow_up(self, request: Request, answer: Answer, reason: str) -> Prompt:
        """Returns the prompt for another attempt after an answer was rejected.

        It continues the conversation: the prompt, the rejected answer, the reason. A text that is not sent as a chat
        message (`takes_chat` is False) stays one: the three are joined.
        """
        rejected = answer_words(answer) or ""
        if isinstance(request.prompt, str) and not self.takes_chat:
            return f"{request.prompt}{rejected}\n\n{reason}\n\n"
        return [
            *request.messages(),
            {"role": "assistant", "content": rejected},
            {"role": "user", "content": f"That answer cannot be used. {reason} Answer again."},
        ]

    @property
    def takes_chat(self) -> bool:
        """Whether a text is sent as a chat message; by default False: it is given to the model's code as it is."""
        return False

    @property
    def scores_chat(self) -> bool:
        """Whether `score` sends a text as a chat message: as `takes_chat`, and True for a class that leaves it out."""
        return self.takes_chat or type(self).takes_chat is LLM.takes_chat

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text; a conservative estimate if there is no tokenizer."""
        # English has about four characters per token, other scripts about two bytes.
        return max(1, -(-len(value.encode("utf-8", "replace")) // 3)) if value else 0

    def final_count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text as a whole prompt, with the chat template's own tokens."""
        return self.count_tokens(value)

    def get_max_context_length(self, max_new_tokens: int | None) -> int:
        """Returns the maximum number of prompt tokens that leaves room for `max_new_tokens`.

        Raises:
            NotImplementedError: The context window is unknown.
        """
        if self.max_context_length is None:
            raise NotImplementedError(f"{type(self).__name__} does not define the length of its context window.")
        return self.max_context_length - (max_new_tokens or 0)

    # Called by users.

    @by_position(GENERATION_DEFAULTS)
    def run(self, prompts: Iterable[Prompt], **options: Unpack[GenerationOptions]) -> Any:
        """Answers prompts, in order.

        Answers are cached by the model's identity, the sampling options, the prompt and, if sampling is random, how
        often the same prompt occurred before in this run. So a rerun sends no request twice, while the same prompt
        given five times at `temperature=1.0, top_p=1.0` gets five different answers. If decoding is greedy
        (`temperature=0` or `top_p=0`), equal prompts are sent once. With `seed`, each repetition gets a different seed
        derived from it.

        Args:
            prompts: Texts or lists of chat messages; any iterable, read in the calling thread with bounded lookahead.
            **options: See `GenerationOptions`.

        Returns:
            A list, or a generator if `return_generator=True`, with a text for each prompt; a list of `n` texts if
            `n > 1`; None for a prompt that failed.

        Raises:
            ArgumentTypeError: `prompts` is a single text.
            AuthenticationFailed: The key is wrong. Earlier answers stay cached, here and for the errors below.
            UnknownModel: The provider does not have the model.
            Unavailable: The provider is unavailable.
            ModelError: A row failed and `on_error="raise"`.
        """
        options = self.translated(options)
        generation = Generation.from_options(options, self.extra_options)
        answers = log_failures(self.answers(prompts, **options), generation.on_error)
        single = generation.sampling.n == 1
        generated = (None if each.error is not None else each.text if single else list(each.texts) for each in answers)
        return generated if generation.return_generator else list(generated)

    def answers(
        self,
        prompts: Iterable[Prompt | ToolPrompt | Repeated],
        *,
        check: Callable[[int, Answer], Answer | Rejected] | None = None,
        max_follow_ups: int = 1,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[Answer]:
        """Like `run`, but yields `Answer`s: texts, tokens, finish reasons, log-probabilities, errors.

        Args:
            prompts: As for `run`, or `ToolPrompt`s with tools of their own. Pass `Repeated` prompts if this run sees
                only a part of all prompts, so that repetitions are counted over all of them.
            check: Called in the calling thread, in any order, with a prompt's index and its answer, new or cached. It
                returns the answer to yield, or `Rejected`: the model is then asked again with the reason, and the new
                answer is checked. Rejected answers stay in the cache and are rejected again in a rerun.
            max_follow_ups: Number of follow-up requests before a row fails with `RejectedAnswer`.
            **options: See `GenerationOptions`; `on_error` and `return_generator` have no effect here.
        """
        if isinstance(prompts, str):
            raise ArgumentTypeError(
                f"prompts is one text, {prompts[:40]!r}; it must be a list of prompts. Put it into a list."
            )
        if overrides_only_run(self):
            return answers_from_run(self, prompts, options, check, max_follow_ups)
        options = {"adaptive_batch_size": self.default_adaptive_batch_size, **self.translated(options)}
        generation = Generation.from_options(options, self.extra_options)
        self.check(generation.sampling)
        shaped = generation.sampling.schema is not None

        def make_engine(recorder: Recorder[Prompt | ToolPrompt | Repeated, Request, Answer]) -> Engine[Request, Answer]:
            if type(self).answer is LLM.answer:
                return BatchEngine(partial(plain_answers, self, shaped), recorder, generation)
            return self.engine(partial(plain_answered, self, shaped), recorder, generation)

        answers = run_calls(
            LLMCalls.of(self, generation.sampling),
            prompts,
            make_engine,
            self,
            generation,
            what="prompts answered",
            total=generation.total_num_prompts,
            check=check,
            max_follow_ups=max_follow_ups,
        )
        return answers if self.paid is None else self.paid.said_at_end(answers, self)

    def reuse(self, log: CallLog, *, model_names: Sequence[str] = (), ignore: Sequence[str] = ()) -> Self:
        """Uses the answers in a log of calls: a prompt that was paid for there is not sent again.

        An answer is used where the model's name, the messages (with the system prompt) and all options that decide an
        answer agree with the request. It is then stored like a new one, at no cost. A failed call is never used. The
        log reports how many answers were found, and which options differ for prompts that were not. The server's
        address is not compared, since most logs do not have it. Called again, it adds another log.

        Args:
            log: The log.
            model_names: Further names of this model in the log, such as "gpt-5-mini-2025-08-07".
            ignore: Options that are not compared, such as "temperature" or "max_new_tokens", if the log lacks them.

        Returns:
            This LLM.

        Example:
            >>> llm = OpenAI("gpt-5-mini").reuse(CallLog("paid.jsonl"))  # doctest: +SKIP
        """
        from ..logs.paid_answers import PaidAnswers

        if overrides_only_run(self):
            raise DefinitionError(f"{self.display_name} overrides run, where its answers are not looked up.")
        self.paid = PaidAnswers(self, log, model_names, ignore, self.paid)
        return self

    def score(self, prompts: Iterable[Prompt], continuations: Sequence[str], **options: Unpack[ScoreOptions]) -> Any:
        """Returns the log-probabilities [prompts, continuations] of texts as the start of the answer to each prompt.

        A continuation's value is the sum of the natural log-probabilities of its tokens, without an end token after
        them: no text is generated or parsed. The prompt is computed once for all continuations. Results are cached like
        answers, all continuations of a prompt together.

        Args:
            prompts: As for `run`.
            continuations: Texts, tokenized by themselves after a chat template. If the model continues a plain text
                (`scores_chat` is False), the first one usually starts with a blank: `" yes"`.
            **options: See `ScoreOptions`; `return_generator` has no effect.

        Returns:
            A float64 array; NaN in the row of a prompt that failed.

        Raises:
            DefinitionError: The engine gives no log-probabilities of given texts.
            ModelError: As for `run`.

        Example:
            >>> llm.score(["Is the sky blue? Answer yes or no."], ["Yes", "No"])  # doctest: +SKIP
            array([[-0.41, -1.73]])
        """
        rows = log_failures(self.scores(prompts, continuations, **options), options.get("on_error", "keep"))
        lost = (float("nan"),) * len(continuations)
        found = [row.logprobs if row.error is None else lost for row in rows]
        return np.array(found, dtype=np.float64).reshape(-1, len(continuations))

    def scores(
        self, prompts: Iterable[Prompt], continuations: Sequence[str], **options: Unpack[ScoreOptions]
    ) -> Iterator[Scored]:
        """Like `score`, but yields `Scored`s: log-probabilities, token counts, errors.

        A row with a score that is not a finite number fails.
        """
        check_score_options(options)
        calls = ScoreCalls(fingerprint(self), checked_continuations(continuations))
        self.check_scoring()
        run = Generation.from_options({"adaptive_batch_size": self.default_adaptive_batch_size, **options})

        def make_engine(recorder: Recorder[Prompt, ScoreRequest, Scored]) -> Engine[ScoreRequest, Scored]:
            if type(self).score_one is LLM.score_one:
                return BatchEngine(calls.batch(self.score_batch), recorder, run)
            return self.engine(calls.one(self.score_one), recorder, run)

        return run_calls(calls, prompts, make_engine, self, run, what="prompts scored", total=None)

    def engine(self, ask: Any, recorder: Recorder[Any, Any, Any], run: Generation) -> Engine[Any, Any]:
        """Returns the engine of a run that sends single requests by `ask`."""
        return ConcurrentEngine(
            self.within_budget(ask),
            recorder,
            concurrency=run.concurrency or self.default_concurrency,
            most=run.concurrency or self.max_concurrency or self.default_concurrency,
            max_tries=self.max_tries if self.retry_on_fail else 1,
            retry_seconds=self.retry_seconds,
            at_end=self.end_run,
        )

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
        """Joins instructions and as many in-context examples, in order, as fit the context window.

        `min_in_context_examples` is 1 by default, or 0 if there are no examples or `max_in_context_examples` is 0.

        Raises:
            PromptTooLong: Not even `min_in_context_examples` fit.
            BadRequest: There are fewer examples than that.
            DefinitionError: The two bounds contradict each other.
        """
        parts = (beg_instruction, list(in_context_examples or []), end_instruction)
        return formatted_prompt(self, parts, max_new_tokens, sep, (min_in_context_examples, max_in_context_examples))


def overrides_only_run(llm: LLM) -> bool:
    """Whether the LLM overrides `run` and implements no engine method."""
    kind = type(llm)
    return kind.run is not LLM.run and kind.answer is LLM.answer and kind.answer_batch is LLM.answer_batch
