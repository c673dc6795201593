"""The one place that reads a judge's answer: yes or no, a score, one of two candidates.

None stands for an answer that cannot be read with certainty: it names several verdicts, declines, or only mentions one.
Such an answer is asked for again; it is never guessed.
"""

from __future__ import annotations

import re
from numbers import Real

from .judge_text import (
    CONCLUDES,
    NEGATED,
    NOT_JSON,
    WINDOW,
    agreed,
    declines,
    json_verdict,
    plain_text,
    python_value,
    sentences,
)
from .score_text import is_rated_name, score_in
from .winner_text import winner_in

_YES_NO = re.compile(r"\b(?:(yes|yep|yeah)|(no|nope|nah))\b", re.IGNORECASE)
# The question's own words: "Yes/No: ...", "I cannot answer yes or no.", "yes, no, or maybe"
_BOTH = re.compile(
    r"\b(?:yes['\")]? ?(?:/|\||and|,? ?n?or) ?['\"(]?no|no['\")]? ?(?:/|\||and|,? ?n?or) ?['\"(]?yes"
    r"|(?:yes['\")]?, ?['\"(]?no|no['\")]?, ?['\"(]?yes)['\")]?,? n?or)\b",
    re.IGNORECASE,
)
# A word that the answer speaks of; and "no" as an answer, not before what is missing ("no errors") nor as in "No. 5".
_NOUN = re.compile(
    r"['\")]?\s(?:would|could|might|may|is|was|requires?|needs)\b(?! (?:my|the) (?:final )?(?:answer|verdict))",
    re.IGNORECASE,
)
_ANSWERS_NO = re.compile(
    r"$|[.,;:!)\]\"'(]|\s?[(–—]|\s-\s|\s(?:because|since|as|but|it|this|that|there|the|its|their|i|he|she|they|we|you|in|"
    r"for|due|given|although|though|not|and|when|while|with|on|overall|thanks?|yes|no)\b(?!-)",
    re.IGNORECASE,
)
_LACKS = re.compile(
    r"\b(?:there(?:'s| is| are| was| were)|has|have|had|contains?|shows?|with|of|in|by) $", re.IGNORECASE
)
_CONDITION = re.compile(r"['\")\]]?,? (?:if|unless|provided|assuming|only if)\b", re.IGNORECASE)
_QUOTED = re.compile(r"\b(?:says|said|claims|states|replies|answers|answered|reads)[:,]? ['\"]$", re.IGNORECASE)
# What a word stands for in a legend: "Yes = 1", "0: no"
_CODE = re.compile(
    r"['\")]{0,2}\s?(?:=(?!>)|(?::|[-–—=]>|→|[-–—(\[]|maps to|means|stands for|is|equals)\s?[-+]?\d)", re.IGNORECASE
)
_CODE_BEFORE = re.compile(
    r"(?:(?<!\w)\w\s?(?:=>?|->|→|means|stands for)|\d['\")\]]?\s?(?:[:–—-]|is|for|if))\s?['\"(]?$", re.IGNORECASE
)
# A sentence, the first or the last of an answer, that calls a tie; after it, why
_TIE = re.compile(
    r"(?:(?:so|therefore|thus|hence|overall|in conclusion),? )?"
    r"(?:(?:my |the |final |overall )*(?:answer|verdict|judgement|judgment|decision|winner|result|response|choice)"
    r"(?: is| would be)?[:=]? |(?:i|i would|i will|i'd) (?:respond|answer|say|choose|go)(?: with)?:? "
    r"|it is |it's |this is |i would call it |i call it "
    r"|(?:they|both|the two|both \w{1,12}|the two \w{1,12}|(?:\w{1,12} )?a and (?:\w{1,12} )?b) are )?"
    r"['\"(]?(?:an? )?(?:(?:tie|tied|draw|equal|equally (?:good|bad|helpful|valid|correct))"
    r"['\")]?(?:\s?[-–—:,(]\s?+(?!no\b|not\b).*|\s(?:because|since|as both|between)\b.*)?|neither|both)",
    re.IGNORECASE,
)
_ALONE = {"y": True, "true": True, "n": False, "false": False}


