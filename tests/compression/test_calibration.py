"""Calibration batches that a model does not take are refused with the reason."""

import pytest
import torch
from tiny_models import FAMILIES, batches, build

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.compression.calibration import walk_blocks
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


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_an_unchanged_model_put_out_what_the_whole_model_computes(family: str) -> None:
    model = build(family).eval()
    calibration = batches(model)
    seen: dict[str, list[torch.Tensor]] = {}
    modules = dict(model.named_modules())
    names = [block.name for block in walk_blocks(model, calibration, "test")]
    handles = [
        modules[name].register_forward_hook(
            lambda _, inputs, found, name=name: seen.setdefault(name, []).append(
                found[0] if isinstance(found, tuple) else found
            )
        )
        for name in names
    ]
    with torch.no_grad():
        for batch in calibration:
            model(**batch)
    for handle in handles:
        handle.remove()
    for block in walk_blocks(model, calibration, "test"):
        for found, expected in zip(block.outputs(), seen[block.name], strict=True):
            torch.testing.assert_close(found, expected)
    assert not any("forward" in vars(modules[name]) for name in names)
