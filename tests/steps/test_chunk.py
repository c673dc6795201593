"""Chunks are slices of their texts that fit, keep what belongs together, and lead back to their documents."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.models import HFTransformers
from datadreamer_like.steps import Chunk, DataSource
from datadreamer_like.steps.chunking.spans import Span, chunk_spans

GUIDE = """---
title: Guide
---
Before any heading.

# Guide

## Install

Dr. Who runs it, e.g. on a laptop. Then wait. It takes 3.5 minutes!

```
# no heading
```

## Use

- first item
- second item

Long one without any stop that goes on and on until nobody remembers how it began at all.

Setext
======

The end."""


def words(text: str) -> int:
    return len(text.split())


def texts(spans: list[Span], text: str) -> list[str]:
    return [text[span.start : span.end] for span in spans]


def covered(spans: list[Span], text: str) -> bool:
    """Whether every character other than white space is in a span."""
    seen = {place for span in spans for place in range(span.start, span.end)}
    return all(place in seen or character.isspace() for place, character in enumerate(text))


def test_headings_paragraphs_and_sentences_are_respected() -> None:
    spans = list(chunk_spans(GUIDE, words, 12))
    assert covered(spans, GUIDE)
    assert {span.headings for span in spans} == {(), ("Guide", "Install"), ("Guide", "Use"), ("Setext",)}
    made = texts(spans, GUIDE)
    # A heading goes with what follows, also one without text of its own; "Dr." and "e.g." end no sentence.
    assert "# Guide\n\n## Install\n\nDr. Who runs it, e.g. on a laptop." in made
    assert "Then wait. It takes 3.5 minutes!\n\n```\n# no heading\n```" in made
    assert "## Use\n\n- first item\n- second item" in made
    assert made[-1] == "Setext\n======\n\nThe end."


def test_without_headings_a_chunk_may_cross_them() -> None:
    spans = list(chunk_spans(GUIDE, words, 500, headings=False))
    assert texts(spans, GUIDE) == [GUIDE]
    assert spans[0].headings == ()


@pytest.mark.parametrize("seed", range(30))
def test_any_text_is_covered_by_slices_that_fit_and_overlap_no_more_than_allowed(seed: int) -> None:
    rng = random.Random(seed)
    parts = [
        "word ",
        "a",
        "Über",
        ". ",
        "! ",
        "\n",
        "\n\n",
        "\r\n\r\n",
        "# H\n",
        "\n## H\n",
        "- x\n",
        "。",
        "日本",
        "``` ",
        " | ",
    ]
    text = "".join(rng.choice(parts) for _ in range(rng.randrange(300)))
    count = rng.choice([words, len])
    most = rng.randrange(1, 20)
    overlap = rng.randrange(most)
    spans = list(chunk_spans(text, count, most, overlap, headings=rng.random() < 0.5))
    assert covered(spans, text)
    for span in spans:
        part = text[span.start : span.end]
        assert part == part.strip() != ""
        assert count(part) == span.num_tokens <= most
    for before, after in zip(spans, spans[1:], strict=False):
        assert before.start < after.start
        assert before.end < after.end
        assert count(text[after.start : max(after.start, before.end)]) <= overlap


def test_the_next_chunk_repeats_whole_sentences() -> None:
    text = "One two three. Four five. Six seven eight. Nine ten."
    made = texts(list(chunk_spans(text, words, 5, 2)), text)
    assert made == ["One two three. Four five.", "Four five. Six seven eight.", "Nine ten."]


def test_tokens_are_those_of_the_model_and_chunks_lead_to_their_documents(tiny_causal_lm: Path) -> None:
    llm = HFTransformers(str(tiny_causal_lm))
    documents = ["The cat sat. The dog ran after the ball. " * 6, None, "", "One more."]
    with DataDreamer(":memory:", verbose=False):
        rows = DataSource("Rows", data={"text": documents, "path": ["a", "b", "c", "d"]})
        inputs = {"texts": rows.output["text"], "paths": rows.output["path"]}
        step = Chunk("Chunks", inputs=inputs, args={"llm": llm, "max_tokens": 24, "overlap": 8})
        made = list(step.output)
        assert len(made) > 3
        for index, row in enumerate(made):
            place = step.trace(index).parents[0].index
            assert place is not None
            assert row["paths"] == "abcd"[place]
            assert row["chunks"] == (documents[place] or "")[row["starts"] : row["ends"]]
            assert row["num_tokens"] == llm.count_tokens(row["chunks"]) <= 24
        assert [row["paths"] for row in made][-1] == "d"
        assert {row["paths"] for row in made} == {"a", "d"}


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        ({"max_tokens": 0}, DefinitionError, "max_tokens is 0"),
        ({"max_tokens": 5, "overlap": 5}, DefinitionError, "overlap is 5"),
        ({"max_tokens": 5, "overlap": -1}, DefinitionError, "overlap is -1"),
        ({"max_tokens": 5, "llm": "gpt"}, ArgumentTypeError, 'argument "llm"'),
        ({"overlap": 5}, DefinitionError, "max_tokens"),
    ],
)
def test_bad_arguments_are_named(args: dict[str, Any], error: type[Exception], says: str) -> None:
    with DataDreamer(":memory:", verbose=False):
        rows = DataSource("Rows", data={"text": ["a"]})
        with pytest.raises(error, match=says):
            Chunk("Chunks", inputs={"texts": rows.output["text"]}, args=args)
