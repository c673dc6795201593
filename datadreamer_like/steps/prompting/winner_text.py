"""Finds which of two candidates an answer prefers: praise, blame and choices, not mentions."""

from __future__ import annotations

import re

from .judge_text import CONCLUDES, NEGATED, WINDOW, Sentence, agreed, sentences, without_list_numbers

# How an answer speaks of the candidates, whose names are these characters in all patterns
_NAME = "[\x01\x02]"
_CHOOSES = re.compile(
    r"(?:\b(?:choose|pick|prefer|select|favou?r|vote for|go with|recommend|say|lean(?:ing)? (?:towards?|to)|opt for|"
    r"choice is|preference is|answer is|it is|it's|winner is|goes to|goes with|is clearly|is definitely)\s"
    r"|\b(?:answer|choice|preference|winner|verdict|decision|judgment|judgement|preferred|better|best|conclusion|output)\s?"
    r"(?:is\s?)?[:=>-]{1,2}\s?"
    r"|\b(?:better|best|superior|stronger|preferred|preferable|winning|top)\s(?:\w{1,20}\s){0,2}is\s)"
    r"(?:the\s|\"|'|\()?$",
    re.IGNORECASE,
)
_LEADS = re.compile(
    r"['\")\]]?(?:[.!]|\s?[-–—(](?!\s?(?:\w{1,12}:? )?\d)|\s(?:because|since|as|for|due|by)\b"
    r"|:(?!\s?(?:\d|(?:clearly |slightly |much |the )*"
    r"(?:worse|worst|weaker|weakest|bad|poor|inferior|rejected|loses|loser|no|not)\b))"
    r"|,\s(?:because|since|as|for|due|by|it|its|given|which|clearly|definitely|without|hands|the|this)\b)?",
    re.IGNORECASE,
)
# "A is preferable in tone; overall B.", "A is clearer, but overall B."
_SUMS_UP = re.compile(
    r"(?:^|[,–—] )(?:so |but |and |yet )?"
    r"(?:overall|finally|in the end|in total|in conclusion|in summary|all in all|on balance),? $",
    re.IGNORECASE,
)
_VERB = r"(?:is|was|seems|looks|appears|has|would be|performs|does|reads|feels|sounds|comes|gives|provides|offers)"
_GAP = "[^.;,\x01\x02]{0,40}?"
_PRAISE = re.compile(
    rf"\s(?:{_VERB}\b({_GAP})\b(?:better|best|preferred|preferable|superior|stronger|strongest|winner|ahead)\b"
    r"|(?:clearly |easily |narrowly )?(?:wins|beats|outperforms|surpasses|edges out|trumps|takes it)\b)",
    re.IGNORECASE,
)
_BLAME = re.compile(
    rf"\s(?:{_VERB}\b({_GAP})\b(?:worse|worst|inferior|weaker|weakest|outperformed|beaten|surpassed)\b|loses\b"
    r"|(?:is|was)(?: not|n't) (?:as|so) good as\b)",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    rf"\s{_VERB}\b({_GAP})\b(?:(?:more|most) (?:helpful|accurate|complete|correct|useful|informative|relevant|"
    r"convincing|concise|clear|detailed|thorough|natural|fluent|factual|faithful|appropriate|comprehensive|coherent)|clearer)\b",
    re.IGNORECASE,
)
# "A/B", "A & B"
_JOINED = re.compile(rf"\s?(?:/|\||&|\+|\b(?:and|or|and/or)\b)\s?{_NAME}")
_JOINED_BEFORE = re.compile(rf"{_NAME}\s?(?:/|\||&|\+|\b(?:and|or|and/or)\b)\s?$")
_OVER = re.compile(rf"\s(?:over|rather than|instead of)\s{_NAME}|\s?>{{1,3}}\s?{_NAME}", re.IGNORECASE)
_UNDER = re.compile(rf"\s?<{{1,3}}\s?{_NAME}")
_TURNED = re.compile(
    r"\b(?:not|never|no|hardly|less|barely|nearly|almost|far from|thought|believed|assumed|supposed)\b|n't\b",
    re.IGNORECASE,
)
# After a clause, what makes it a case that is not so: "would be better if it were short", "... is not true"
_UNREAL = re.compile(r"[^.;]{0,60}?\b(?:(?<!even )if(?! only)|unless|were it|had it|is not true)\b", re.IGNORECASE)
# "A" before a word is an article, unless the word is a verb or begins a reason.
_ARTICLE = (
    r"(?! (?!(?:is|was|wins|has|over|beats|loses|outperforms|surpasses|seems|looks|appears|does|would|because|since|as|"
    r"for)\b)[a-z])"
)
_NOUNS = r"(?:option|candidate|answer|assistant|model|summary|choice|text|output|response|input|version)"


