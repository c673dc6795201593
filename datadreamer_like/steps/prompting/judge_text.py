"""What a judge's answer says, without its form: thoughts, JSON, Markdown, LaTeX and tags.

Every pattern here and in `answer_readers` takes time in proportion to the text: repetitions are bounded or possessive,
and words are looked at in a window around what is found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from datadreamer_like.models.llms.answer_text import json_text, split_thoughts

T = TypeVar("T")

WINDOW = 80
"""Characters before a word that decide what it means."""

NEGATED = re.compile(
    r"n't\b|\b(?:not|cannot|never|neither|nor|without|hardly|rather than|instead of|if|whether|unless|either|when|"
    r"although|though|unclear|unsure|nobody|nothing|none|few|refuse|far from|anything but|wrong to|want to|like to|"
    r"love to|tempt(?:ed|ing) to|going to|unable|declin(?:e|es|ed|ing)|incorrect|misleading|mistaken|reluctant|"
    r"at first|initially|(?:hard|difficult|impossible|unfair|unwise) to|to qualify|says|said|claims|states|replies|"
    r"answers|answered|wish|(?:have|has|is|there's) no (?:reason|way|need|ground)s?|"
    r"(?<!\bno )(?<!beyond )(?<!any )doubt\w{0,3}|"
    r"no (?:\w{1,20} ){0,2}(?:person|people|one|reader|human|judge|expert)|"
    r"(?:needs?|requires?) (?!to\b)[^.]{1,40} to|(?:more|enough|sufficient) [^.]{1,40} to)\b"
    r"|\b(?:some|others|one|people|many|someone|critics|readers?|users?|you|they)\b.{0,40}\b"
    r"(?:say|argued?|answer|thinks?|thought|expect|expected|reply|replied|prefer|preferred|choose|"
    r"chose|pick|picked)\b",
    re.IGNORECASE,
)
"""Words in a clause after which a word is not the judge's own statement."""

CONCLUDES = re.compile(
    r"\b(?:final|finally|overall|conclusion|conclude|verdict|decision|winner|total|combined|average)\b[^.!?]{0,40}$",
    re.IGNORECASE,
)
"""Before a word, what makes it the conclusion."""

_DECLINES = re.compile(
    r"(?:(?:no|well|oh)[,:;] )?"
    r"(?:(?:(?:i'm |i am )?(?:so |very |really )?sorry|i apologi[sz]e|(?:my )?apologies)[,.:]? (?:but )?"
    r"|unfortunately,? |as an? (?:ai|language model|assistant)\b[^.]{0,40}?,? ){0,3}"
    r"(?:i|we)(?: (?:can't|cannot|can not|couldn't|won't|will not|(?:am|are) (?:unable|not able) to|refuse to"
    r"|(?:(?:must|have to) )?decline to)|'m (?:unable|not able) to) "
    r"(?:(?:help|assist)(?: you)?(?: (?:with|on|in)\b|(?=[.,;!]|$| [-–—]))|comply\b|fulfill?\b|engage\b|participate\b"
    r"|do (?:that|this)\b"
    r"|(?:answer|respond to|discuss|evaluate|judge|assess|rate|process)(?: (?:that|this|these|such|your|the|it)\b)?"
    r"(?: (?:kind of )?(?:question|request|prompt|content|topic|query)\w{0,3})?"
    r"(?=\s?[.,;!—–]|$| -| because| since| due))",
    re.IGNORECASE,
)
"""The start of a sentence in which a model refuses to judge."""

_VERDICT = re.compile(
    r"\b(?:final|finally|verdict|conclusion|overall|winner|score|rating|decision|answer(?: is|:))", re.IGNORECASE
)

CRITERIA = (
    r"(?:quality|helpful(?:ness)?|relevan(?:ce|cy|t)|accura(?:cy|te)|clarity|clear(?:ness)?|fluen(?:cy|t)|"
    r"coheren(?:ce|t)|consistency|consistent|correct(?:ness)?|complete(?:ness)?|concise(?:ness)?|factual(?:ity|ness)?|"
    r"faithful(?:ness)?|truthful(?:ness)?|honesty|harmless(?:ness)?|safety|toxicity|creativity|originality|style|"
    r"grammar|readability|informative(?:ness)?|usefulness|difficulty|similarity|engagement|naturalness|depth|tone|"
    r"[a-z]{1,20}(?:ness|ility))"
)
"""Words of what judges rate, which stand for the score: "Helpfulness: 8"."""

