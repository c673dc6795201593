from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from datadreamer_like.errors import MalformedAnswer
from datadreamer_like.models.llms.answer_text import answer_of, answer_text
from datadreamer_like.models.llms.generation import Answer


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("Paris", "Paris", None),
        ("", "", None),
        ([{"type": "text", "text": "Par"}, {"type": "text", "text": "is"}], "Paris", None),
        ([SimpleNamespace(type="text", text="Paris"), SimpleNamespace(type="image", url="x")], "Paris", None),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Paris"}], "Paris", "Hm."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, "Paris"], "Paris", "Hm."),
        ("<think>\nFrance ...\n</think>\n\nParis", "Paris", "France ..."),
        ("France ...\n</think>\n\nParis", "Paris", "France ..."),
        ("[THINK]France[/THINK]Paris", "Paris", "France"),
        ("Write <think> to start.", "Write <think> to start.", None),
        ("naïve \ud83d end", "naïve � end", None),
    ],
)
def test_the_text_of_a_message_is_its_text_parts_without_thoughts(content: Any, text: str, reasoning: str) -> None:
    assert answer_text(content, "stop") == (text, reasoning, None)


def test_thoughts_in_a_field_of_their_own_are_kept_apart() -> None:
    assert answer_text("Paris", "stop", reasoning="Hm.") == ("Paris", "Hm.", None)


@pytest.mark.parametrize(
    ("content", "reason", "options", "words"),
    [
        ("", "length", {}, "before it wrote any text"),
        ("  \n", "length", {}, "before it wrote any text"),
        (None, "length", {}, "before it wrote any text"),
        ("<think>Let me see", "length", {}, "before it wrote any text"),
        ("Some wor", "content_filter", {}, "content filter"),
        (None, "stop", {"refusal": "I will not."}, "refused to answer: I will not."),
    ],
)
def test_what_is_no_answer_is_an_error(content: Any, reason: str, options: dict[str, Any], words: str) -> None:
    found = answer_text(content, reason, **options)
    assert found.text is None
    assert words in str(found.error)


@pytest.mark.parametrize("text", ['{"a": 1', "12"])
def test_half_an_answer_to_a_schema_is_an_error_that_keeps_it(text: str) -> None:
    found, whole = answer_text(text, "length", shaped=True), answer_text("{}", "stop", shaped=True)
    assert "cut off before it was complete" in str(found.error)
    assert f"The last answer was: {text!r}" in str(found.error)
    failed = answer_of([found])
    assert (failed.texts, failed.error) == ([text], found.error)
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
