"""Token ids by a table of words are those of the tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datadreamer_like.distillation.tokens import batch_of, flat_batch_of
from datadreamer_like.distillation.words import WordTable, token_ids

TEXTS = [
    "The cat sat on the mat.", "a  cat", " the ", "", "   ", "cat\tdog\ncat", "don't", "[CLS] the cat[SEP]",
    "CAT, dog!",
    "ǆ İstanbul ﬁ straße", "e\u0301 \u0301a", "中文 字cat", "a\u00a0b\u2003c", "\x00cat\x1cdog \x7f", "x" * 300,
    "🐈 cat🐈",
]  # fmt: skip


def plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    return tiny_models.word_pieces(TEXTS, vocab_size=120)


def test_hostile_texts_have_the_ids_of_the_tokenizer(pieces: PreTrainedTokenizerFast) -> None:
    assert not WordTable(pieces.backend_tokenizer)._whole
    for _ in range(2):  # the second time from the table
        assert [*token_ids(pieces, TEXTS)] == plain(pieces, TEXTS)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_ids_of_the_tokenizer(pieces: PreTrainedTokenizerFast, text: str) -> None:
    assert [*token_ids(pieces, [text])] == plain(pieces, [text])


def test_tokenizers_that_look_at_neighbours_read_whole_texts() -> None:
    bytes_ = tiny_models.byte_pairs(TEXTS, 300, ["<e>"], eos_token="<e>")
    assert WordTable(bytes_.backend_tokenizer)._whole
    assert [*token_ids(bytes_, TEXTS)] == plain(bytes_, TEXTS)
    backend = Tokenizer(models.WordLevel({"<u>": 0, "new york": 1, "york": 2}, unk_token="<u>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spaced = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<u>")
    spaced.add_tokens(["new york"])
    assert WordTable(spaced.backend_tokenizer)._whole
    assert [*token_ids(spaced, ["in new york"])] == plain(spaced, ["in new york"])


def test_a_flat_batch_has_the_tokens_of_a_padded_one(pieces: PreTrainedTokenizerFast) -> None:
    backend = Tokenizer.from_str(pieces.backend_tokenizer.to_str())
    backend.post_processor = None
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    padded, flat = batch_of(bare, TEXTS, 8), flat_batch_of(bare, TEXTS, 8)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)]
    ends = [*flat["offsets"].tolist(), len(flat["input_ids"])]
    assert rows == [flat["input_ids"][start:end].tolist() for start, end in zip(ends, ends[1:], strict=False)]
