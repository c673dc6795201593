"""Calibration batches that a model does not take are refused with the reason."""

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, batches, build
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.compression.calibration import loss_on, walk_blocks
from datadreamer_like.errors import ArgumentTypeError, DataError, EmptyDataset, MethodMisfit
from datadreamer_like.pruning import CoarseToFine, ForwardOnly, Heads, Layers, Movement, SparseGPT, Wanda, Width
from datadreamer_like.quantization import GPTQ, QAT, AbsMax, BinaryNetwork, LayerByLayer


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


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def padded(rows: int, tokens: int, filler: int = 1) -> list[dict[str, torch.Tensor]]:
    """A batch in which each row is one token shorter than the one before it."""
    found = torch.randint(5, 99, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(rows, tokens, dtype=torch.long).tril(tokens - rows).flip(0)
    return [{"input_ids": found.masked_fill(mask == 0, filler), "attention_mask": mask}]


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), GPTQ(4, 16), LayerByLayer(steps=1)], ids=str)
def test_a_model_that_computes_between_its_blocks_is_not_measured_block_by_block(method: CompressionMethod) -> None:
    config = DebertaV2Config(vocab_size=99, **SIZES, conv_kernel_size=3, conv_act="gelu", type_vocab_size=0)
    with pytest.raises(MethodMisfit, match=r'does not give "deberta\.encoder\.layer\.1" what the block before it'):
        method.apply(DebertaV2ForSequenceClassification(config), padded(4, 9))


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), GPTQ(4, 16), LayerByLayer(steps=1), Layers(1)], ids=str)
def test_tokens_that_the_model_adds_are_not_measured_as_text(method: CompressionMethod) -> None:
    config = LongformerConfig(vocab_size=99, **SIZES, max_position_embeddings=80, attention_window=8)
    model = LongformerForSequenceClassification(config)
    for batch in padded(4, 9)[0], {"input_ids": padded(4, 9)[0]["input_ids"]}:
        with pytest.raises(DataError, match=r"tokens \[batch, seq\] \[4, 9\], and inside .* they are \[4, 16\]"):
            method.apply(model, [batch])
    method.apply(model, padded(4, 16))


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), GPTQ(4, 16), Layers(2)], ids=str)
def test_padding_does_not_count_where_hidden_states_have_the_sequence_first(method: CompressionMethod) -> None:
    model = XLNetForSequenceClassification(XLNetConfig(vocab_size=99, d_model=32, n_layer=3, n_head=4, d_inner=48))
    # As many rows as tokens, so that shapes do not tell one order from the other.
    one, other = (method.apply(model, padded(6, 6, filler)).state_dict() for filler in (5, 90))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("is_called", [False, True], ids=["never called", "zeros"])
@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), GPTQ(4, 16)], ids=str)
def test_layers_that_no_token_reaches_are_changed_by_their_weights_alone(
    method: CompressionMethod, is_called: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + (self.unused(0 * x) if is_called else 0)

    model = Half()
    with torch.no_grad():  # the last inputs have the smallest weights
        model.unused.weight.copy_(torch.linspace(2, 1, 16).expand(16, 16))
    small = method.apply(model, [{"x": torch.randn(4, 16)}])
    if isinstance(method, GPTQ):
        (expected,) = AbsMax(4, granularity=16, exclude=("used",)).apply(model).unused.dequantized()[None]
        assert torch.equal(small.unused.dequantized(), expected)
    else:
        assert torch.equal(small.unused.weight != 0, torch.arange(16).expand(16, 16) < 8)
    assert 'no calibration token reached "unused"' in caplog.text


@pytest.mark.parametrize(
    "method", [Heads(0.5), Movement(0.5), QAT(4), BinaryNetwork(scaled=True), CoarseToFine(0.5)], ids=str
)
@pytest.mark.parametrize("options", [{"num_labels": 1}, {"num_labels": 2, "problem_type": "regression"}], ids=str)
def test_a_model_that_answers_with_numbers_needs_labels(method: CompressionMethod, options: dict[str, Any]) -> None:
    # Against its own answers its loss and all gradients would be zero.
    model = BertForSequenceClassification(BertConfig(vocab_size=99, **SIZES, **options))
    with pytest.raises((DataError, MethodMisfit), match="answers with (a number|numbers)"):
        method.apply(model, padded(4, 9))
    if not isinstance(method, CoarseToFine):
        labels = torch.randn(4, options["num_labels"])
        method.apply(model, [batch | {"labels": labels} for batch in padded(4, 9)])


def test_without_labels_the_loss_is_against_the_models_own_answers_but_for_padding() -> None:
    config = BertConfig(vocab_size=99, **SIZES, num_labels=3)
    (batch,) = padded(4, 9)
    tokens = BertForTokenClassification(config).eval()
    logits, mask = tokens(**batch).logits, batch["attention_mask"].bool()
    expected = -logits.log_softmax(-1).amax(-1)[mask].mean()
    torch.testing.assert_close(loss_on(tokens, batch), expected)
    config.problem_type = "multi_label_classification"
    several = BertForSequenceClassification(config).eval()
    expected = -nn.functional.logsigmoid(several(**batch).logits.abs()).mean()
    torch.testing.assert_close(loss_on(several, batch), expected)


@pytest.mark.parametrize("method", [Heads(0.5), Movement(0.5), ForwardOnly(0.5), QAT(4)], ids=str)
def test_batches_whose_labels_all_are_left_out_are_refused(method: CompressionMethod) -> None:
    (batch,) = padded(4, 9)
    batch["input_ids"] %= 80
    for model, shape in (build("bert"), (4,)), (build("llama"), (4, 9)):
        with pytest.raises((DataError, MethodMisfit), match="NaN"):
            method.apply(model, [batch | {"labels": torch.full(shape, -100)}])


METHODS = [Wanda(0.5), SparseGPT(0.5), Heads(0.5), Movement(0.5), GPTQ(4, 16), QAT(4), CoarseToFine(0.5, epochs=1)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_context_of_the_call_changes_nothing(method: CompressionMethod) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return build("bert")

    state = torch.get_rng_state()
    calibration = batches(build("bert"))
    expected = method.apply(made(), calibration).state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_autocast = method.apply(made(), calibration).state_dict()
    with torch.inference_mode():
        model = made()
    of_inference = method.apply(model, calibration).state_dict()
    assert expected.keys() == in_autocast.keys() == of_inference.keys()
    assert all(torch.equal(expected[name], in_autocast[name]) for name in expected)
    assert all(torch.equal(expected[name], of_inference[name]) for name in expected)
    torch.set_rng_state(state)
    method.apply(model, calibration)
    assert torch.equal(torch.get_rng_state(), state)
