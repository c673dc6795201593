"""Tiny BERT classifiers that really tell three kinds of sentences apart, and columns to measure them on."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.steps.sources.data_source import DataSource

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = {
    "animals": ["cat", "dog", "bird", "horse", "fish", "mouse"],
    "food": ["bread", "tea", "soup", "cake", "rice", "cheese"],
    "weather": ["rain", "snow", "wind", "sun", "storm", "cloud"],
}
FILLERS = ["the", "a", "old", "small", "very", "near", "today", "again", "under", "house", "saw", "we", "they", "was"]
LABELS = sorted(WORDS)


def rows(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences with one telling word among fillers, and their topics."""
    generator = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = generator.choice(LABELS)
        words = [*generator.choices(FILLERS, k=generator.randint(2, 9)), generator.choice(WORDS[label])]
        generator.shuffle(words)
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def columns(count: int = 48) -> dict[str, Any]:
    """The four columns that a trainer's `train` takes, of so many rows to train on."""
    given: dict[str, Any] = {}
    for split, number, seed in (("train", count, 5), ("validation", 30, 6)):
        texts, labels = rows(number, seed)
        made = DataSource(f"Rows for {split}", data={"text": texts, "label": labels}).output
        given |= {f"{split}_input": made["text"], f"{split}_output": made["label"]}
    return given


def tokenizer() -> PreTrainedTokenizerFast:
    import tiny_models

    return tiny_models.word_pieces(rows(300, 0)[0], max_length=32, vocab_size=150)


def classifier(steps: int, labels: list[str], seed: int = 0) -> BertForSequenceClassification:
    """A BERT of two layers, trained for some steps; its classes are in the order of `labels`."""
    import tiny_models
    import torch

    tokens = tokenizer()
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    model: BertForSequenceClassification = tiny_models.bert(tokens, seed=seed, num_labels=len(labels), **names)
    texts, found = rows(256, 1)
    batch = tokens(texts, return_tensors="pt", padding=True)
    target = torch.tensor([labels.index(name) for name in found])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny_models.fit(model, steps, **batch, labels=target)
    return model


def save(model: BertForSequenceClassification, folder: Path) -> Path:
    import tiny_models

    return tiny_models.save(model, tokenizer(), folder)


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_no_garbage() -> None:
    """Stages collect garbage when they free a model; walking all that the imports left would be most of these tests."""
    gc.freeze()


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier that knows the three topics well."""
    return save(classifier(25, LABELS), tmp_path_factory.mktemp("models") / "good")


@pytest.fixture(scope="session")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one that hardly began to learn, whose classes stand in another order."""
    return save(classifier(4, LABELS[::-1], seed=3), tmp_path_factory.mktemp("models") / "poor")


@pytest.fixture
def mixture(good: Path, tmp_path: Path) -> Path:
    """A folder with an untrained mixture of experts for the same classes."""
    import tiny_models
    import torch
    import transformers

    from datadreamer_like.models import TrainedModel

    teacher = TrainedModel(good)
    config = transformers.MixtralConfig(
        **{**tiny_models.SIZES, "vocab_size": len(teacher.tokenizer)}, num_local_experts=4, num_key_value_heads=2,
        pad_token_id=teacher.tokenizer.pad_token_id, id2label=teacher.config.id2label,
        label2id=teacher.config.label2id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForSequenceClassification(config)
    return tiny_models.save(model, teacher.tokenizer, tmp_path / "mixture")


@pytest.fixture(scope="session")
def byte_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained Llama of one layer whose tokens are single bytes; no chat template; context 96."""
    import tiny_models

    tokens = tiny_models.byte_pairs(
        ["a"], 258, ["<pad>", "<eos>"], pad_token="<pad>", eos_token="<eos>", model_max_length=96
    )
    model = tiny_models.llama(
        tokens, 1, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    return tiny_models.save(model, tokens, tmp_path_factory.mktemp("models") / "bytes")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[DataDreamer]:
    with DataDreamer(tmp_path / "out", verbose=False) as opened:
        yield opened


@pytest.fixture
def column() -> Callable[[str], Any]:
    """Gives the column "text" or "label" of a hundred rows that no model was trained on; needs a session."""
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if not made:
            texts, labels = rows(100, 7)
            made["step"] = DataSource("Held out", data={"text": texts, "label": labels})
        return made["step"].output[name]

    return of
