"""Tiny BERT classifiers that really tell three kinds of sentences apart, and columns to measure them on."""

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from datadreamer_like import DataDreamer
from datadreamer_like.steps.sources.data_source import DataSource

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


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator(
        rows(300, 0)[0], trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )


def classifier(steps: int, labels: list[str], seed: int = 0, **config: Any) -> BertForSequenceClassification:
    """A BERT of two layers, trained for some steps; its classes are in the order of `labels`."""
    tokens = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokens),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=32,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                pad_token_id=0,
                **config,
            )
        )
        texts, names = rows(256, 1)
        batch = tokens(texts, return_tensors="pt", padding=True)
        target = torch.tensor([labels.index(name) for name in names])
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(steps):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=target).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def save(model: BertForSequenceClassification, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


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


@pytest.fixture(scope="session")
def byte_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained Llama of one layer whose tokens are single bytes; no chat template; context 96."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator(
        ["a"],
        trainers.BpeTrainer(
            vocab_size=258,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", model_max_length=96, padding_side="left"
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokens),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=96,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
            )
        )
    folder = tmp_path_factory.mktemp("models") / "bytes"
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


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