_HEADING = re.compile(
    r"^((?:[\w']{1,12} ){0,3}(?:answer|verdict|conclusion|decision|score|rating|winner|judgment|judgement|choice)):?\n",
    re.IGNORECASE | re.MULTILINE,
)
# Tags in which prompts often ask for reasoning, in addition to those of the models
_REASONS = re.compile(
    r"<(?P<slash>/)?(?:thinking|thoughts?|reasoning|reasons?|rationale|explanation|analysis|scratchpad|justification)>",
    re.IGNORECASE,
)
_FORMAT_TAG = re.compile(r"</?(?:b|i|u|em|strong|p|br|span|div|code|mark)\b ?/?>", re.IGNORECASE)
_TAG = re.compile(r"<(/)?([A-Za-z][\w -]{0,30})>")
_BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}\n]{1,60})\}{1,2}|\[\[([^\[\]\n]{1,60})\]\]")
_LATEX = re.compile(r"\\(?:text|mathbf|textbf)\{([^{}\n]{1,60})\}|\$([^$\n]{1,30})\$")
# "Yes. Wait, no."
_CORRECTS = re.compile(
    r"(?:^|[.!…,–—-]\s?)(?:no,? )?(?:wait|actually|hold on|scratch that|correction|on second thoughts?)\s?[,.:…!–—]"
    r"|(?:\.\.\.|[…–—])\s?no[,.]",
    re.IGNORECASE | re.MULTILINE,
)
_CHARACTERS = str.maketrans({
    "*": "", "`": "", "_": " ", "\\": "", "“": '"', "”": '"', "’": "'", "‘": "'", "−": "-", "：": ":", "／": "/",
    "．": ".", "，": ",", "\ufeff": "", "\u200b": "",
})  # fmt: skip
_BULLETS = "#>-+•·\u2022 "


def plain_text(text: str) -> str:
    """Returns a text without thoughts, markup and what it corrects itself.

    One space is between words, and headings are joined to the line after them.
    """
    said = split_thoughts(split_thoughts(text).text, _REASONS).text
    said = _BOXED.sub(lambda found: f"\nfinal answer: {found[1] or found[2]}\n", said)
    said = _LATEX.sub(lambda found: found[1] or found[2], said)
    said = _FORMAT_TAG.sub("", said)
    said = _TAG.sub(lambda found: "\n" if found[1] else f"\n{found[2]}: ", said)
    lines = (" ".join(line.split()) for line in said.translate(_CHARACTERS).splitlines())
    kept = [_without_bullet(line) for line in lines if line]
    said = "\n".join(line for line in kept if line)
    correction = max((found.end() for found in _CORRECTS.finditer(said)), default=0)
    said = said[correction:].lstrip(" .…") if correction else said
    return _HEADING.sub(r"\1: ", said)


def _without_bullet(line: str) -> str:
    stripped = line.lstrip(_BULLETS)
    # A sign before a number is not a bullet, and a number after "#" is a rank.
    is_number = stripped.removeprefix(".")[:1].isdigit()
    return line if is_number and line[0] in "-+#>" and stripped == line[1:] else stripped


def without_list_numbers(said: str) -> str:
    """Returns a text without the numbers of a list, which count from 1."""
    lines, listed = said.split("\n"), 0
    for index, line in enumerate(lines):
        number = re.match(r"\(?(\d{1,3})[.)]{1,2} (?=\S)", line)
        if number is not None and int(number[1]) == listed + 1:
            listed += 1
            lines[index] = line[number.end() :]
    return "\n".join(lines)


class Sentence(NamedTuple):
    """A sentence, whether it is the first or last one, and whether the next one starts with a digit."""

    text: str
    is_first: bool
    is_last: bool
    before_digit: bool

    def clause(self, end: int) -> str:
        """Returns the words before a position, back to the last comma, conjunction or other break."""
        before = self.text[max(0, end - WINDOW) : end]
        return re.split(r"[,;:()\"—–>]|\s-\s|\b(?:so|therefore|thus|hence|but|then)\b", before)[-1]


