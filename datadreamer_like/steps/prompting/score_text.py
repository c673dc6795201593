"""Finds the score among the numbers of an answer: not the scale, a list's number, a year, a name or a count."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .judge_text import CONCLUDES, CRITERIA, WINDOW, agreed, without_list_numbers

# Digits with dots and commas; possessive, so that each run is read once.
_RUN = re.compile(r"(?:\.(?=\d))?\d[\d.,]*+")
_NUMBER = re.compile(r"\d++(?:\.\d++)?|\.\d++|\d{1,3}(?:,\d{3})++(?:\.\d++)?|\d++,\d++")
_MOST_DIGITS = 100

# What describes the scale
_LIMIT = r"[-+]?\d{1,4}(?:\.\d{1,3})?"
_SCALES = [
    # "Score (out of 10)", "Rating [1-5]"
    re.compile(r"(?<=score|ating|grade) ?[(\[][^()\[\]\n]{0,60}[)\]]", re.IGNORECASE),
    # "1-10", "from 1 to 10", "between 1 and 10"
    re.compile(
        rf"(?<![\w.,/-])(?:{_LIMIT}(?:[-–—]| ?– ?| (?:to|through) ){_LIMIT}|(?<=between ){_LIMIT} and {_LIMIT})"
        r"(?![\d/-]|[.,]\d)",
        re.IGNORECASE,
    ),
    # "out of 10" without a number before it, "a maximum of 10"
    re.compile(
        r"(?<!\d)(?<!\d )\b(?:out of|max(?:imum)?(?: of)?|up to|scale of):? \d{1,4}(?![\d.,]*\d)", re.IGNORECASE
    ),
    # "1 = worst", "10 is the best", "best is 10"
    re.compile(
        r"(?<![\d.,])\d{1,4} ?(?:=|is|being|means) ?(?:the |very |not )?(?:best|worst|highest|lowest|maximum|minimum|"
        r"max|min|perfect|excellent|terrible|poor|good|bad|useless|great|ideal|top)\b"
        r"|\b(?:best|worst|highest|lowest|perfect|excellent|terrible|poor|good|bad) ?(?:=|is|being) ?\d{1,4}\b",
        re.IGNORECASE,
    ),
]
_USUAL_SCALES = {3, 4, 5, 6, 7, 10, 20, 50, 100, 1000}
_OUT_OF = re.compile(r"\s?(?:/|out of|of)\s?", re.IGNORECASE)

# What a number is instead of a score
_NAMED = re.compile(
    r"(?:\b(?:version|step|chapter|page|line|no\.|number|response|option|part|item|point|level|section|gpt|llama|claude|"
    r"gemini|question|criterion|example|above|over|below|under|than|at least|at most|up to|top|not|never|isn't)|"
    r"[#$€£v])\s?$",
    re.IGNORECASE,
)
_TIME = re.compile(r"\b(?:in|since|by|until|from|before|after|during|year|of)\s$", re.IGNORECASE)
_MINUS = re.compile(r"\b(?:minus|negative)\s$", re.IGNORECASE)
_SIGNED = re.compile(r"(?:^|[:=(\[,\n]\s?|\b(?:is|a|an|of|at|it|this|be|say|as)\s)$", re.IGNORECASE)
# What may follow a score: its unit, the end of a phrase, a reason; a noun makes it a count.
_UNIT = r"(?:\s?%|\s?(?:points?|pts?|stars?|percent|marks?)\b)?"
_ENDS = re.compile(
    rf"{_UNIT}(?:$|\s?[;:!?)\]}}\"'~](?!\s?\d)"
    r"|\s?[.,](?!\d)(?!\s\d)(?!\s(?:or|maybe|perhaps|possibly|probably)\b[^.]{0,12}\d)"
    r"(?!\s(?:no|rather|make (?:it|that)),?\s\d)"
    r"|\n|\s?[–—]\s(?!\d)|\s-\s(?!\d)|\s?(?:[(\[]|(?:=>|→)(?!\s?\d))"
    r"|\s(?:because|since|as|for|but|given|due|based|overall|on|with|considering|although|though|however|here|which|"
    r"would be my|is my|it|this|the|reason|and(?!\s\S{0,5}\d)|in(?!\s\d))\b|\s[A-Z][a-z])"
)
_LONE = re.compile(r"(?:an?|about|around|approximately|minus|negative|~|≈|=)?\s?['\"(\[]?$", re.IGNORECASE)
# "It is fine. 7. It has ...", not "see sec. 7."
_SENTENCE = re.compile(
    r"(?<!\bno)(?<!\bsec)(?<!\bfig)(?<!\beq)(?<!\bch)(?<!\bp)(?<!\bpp)(?<!\bvol)(?<!\bver)[.!?] $", re.IGNORECASE
)
_STOP = re.compile(r"[.!](?:\s|$)")
_ALONE_AFTER = re.compile(rf"{_UNIT}\s?[.!)\]'\"]{{0,3}}(?:\n|$)")
# "Score: 7", "I give it a 7"
_RATED = re.compile(
    r"\b(?:scor(?:e|es|ed|ing)|rat(?:e|es|ed|ing)|rank(?:ing)?|grade|answer|give|gave|giving|assign|award|deserves?|gets?|"
    r"earns?|say|choose|pick|go with|decide on)\b([^\d.;!?\n]{0,40})$",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"\b(?:mark|verdict|evaluation|result|output|value|number|points)\s?[:=]\s?$", re.IGNORECASE)
_TOTALLED = re.compile(r"\b(?:overall|total|final|conclusion|average)\b[^\d.;!?\n]{0,40}$", re.IGNORECASE)
# "8.5/10 overall"; "8 for style", one number of several
_TOTAL = re.compile(rf"{_UNIT} (?:overall|in total|altogether|on average)\b", re.IGNORECASE)
_IN_PART = re.compile(rf"{_UNIT} (?:(?:for|on|in) (?:its |the )?{CRITERIA}\b|\({CRITERIA}\))", re.IGNORECASE)
_NEXT_LABEL = re.compile(r"[A-Za-z]\s?[:=]\s?\d")
_QUOTED = re.compile(r"\b(?:says|said|claims|claimed|states|mentions|quotes|reads)\b")
_UNREAL = re.compile(r"\b(?:if|had)\b[^.;!?]{0,60}\b(?:would|could|might)\b[^.;!?]*+$", re.IGNORECASE)
_IS_RATING = re.compile(
    r"\s(?:is|would be) (?:my|the) (?:final |overall )?(?:score|rating|answer|grade)\b", re.IGNORECASE
)
# "Quality: 8"
_ONE_LINE = re.compile(rf"(?:[A-Za-z]\w{{0,20}} ){{0,3}}(?:scale|{CRITERIA})\s?[:=]\s?", re.IGNORECASE)
# "Humor: 7", the whole answer; a plural is a count, as is "Typos found"
_ONLY_LABEL = re.compile(
    r"(?!.{0,40}\b(?:found|used|seen|detected|missing|left|of)\b)"
    r"(?:[A-Za-z-]{1,20} )?[A-Za-z-]{0,20}(?:[a-rt-z]|ss|ics)\s?[:=]\s?",
    re.IGNORECASE,
)
# "Answer length: 250", "the answer has a length of 250", "Maximum score: 10", "Score: >5"
_MEASURED = re.compile(
    r"\b(?:counts?|length|words?|characters|tokens?|sentences?|paragraphs?|lines?|year|age|date|day|month|time|duration|"
    r"temperature|confidence|probability|likelihood|certainty|id|index|position|size|seed|price|cost|weight|height|"
    r"width|distance|population|errors?|mistakes?|typos|threshold|limit)"
    r"(?:\s(?:is|was|are|of|equals)){0,2}(?:\s(?:about|around|exactly))?\s?[:=]?\s?$"
    r"|\b(?:max(?:imum)?|min(?:imum)?|highest|lowest|pass(?:ing)?|previous|prior|earlier|old|baseline|reference|target)"
    r"(?: possible)? (?:score|rating|grade|mark)s?(?: is)?\s?[:=]?\s?$"
    r"|\bperfect (?:score|rating|grade) is (?:an? )?$"
    r"|(?<![-=])[<>≤≥]=?\s?$",
    re.IGNORECASE,
)
# "5 stars? No."
_ASKED = re.compile(r"[^.,;:!?()\n–—]{0,60}\?")
_TURNED = re.compile(
    r"\b(?:not|never|no|cannot|if|were|perfect|max(?:imum)?|min(?:imum)?|highest|lowest|possible|passing|needed|required|"
    r"threshold)\b|n't\b|[<>≤≥]",
    re.IGNORECASE,
)


@dataclass
class _Found:
    """A number of the text at `start` to `end`; `value` is None if it cannot be a score."""

    start: int
    end: int
    value: float | None
    out_of: float | None = None


def score_in(said: str) -> float | None:
    """Returns the score in a plain text, None without one that is certain."""
    for scale in _SCALES:
        said = scale.sub(" ", said)
    said = without_list_numbers(said.strip())
    votes: list[tuple[int, float]] = []
    for found in _numbers(said):
        before = said[max(0, found.start - WINDOW) : found.start].rpartition("\n")[2]
        after = said[found.end : found.end + WINDOW]
        if found.value is None or _MEASURED.search(before) or _ASKED.match(after):
            continue
        starts = found.start <= WINDOW and "\n" not in said[: found.start] and _LONE.fullmatch(before) is not None
        is_alone = (not before or (starts and before == said[: found.start])) and _ALONE_AFTER.match(after)
        is_sentence = _SENTENCE.search(before) and _STOP.match(after)
        if is_alone or is_sentence or _IS_RATING.match(after):
            votes.append((1, found.value))
        elif not _ENDS.match(after):
            continue
        elif _is_rated(before) or _LABELLED.search(before):
            votes.append((1 + bool(CONCLUDES.search(before)), found.value))
        elif (total := _TOTALLED.search(before)) and not _TURNED.search(total[0]) or _TOTAL.match(after):
            votes.append((2, found.value))
        elif _IN_PART.match(after) or starts or found.out_of in _USUAL_SCALES or _is_label(before, after, said):
            votes.append((1, found.value))
    return agreed(votes)


def _is_label(before: str, after: str, said: str) -> bool:
    if "\n" in said or _TURNED.search(before) or _NEXT_LABEL.search(after):
        return False
    if _ONE_LINE.fullmatch(before):
        return True
    return bool(_ONLY_LABEL.fullmatch(before) and _ALONE_AFTER.match(after)) and not _NAMED.search(before.rstrip(" :="))


def is_rated_name(name: str) -> bool:
    """Returns whether a name of a number, such as a key, is what judges rate; not a count, a measure or a part."""
    before = " ".join(re.findall(r"[A-Za-z]+", name)) + ": "
    return not _MEASURED.search(before) and _is_label(before, "", "")


def _is_rated(before: str) -> bool:
    rated = _RATED.search(before)
    if rated is None:
        return False
    if _QUOTED.search(before):
        return False
    clause = re.split(r"[,;:.!?(]", before[: rated.start()])[-1]
    return not _TURNED.search(clause) and not _TURNED.search(rated[1]) and not _UNREAL.search(before)


def _numbers(said: str) -> list[_Found]:
    """Returns the numbers of a text in order, with "x out of y" as one."""
    found: list[_Found] = []
    for run in _RUN.finditer(said):
        digits = run[0].rstrip(".,")
        start, end = run.start(), run.start() + len(digits)
        one = _Found(start - (said[start - 1 : start] in ("-", "+")), end, _value(said, start, end, digits))
        last = found[-1] if found else None
        if last is not None and start - last.end <= 10 and _OUT_OF.fullmatch(said, last.end, start):
            fits = None not in (one.value, last.value, last.out_of or 0.0) and last.out_of is None
            last.value = last.value if fits and (last.value or 0) <= (one.value or 0) else None
            last.end, last.out_of = end, one.value
        else:
            found.append(one)
    return found


def _value(said: str, start: int, end: int, digits: str) -> float | None:
    """Returns the value of a number, None if it is part of a word, a date or a name, or is not one number."""
    if len(digits) > _MOST_DIGITS or not _NUMBER.fullmatch(digits):
        return None
    before, after = said[max(0, start - WINDOW) : start].rpartition("\n")[2], said[end : end + 2]
    if (after[:1].isalpha() and said[end : end + 3] != "pts") or re.match(r"[-:–—^]\d|°", after):
        return None
    negative = before[-1:] == "-"
    if before[-1:] in ("-", "+"):
        before = before[:-1]
        if not _SIGNED.search(before):
            return None
    elif before[-1:].isalnum() or (before[-1:] == "." and before[-2:-1].isdigit()):
        return None
    negative = negative or bool(_MINUS.search(before))
    if _NAMED.search(before) or (len(digits) == 4 and digits[:2] in ("19", "20") and _TIME.search(before)):
        return None
    is_thousands = re.fullmatch(r"\d{1,3}(?:,\d{3})++(?:\.\d++)?", digits)
    value = float(digits.replace(",", "" if is_thousands else "."))
    return -value if negative else value