def winner_in(said: str, a_label: str, b_label: str) -> str | None:
    """Returns the preferred candidate in a plain text, `"a"` or `"b"`; None without one that is certain."""
    alone = said.removeprefix("final answer: ").strip(" .!:\"'()[]").lower()
    for side, label in (("a", a_label), ("b", b_label)):
        if alone in {name.lower() for name in (side, label_name(label), _short_name(label)) if name}:
            return side
    votes = []
    for sentence in sentences(_marked(without_list_numbers(said), a_label, b_label)):
        for name in re.finditer(_NAME, sentence.text):
            rank, prefers = _preference(sentence, name.start())
            if rank:
                votes.append((rank, "a" if prefers == (name[0] == "\x01") else "b"))
    return agreed(votes)


def _preference(sentence: Sentence, place: int) -> tuple[int, bool]:
    """Returns the rank of what is said of a named candidate, 0 for nothing, and whether it is preferred."""
    before = sentence.text[max(0, place - WINDOW) : place]
    after = sentence.text[place + 1 : place + 1 + WINDOW]
    if NEGATED.search(sentence.clause(place)):
        return 0, False
    if _UNREAL.match(after) or _JOINED.match(after) or _JOINED_BEFORE.search(before):
        return 0, False
    rank = 2 + bool(CONCLUDES.search(before))
    if _says(_PRAISE, after) or _CHOOSES.search(before) or _OVER.match(after):
        return rank, not _says(_BLAME, after)
    if _says(_BLAME, after) or _UNDER.match(after):
        return rank, False
    leads = _LEADS.match(after)
    sums_up = _SUMS_UP.search(before)
    begins = not before or (sums_up is not None and sums_up.start() == 0)
    if begins and (sentence.is_first or sentence.is_last) and leads and (leads[0] or not after):
        return rank, True
    if (sums_up or before.endswith("but ")) and after in ("", ".", "!"):
        return rank, True
    return int(_says(_COMPARED, after)), True


def _says(pattern: re.Pattern[str], after: str) -> bool:
    found = pattern.match(after)
    return found is not None and not _TURNED.search(found[1] or "")


def label_name(label: str) -> str:
    """Returns a label of a prompt as an answer names it: without its colon."""
    return label.strip().rstrip(":").strip()


def _short_name(label: str) -> str | None:
    last = label_name(label).rpartition(" ")[2]
    return last if len(last) == 1 else None


def _marked(said: str, a_label: str, b_label: str) -> str:
    """Returns the text with the candidates' names replaced by the characters of `_NAME`."""
    labels = {"\x01": a_label, "\x02": b_label}
    names = {" ".join(label_name(label).split()).lower(): mark for mark, label in labels.items() if label_name(label)}
    full = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    if full:
        said = re.sub(rf"(?<!\w)(?:{full})(?!\w)", lambda found: names[found[0].lower()], said, flags=re.IGNORECASE)
    for mark, label in labels.items():
        short = _short_name(label)
        if short is not None and short.isalpha():
            article = _ARTICLE if short == "A" else ""
            named = rf"(?<!\w)(?:(?i:{_NOUNS})\s{short}(?!\w)|{short}(?![\w']){article})"
            said = re.sub(named, mark, said)
    return said
