"""Calibration batches that a model does not take are refused with the reason."""

import pytest
import torch
from tiny_models import FAMILIES, batches, build

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.compression.calibration import walk_blocks
from datadreamer_like.errors import ArgumentTypeError, DataError, EmptyDataset
from datadreamer_like.pruning import ForwardOnly, Heads, Layers, Movement, SparseGPT, Wanda, Width
from datadreamer_like.quantization import GPTQ


def ids(tokens: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.full((1, tokens), 5), "labels": torch.tensor([0])}]


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), Movement(0.5), Heads(0.5)], ids=str)
def test_sequences_that_are_longer_than_the_model_takes_are_refused(method: CompressionMethod) -> None:
    with pytest.raises(
        DataError, match=r"sequences of 65 tokens, and BertForSequenceClassification takes 64\. Cut them"
    ):
        method.apply(build("bert"), ids(65))


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), GPTQ(4, 16), Heads(0.5), Layers(1), ForwardOnly(0.5)])
def test_batches_of_nothing_but_padding_are_refused(method: CompressionMethod) -> None:
    nothing = [{"input_ids": torch.full((2, 8), 5), "attention_mask": torch.zeros(2, 8, dtype=torch.long)}] * 2
    with pytest.raises(EmptyDataset):
        method.apply(build("bert"), nothing)


@pytest.mark.parametrize(
    "method", [Wanda(0.5), SparseGPT(0.5), Heads(0.5), Layers(1), ForwardOnly(0.5), Width(intermediate=24)]
)
def test_what_is_measured_on_activations_that_are_not_finite_is_refused(method: CompressionMethod) -> None:
    model = build("bert")
    model.bert.embeddings.word_embeddings.weight.data[5:] = 3e38  # their sums overflow
    with pytest.raises(DataError, match="NaN or infinit"):
        method.apply(model, batches(model))


def test_what_is_no_batches_is_refused() -> None:
    for wrong in (3, "text"):
        with pytest.raises(ArgumentTypeError, match="calibration"):
            Wanda(0.5).apply(build("bert"), wrong)  # type: ignore[call-overload]


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
