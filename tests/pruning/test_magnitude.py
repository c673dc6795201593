import copy
from typing import Any

import pytest
import torch
from tiny_models import build
from torch import nn
from transformers import MambaConfig, MambaModel, ViTConfig, ViTModel, XLNetConfig, XLNetModel
from transformers.pytorch_utils import Conv1D

from datadreamer_like import pruning
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.formats import layouts
from datadreamer_like.formats.modules import linears, weight_of


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.83])
def test_class_blind_pruning_zeroes_exactly_the_smallest_weights_of_the_model(sparsity: float) -> None:
    model = build("bert")
    small = pruning.Magnitude(sparsity).apply(model)
    before = torch.cat([weight.flatten() for weight in matrices(model).values()])
    after = torch.cat([weight.flatten() for weight in matrices(small).values()])
    count = round(sparsity * before.numel())
    expected = before.clone()
    expected[before.abs().argsort()[:count]] = 0
    assert int((after == 0).sum()) == count
    assert torch.equal(after, expected)


def test_class_uniform_pruning_zeroes_the_same_share_of_each_matrix() -> None:
    small = pruning.Magnitude(0.6, scope="layer").apply(build("bert"))
    for weight in matrices(small).values():
        assert int((weight == 0).sum()) == round(0.6 * weight.numel())


def test_class_distribution_pruning_cuts_each_matrix_at_one_multiple_of_its_deviation() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40))
    with torch.no_grad():
        model[1].weight.mul_(100)
    small = pruning.Magnitude(0.5, scope="distribution").apply(model)
    before, after = ([weight.detach() for weight in matrices(one).values()] for one in (model, small))
    assert sum(int((weight == 0).sum()) for weight in after) == 2400
    largest_cut = [float(b[a == 0].abs().max() / b.std(correction=0)) for b, a in zip(before, after, strict=True)]
    smallest_kept = [float(b[a != 0].abs().min() / b.std(correction=0)) for b, a in zip(before, after, strict=True)]
    assert max(largest_cut) <= min(smallest_kept)


def test_biases_norms_and_embeddings_are_untouched_unless_asked() -> None:
    model = build("llama")  # the head is tied to the embedding, so it counts as one
    kept = {name: value for name, value in model.named_parameters() if "proj" not in name or name.endswith("bias")}
    small = dict(pruning.Magnitude(0.9).apply(model).named_parameters())
    assert all(torch.equal(small[name], value) for name, value in kept.items())
    asked = dict(pruning.Magnitude(0.9, include=("embeddings", "norms", "biases")).apply(model).named_parameters())
    assert sum(int((value == 0).sum()) for value in asked.values()) == round(
        0.9 * sum(value.numel() for value in model.parameters())
    )
    assert (asked["model.embed_tokens.weight"] == 0).any()


def test_excluded_parameters_are_untouched() -> None:
    model = build("bert")
    small = pruning.Magnitude(0.9, exclude=("classifier.*", "*.pooler.*")).apply(model)
    assert torch.equal(small.classifier.weight, model.classifier.weight)
    assert torch.equal(small.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
    by_module = pruning.Magnitude(0.9, exclude=("classifier", "*.pooler"), others=(("*.0.attention", 0.0),)).apply(
        model
    )
    layers = by_module.bert.encoder.layer
    for kept in (by_module.classifier, by_module.bert.pooler.dense, layers[0].attention.self.query):
        assert (kept.weight != 0).all()
    assert (layers[1].attention.self.query.weight == 0).any()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 8)])
def test_a_pattern_keeps_the_n_largest_of_every_m_inputs(family: str, pattern: tuple[int, int]) -> None:
    model = build(family)
    exclude = ("score.*", "classifier.*", "lm_head.*")
    small = pruning.Magnitude(pattern=pattern, exclude=exclude).apply(model)
    for name in linears(small, ("score", "classifier", "lm_head")):
        before, after = (weight_of(each.get_submodule(name)).detach() for each in (model, small))
        for old, new in zip(before.reshape(-1, pattern[1]), after.reshape(-1, pattern[1]), strict=True):
            largest = old.abs().argsort(descending=True)[: pattern[0]]
            assert torch.equal(new, torch.zeros_like(old).index_put((largest,), old[largest])), name


def test_a_pattern_follows_the_inputs_of_a_convolution_and_of_a_square_transposed_layer() -> None:
    square, convolution = Conv1D(4, 4), nn.Conv1d(2, 3, 4)
    small = pruning.Magnitude(pattern=(1, 4)).apply(nn.ModuleList([square, convolution]))
    assert (small[0].weight != 0).sum(0).tolist() == [1] * 4  # [in, out]: one input of each output
    assert (small[1].weight != 0).sum(2).tolist() == [[1, 1]] * 3
    with pytest.raises(MethodMisfit, match="the 6 inputs of 0.weight are not a multiple of 4"):
        pruning.Magnitude(pattern=(2, 4)).apply(nn.Sequential(nn.Linear(6, 4)))


@pytest.mark.parametrize("scope", ["model", "layer", "distribution"])
def test_layers_by_name_have_a_sparsity_of_their_own(scope: str) -> None:
    model = build("bert")
    others = (("classifier.*", 0.25), ("*.pooler.*", 0.0))
    small = pruning.Magnitude(0.5, scope, others=others).apply(model)  # type: ignore[arg-type]
    zeros = {name: int((weight == 0).sum()) for name, weight in matrices(small).items()}
    assert zeros.pop("classifier.weight") == 24
    assert zeros.pop("bert.pooler.dense.weight") == 0
    assert sum(zeros.values()) == round(0.5 * sum(model.get_parameter(name).numel() for name in zeros))


