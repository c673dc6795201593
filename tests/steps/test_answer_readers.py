"""Answers as judges write them, and what each says; None is what cannot be read with certainty."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datadreamer_like.steps.prompting.answer_readers import read_number, read_winner, read_yes_or_no

SCORES: list[tuple[object, float | None]] = [
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
    (".8", 0.8),
    ("Score (out of 10): 8", 8.0),
    ("1. Clarity: 8\n2. Style: 6\nOverall score: 7", 7.0),
    ("1. 8", 8.0),
    ("8. Good text.", 8.0),
    ("1. Clarity: 8\n2. Style: 6", None),
    ("4 out of 5 stars", 4.0),
    ("8 out of 10.", 8.0),
    ("I give it a 7", 7.0),
    ("I'd rate this 7 out of 10, since it is short.", 7.0),
    ("GPT-4 wrote this", None),
    ("In 2023 this was good.", None),
    ("There are 3 errors.", None),
    ("minus 3", -3.0),
    ("Score: -3", -3.0),
    ("Score: −3", -3.0),
    ("Score - 8", 8.0),
    ("Score -8", None),
    ('{"score": 8}', 8.0),
    ('{"score": "8/10", "reason": "3 errors"}', 8.0),
    ('```json\n{"rating": 7}\n```', 7.0),
    ('{"clarity": 8, "style": 6}', None),
    ('{"clarity": 8, "overall_score": 6}', 6.0),
    ("Final answer: 7", 7.0),
    ("It could be a 5 or a 6.\nFinal answer: 7", 7.0),
    ("\\boxed{7}", 7.0),
    ("[[7]]", 7.0),
    ("<score>8</score>", 8.0),
    ("8 - because it is good", 8.0),
    ("8 (good)", 8.0),
    ("7 or 8", None),
    ("7-8", None),
    ("between 7 and 8", None),
    ("8.5.1", None),
    ("85%", 85.0),
    ("Score: 85 %", 85.0),
    ("score of 8", 8.0),
    ("The score is 8.", 8.0),
    ("I would not give it an 8.", None),
    ("4 of the 5 criteria are met", None),
    ("3 out of 10 people like it", None),
    ("8/10/2023", None),
    ("24/7", None),
    ("A 7.", 7.0),
    ("About 7", 7.0),
    ("~7", 7.0),
    ("7 points", 7.0),
    ("8pts", 8.0),
    ("Quality: 8", 8.0),
    ("Rating out of 5: 4", 4.0),
    ("Score [1-5]: 4", 4.0),
    ("Rating (1 = worst, 5 = best): 4", 4.0),
    ("10 is the best, 1 the worst. I say 8", 8.0),
    ("8, 9", None),
    ("8\n\nThe text has 3 errors.", 8.0),
    ("The text has 3 errors.\n\n8", 8.0),
    ("8\n\n7", None),
    ("**Score**: 8/10\n**Reason**: 2 typos", 8.0),
    ("### Score\n8", 8.0),
    ("1e999", None),
    ("3" * 500, None),
    ("0." + "3" * 200, None),
    ("I give it a seven", None),
    ("10:30", None),
    ("Rated 4.5/5 based on 3 criteria.", 4.5),
    ("8/10. It has 2/3 of the facts.", 8.0),
    ("Helpfulness score: 8", 8.0),
    ("more than 5", None),
    ("Llama 3 8B is good.", None),
    ("$5", None),
    ("#1", None),
    ("Score: 8 Reason: short", 8.0),
    ("the answer is 42", 42.0),
    ("(8)", 8.0),
    ('"8"', 8.0),
    ("8 / 10", 8.0),
    ("Total: 17/20", 17.0),
    ("I cannot give a score.", None),
    ("step 1: read. Score: 5", 5.0),
    ("8!", 8.0),
    ("７", 7.0),
    ("Score:8", 8.0),
    ("Score=8", 8.0),
    ("+2", 2.0),
    ("* 8", 8.0),
    ("- 8", 8.0),
    ("0", 0.0),
    ("0/10", 0.0),
    ("8.", 8.0),
    ("8.0", 8.0),
    ("My rating: 3/5 stars.", 3.0),
    ("2 + 2 = 4", None),
    ("Yes. 7. Response A", 7.0),
    ("It is fine. 7.", 7.0),
    ("It is as in fig. 7.", None),
    ("See p. 7.", None),
    ("", None),
    (0.25, 0.25),
    (True, 1.0),
    (None, None),
    (float("nan"), None),
    (10**400, None),
]

YES_OR_NO: list[tuple[object, bool | None]] = [
    ("Yes", True),
    ("**No**, it is not.", False),
    ("yes.", True),
    ("I would say yes.", True),
    ("No doubt it is", None),
    ("It has no flaw, so the answer is yes.", True),
    ("Answer: No (although yes, one could argue)", False),
    ("<think>no, no, no</think>\nYes", True),
    ("Yesterday nothing", None),
    ("yes and no", None),
    ("either yes or no", None),
    ("", None),
    ("I cannot answer yes or no.", None),
    ("I can't say yes.", None),
    ("No, there are no errors. Final answer: no", False),
    ("There are no errors.", None),
    ("No errors were found.", None),
    ("Yes, there are no errors.", True),
    ("Yes/No: Yes", True),
    ("Yes or no? No.", False),
    ("The answer is not yes.", None),
    ("Neither yes nor no.", None),
    ("If yes, keep it.", None),
    ("Some might say yes.", None),
    ("My answer would be yes", True),
    ("No. 5 is the best.", None),
    ("No. It is bad.", False),
    ("Yes. No, wait.", None),
    ("Yes.\nFinal answer: no", False),
    ("[[No]]", False),
    ("\\boxed{yes}", True),
    ('{"answer": "yes", "reason": "no problems"}', True),
    ('{"keep": false}', False),
    ('{"toxic": true, "reason": "x"}', True),
    ('```json\n{"verdict": "No"}\n```', False),
    ("Verdict: **yes**", True),
    ("### Answer\nno", False),
    ("Answer:\n\nYes", True),
    ("no-brainer", None),
    ("The answer is no longer clear.", None),
    ("Nope.", False),
    ("Yep", True),
    ("y", True),
    ("False", False),
    ("It's a no.", False),
    ("Yes would be wrong.", None),
    ("I would not say no.", None),
    ("No because it is long.", False),
    ("No it isn't.", False),
    ("- yes", True),
    ("1. Yes", True),
    ("The reason: it has no end.\nYes", True),
    ("Maybe", None),
    ("I don't think it fits: no.", False),
    ("It isn't good, so no.", False),
    ("Is it good? Yes.", True),
    ("Clarity: yes\nCorrectness: no\nOverall: yes", True),
    ("Clarity: yes\nCorrectness: no", None),
    ("<answer>No</answer>", False),
    ("No problem, yes.", True),
    ("Yes!", True),
    ("(no)", False),
    ("“Yes”", True),
    ("It is not, no.", False),
    ("Output: No", False),
    ("I'm sorry, I can't help with that.", None),
    ("hmm no</think>yes", True),
    (True, True),
    (3, None),
    (None, None),
]

WINNERS: list[tuple[object, str | None]] = [
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
    ("Response B, since Response A is more verbose", "b"),
    ("Response A is worse.", "b"),
    ("Response A is terrible.", None),
    ("I prefer Response B over Response A.", "b"),
    ("Between the two, I would choose B.", "b"),
    ("Neither Response A nor Response B is better.", None),
    ("I cannot say that Response B is better.", None),
    ("[[A]]", "a"),
    ("Response A is detailed.\nFinal answer: Response B", "b"),
    ("The better response is Response B.", "b"),
    ("Winner: A", "a"),
    ("A > B", "a"),
    ("A >> B", "a"),
    ("[[B>A]]", "b"),
    ('{"winner": "Response B"}', "b"),
    ('{"winner": "B", "reason": "A is verbose"}', "b"),
    ("Response A loses to Response B.", "b"),
    ("Response A is not as good as Response B.", "b"),
    ("Response A is more helpful than Response B.", "a"),
    ("Response A is more detailed, but Response B is more concise.", None),
    ("Response A is more helpful, but Response B is better overall.", "b"),
    ("Response A: 8/10, Response B: 6/10", None),
    ("Response A, Response B", None),
    ("Response A, like Response B, is fine.", None),
    ("It's a tie.", None),
    ("I cannot decide between Response A and Response B.", None),
    ("Is Response A better? No, Response B is.", None),
    ("Response A is outperformed by Response B", "b"),
    ("Option B", "b"),
    ("(b)", "b"),
    ('"Response A"', "a"),
    ("Response A.", "a"),
    ("Response A is better at first sight, but\n</think>\nResponse B", "b"),
    ("The answer is B.", "b"),
    ("A good answer would be short.", None),
    ("Response B because it is short.", "b"),
    ("My choice is Response A, because Response B is wrong.", "a"),
    ("<answer>B</answer>", "b"),
    ("Response A has errors. Response B is better.", "b"),
    ("Response A is better. Response B is better.", None),
    ("Response B is clearly better than Response A in every way", "b"),
    ("I don't think Response A is better.", None),
    ("Verdict: Response B, although Response A is better written.", "b"),
    ("Response A is less better", None),
    ("Some may prefer Response A.", None),
    ("### Winner\nResponse A", "a"),
    ("Response A beats Response B", "a"),
    ("Response B - it is shorter.", "b"),
    (None, None),
    (1, None),
]


@pytest.mark.parametrize(("text", "expected"), SCORES)
def test_scores(text: object, expected: float | None) -> None:
    assert read_number(text) == expected


@pytest.mark.parametrize(("text", "expected"), YES_OR_NO)
def test_yes_or_no(text: object, expected: bool | None) -> None:
    assert read_yes_or_no(text) is expected


@pytest.mark.parametrize(("text", "expected"), WINNERS)
def test_winners(text: object, expected: str | None) -> None:
    assert read_winner(text, "Response A:", "Response B:") == expected


@pytest.mark.parametrize(
    ("a_label", "b_label", "text", "expected"),
    [
        ("Human:", "Model:", "The model wins.", "b"),
        ("Human:", "Model:", "Human", "a"),
        ("Response:", "Response B:", "Response B is better.", "b"),
        ("Response 1:", "Response 10:", "Response 10 is better than Response 1.", "b"),
        ("Summary 1:", "Summary 2:", "Summary 2, since Summary 1 has 2 errors", "b"),
        ("Summary 1:", "Summary 2:", "2", "b"),
        ("Summary 1:", "Summary 2:", "There are 2 errors.", None),
        ("First (old):", "Second (new):", "Second (new).", "b"),
        ("A.*:", "B+:", "I prefer B+ over A.*", "b"),
        ("", "Other:", "Other", "b"),
    ],
)
def test_winners_with_other_labels(a_label: str, b_label: str, text: str, expected: str | None) -> None:
    assert read_winner(text, a_label, b_label) == expected


def test_numpy_scalars_are_read_as_python_values() -> None:
    assert (read_number(np.float32(2.5)), read_number(np.int64(3)), read_yes_or_no(np.bool_(False))) == (2.5, 3, False)


FORMS = [
    "{}",
    "{}.",
    "**{}**",
    "`{}`",
    "Score: {}",
    "**Score:** {}",
    "Score: **{}**",
    "score = {}",
    "My rating is {}.",
    "Final answer: {}",
    "The text has 3 errors.\n\nScore: {}",
    "{}\n\nThe text has 3 errors.",
    "I give it a {}.",
    '{{"score": {}}}',
    '```json\n{{"score": {}, "reason": "2 errors"}}\n```',
    "<think>1 or 2?</think>{}",
    "1 or 2?</think>\n{}",
    "On a scale of 1 to 10, I would rate it {}",
    "Score (1-10): {}",
    "{}/1000",
    "{} out of 1000",
    "\\boxed{{{}}}",
    "[[{}]]",
    "<score>{}</score>",
    "### Score\n{}",
    "1. Clarity: 3\n2. Style: 4\nOverall score: {}",
    "{} points",
]


@given(st.sampled_from(FORMS), st.one_of(st.integers(0, 999), st.floats(0, 999).map(lambda value: round(value, 2))))
def test_a_score_is_the_same_in_every_form(form: str, value: float) -> None:
    assert read_number(form.format(value)) == value


VERDICT_FORMS = [
    "{}",
    "{}.",
    "**{}**",
    "{}, since there are no errors.",
    "Answer: {}",
    "The answer is {}.",
    "I would say {}.",
    "({})",
    "Yes/No: {}",
    "<think>yes? no?</think>{}",
    "it has no end</think>{}",
    '{{"answer": "{}", "reason": "no errors"}}',
    "Final answer: {}",
    "It has no errors.\n\n{}",
    "<answer>{}</answer>",
    "### Verdict\n{}",
    "[[{}]]",
    "My answer would be {}",
]


@given(st.sampled_from(VERDICT_FORMS), st.sampled_from(["yes", "Yes", "YES", "no", "No", "NO"]))
def test_a_verdict_is_the_same_in_every_form(form: str, word: str) -> None:
    assert read_yes_or_no(form.format(word)) is (word.lower() == "yes")


WINNER_FORMS = [
    "{0}",
    "{0}.",
    "**{0}**",
    "{0} is better.",
    "{0} is better than {1}.",
    "{0}, since {1} is more verbose",
    "I prefer {0}.",
    "I prefer {0} over {1}",
    "The better one is {0}.",
    "{1} is worse than {0}.",
    "{1} is worse.",
    "{1} loses to {0}",
    "{1} is fine.\nFinal answer: {0}",
    "Winner: {0}",
    '{{"winner": "{0}"}}',
    "<think>{1} is better</think>{0}",
    "{1} is better, or not?</think>{0}",
    "[[{0}]]",
    "{0} > {1}",
    "{0} wins",
    "{1} is not as good as {0}",
    "{0} - it is short",
]


@given(st.sampled_from(WINNER_FORMS), st.sampled_from([("Response A", "Response B"), ("A", "B")]), st.booleans())
def test_a_winner_is_the_same_in_every_form(form: str, names: tuple[str, str], turned: bool) -> None:
    text = form.format(*reversed(names)) if turned else form.format(*names)
    assert read_winner(text, "Response A:", "Response B:") == ("b" if turned else "a")


STUCK = [
    "3",
    "0.",
    "1,",
    "1,234",
    "1. ",
    "8/",
    "8 out of ",
    "yes ",
    "no, ",
    "not ",
    "Response A ",
    "A ",
    "<think>",
    "</think>",
    "<thinking>",
    "<",
    "<a",
    " ",
    "\n",
    "- ",
    "```",
    "```\n",
    "{",
    "[",
    "[[",
    "(",
    "score ",
    "Score (",
    "$",
    "\\boxed{",
    "_",
    "1-",
    "10 to ",
    ".",
    ",",
    "?",
    "-",
    "in 2023 ",
    "final ",
    '"',
    "x",
    "answer\n",
    "max of ",
    "some people ",
]


@pytest.mark.parametrize("read", [read_number, read_yes_or_no, lambda text: read_winner(text, "Response A:", "B:")])
def test_reading_takes_time_in_proportion_to_the_length(read: Callable[[Any], Any]) -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        read(text)
        return time.process_time() - began

    for part in STUCK:
        short, long = (part * (size // len(part)) for size in (5_000, 40_000))
        if (once := seconds(long)) > 0.5:  # CPU time; a pattern that backtracks takes many seconds
            assert min(once, seconds(long)) < 24 * min(seconds(short) for _ in range(3)), part
