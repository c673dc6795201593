"""What no method can work on is refused in one clear error before any work, and the model given stays as it is."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from subjects import classes_of
from torch import nn

from datadreamer_like import formats
from datadreamer_like.compression import CompressionMethod
from datadreamer_like.errors import ArgumentTypeError, DataDreamerError, DataError, EmptyDataset, MethodMisfit
from datadreamer_like.pruning import CoarseToFine, Heads, Layers, Movement, SparseGPT, Wanda
from datadreamer_like.quantization import GPTQ, QAT, AbsMax, BinaryNetwork, Cast, DynamicInt8, LayerByLayer
from tests.tiny_models import batches, build, logits

METHODS: list[Any] = classes_of("pruning", "quantization", below=CompressionMethod)
ONE_LAYER = [Wanda(0.5), SparseGPT(0.5), GPTQ(), AbsMax(), QAT(), DynamicInt8()]
NAME: Callable[[Any], str] = lambda method: type(method).__name__  # noqa: E731
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


# Layers reads its batches once, one after the other.
@pytest.mark.parametrize("kind", [kind for kind in MEASURING if kind is not Layers])
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


@pytest.mark.parametrize("method", ONE_LAYER, ids=NAME)
def test_a_layer_alone_is_refused_where_the_layers_of_a_model_are_replaced_or_measured(method: Any) -> None:
    with pytest.raises(MethodMisfit, match=r"itself the layer to change.*nn.Sequential"):
        method.apply(nn.Linear(32, 32), [{"input": torch.randn(4, 32)}])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize("kind", METHODS)
def test_a_model_with_adapters_is_refused_since_saving_it_leaves_out_what_would_be_changed(kind: Any) -> None:
    model = get_peft_model(build("bert"), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    with pytest.raises(MethodMisfit, match=r"adapters on its weights.*merge_and_unload"):
        kind.example().apply(model, ["a text"] if kind.changes_tokenizer else [good()], tokenizer=object())


@pytest.mark.parametrize(
    "method",
    [Wanda(0.5), SparseGPT(0.5), CoarseToFine(0.5), GPTQ(), LayerByLayer()],
    ids=NAME,
)
@pytest.mark.parametrize("shared", ["output.dense", ""])
def test_a_weight_or_block_in_two_places_is_refused_where_each_is_changed_by_itself(method: Any, shared: str) -> None:
    model = build("bert")
    layers = model.bert.encoder.layer
    if shared:
        layers[1].get_submodule(shared).weight = layers[0].get_submodule(shared).weight
    else:
        layers[1] = layers[0]
    with pytest.raises(MethodMisfit, match=r'"bert.encoder.layer.0.*" is tied to "bert.encoder.layer.1'):
        method.apply(model, [good()])


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


TRAINED = [QAT(), QAT(4, group_size=16), BinaryNetwork(), Movement(0.5), CoarseToFine(0.5)]


@pytest.mark.parametrize("method", TRAINED, ids=NAME)
def test_a_training_that_cannot_end_well_is_one_error(method: Any) -> None:
    model = build("bert")
    kept = copy.deepcopy(model.state_dict())
    with pytest.raises(MethodMisfit, match=r"diverged in step \d+ of 5: .*Lower learning_rate, which was 1e\+20"):
        dataclasses.replace(method, learning_rate=1e20, epochs=5).apply(model, [good()])
    assert is_same(model, kept)
    with pytest.raises(MethodMisfit, match=r"weights are fp16.*model.float\(\)"):
        method.apply(model.half(), [good()])


def test_a_model_of_which_nothing_learns_is_one_error_where_its_weights_have_to() -> None:
    model = build("bert").requires_grad_(False)
    with pytest.raises(MethodMisfit, match="all of its parameters are frozen"):
        QAT().apply(model, [good()])
    small = Movement(0.5).apply(model, [good()])  # its scores learn
    assert not any(parameter.requires_grad for name, parameter in small.named_parameters() if "embeddings.word" in name)


@pytest.mark.parametrize("method", [QAT(), Heads(0.5), LayerByLayer(steps=2), Wanda(0.5)], ids=NAME)
def test_methods_give_the_same_in_inference_mode(method: Any) -> None:
    model = build("bert")
    wanted = method.apply(model, [good()]).state_dict()
    with torch.inference_mode():
        found = method.apply(model, [good()])
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    assert not any(value.is_inference() for value in found.state_dict().values())