def test_ties_are_broken_by_position() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    small = pruning.Magnitude(0.375).apply(model)
    assert small[0].weight.flatten().tolist() == [0.0] * 12 + [0.5] * 4
    assert (small[1].weight == 0.5).all()


def test_input_model_is_untouched_and_a_plain_module_will_do() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    before = copy.deepcopy(model.state_dict())
    small = pruning.Magnitude(0.5).apply(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not layouts(model)
    assert list(layouts(small)[0]["modules"]) == ["0", "2"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_pruned_exactly_too(dtype: torch.dtype) -> None:
    small = pruning.Magnitude(0.7).apply(nn.Linear(33, 17).to(dtype))
    assert int((small.weight == 0).sum()) == round(0.7 * 33 * 17)


def test_retraining_keeps_the_zeros_when_masks_are_reapplied() -> None:
    torch.manual_seed(0)
    model = pruning.Magnitude(0.5).apply(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)))
    kept = pruning.masks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(5):
        model(torch.randn(16, 8)).square().sum().backward()
        optimizer.step()
        assert any((model.get_parameter(name)[~mask] != 0).any() for name, mask in kept.items())
        pruning.reapply(model, kept)
        optimizer.zero_grad()
    for name, mask in kept.items():
        assert (model.get_parameter(name)[~mask] == 0).all()
        assert (model.get_parameter(name)[mask] != before[name][mask]).all()


def test_cubic_schedule_is_zhu_and_guptas() -> None:
    for step in range(130):
        held = min(max(step - 10, 0) // 5 * 5, 100)
        expected = 0.9 + (0.1 - 0.9) * (1 - held / 100) ** 3
        assert pruning.cubic_sparsity(step, final=0.9, initial=0.1, begin=10, steps=100, every=5) == pytest.approx(
            expected
        )
    with pytest.raises(DefinitionError):
        pruning.cubic_sparsity(1, final=0.5, steps=0)


def test_gradual_pruning_never_revives_a_weight_and_keeps_one_layout() -> None:
    model = build("bert")
    for step in range(1, 5):
        smaller = pruning.Magnitude(pruning.cubic_sparsity(step, final=0.8, steps=4)).apply(model)
        for old, new in zip(matrices(model).values(), matrices(smaller).values(), strict=True):
            assert (new[old == 0] == 0).all()
        model = smaller
    assert len(layouts(model)) == 1


def test_misuse_is_refused() -> None:
    with pytest.raises(DefinitionError, match="under 1"):
        pruning.Magnitude(1.0)
    with pytest.raises(DefinitionError, match="scope"):
        pruning.Magnitude(0.5, scope="class")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="include"):
        pruning.Magnitude(0.5, include=("heads",))  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="either sparsity or pattern"):
        pruning.Magnitude()
    with pytest.raises(DefinitionError, match="A sparsity in others is 1"):
        pruning.Magnitude(0.5, others=(("a", 1.0),))
    with pytest.raises(DefinitionError, match="Leave scope, include and others out"):
        pruning.Magnitude(pattern=(2, 4), scope="layer")
    with pytest.raises(DefinitionError, match="tuple of patterns"):
        pruning.Magnitude(0.5, exclude="classifier.*")  # type: ignore[arg-type]
    wrong: Any
    for wrong in (None, (None,), 3):
        with pytest.raises(ArgumentTypeError, match="exclude must be a tuple of patterns"):
            pruning.Magnitude(0.5, exclude=wrong)
    for wrong in ({"classifier": 0.2}, (("classifier",),), ((1, 0.2),)):
        with pytest.raises(ArgumentTypeError, match="others must be pairs of a pattern and a sparsity"):
            pruning.Magnitude(0.5, others=wrong)
    for wrong in (None, "folder", 3):
        with pytest.raises(ArgumentTypeError, match=r"is applied to a torch module, not .* stages\.Prune"):
            pruning.Magnitude(0.5).apply(wrong)
    with pytest.raises(MethodMisfit, match="no floating-point weight"):
        pruning.Magnitude(0.5).apply(nn.Embedding(4, 4))


def test_positions_tokens_and_biases_that_are_parameters_of_their_own_are_untouched_unless_asked() -> None:
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    models: list[tuple[nn.Module, list[str]]] = [
        (ViTModel(ViTConfig(**sizes, image_size=16, patch_size=4)), ["cls_token", "position_embeddings"]),
        (XLNetModel(XLNetConfig(vocab_size=9, d_model=32, n_layer=1, n_head=2, d_inner=48)), ["mask_emb", "r_w_bias"]),
        (MambaModel(MambaConfig(vocab_size=9, hidden_size=32, num_hidden_layers=1, state_size=4)), ["A_log"]),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 2), dim=2)), ["weight.original0"]),
    ]
    for model, kept in models:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        small = pruning.Magnitude(0.5, scope="layer").apply(model)
        found = [name for name, _ in model.named_parameters() if name.endswith(tuple(kept))]
        assert len(found) == len(kept)
        assert all(bool(small.get_parameter(name).all()) for name in found)
        asked = pruning.Magnitude(0.5, scope="layer", include=("embeddings", "biases", "norms")).apply(model)
        assert not any(bool(asked.get_parameter(name).all()) for name in found)