def sentences(text: str) -> list[Sentence]:
    """Splits a plain text into sentences; questions are left out."""
    parts = [part for part in re.split(r"(?<=[.!?;])\s|\n", text) if part]
    last = len(parts) - 1
    return [
        Sentence(part, index == 0, index == last, index < last and parts[index + 1][:1].isdigit())
        for index, part in enumerate(parts)
        if not part.endswith("?")
    ]


def declines(said: str) -> bool:
    """Whether a plain text refuses to judge: a sentence says so, and none names a verdict nevertheless."""
    return any(_DECLINES.match(sentence.text) for sentence in sentences(said)) and not _VERDICT.search(said)


def agreed(votes: list[tuple[int, T]]) -> T | None:
    """Returns the value that all votes of the highest rank have in common, None if they differ or there are none."""
    most = max((rank for rank, _ in votes), default=0)
    values = {value for rank, value in votes if rank == most}
    return values.pop() if len(values) == 1 else None


def python_value(value: Any) -> Any:
    """Returns the Python value of a numpy scalar; other values unchanged."""
    is_scalar = type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0
    return value.item() if is_scalar else value


# JSON

_KEYS = {
    "answer", "verdict", "judgement", "judgment", "decision", "result", "response", "output", "label", "value",
    "choice", "winner", "preferred", "preference", "better", "best", "keep", "score", "rating", "grade", "rank",
    "conclusion", "chosen", "points", "stars", "mark", "evaluation",
}  # fmt: skip
_FINAL = {"final", "overall", "total"}
_AGAINST = {"loser", "worse", "worst", "rejected", "weaker", "no", "not"}
_LIMITS = {"min", "max", "minimum", "maximum", "lowest", "highest", "scale"}
_DEEPEST = 3

NOT_JSON = object()
"""Stands for a text that is not a JSON object, list or string."""


def json_verdict(
    text: str,
    read: Callable[[Any], T | None],
    kinds: tuple[type, ...] = (),
    is_verdict: Callable[[str], bool] | None = None,
) -> Any:
    """Returns the verdict in a JSON answer, as `read` reads its parts; None without one, `NOT_JSON` for other texts.

    It is the value of a key such as "score", of the only key, or else the only value of one of the types `kinds`. With
    `is_verdict`, as for numbers, which may also be a year or a length, it is instead that of an only key whose name
    passes it.
    """
    said = json_text(split_thoughts(text).text.strip())
    if said[-1:] == "}" and said[:1] != "{":
        said = said[said.rfind("{") :]  # after a sentence
    if said[:1] not in ("{", "[", '"') or said.startswith("[["):
        return NOT_JSON
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        return NOT_JSON
    return _in_json(value, read, kinds, is_verdict, 0)


def _in_json(
    value: Any,
    read: Callable[[Any], T | None],
    kinds: tuple[type, ...],
    is_verdict: Callable[[str], bool] | None,
    depth: int,
) -> T | None:
    if depth > _DEEPEST:
        return None
    if isinstance(value, list):
        return _in_json(value[0], read, kinds, is_verdict, depth + 1) if len(value) == 1 else None
    if not isinstance(value, dict):
        return read(value)
    named = [(words, item) for words, item in _named(value) if not words & (_AGAINST | _LIMITS)]
    verdicts = [(words, item) for words, item in named if words & (_KEYS | _FINAL)]
    if verdicts:
        read_ones = [
            (1 + bool(words & _FINAL), _in_json(item, read, kinds, is_verdict, depth + 1)) for words, item in verdicts
        ]
        return agreed([(rank, found) for rank, found in read_ones if found is not None])
    if is_verdict is not None:
        items = [item for key, item in value.items() if isinstance(item, dict) or is_verdict(key[:80])]
        items = items if len(value) == 1 else []
    else:
        items = [item for _, item in named if len(value) == 1 or type(item) in kinds]
    return _in_json(items[0], read, kinds, is_verdict, depth + 1) if len(items) == 1 else None


def _named(value: dict[str, Any]) -> Iterator[tuple[set[str], Any]]:
    for key, item in value.items():
        yield set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", key[:80]).lower())), item
