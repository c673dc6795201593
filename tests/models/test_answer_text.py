from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from datadreamer_like.errors import MalformedAnswer
from datadreamer_like.models import LLM, Answer, Request
from datadreamer_like.models.llms.answer_text import AnswerText, answer_of, answer_text

FENCE = "```"
OPENED = "<|channel|>analysis<|message|>"

# Content, finish reason, whether it answers a schema, and the text or words of the error, of every kind of answer
ANSWERS: list[tuple[Any, str | None, bool, str | None, str]] = [
    # Texts and blanks around them
    ("Paris", "stop", False, "Paris", ""),
    (" Paris\n", "stop", False, "Paris", ""),
    ("\n\n  two\n  lines\n", "length", False, "two\n  lines", ""),
    ("", "stop", False, "", ""),
    ("  \n", "stop", False, "", ""),
    ("", None, False, "", ""),
    ("Half a sent", "length", False, "Half a sent", ""),
    ("na\u00efve \ud83d end", "stop", False, "na\u00efve \ufffd end", ""),
    # Parts
    ([{"type": "text", "text": "Par"}, {"type": "text", "text": "is"}], "stop", False, "Paris", ""),
    ({"type": "text", "text": "Paris"}, "stop", False, "Paris", ""),
    ([SimpleNamespace(type="text", text="Paris"), SimpleNamespace(type="image", url="x")], "stop", False, "Paris", ""),
    ([{"type": "output_text", "text": "Paris"}], "stop", False, "Paris", ""),
    ([{"type": "text", "text": {"value": "Paris"}}], "stop", False, "Paris", ""),
    ([{"text": "Hm.", "thought": True}, {"text": "Paris"}], "stop", False, "Paris", ""),
    ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Paris"}], "stop", False, "Paris", ""),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, "Paris"], "stop", False, "Paris", ""),
    ([{"type": "text", "text": None}], "stop", False, "", ""),
    ([{"type": "image", "url": "x"}], "stop", False, None, "has no text"),
    ([], "stop", False, None, "has no text"),
    ([{"type": "text", "text": ["a"]}], "stop", False, None, "list instead of a text"),
    ([{"type": "text", "text": "a"}, {"type": "text", "text": 5}], "stop", False, None, "int instead of a text"),
    ([{"type": "output_text", "text": b"a"}], "stop", False, None, "bytes instead of a text"),
    ([{"text": {"value": ["a"]}}], "stop", False, None, "list instead of a text"),
    ([{"text": False}], "stop", False, None, "bool instead of a text"),
    ([{"type": "thinking", "thinking": 5}, "Paris"], "stop", False, None, "int instead of a text"),
    ([{"type": "refusal", "refusal": ["no"]}], "stop", False, None, "list instead of a text"),
    # Thoughts
    ("<think>\nFrance ...\n</think>\n\nParis", "stop", False, "Paris", ""),
    ("France ...\n</think>\n\nParis", "stop", False, "Paris", ""),
    ("<THINK>France</THINK>Paris", "stop", False, "Paris", ""),
    ("[THINK]France[/THINK]Paris", "stop", False, "Paris", ""),
    ("\u25c1think\u25b7France\u25c1/think\u25b7Paris", "stop", False, "Paris", ""),
    ("<seed:think>France</seed:think>Paris", "stop", False, "Paris", ""),
    ("<|START_THINKING|>France<|END_THINKING|>Paris", "stop", False, "Paris", ""),
    ("<|begin_of_thought|>France<|end_of_thought|>\n\nParis", "stop", False, "Paris", ""),
    ("France<|end_of_thought|>Paris", "stop", False, "Paris", ""),
    (OPENED + "France<|end|><|start|>assistant<|channel|>final<|message|>Paris", "stop", False, "Paris", ""),
    ("<think></think>Paris", "stop", False, "Paris", ""),
    ("<think >a</think >Paris", "stop", False, "Paris", ""),
    ("<think>a</think>Par<think>b</think>is", "stop", False, "Paris", ""),
    ("<think>a<think>b</think>c</think>Paris", "stop", False, "Paris", ""),
    ("a</think>b</think>Paris", "stop", False, "Paris", ""),
    ("Well.\n<think>a\nb</think>\nParis", "stop", False, "Well.\n\nParis", ""),
    ("Well. <think>a\nb</think>Paris", "stop", False, "Well. Paris", ""),
    ('He said "yes"</think>Paris', "stop", False, "Paris", ""),
    ("Write <think> to start.", "stop", False, "Write <think> to start.", ""),
    ("Write <think> to start and </think> to end.", "stop", False, "Write <think> to start and </think> to end.", ""),
    ("Close it with `</think>`.", "stop", False, "Close it with `</think>`.", ""),
    ("\u200b", "length", False, None, "before it wrote any text"),
    ("\ufeff\n", "max_tokens", False, None, "before it wrote any text"),
    ("<think>Let me see", "length", False, None, "before it wrote any text"),
    ("<think>Let me see", "stop", False, None, "within its thoughts"),
    ("<think>Let me see</think>", "length", False, None, "before it wrote any text"),
    ("Let me see</think>\n", "stop", False, "", ""),
    ("Paris\n<think>Is it", "length", False, "Paris", ""),
    # Without a word
    ("", "length", False, None, "Raise max_new_tokens"),
    ("  \n", "length", False, None, "Raise max_new_tokens"),
    (None, "length", False, None, "Raise max_new_tokens"),
    ("", "MAX_TOKENS", False, None, "Raise max_new_tokens"),
    ("", "content_filter", False, None, "content filter"),
    ("Some wor", "content_filter", False, None, "content filter"),
    ("Some wor", "SAFETY", False, None, "content filter"),
    (None, "tool_calls", False, None, "called a tool"),
    ("", "tool_calls", False, None, "called a tool"),
    ("Some wor", "error", False, None, "before it was complete"),
    ("Some wor", "insufficient_system_resource", False, None, "before it was complete"),
    ("I look that up.", "pause_turn", False, None, "not complete"),
    (None, "stop", False, None, "has no text"),
    ([{"type": "refusal", "refusal": "I will not."}], "stop", False, None, "refused to answer: I will not."),
    ("I cannot help.", "refusal", False, None, "refused to answer: I cannot help."),
    # JSON
    (' {"a": 1}\n', "stop", True, '{"a": 1}', ""),
    (f'{FENCE}json\n{{"a": 1}}\n{FENCE}', "stop", True, '{"a": 1}', ""),
    (f"{FENCE}\n[1]\n{FENCE}\n", "stop", True, "[1]", ""),
    (f'{FENCE}json {{"a": 1}}{FENCE}', "stop", True, '{"a": 1}', ""),
    (f'Here it is:\n{FENCE}json\n{{"a": 1}}\n{FENCE}\nDone.', "stop", True, '{"a": 1}', ""),
    (f'<think>{{</think>{FENCE}json\n{{"a": 1}}\n{FENCE}', "stop", True, '{"a": 1}', ""),
    (f'{{"a": "{FENCE}x{FENCE}"}}', "stop", True, f'{{"a": "{FENCE}x{FENCE}"}}', ""),
    (f"{FENCE}python\nprint()\n{FENCE}", "stop", False, f"{FENCE}python\nprint()\n{FENCE}", ""),
    ('{"a": 1', "length", True, None, "cut off before it was complete"),
    ("12", "length", True, None, "The last answer was: '12'"),
]