def read_yes_or_no(text: object) -> bool | None:
    """Reads yes or no: the conclusion if there is one, else what all statements agree on.

    Example:
        >>> read_yes_or_no("**Yes**, it is."), read_yes_or_no("I would say no."), read_yes_or_no("Yes and no.")
        (True, False, None)
    """
    text = python_value(text)
    if not isinstance(text, str):
        return text if isinstance(text, bool) else None
    found = json_verdict(text, read_yes_or_no, (bool,))
    if found is not NOT_JSON:
        return None if found is None else bool(found)
    said = _BOTH.sub("...", plain_text(text))
    if declines(said):
        return None
    votes = []
    for sentence in sentences(said):
        for word in _YES_NO.finditer(sentence.text):
            before = sentence.text[max(0, word.start() - WINDOW) : word.start()]
            after = sentence.text[word.end() : word.end() + WINDOW]
            if NEGATED.search(sentence.clause(word.start())) or _CONDITION.match(after):
                continue
            if _CODE_BEFORE.search(before) or _CODE.match(after):
                continue
            if _NOUN.match(after) or before.endswith("% ") or _QUOTED.search(before):
                continue
            is_number = sentence.before_digit and after == "."
            if word[2] is not None and (not _ANSWERS_NO.match(after) or _LACKS.search(before) or is_number):
                continue
            votes.append((1 + bool(CONCLUDES.search(before)), word[1] is not None))
    return agreed(votes) if votes else _ALONE.get(said.strip(" .!\"'()[]").lower())


def read_number(text: object) -> float | None:
    """Reads a score: the number that is the answer, starts it, or is given as a score, in the whole text the same.

    Example:
        >>> read_number("8/10"), read_number("On a scale of 1 to 10, I give it a 7."), read_number("GPT-4 wrote it.")
        (8.0, 7.0, None)
    """
    text = python_value(text)
    if not isinstance(text, str):
        try:
            number = float(text) if isinstance(text, Real) else None
        except OverflowError:
            return None
        return number if number is not None and abs(number) < float("inf") else None
    found = json_verdict(text, read_number, is_verdict=is_rated_name)
    if found is not NOT_JSON:
        return None if found is None else float(found)
    said = plain_text(text)
    return None if declines(said) else score_in(said)


def read_winner(text: object, a_label: str, b_label: str) -> str | None:
    """Reads which of two candidates an answer prefers, by their labels in the prompt: `"a"` or `"b"`.

    Example:
        >>> read_winner("Response B is better.", "Response A:", "Response B:"), read_winner("Both.", "A:", "B:")
        ('b', None)
    """
    if not isinstance(text, str):
        return None
    found = json_verdict(text, lambda value: read_winner(value, a_label, b_label))
    if found is not NOT_JSON:
        return None if found is None else str(found)
    said = plain_text(text)
    return None if declines(said) else winner_in(said, a_label, b_label)


def read_winner_or_tie(text: object, a_label: str, b_label: str) -> str | None:
    """Reads which of two candidates an answer prefers, `"a"` or `"b"`, or that it calls them equal: `"tie"`.

    Example:
        >>> read_winner_or_tie("Tie.", "A:", "B:"), read_winner_or_tie("A is better.", "A:", "B:")
        ('tie', 'a')
    """
    winner = read_winner(text, a_label, b_label)
    if winner is not None or not isinstance(text, str):
        return winner
    found = json_verdict(text, lambda value: read_winner_or_tie(value, a_label, b_label))
    if found is not NOT_JSON:
        return None if found is None else str(found)
    plain = plain_text(text)
    lines, parts = plain.splitlines(), [sentence.text for sentence in sentences(plain)]
    ends = {each.strip(" .!\"'()[]") for found in (lines, parts) for each in (*found[:1], *found[-1:])}
    is_tie = any(_TIE.fullmatch(each) for each in ends)
    return "tie" if is_tie else None
