"""LLMs of scripts that override `run` alone, as DataDreamer's do: their answers are made from what it returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from datadreamer_like.errors import DefinitionError, ModelError, RejectedAnswer

from ..calls.failures import Rejected
from ..calls.llm_calls import Repeated
from .answer_text import check_number_of_texts, plain_answer
from .generation import Answer, GenerationOptions, Prompt, Request, Sampling, ToolPrompt


def answers_from_run(
    llm: Any,
    prompts: Iterable[Prompt | ToolPrompt | Repeated],
    options: GenerationOptions,
    check: Callable[[int, Answer], Answer | Rejected] | None,
    max_follow_ups: int,
) -> Iterator[Answer]:
    """Yields the answers that the LLM's own `run` gives, checked and asked again as `LLM.answers` does."""
    asked: GenerationOptions = {**options, "return_generator": True}
    sent: deque[Prompt] = deque()

    def plain() -> Iterator[Prompt]:
        for given in prompts:
            prompt = given.prompt if isinstance(given, Repeated) else given
            if isinstance(prompt, ToolPrompt):
                raise DefinitionError(f"{llm.display_name} overrides run, which takes no ToolPrompt.")
            sent.append(prompt)
            yield sent[-1]

    for index, generated in enumerate(llm.run(plain(), **asked)):
        answer = _answer_of(llm, generated, options)
        if not sent:
            raise DefinitionError(f"{llm.display_name}: run returned more answers than prompts were sent.")
        prompt = sent.popleft()
        for left in range(max_follow_ups, -1, -1):
            checked = answer if check is None or answer.error is not None else check(index, answer)
            if not isinstance(checked, Rejected):
                answer = checked
                break
            if not left:
                answer = replace(answer, error=RejectedAnswer.of(answer.text, checked.reason))
                break
            prompt = llm.follow_up(Request(prompt, Sampling()), answer, checked.reason)
            answer = _answer_of(llm, next(iter(llm.run([prompt], **asked)), None), options)
        yield answer
    if sent:
        raise DefinitionError(
            f"{llm.display_name}: run returned fewer answers than prompts were sent; {len(sent)} are missing."
        )


def _answer_of(llm: Any, generated: str | None | list[str | None], options: GenerationOptions) -> Answer:
    if generated is None:
        return Answer.failed(ModelError(f"{llm.display_name} gave no answer."))
    texts = [generated] if isinstance(generated, str) else generated
    if not isinstance(texts, list | tuple):
        raise DefinitionError(f"{llm.display_name}: run returned {texts!r:.100}; expected a text, or a list of n.")
    answer = Answer(texts)
    check_number_of_texts(llm, answer, options.get("n", 1))
    return plain_answer(answer, shaped=False)