@pytest.mark.parametrize(("content", "reason", "shaped", "text", "error"), ANSWERS)
def test_the_text_of_an_answer(content: Any, reason: str | None, shaped: bool, text: str | None, error: str) -> None:
    found = answer_text(content, reason, shaped=shaped)
    assert found.text == text
    assert error in str(found.error) if error else found.error is None


@pytest.mark.parametrize(("content", "reason", "shaped", "text", "error"), ANSWERS)
def test_a_text_that_was_read_once_stays_as_it_is(
    content: Any, reason: str | None, shaped: bool, text: str | None, error: str
) -> None:
    if text is not None:
        assert answer_text(text, reason, shaped=shaped).text == text


class Raw(LLM):
    """An engine of a script's own that returns texts as a model writes them."""

    model_name = "raw"

    def __init__(self, text: str, finish_reason: str | None) -> None:
        super().__init__()
        self.text, self.finish_reason = text, finish_reason

    def identity(self) -> dict[str, Any]:
        return {"text": self.text, "finish reason": self.finish_reason}

    def answer_batch(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer([self.text], finish_reasons=[self.finish_reason]) for _ in requests]


class RawConcurrent(Raw):
    async def answer(self, request: Request) -> Answer:
        return self.answer_batch([request])[0]


@pytest.mark.parametrize("engine", [Raw, RawConcurrent])
def test_answers_of_every_engine_are_read_alike(engine: type[Raw]) -> None:
    for content, reason, shaped, text, error in ANSWERS:
        if isinstance(content, str) and not shaped and "before it was complete" not in error:
            (answer,) = engine(content, reason).answers(["?"])
            assert (answer.text, error in str(answer.error)) == (text, True)


