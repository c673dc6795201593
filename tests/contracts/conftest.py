"""A small classifier for every method, and the smallest real models for every step."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT classifier of four layers with random weights, and a tokenizer of words and letters."""
    return _bert(tmp_path_factory.mktemp("small-classifier"), num_labels=3)


@pytest.fixture(scope="session")
def small_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one score."""
    return _bert(tmp_path_factory.mktemp("small-cross-encoder"), num_labels=1)


def _bert(folder: Path, num_labels: int) -> Path:
    import tiny_models

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [f"{prefix}{letter}" for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = [*special, *letters, "cat", "dog", "sat", "mat", "the", *(f"never{i}" for i in range(200))]
    tokenizer = tiny_models.word_pieces({word: index for index, word in enumerate(words)})
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128}
    return tiny_models.save(tiny_models.bert(tokenizer, num_labels=num_labels, **sizes), tokenizer, folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of one layer with random weights, and a tokenizer of a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    words = ["<pad>", "<eos>", "<unk>", "a", "the", "cat", "dog", "sat", "ran", "on", "to", "mat", "tree"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
