"""The words of texts with blanks and without."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datadreamer_like import DataDreamer
from datadreamer_like.evaluation import distinct_n, rouge_l
from datadreamer_like.models.words import words_of
from datadreamer_like.steps import Chunk, DataSource, Decontaminate, DeduplicateByMinHash, LengthBetween

CHINESE = "今天天气很好我们一起去公园散步吧"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's  3 o'clock.", ["It", "s", "3", "o", "clock"]),
        ("Straße, naïve; Привет мир", ["Straße", "naïve", "Привет", "мир"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("我有2只cats。", ["我", "有", "2", "只", "cats"]),
        ("コード・レビュー", ["コ", "ー", "ド", "レ", "ビ", "ュ", "ー"]),
        ("、。「」", []),
        ("हिन्दी में, தமிழ்", ["हिन्दी", "में", "தமிழ்"]),
        ("cafe\u0301 1\ufe0f\u20e3 \u0301", ["cafe\u0301", "1"]),
        ("漢\u0301字cafe\u0301か\u3099", ["漢", "字", "cafe\u0301", "か"]),
    ],
)
def test_words_are_runs_of_letters_and_characters_where_there_are_no_blanks(text: str, words: list[str]):
    assert words_of(text) == words


@given(st.text(st.sampled_from("aé1_ .漢かカ、ー𠀀한")))
def test_no_letter_is_lost(text: str):
    assert "".join(words_of(text)) == "".join(re.findall(r"\w", text))


def test_chinese_texts_are_compared_by_their_characters():
    other = "明天天气很好我们一起去公园散步吧"
    assert rouge_l(CHINESE, other) == pytest.approx(15 / 16)
    assert distinct_n([CHINESE, other], 2) < 0.7
    assert LengthBetween(16, 16)(CHINESE) is None
    with DataDreamer(":memory:"):
        rows = DataSource(
            "Rows", {"text": [f"他说{CHINESE}然后走了", "这是另外一个完全不同的句子没有相同内容"]}
        ).output["text"]
        test = DataSource("Test", {"text": [CHINESE]}).output["text"]
        found = Decontaminate("Clean", inputs={"inputs": rows, "against": test}).rejected
        assert list(found.output["found_in"]) == [0]
        near = DataSource("Near", {"text": [CHINESE * 3, CHINESE * 2 + other]}).output["text"]
        assert DeduplicateByMinHash("Once", inputs={"inputs": near}, args={"threshold": 0.7}).output.num_rows == 1
        chunks = Chunk("Chunks", inputs={"texts": near}, args={"max_tokens": 20, "headings": False}).output
        assert max(map(len, chunks["chunks"])) == max(chunks["num_tokens"]) == 20
