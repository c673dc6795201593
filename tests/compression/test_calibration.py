"""Calibration batches that a model does not take are refused with the reason."""

import pytest
import torch
from tiny_models import build

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.errors import DataError
from datadreamer_like.pruning import Heads, Movement, SparseGPT, Wanda


def ids(tokens: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.full((1, tokens), 5), "labels": torch.tensor([0])}]


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), Movement(0.5), Heads(0.5)], ids=str)
def test_sequences_that_are_longer_than_the_model_takes_are_refused(method: CompressionMethod) -> None:
    with pytest.raises(
        DataError, match=r"sequences of 65 tokens, and BertForSequenceClassification takes 64\. Cut them"
    ):
        method.apply(build("bert"), ids(65))


def test_the_positions_before_paddings_do_not_count() -> None:
    model = build("roberta")  # 64 positions, of which padding has number 1
    Wanda(0.5).apply(model, ids(62))
    with pytest.raises(DataError, match="takes 62"):
        Wanda(0.5).apply(model, ids(63))
