"""A small classifier for every method, and the smallest real models for every step."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT classifier of four layers with random weights, and a tokenizer of words and letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [f"{prefix}{letter}" for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = [*special, *letters, "cat", "dog", "sat", "mat", "the", *(f"never{i}" for i in range(200))]
    tokenizer = tiny_models.word_pieces({word: index for index, word in enumerate(words)})
    model = tiny_models.bert(tokenizer, hidden_size=64, num_hidden_layers=4, intermediate_size=128, num_labels=3)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("small-classifier"))
