"""Columns without steps, and an encoder so small that it trains in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.graph import Node, OutputDataset
from datadreamer_like.graph.fingerprint import fingerprint

if TYPE_CHECKING:
    import datasets

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "the", "tea", "was", "very", "and", "a", "day", "film"]


class Rows(Node):
    """Columns with a fingerprint by content."""

    kind = "step"

    def __init__(self, name: str, columns: dict[str, Any] | datasets.Dataset) -> None:
        import datasets

        super().__init__(name)
        self.dataset = columns if isinstance(columns, datasets.Dataset) else datasets.Dataset.from_dict(columns)

    def fingerprint_parts(self) -> dict[str, str]:
        return {"data": fingerprint(self.dataset)}

    @property
    def output(self) -> OutputDataset:
        return OutputDataset(self, self.dataset)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of 2 layers and 32 hidden units, without a head."""
    import tiny_models
    from transformers import BertModel

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = tiny_models.word_pieces({word: index for index, word in enumerate([*special, *WORDS])}, max_length=32)
    model = tiny_models.bert(
        tokenizer,
        BertModel,
        num_attention_heads=2,
        initializer_range=0.15,  # so narrow a model starts too flat with the usual 0.02
        hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.05,
    )
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("tiny-encoder"))


def opinions(rows: int, seed: int = 0) -> dict[str, list[str]]:
    """Short reviews, told by one word of six, with a filling of different length."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    texts, labels = [], []
    for _ in range(rows):
        word = draw(6)
        filling = [WORDS[6 + draw(8)] for _ in range(draw(9))]
        filling.insert(draw(len(filling) + 1), WORDS[word])
        texts.append(" ".join(filling))
        labels.append("positive" if word < 3 else "negative")
    return {"text": texts, "label": labels}


@pytest.fixture
def data() -> Callable[..., dict[str, Any]]:
    """Makes the four columns of a training; needs an open session."""

    def make(train: Any = None, validation: Any = None, names: tuple[str, str] = ("text", "label")) -> dict[str, Any]:
        first = Rows("Train rows", train or opinions(96))
        second = Rows("Validation rows", validation or opinions(32, seed=1))
        return {
            "train_input": first.output[names[0]],
            "train_output": first.output[names[1]],
            "validation_input": second.output[names[0]],
            "validation_output": second.output[names[1]],
        }

    return make


@pytest.fixture
def session(tmp_path: Path) -> Any:
    with DataDreamer(tmp_path / "output", verbose=False) as opened:
        yield opened
