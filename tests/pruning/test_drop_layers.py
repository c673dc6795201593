import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import ENCODER, batches, build, logits
from torch import nn
from transformers import (
    BigBirdConfig,
    BigBirdForSequenceClassification,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LongformerConfig,
    LongformerForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from datadreamer_like import pruning
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats import layouts
from datadreamer_like.formats.classifiers.embedding import EmbeddingConfig, EmbeddingForSequenceClassification
from datadreamer_like.formats.modules import stacks
from datadreamer_like.pruning import Layers
from datadreamer_like.pruning.layers import block_influence


class Through(nn.Module):
    """A layer that does nothing, for a reference."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(like, "attention_type", "full_attention")

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states


def test_dropped_layer_is_skipped(family: str) -> None:
    model = build(family)
    small = pruning.Layers(keep=[0, 2]).apply(model)
    reference = copy.deepcopy(model)
    ((name, layers),) = stacks(reference)
    reference.set_submodule(f"{name}.1", Through(layers[1]))
    batch = batches(model)[0]
    torch.testing.assert_close(logits(small, batch), logits(reference, batch))
    assert small.config.num_hidden_layers == 2
    assert model.config.num_hidden_layers == 3
    assert not layouts(small)


def test_layers_of_a_classifier_on_an_encoder_are_dropped(tmp_path: Path) -> None:
    encoder = transformers.BertConfig(**ENCODER)
    model = EmbeddingForSequenceClassification(EmbeddingConfig(encoder, num_labels=3)).eval()
    small = pruning.Layers(keep=[0, 2]).apply(model)
    assert len(small.encoder.encoder.layer) == small.config.text_config.num_hidden_layers == 2
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model.encoder.encoder.layer[1] = Through(model.encoder.encoder.layer[1])
    batch = batches(model)[0]
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch))


def test_without_calibration_layers_are_spread_evenly_as_in_distilbert() -> None:
    model = build("bert")
    twelve = model.config
    twelve.num_hidden_layers = 12
    big = type(model)(twelve)
    small = pruning.Layers(keep=6).apply(big)
    for new, old in enumerate([0, 2, 4, 7, 9, 11]):
        kept, source = small.bert.encoder.layer[new].state_dict(), big.bert.encoder.layer[old].state_dict()
        assert all(torch.equal(kept[name], source[name]) for name in source)


def test_every_kth_layer_is_kept_by_a_range() -> None:
    small = pruning.Layers(keep=range(0, 3, 2)).apply(build("llama"))
    assert small.state_dict().keys() == pruning.Layers(keep=[0, 2]).apply(build("llama")).state_dict().keys()
    assert pruning.Layers(keep=range(0, 3, 2)) == pruning.Layers(keep=(0, 2))


def test_block_influence_is_one_minus_the_mean_cosine_over_tokens(family: str) -> None:
    model = build(family)
    data = batches(model)
    (stack,) = stacks(model)
    influence = block_influence(model, stack.blocks, data)
    if family in ("llama", "mistral", "qwen2", "qwen3", "gpt2"):
        # Their last entry of hidden_states has passed the final norm.
        influence = influence[:-1]
    cosines, masks = [], torch.cat([batch["attention_mask"] for batch in data]).bool()
    with torch.no_grad():
        states = [model(**batch, output_hidden_states=True).hidden_states for batch in data]
    joined = [torch.cat(parts) for parts in zip(*states, strict=True)]
    for before, after in list(zip(joined, joined[1:], strict=False))[: len(influence)]:
        cosines.append(1 - float(nn.functional.cosine_similarity(before[masks], after[masks], dim=-1).mean()))
    assert influence == pytest.approx(cosines, abs=1e-5)


def test_with_calibration_the_layer_of_least_influence_goes() -> None:
    model = build("llama")
    with torch.no_grad():
        for name, parameter in model.model.layers[1].named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(1e-3)  # this layer hardly adds to the residual stream
    small = pruning.Layers(keep=2).apply(model, batches(model))
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight)


def test_layer_types_and_cache_indices_follow() -> None:
    model = build("qwen2")
    model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    small = pruning.Layers(keep=[0, 2]).apply(model)
    assert small.config.layer_types == ["full_attention", "full_attention"]
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    prompt = torch.tensor([[7, 8, 9]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(prompt)
    cached = small.generate(prompt, attention_mask=mask, **options)
    assert cached.tolist() == small.generate(prompt, attention_mask=mask, use_cache=False, **options).tolist()


def test_layouts_follow_the_layers_that_move() -> None:
    model = build("bert")
    narrow = pruning.Heads(0.5).apply(model, batches(model))
    small = pruning.Layers(keep=[2]).apply(narrow)
    names = set(layouts(small)[0]["modules"])
    assert names
    assert all(name.startswith("bert.encoder.layer.0.") for name in names)
    assert {name.replace("layer.0", "layer.2") for name in names} <= set(layouts(narrow)[0]["modules"])


def test_misuse_is_refused() -> None:
    model = build("bert")
    with pytest.raises(MethodMisfit, match="more than its 3 layers"):
        pruning.Layers(keep=4).apply(model)
    with pytest.raises(MethodMisfit, match="single list"):
        pruning.Layers(keep=1).apply(nn.Linear(2, 2))
    with pytest.raises(DefinitionError, match="different layer indices"):
        pruning.Layers(keep=[1, 1])
    with pytest.raises(DefinitionError, match="count from 1"):
        pruning.Layers(keep=0)
    with pytest.raises(EmptyDataset):
        pruning.Layers(keep=1).apply(model, [])
    wrong: Any
    for wrong in (None, "12", 1.5, [0.5], True):
        with pytest.raises(ArgumentTypeError, match="keep must be"):
            pruning.Layers(keep=wrong)


SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
LOCAL = {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2}


@pytest.mark.parametrize("keep", [(1, 2), (2, 3), 1])
def test_layers_that_would_be_others_when_loaded_are_refused(keep: int | tuple[int, ...]) -> None:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = ModernBertForSequenceClassification(ModernBertConfig(vocab_size=99, **SIZES, **ids, **LOCAL))
    # Only the first layer has no norm before its attention. The last has the largest influence.
    model.model.layers[3].mlp.Wo.weight.data.mul_(1000)
    with pytest.raises(MethodMisfit, match=r"would become layer 0, and ModernBertConfig makes .* otherwise"):
        Layers(keep).apply(model, [{"input_ids": torch.randint(5, 99, (4, 8))}] if keep == 1 else None)
    Layers((0, 2)).apply(model)


def test_stages_that_the_count_of_layers_does_not_set_are_refused() -> None:
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    model = SwinForImageClassification(config)
    with pytest.raises(MethodMisfit, match="its config makes 2 layers, and ignores num_hidden_layers=1"):
        Layers((0,)).apply(model)
    with pytest.raises(MethodMisfit, match=r"makes \[1, 16, 32\] of \[1, 64, 16\]\. Name the layers"):
        Layers(1).apply(model, [{"pixel_values": torch.randn(1, 3, 16, 16)}])


@pytest.mark.parametrize("name", ["longformer", "bigbird", "gpt-neo"])
def test_what_configs_and_modules_say_of_each_layer_moves_with_it(name: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 99, **SIZES, "max_position_embeddings": 128}
    model: Any = {
        "longformer": lambda: LongformerForSequenceClassification(
            LongformerConfig(**sizes, attention_window=[4, 4, 8, 8])
        ),
        "bigbird": lambda: BigBirdForSequenceClassification(
            BigBirdConfig(**sizes, block_size=4, num_random_blocks=1, attention_type="block_sparse")
        ),
        "gpt-neo": lambda: GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=99, hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=64, window_size=4,
                attention_types=[[["global", "local"], 2]],
            )
        ),
    }[name]()  # fmt: skip
    ids = torch.randint(5, 99, (2, 64))
    for keep in ((0, 2), (1, 3), (3,)):
        small = Layers(keep).apply(model).eval()
        small.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        with torch.no_grad():
            assert torch.equal(small(ids).logits, loaded(ids).logits)


def test_images_have_no_padding() -> None:
    model = ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=4))
    model.vit.layers[2].mlp.fc2.weight.data.mul_(1000)
    small = Layers(1).apply(model, [{"pixel_values": torch.randn(2, 3, 16, 16)}])
    assert torch.equal(small.vit.layers[0].mlp.fc2.weight, model.vit.layers[2].mlp.fc2.weight)
