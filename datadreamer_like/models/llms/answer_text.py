"""The one place that decides what of an answer is its text.

It handles content parts, thoughts, refusals, truncated and empty messages, and JSON in Markdown fences. `LLM.answers`
applies it to the answers of every engine; a provider whose messages have parts or fields also uses `answer_text`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from datadreamer_like.errors import DefinitionError, MalformedAnswer, ModelError, RejectedAnswer

from .generation import CUT_OFF, Answer
from .tools import ToolCall, calls_with_own_ids, shown_calls

# Reasons for the end of an answer, as servers with OpenAI's protocol write them.
_FILTERED = {
    "content_filter", "content_filtered", "safety", "recitation", "prohibited_content", "blocklist", "spii",
    "sensitive", "guardrail_intervened",
}  # fmt: skip
_BROKEN = {
    "error", "abort", "aborted", "cancelled", "insufficient_system_resource", "network_error",
    "failed", "incomplete", "in_progress", "queued",
}  # fmt: skip
# A text with one of these is whole, or cut off behind its first word.
_ORDINARY = ("stop", "length", None)
_PAUSED = {"pause_turn", "pause"}
# Characters without a width: an answer of nothing else is empty.
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\x00 \t\n\r"
_CALLED = {"tool_calls", "tool_call", "tool_use", "function_call"}


class AnswerText(NamedTuple):
    """One text of an answer, the model's reasoning, the error if the text is missing or rejected, and the calls."""

    text: str | None
    reasoning: str | None = None
    error: ModelError | None = None
    calls: tuple[ToolCall, ...] = ()


def answer_text(
    content: object,
    finish_reason: str | None,
    *,
    refusal: str | None = None,
    reasoning: str | None = None,
    shaped: bool = False,
    calls: Sequence[ToolCall] = (),
) -> AnswerText:
    """Separates a message into answer and reasoning; the answer is without the blanks around it.

    An empty text is an answer if the model chose to stop (but see `with_text`), but an error if the token
    limit or a filter ended it, and a text that consists of unfinished thoughts is one too. With `calls` of tools there
    may be no text; the token limit may have cut the last of them, which is an error. An answer to a schema (`shaped`)
    is without its Markdown fence, and an error if it is truncated.

    `content` is a text, a part, a list of parts (mappings or objects with `type`), or None, else a TypeError is raised.
    `finish_reason` is in OpenAI's terms: "stop", "length", "content_filter", ... `refusal` is the provider's message if
    the model refused; `reasoning` is what it sent in a separate field.
    """
    thoughts = [reasoning] if reasoning else []
    refusals = [refusal] if refusal else []
    reason = str(finish_reason or "").lower()
    try:
        text, unfinished = _joined(content, thoughts, refusals), False
    except MalformedAnswer as malformed:
        return AnswerText(None, None, malformed)
    if text is not None:
        found = split_thoughts(_valid(text))
        thoughts += found.thoughts
        # An opened thought after some text may be prose about tags, unless the token limit ended the answer.
        unfinished = found.unfinished and (not found.text.strip() or reason in CUT_OFF)
        text = (found.text if unfinished or not found.unfinished else _valid(text)).strip()
        text = json_text(text) if shaped else text
        text = text if text.strip(INVISIBLE) else ""
    kept = _valid("\n".join(thoughts)) or None
    error = _answer_error(text, reason, " ".join(refusals), shaped, unfinished, calls)
    if error is not None:
        return AnswerText(None, kept, error)
    return AnswerText((text or None) if calls else text, kept, None, tuple(calls_with_own_ids(calls, set())))


def answer_of(texts: Sequence[AnswerText], **facts: Any) -> Answer:
    """Returns the answer to one request from its `n` texts and the other attributes of `Answer`.

    It has an error if none of the texts is an answer.
    """
    reasoning = [text.reasoning for text in texts] if any(text.reasoning for text in texts) else None
    if texts and all(text.error is not None for text in texts):
        return Answer((), **{**facts, "logprobs": None}, reasoning=reasoning, error=texts[0].error)
    calls = [list(text.calls) for text in texts] if any(text.calls for text in texts) else None
    kept = [text.text if text.error is None else None for text in texts]
    return Answer(kept, **facts, reasoning=reasoning, tool_calls=calls)


def plain_answers(llm: Any, shaped: bool, requests: Sequence[Any]) -> list[Answer]:
    """Returns the answers of an engine that takes batches, read as `plain_answer` reads them.

    Raises:
        DefinitionError: An answer has not as many texts as its request asks for.
    """
    answers = llm.answer_batch(requests)
    for answer, request in zip(answers, requests, strict=False):
        check_number_of_texts(llm, answer, request.sampling.n)
    return [plain_answer(answer, shaped) for answer in answers]


