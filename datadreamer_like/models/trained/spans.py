"""Spans of texts as BIO tags of tokens, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

from datadreamer_like.errors import DataError, MethodMisfit

if TYPE_CHECKING:
    from datadreamer_like.distillation import Teacher

OUTSIDE = "O"


class Span(TypedDict):
    """A labelled part of a text: `text[start:end]`; a prediction has a `score`, the mean probability of its tags."""

    start: int
    end: int
    label: str
    score: NotRequired[float]


class Unit(NamedTuple):
    """A token that has a tag: its position among the token ids, and the part of the text that it stands for."""

    position: int
    start: int
    end: int


def tag_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the BIO tags of labels: "O", then "B-..." and "I-..." of each.

    Example:
        >>> tag_names(["place", "time"])
        ('O', 'B-place', 'I-place', 'B-time', 'I-time')
    """
    return OUTSIDE, *(f"{kind}-{label}" for label in labels for kind in "BI")


def spans_of_tags(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Returns the spans of a sequence of BIO tags: first and last-plus-one index, and label.

    As conlleval does (Tjong Kim Sang and De Meulder 2003), an "I-" that continues no span of its label starts one.

    Example:
        >>> spans_of_tags(["B-a", "I-a", "O", "I-b", "B-b"])
        [(0, 2, 'a'), (3, 4, 'b'), (4, 5, 'b')]
    """
    found: list[tuple[int, int, str]] = []
    for index, tag in enumerate(tags):
        kind, _, label = tag.partition("-")
        if kind == "I" and found and found[-1][1:] == (index, label):
            found[-1] = (found[-1][0], index + 1, label)
        elif kind in ("B", "I"):
            found.append((index, index + 1, label))
    return found


def units_of(text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None], every: bool) -> list[Unit]:
    """Returns the units of a tokenized text: its words, at their first token, or `every` token.

    `offsets` and `words` are a fast tokenizer's, for each token; special tokens are of no word. A word also ends at
    white space.
    """
    found: list[Unit] = []
    last: int | None = None
    for position, ((start, end), word) in enumerate(zip(offsets, words, strict=True)):
        if word is None:
            last = None
            continue
        bare = text[start:end]
        inner_start, inner_end = start + len(bare) - len(bare.lstrip()), end - len(bare) + len(bare.rstrip())
        if inner_start >= inner_end:  # white space only
            continue
        after_space = inner_start > start or (start > 0 and text[start - 1].isspace())
        if every or not found or word != last or after_space:
            found.append(Unit(position, inner_start, inner_end))
        else:
            found[-1] = found[-1]._replace(end=max(found[-1].end, inner_end))
        last = word
    return found


def tags_of_spans(spans: Sequence[Span], units: Sequence[Unit], *, snap: bool, where: str) -> list[str]:
    """Returns the BIO tag of each unit; a span that cuts a unit is widened to it if `snap`.

    Raises:
        DataError: A span cuts a unit and may not be widened, or two spans share one. `where` is for the message.
    """
    tags = [OUTSIDE] * len(units)
    for span in sorted(spans, key=lambda span: (span["start"], span["end"])):
        start, end, label = span["start"], span["end"], span["label"]
        inside = [index for index, unit in enumerate(units) if unit.start < end and unit.end > start]
        cut = [units[index] for index in inside if units[index].start < start or units[index].end > end]
        if cut and not snap:
            raise DataError(
                f"{where}: the span {start}:{end} ({label}) cuts the token {cut[0].start}:{cut[0].end}. Correct the "
                "span, or pass snap=True to widen such spans to whole tokens."
            )
        for index in inside:
            if tags[index] != OUTSIDE:
                raise DataError(
                    f"{where}: the span {start}:{end} ({label}) shares a token with another span, and a token has one "
                    "tag. Keep one of them."
                )
            tags[index] = f"{'B' if index == inside[0] else 'I'}-{label}"
    return tags


def check_fast(tokenizer: Any) -> None:
    """Raises `MethodMisfit` if a tokenizer does not say which part of a text a token is."""
    if not getattr(tokenizer, "is_fast", False):
        raise MethodMisfit(
            f"{type(tokenizer).__name__} does not return the positions of its tokens in a text, which spans need. "
            "Choose a model with a fast tokenizer."
        )


def predict_spans(
    teacher: Teacher, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
) -> list[list[Span]]:
    """Returns the spans that a token classifier finds in each text.

    A model trained on the first token of words has `tag_every_token` False in its config: a word then has the tag of
    its first token. Texts are cut at `max_length` tokens, or the model's own limit.
    """
    import torch

    from datadreamer_like.distillation.teacher import device_of, eval_mode
    from datadreamer_like.distillation.tokens import NO_LIMIT, batch_of, max_tokens, parts_in_cache

    model, tokenizer = teacher.model, teacher.tokenizer
    check_fast(tokenizer)
    names = {int(index): str(name) for index, name in model.config.id2label.items()}
    every = bool(getattr(model.config, "tag_every_token", True))
    longest = min(max_length or NO_LIMIT, max_tokens(model.config, tokenizer) or NO_LIMIT)
    found: list[list[Span]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    with torch.no_grad(), eval_mode(model):
        for first in range(0, len(order), batch_size):
            rows, home = order[first : first + batch_size], device_of(model)
            for part, batch in parts_in_cache(batch_of(tokenizer, [texts[row] for row in rows], longest), home):
                logits = model(**{name: value.to(home) for name, value in batch.items()}).logits
                scores, tags = logits.float().softmax(-1).cpu().max(-1)
                for index, row_scores, row_tags in zip(part, scores.tolist(), tags.tolist(), strict=True):
                    row = rows[index]
                    encoded = tokenizer(
                        texts[row], truncation=True, max_length=longest, return_offsets_mapping=True, verbose=False
                    )
                    units = units_of(texts[row], encoded["offset_mapping"], encoded.word_ids(), every)
                    for start, end, label in spans_of_tags([names[row_tags[unit.position]] for unit in units]):
                        parts = [row_scores[unit.position] for unit in units[start:end]]
                        first_character, last = units[start].start, units[end - 1].end
                        score = sum(parts) / len(parts)
                        found[row].append(Span(start=first_character, end=last, label=label, score=score))
    return found
