"""Token counts against the tokenizer itself, with missing texts, and what they are for: a filter on lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.models import HFTransformers
from datadreamer_like.steps import CountTokens, DataSource

TEXTS = ["The cat sat.", "", None, "A dog ran after the red ball. " * 20]


def test_counts_are_those_of_the_tokenizer(tiny_causal_lm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    with DataDreamer(":memory:"):
        rows = DataSource("Rows", {"text": TEXTS})
        counted = CountTokens(
            "Lengths", inputs={"texts": rows.output["text"]}, args={"llm": HFTransformers(str(tiny_causal_lm))}
        )
        expected = [None if text is None else len(tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]
        assert list(counted.output["num_tokens"]) == expected
        assert list(counted.output["texts"]) == TEXTS
        short = counted.filter(lambda row: row["num_tokens"] is not None and row["num_tokens"] < 20)
        assert list(short.output["texts"]) == TEXTS[:2]
        assert counted.trace(3).parents[0].index == 3


def test_what_is_not_an_llm_is_refused(tiny_causal_lm: Path) -> None:
    with DataDreamer(":memory:"):
        rows = DataSource("Rows", {"text": ["a"]})
        with pytest.raises(ArgumentTypeError, match='argument "llm"'):
            CountTokens("Lengths", inputs={"texts": rows.output["text"]}, args={"llm": "gpt"})
