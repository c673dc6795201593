"""Cutting a text into spans of at most so many tokens, at headings, paragraphs, sentences or words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Count = Callable[[str], int]
"""Returns the number of tokens of a text."""

_PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n\s*")
FRONT_MATTER = re.compile(r"\A---\r?\n.*?\r?\n---\r?(?:\n|\Z)", re.DOTALL)
_LINE_END = re.compile(r"\r\n?|\n")
# The end of a sentence, of a Chinese or Japanese one, or of a line before a list item or a row of a table.
_SENTENCE_END = re.compile(
    r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[\"'”’」』）]*|\n(?=[ \t]*(?:[-*+•][ \t]|\||\d{1,3}[.)][ \t]))"
)
_ABBREVIATION = re.compile(
    r"(?:\b\w|\b(?:[A-Za-z]\.)+[A-Za-z]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|cf|No|Fig|Eq|Sec|approx))\.$"
)


class Span(NamedTuple):
    """A part of a text: `text[start:end]`, its number of tokens, and the headings that it is under, outermost first."""

    start: int
    end: int
    num_tokens: int
    headings: tuple[str, ...] = ()


class _Unit(NamedTuple):
    """The smallest part that is kept whole: a sentence, or a word or part of it where that is too long."""

    start: int
    end: int
    ends_paragraph: bool


def chunk_spans(text: str, count: Count, max_tokens: int, overlap: int = 0, headings: bool = True) -> Iterator[Span]:
    """Yields the spans of a text, in order, each of at most `max_tokens`; none of a text without words.

    A span ends at the end of a paragraph if one is in its second half, else at that of a sentence; sentences that are
    too long are cut between words, and words within. With `headings`, a span is in one section of a Markdown text.
    The next span of a section repeats up to `overlap` tokens of whole sentences.
    """
    for start, end, path in _sections(text) if headings else [(0, len(text), ())]:
        units = list(_units(text, start, end, count, max_tokens, bool(path)))
        for first, last in _packed(text, units, count, max_tokens, overlap):
            found = text[units[first].start : units[last].end]
            yield Span(units[first].start, units[last].end, count(found), path)


def _packed(
    text: str, units: Sequence[_Unit], count: Count, max_tokens: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """Yields the positions of the first and the last unit of each span."""

    def size(first: int, last: int) -> int:
        return count(text[units[first].start : units[last].end])

    first = following = 0
    while first < len(units):
        last = max(following, _last_that_fits(size, first, len(units), max_tokens))
        if last < len(units) - 1 and not units[last].ends_paragraph:
            ends = (place for place in range(last - 1, following - 1, -1) if units[place].ends_paragraph)
            end = next(ends, None)
            if end is not None and size(first, end) * 2 >= max_tokens:
                last = end
        yield first, last
        following = last + 1
        if following == len(units):
            return
        start = following
        while start - 1 > first and size(start - 1, last) <= overlap and size(start - 1, following) <= max_tokens:
            start -= 1
        first = start


def _last_that_fits(size: Callable[[int, int], int], first: int, stop: int, most: int) -> int:
    """Returns the last position before `stop` up to which the size is at most `most`, and at least `first`."""
    step = 1
    while first + step < stop and size(first, first + step) <= most:
        step *= 2
    low, high = first + step // 2, min(first + step, stop)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(first, middle) <= most else (low, middle)
    return low


def _sections(text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yields start, end and headings of each section; one without text of its own is part of the next."""
    from markdown_it import MarkdownIt

    front = FRONT_MATTER.match(text)
    lines = 0 if front is None else len(_LINE_END.findall(front.group()))
    tokens = MarkdownIt("commonmark").parse("\n" * lines + text[front.end() if front else 0 :])
    starts = [0, *(end.end() for end in _LINE_END.finditer(text))]
    path: list[tuple[int, str]] = []
    names: tuple[str, ...] = ()
    begin = body = 0  # of the open section, and of the text after its heading
    for place, token in enumerate(tokens):
        if token.type != "heading_open" or token.level or token.map is None:
            continue
        start = starts[token.map[0]]
        if text[body:start].strip():
            yield begin, start, names
            begin = start
        level = int(token.tag[1:])
        path = [(depth, title) for depth, title in path if depth < level] + [(level, tokens[place + 1].content)]
        names = tuple(title for _, title in path)
        body = starts[token.map[1]] if token.map[1] < len(starts) else len(text)
    yield begin, len(text), names


def _units(text: str, start: int, end: int, count: Count, max_tokens: int, has_heading: bool) -> Iterator[_Unit]:
    for paragraph, stop in _parts(text, start, end, _PARAGRAPH_END):
        sentences = list(_sentences(text, paragraph, stop))
        is_heading = has_heading and paragraph == start and stop < end and len(sentences) == 1
        for place, (first, last) in enumerate(sentences):
            ends_paragraph = place == len(sentences) - 1 and not is_heading
            if count(text[first:last]) <= max_tokens:
                yield _Unit(first, last, ends_paragraph)
            else:
                words = list(_words(text, first, last, count, max_tokens))
                yield from (_Unit(*word, False) for word in words[:-1])
                yield _Unit(*words[-1], ends_paragraph)


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    begin = start
    for found in _SENTENCE_END.finditer(text, start, end):
        rest = text[found.end() : found.end() + 20].lstrip()
        is_dot = found.group()[0] == "."
        if is_dot and (
            _ABBREVIATION.search(text[max(start, found.start() - 12) : found.start() + 1]) or rest[:1].islower()
        ):
            continue
        yield from _trimmed(text, begin, found.end())
        begin = found.end()
    yield from _trimmed(text, begin, end)


def _words(text: str, start: int, end: int, count: Count, max_tokens: int) -> Iterator[tuple[int, int]]:
    def size(first: int, last: int) -> int:
        return count(text[first : last + 1])

    for word in re.compile(r"\S+").finditer(text, start, end):
        first, stop = word.span()
        while first < stop:
            last = _last_that_fits(size, first, stop, max_tokens)  # one character may have more tokens
            yield first, last + 1
            first = last + 1


def _parts(text: str, start: int, end: int, separator: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    for found in separator.finditer(text, start, end):
        yield from _trimmed(text, start, found.start())
        start = found.end()
    yield from _trimmed(text, start, end)


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields a span without the white space around it; nothing if there is nothing else."""
    part = text[start:end]
    if part.strip():
        yield start + len(part) - len(part.lstrip()), start + len(part.rstrip())
