"""What no method can work on is refused in one clear error before any work, and the model given stays as it is."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import classes_of
from torch import nn

from datadreamer_like import formats
from datadreamer_like.compression import CompressionMethod
from datadreamer_like.errors import ArgumentTypeError, DataDreamerError, DataError, EmptyDataset, MethodMisfit
from datadreamer_like.pruning import Layers, Width
from datadreamer_like.quantization import QAT, AbsMax, Cast, DynamicInt8
from tests.tiny_models import batches, build, logits

METHODS: list[Any] = classes_of("pruning", "quantization", below=CompressionMethod)
# Others do not look at batches; `Layers` does if it gets any, `Mixed` if one of its methods does.
MEASURING = [kind for kind in METHODS if (kind.needs_calibration and not kind.changes_tokenizer) or kind is Layers]


def good() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (4, 12), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 0])}


def with_ids(change: Callable[[torch.Tensor], Any]) -> list[Any]:
    """A good batch, and one with other ids."""
    return [good(), {"input_ids": change(good()["input_ids"])}]


def cut(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    return {name: value[:rows, :tokens] if value.dim() == 2 else value[:rows] for name, value in good().items()}


CALIBRATIONS: dict[str, tuple[Callable[[], Any], type[DataDreamerError], str]] = {
    "no batch": (list, EmptyDataset, "got no calibration batch"),
    "an exhausted iterator": (lambda: iter(()), EmptyDataset, "got no calibration batch"),
    "one batch": (good, ArgumentTypeError, "is one batch; it must be an iterable of batches"),
    "one tensor": (lambda: good()["input_ids"], ArgumentTypeError, "is one batch"),
    "one text": (lambda: "a text", ArgumentTypeError, "is one text"),
    "a number": (lambda: 5, ArgumentTypeError, "iterable of batches, not 5"),
    "texts": (lambda: ["a cat", "a dog"], ArgumentTypeError, "of type str"),
    "numbers": (lambda: [1, 2], ArgumentTypeError, "of type int"),
    "None among batches": (lambda: [good(), None], ArgumentTypeError, "of type NoneType"),
    "a batch of nothing": (lambda: [{}], DataError, "has nothing, and .* takes input_ids"),
    "a batch of something else": (
        lambda: [{"text": good()["input_ids"]}],
        DataError,
        "has text, and .* takes input_ids",
    ),
    "lists": (lambda: with_ids(torch.Tensor.tolist), ArgumentTypeError, '"input_ids" .* of type list, not a tensor'),
    "arrays": (lambda: with_ids(torch.Tensor.numpy), ArgumentTypeError, "of type ndarray"),
    "strings": (lambda: [{"input_ids": ["a", "b"]}], ArgumentTypeError, "of type list"),
    "ids of None": (lambda: [{"input_ids": None}], ArgumentTypeError, "of type NoneType"),
    "floats": (lambda: with_ids(torch.Tensor.float), DataError, r"torch\.float32 \[4, 12\]; they must be token ids"),
    "one sequence": (lambda: with_ids(lambda ids: ids[0]), DataError, r"int64 \[12\]; they must be .* \[batch, seq\]"),
    "no rows": (lambda: [cut(0, 12)], EmptyDataset, r"\[0, 12\]: it has no tokens"),
    "no tokens": (lambda: [cut(4, 0)], EmptyDataset, r"\[4, 0\]: it has no tokens"),
    "tokens of another tokenizer": (lambda: with_ids(lambda ids: ids + 500), DataError, "has tokens 0 to 89"),
    "negative tokens": (lambda: with_ids(lambda ids: ids - 95), DataError, "has tokens 0 to 89"),
    "too long": (lambda: with_ids(lambda ids: ids.repeat(1, 6)), DataError, "sequences of 72 tokens, and .* takes 64"),
    "another mask": (
        lambda: [{**good(), "attention_mask": torch.ones(4, 5)}],
        DataError,
        r"attention_mask .* is \[4, 5\], and its input_ids \[4, 12\]",
    ),
    "too few labels": (lambda: [{**good(), "labels": torch.tensor([0, 1])}], DataError, r"labels .* are \[2\]"),
    "other labels": (
        lambda: [{**good(), "labels": torch.tensor([0, 1, 2, 9])}],
        DataError,
        "hold 9, .* classes 0 to 2",
    ),
}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", MEASURING)
def test_wrong_calibration_is_one_clear_error(kind: Any) -> None:
    model, method = build("bert"), kind.example()
    before = state_of(model)
    for what, (make, error, says) in CALIBRATIONS.items():
        with pytest.raises(error) as caught:
            method.apply(model, make())
        assert re.search(says, str(caught.value)), (what, str(caught.value))
        assert len(str(caught.value)) < 600, what
    assert is_same(model, before)
    assert not model.training


# Layers and Width read their batches once, one after the other.
@pytest.mark.parametrize("kind", [kind for kind in MEASURING if kind not in (Layers, Width)])
def test_batches_are_all_checked_before_the_model_sees_one(kind: Any) -> None:
    model, seen = build("bert"), []
    model.bert.embeddings.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(DataError, match="has tokens 0 to 89"):
        kind.example().apply(model, with_ids(lambda ids: ids + 500))
    assert not seen


@pytest.mark.parametrize("kind", METHODS)
class TestMisfit:
    def test_weights_that_are_not_finite_are_refused_by_name(self, kind: Any) -> None:
        places = ("bert.encoder.layer.1.output.dense", "bert.embeddings.word_embeddings", "bert.encoder.layer.0.output")
        for place, value in zip(places, (float("nan"), float("inf"), -float("inf")), strict=True):
            model = build("bert")
            next(model.get_submodule(place).parameters()).data.flatten()[0] = value
            before, seen = state_of(model), []
            model.register_forward_hook(lambda *_, seen=seen: seen.append(1))
            with pytest.raises(MethodMisfit, match=rf'{kind.__name__}.*"{place}.*" holds infinities or NaN'):
                kind.example().apply(model, ["a text"] if kind.changes_tokenizer else [good()], tokenizer=object())
            assert all(
                torch.equal(now, before[name]) or name.startswith(place) for name, now in model.state_dict().items()
            )
            assert not seen

    def test_a_quantized_model_is_refused(self, kind: Any) -> None:
        model = AbsMax().apply(build("bert"))
        before = state_of(model)
        if kind in (Layers, DynamicInt8):  # drops whole layers; quantizes what is not yet, such as embeddings
            small = kind.example().apply(model, [good()])
            name = "bert.encoder.layer.0.output.dense.weight"
            assert torch.equal(small.state_dict()[name], before[name])
            return
        with pytest.raises(MethodMisfit, match="it is quantized already"):
            kind.example().apply(model, ["a text"] if kind.changes_tokenizer else [good()], tokenizer=object())
        assert is_same(model, before)

    def test_a_module_without_linear_layers_is_refused_or_has_what_is_changed(self, kind: Any) -> None:
        model = nn.Sequential(nn.Embedding(40, 40), nn.LayerNorm(40))
        if kind in (Cast, DynamicInt8):  # they change embeddings too
            assert formats.stored_bytes(kind.example().apply(model)) < formats.stored_bytes(model)
            return
        with pytest.raises(MethodMisfit, match=r"has no|found in it|not a transformers model|none of the encoders"):
            kind.example().apply(model, ["a text"] if kind.changes_tokenizer else [good()])


# What changes the tokens needs a tokenizer: its own tests have tied weights.
@pytest.mark.parametrize("kind", [kind for kind in METHODS if not kind.changes_tokenizer])
def test_tied_weights_stay_tied_also_on_disk(kind: Any, tmp_path: Path) -> None:
    model = build("llama")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    if kind.example().fits(model):  # it is for encoders
        with pytest.raises(MethodMisfit):
            kind.example().apply(model, batches(model))
        return
    small = kind.example().apply(model, batches(model))
    small.save_pretrained(tmp_path)
    again = formats.load(tmp_path).eval()
    for each in (small, again):
        assert each.lm_head.weight is each.model.embed_tokens.weight
    batch = batches(model)[0]
    torch.testing.assert_close(logits(again, batch), logits(small.eval(), batch), rtol=1e-5, atol=1e-6)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_training_that_diverges_is_one_error() -> None:
    model = build("bert")
    kept = copy.deepcopy(model.state_dict())
    with pytest.raises(MethodMisfit, match=r"After the training for QAT.* holds infinities or NaN"):
        QAT(learning_rate=1e20, epochs=5).apply(model, [good()])
    assert is_same(model, kept)
