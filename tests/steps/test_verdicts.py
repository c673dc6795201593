from __future__ import annotations

import pytest

from datadreamer_like.steps.prompting.answer_readers import read_number, read_winner, read_yes_or_no


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", True),
        ("**No**, it is not.", False),
        ("yes.", True),
        ("I would say yes.", True),
        ("No doubt it is", False),
        ("It has no flaw, so the answer is yes.", True),
        ("Answer: No (although yes, one could argue)", False),
        ("<think>no, no, no</think>\nYes", True),
        ("Yesterday nothing", None),
        ("yes and no", True),
        ("either yes or no", None),
        ("", None),
        (True, True),
        (3, None),
    ],
)
def test_yes_or_no(text: object, expected: bool | None) -> None:
    assert read_yes_or_no(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        ("**8.5**", 8.5),
        ("7,5", 7.5),
        ("1,000", 1000.0),
        ("-3", -3.0),
        ("9/10", 9.0),
        ("Score: 4 out of 5", 4.0),
        ("On a scale of 1 to 10, I would give it an 8.", 8.0),
        ("1-10 scale: 6", 6.0),
        ("10-20 is the range, and I say 15", 15.0),
        ("Rating: 3 because of 2 errors", 3.0),
        ("It has 2 errors, so my rating is 3", 3.0),
        ("<think>maybe 2</think>5", 5.0),
        ("good", None),
        (0.25, 0.25),
        (True, 1.0),
        (None, None),
    ],
)
def test_number(text: object, expected: float | None) -> None:
    assert read_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "a"),
        ("b", "b"),
        ("Response B", "b"),
        ("**Response A** wins.", "a"),
        ("response b is better", "b"),
        ("Response A is better than Response B.", "a"),
        ("Response A is not better; Response B is clearly the best.", "b"),
        ("B is better, since it is short.", "b"),
        ("A better one is hard to find, but B.", "b"),
        ("A is better.", "a"),
        ("B: it is shorter than A", "b"),
        ("Both Response A and Response B are fine.", None),
        ("neither", None),
        ("", None),
        (None, None),
    ],
)
def test_winner(text: object, expected: str | None) -> None:
    assert read_winner(text, "Response A:", "Response B:") == expected
