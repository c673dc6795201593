"""Token counts against the tokenizer itself, with missing texts, and what they are for: a filter on lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError
from datadreamer_like.models import HFTransformers
from datadreamer_like.steps import Chunk, CosineSimilarity, CountTokens, DataSource
from datadreamer_like.testing import FakeLLM

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


@pytest.mark.parametrize(
    ("kind", "inputs", "args", "message"),
    [
        (CountTokens, {"texts": "number"}, {"llm": FakeLLM()}, '"Step": column "number" has 1, which is not a text'),
        (Chunk, {"texts": "number"}, {"max_tokens": 3}, '"Step": column "number" has 1 in row 1, which is not a text'),
        (CosineSimilarity, {"a": "number", "b": "two"}, {}, 'input "a" has 1; expected vectors of numbers'),
        (CosineSimilarity, {"a": "two", "b": "three"}, {}, 'input "b" has a vector of 3 numbers, and an earlier one'),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_inputs_of_another_kind_are_named(kind: Any, inputs: dict[str, str], args: Any, message: str) -> None:
    rows = {"number": [None, 1], "two": [[1.0, 0.0]] * 2, "three": [None, [1.0, 0.0, 0.0]]}
    with DataDreamer(":memory:"):
        columns = DataSource("Rows", rows).output
        with pytest.raises(DataError, match=message):
            kind("Step", inputs={name: columns[column] for name, column in inputs.items()}, args=args)