def test_what_an_engine_returns_instead_of_texts_fails_the_row() -> None:
    class Wrong(Raw):
        def answer_batch(self, requests: Sequence[Request]) -> list[Answer]:
            return [Answer(request.prompt and texts) for request in requests]  # type: ignore[arg-type]

    for texts in ("abc", "a", [3], [], [None]):
        (answer,) = Wrong(repr(texts), None).answers(["?"])
        assert isinstance(answer.error, MalformedAnswer)


def test_reading_takes_time_in_proportion_to_the_length() -> None:
    tags = ["<think>", "</think>", "<think>a", " <think>", "a</think>", "`<think>`"]
    channels = ["<|channel|>analysis", "<|channel|>final<|message|>"]
    parts = [*tags, *channels, "\n", " ", "```", "```\n", "\n```json\n{", "{["]

    def seconds(text: str) -> float:
        began = time.process_time()
        answer_text(text, "stop", shaped=True)
        return time.process_time() - began

    for part in parts:
        short, long = (part * (size // len(part)) for size in (40_000, 320_000))
        if (once := seconds(long)) > 0.1:  # CPU time; a pattern that backtracks takes many seconds
            assert min(once, seconds(long)) < 24 * min(seconds(short) for _ in range(3)), part


@pytest.mark.parametrize(
    ("content", "reasoning"),
    [
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Paris"}], "Hm."),
        ("<think>\nFrance ...\n</think>\n\nParis", "France ..."),
        ("<think>a</think>Par<think>b</think>is", "a\nb"),
        ("[THINK]France[/THINK]Paris", "France"),
        ("a\n</think>Paris", "a"),
        ("Paris", None),
    ],
)
def test_thoughts_are_kept_apart(content: Any, reasoning: str | None) -> None:
    assert answer_text(content, "stop") == AnswerText("Paris", reasoning)


def test_thoughts_in_a_field_of_their_own_are_kept_apart() -> None:
    assert answer_text("Paris", "stop", reasoning="Hm.") == AnswerText("Paris", "Hm.")


def test_a_refusal_in_a_field_of_its_own_is_an_error() -> None:
    for content in (None, "", "I will not."):
        found = answer_text(content, "stop", refusal="I will not.")
        assert (found.text, str(found.error)) == (None, "The model refused to answer: I will not.")


def test_half_an_answer_to_a_schema_is_none_among_others() -> None:
    found, whole = answer_text("{", "length", shaped=True), answer_text("{}", "stop", shaped=True)
    assert answer_of([found]).texts == ()
    assert answer_of([whole, found]) == Answer(["{}", None])


def test_no_content_at_all_is_malformed_and_other_content_is_a_type_error() -> None:
    assert isinstance(answer_text(None, "stop").error, MalformedAnswer)
    with pytest.raises(TypeError, match="neither a text nor a list"):
        answer_text(3, "stop")


def test_an_answer_is_failed_where_none_of_its_texts_is_one_and_keeps_its_tokens() -> None:
    good, cut = answer_text("a", "stop"), answer_text("", "length")
    assert answer_of([good, cut], prompt_tokens=3) == Answer(["a", None], prompt_tokens=3)
    failed = answer_of([cut, cut], prompt_tokens=3, completion_tokens=4)
    assert (failed.texts, failed.text, failed.prompt_tokens, failed.completion_tokens) == ((), None, 3, 4)
    assert "max_new_tokens" in str(failed.error)