async def plain_answered(llm: Any, shaped: bool, request: Any) -> Answer:
    """Returns the answer of an engine that takes many requests at once, read as `plain_answer` reads it.

    Raises:
        DefinitionError: The answer has not as many texts as the request asks for.
    """
    answer = await llm.answer(request)
    check_number_of_texts(llm, answer, request.sampling.n)
    return plain_answer(answer, shaped)


def check_number_of_texts(llm: Any, answer: Answer, expected: int) -> None:
    """Raises `DefinitionError` for an answer that has another number of texts than its request asks for.

    A failed answer, and one without any text, which fails its row, pass.
    """
    if answer.error is not None or not isinstance(answer.texts, list | tuple) or len(answer.texts) in (0, expected):
        return
    raise DefinitionError(
        f"{type(llm).__name__} returned {len(answer.texts)} texts to a prompt; expected n={expected}. Return as many "
        "as request.sampling.n (or the option n of run) says, None for one that is missing."
    )


async def answered_with_text(ask: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Returns the answer of a server, as `with_text` returns it."""
    answer = await ask(request)
    return with_text(answer) if isinstance(answer, Answer) else answer


def with_text(answer: Answer) -> Answer:
    """Returns an answer; one without calls whose texts are all empty is malformed, so that it is asked for again."""
    if answer.error is None and not any(answer.texts) and not answer.tool_calls:
        return replace(answer, texts=(), logprobs=None, error=MalformedAnswer("The answer is empty."))
    return answer


def plain_answer(answer: Answer, shaped: bool) -> Answer:
    """Returns an engine's answer with each text as `answer_text` gives it, or its error; failed answers unchanged."""
    if answer.error is not None:
        return answer
    if isinstance(answer.texts, list | tuple) and len(answer.texts) == 1 and answer.reasoning is None and not shaped:
        (text,) = answer.texts
        # Nothing in most answers has to be removed: this is `answer_text` for them, in a tenth of the time.
        if (
            type(text) is str
            and text.isascii()
            and text == text.strip() != ""
            and "<" not in text
            and "[" not in text
            and (not answer.finish_reasons or answer.finish_reasons[0] in _ORDINARY)
        ):
            return answer
    if isinstance(answer.texts, str) or not all(isinstance(text, str | None) for text in answer.texts):
        return replace(answer, texts=(), error=MalformedAnswer(f"texts is not a list of texts: {answer.texts!r:.200}."))
    given: list[tuple[str | None, str | None, str | None, tuple[ToolCall, ...]]] = [
        (
            text,
            answer.finish_reasons[index] if index < len(answer.finish_reasons) else None,
            answer.reasoning[index] if answer.reasoning is not None else None,
            tuple(answer.tool_calls[index]) if answer.tool_calls is not None else (),
        )
        for index, text in enumerate(answer.texts)
    ]
    texts = [
        # An engine that gives calls has read them whole.
        answer_text(text, None if calls else reason, reasoning=thoughts, shaped=shaped, calls=calls)
        for text, reason, thoughts, calls in given
    ]
    if not texts:
        return replace(answer, error=MalformedAnswer("The engine returned an answer without a text."))
    if texts == [AnswerText(text, thoughts, None, calls) for text, _, thoughts, calls in given]:
        return answer
    made = answer_of(texts)
    return replace(answer, texts=made.texts, reasoning=made.reasoning, error=made.error, tool_calls=made.tool_calls)


# Thoughts

# What open models put around their thoughts, and some servers leave in the text.
_TAG = re.compile(
    r"<(?P<slash>/)?(?:seed:)?think\s?>|\[(?P<slash2>/)?THINK\]|◁(?P<slash3>/)?think▷"
    r"|<\|(?:START|(?P<end>END))_THINKING\|>|<\|(?:begin|(?P<end2>end))_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary|(?P<final>final))\b[^<]{0,80}<\|message\|>",
    re.IGNORECASE,
)
_QUOTES = "`\"'"
_LINE_START = 100  # characters before an opening tag in which the start of its line must be


class Thoughts(NamedTuple):
    """A text without thoughts, the thoughts, and whether the last one was never closed."""

    text: str
    thoughts: list[str]
    unfinished: bool


def split_thoughts(text: str, tag: re.Pattern[str] = _TAG) -> Thoughts:
    """Separates a text from thoughts between tags; `tag` matches them, closing ones with a group.

    A closing tag alone ends a thought whose opening tag was part of the prompt. Quoted tags are text, and so is a
    pair of tags within a line of other text, unless thoughts came before.
    """
    kept: list[str] = []
    thoughts: list[str] = []
    start, opened, within = 0, -1, -1  # starts of the text, of an open thought, and of a thought within a line
    before = (0, 0)
    for found in tag.finditer(text):
        if text[found.start() - 1 : found.start()] in _QUOTES and found.start() and _is_quoted(text, found):
            continue
        if found.lastgroup is None:
            if opened < 0 and (thoughts or _starts_line(text, start, found.start())):
                kept.append(text[start : found.start()])
                opened = found.end()
            elif opened < 0 and within < 0:
                within, before = found.end(), (start, found.start())
            continue
        if opened < 0 and within >= 0:
            if text.find("\n", within, found.start()) < 0:
                within = -1
                continue
            kept.append(text[slice(*before)])
            opened = within
        if opened < 0:
            thoughts.append("".join(kept) + text[start : found.start()])
            kept = []
        else:
            thoughts.append(text[opened : found.start()])
        start, opened, within = found.end(), -1, -1
    kept.append(text[start:] if opened < 0 else "")
    if opened >= 0:
        thoughts.append(text[opened:])
    return Thoughts("".join(kept), [thought.strip() for thought in thoughts], opened >= 0)


def _is_quoted(text: str, found: re.Match[str]) -> bool:
    return text[found.start() - 1] == text[found.end() : found.end() + 1]


def _starts_line(text: str, start: int, place: int) -> bool:
    before = text[max(start, place - _LINE_START) : place]
    blanks = before[len(before.rstrip()) :]
    return "\n" in blanks or (len(blanks) == len(before) and place - start <= _LINE_START)


# JSON


def json_text(text: str) -> str:
    """Returns the JSON in a text that has it in a Markdown fence, alone or between sentences; else the text."""
    if "```" not in text:
        return text
    lines = text.split("\n")
    fences = [index for index, line in enumerate(lines) if line.lstrip().startswith("```")]
    if not fences:
        return text
    first = lines[fences[0]].strip()
    if len(fences) == 1 and len(first) > 6 and first.endswith("```"):
        inside = re.sub(r"^(?:json\b)?", "", first.strip("`"), flags=re.IGNORECASE).strip()
    elif len(fences) > 1:
        inside = "\n".join(lines[fences[0] + 1 : fences[-1]]).strip()
    else:
        return text
    around = "".join(lines[: fences[0]] + lines[fences[-1] + 1 :]).strip()
    return inside if not around or (len(fences) <= 2 and inside[:1] in ("{", "[")) else text


# Parts and errors


def _joined(content: object, thoughts: list[str], refusals: list[str]) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TypeError(f"content is {type(content).__name__}, neither a text nor a list of parts")
    texts = []
    for part in content:
        kind = _field(part, "type")
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("thinking", "reasoning") or _field(part, "thought") is True:
            thought = _field(part, "thinking") or _field(part, "text")
            is_parts = isinstance(thought, Mapping | list | tuple)
            thoughts.append((_joined(thought, thoughts, refusals) if is_parts else _part_text(thought)) or "")
        elif kind in ("text", "output_text", None):
            text = _field(part, "text")
            texts.append(_part_text(_field(text, "value") if isinstance(text, Mapping) else text))
        elif kind == "refusal":
            refusals.append(_part_text(_field(part, "refusal")) or "no reason is given")
    return "".join(texts) if texts else None


def _part_text(text: object) -> str:
    if text is None or isinstance(text, str):
        return text or ""
    raise MalformedAnswer(f"A part of the answer has {type(text).__name__} instead of a text: {text!r:.200}.")


def _field(part: object, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def _answer_error(
    text: str | None, reason: str, refusal: str, shaped: bool, unfinished: bool, calls: Sequence[ToolCall]
) -> ModelError | None:
    if reason in _FILTERED:
        return ModelError("The provider's content filter withheld the answer. Change the prompt.")
    if refusal or reason == "refusal":
        return ModelError(f"The model refused to answer: {refusal or text or 'no reason is given'}")
    if reason in _BROKEN:
        return MalformedAnswer(f"The server ended the answer before it was complete (finish reason {reason!r}).")
    if reason in _PAUSED:
        return ModelError(
            "The provider paused the answer within the use of its own tools, so it is not complete. Allow fewer uses "
            "of the tool, or ask for less at once."
        )
    if not text and not calls:
        if reason in CUT_OFF or unfinished:
            why = "used up its tokens" if reason in CUT_OFF else "stopped within its thoughts"
            return ModelError(f"The model {why} before it wrote any text. Raise max_new_tokens.")
        if reason in _CALLED:
            return ModelError("The model called a tool that the answer does not name, and wrote no text.")
        if text is None:
            return MalformedAnswer(f"The answer has no text (finish reason {reason or None!r}).")
    elif calls and reason in CUT_OFF:
        return RejectedAnswer.of(shown_calls(calls), "The answer was cut off within its calls. Raise max_new_tokens.")
    elif shaped and reason in CUT_OFF:
        why = "The answer was cut off before it was complete; the schema needs all. Raise max_new_tokens."
        return RejectedAnswer.of(text, why)
    return None


def _valid(text: str) -> str:
    """Replaces unpaired surrogates, which JSON allows but UTF-8 files do not."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
