"""HiddenStates: the formula in plain Python, the layer map, the projection, and what does not fit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from datadreamer_like.distillation import Hidden, HiddenStates, Outputs, StoredTeacher, TeacherModel
from datadreamer_like.distillation.hidden_states import even_layers
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit

TEACHER = TeacherModel(nn.Linear(1, 1), str)


def bert(width: int, layers: int, **options: int) -> transformers.BertModel:
    config = transformers.BertConfig(
        vocab_size=16,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        **options,
    )
    return transformers.BertModel(config).eval()


def states(layers: int, width: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, width, generator=generator) for _ in range(layers + 1))


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("layers", [None, {0: 0, 1: 4}])
@pytest.mark.parametrize("projected", [False, True])
def test_the_loss_is_the_formula_over_mapped_layers_and_tokens(distance, layers, projected):
    width = 5 if projected else 4
    ours, theirs = states(2, width, seed=1), states(4, 4, seed=2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    projection = nn.Linear(width, 4, bias=False) if projected else None
    objective = HiddenStates(TEACHER, distance=distance, layers=layers)
    given = Outputs(hidden_states=ours, mask=mask)
    found = objective.loss(given, Outputs(hidden_states=theirs), {}, projection)

    means = []
    for layer, other in (layers or {1: 2, 2: 4}).items():
        terms = []
        for row, position in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
            h, t = ours[layer][row, position].tolist(), theirs[other][row, position].tolist()
            if projection is not None:
                h = [sum(w * x for w, x in zip(weights, h, strict=True)) for weights in projection.weight.tolist()]
            if distance == "mse":
                terms += [(a - b) ** 2 for a, b in zip(h, t, strict=True)]
            else:
                dot = sum(a * b for a, b in zip(h, t, strict=True))
                terms.append(1 - dot / math.hypot(*h) / math.hypot(*t))
        means.append(sum(terms) / len(terms))
    assert found.item() == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.parametrize("layers", [{5: 1}, {1: 5}, {0: 0, 3: 4}])
def test_a_layer_that_outputs_lack_is_named(layers):
    with pytest.raises(MethodMisfit, match=r"the student has 2 layers and the teacher 4\. Choose others"):
        HiddenStates(TEACHER, layers=layers).loss(
            Outputs(hidden_states=states(2, 4, seed=1)), Outputs(hidden_states=states(4, 4, seed=2)), {}
        )


def test_the_distance_of_a_model_to_itself_is_zero_and_no_gradient_reaches_the_teacher():
    same = tuple(state.requires_grad_() for state in states(3, 4, seed=1))
    for distance in ("mse", "cosine"):
        loss = HiddenStates(TEACHER, distance=distance).loss(
            Outputs(hidden_states=same), Outputs(hidden_states=same), {}
        )
        assert loss.item() == pytest.approx(0, abs=1e-6)
    other = tuple(state.requires_grad_() for state in states(3, 4, seed=2))
    HiddenStates(TEACHER).loss(Outputs(hidden_states=same), Outputs(hidden_states=other), {}).backward()
    assert all(state.grad is None for state in other)
    assert all(state.grad is not None for state in same[1:])


@pytest.mark.parametrize(
    ("ours", "theirs", "layers"),
    [(4, 12, [3, 6, 9, 12]), (6, 6, [1, 2, 3, 4, 5, 6]), (3, 5, [2, 3, 5]), (1, 30, [30]), (4, 2, [1, 1, 2, 2])],
)
def test_the_default_map_is_even_and_ends_in_both_last_layers(ours, theirs, layers):
    assert list(even_layers(ours, theirs).values()) == layers


def test_a_projection_is_there_where_widths_differ_and_only_there():
    projection = HiddenStates(TEACHER).modules(bert(8, 2), bert(12, 4))
    assert (projection.in_features, projection.out_features, projection.bias) == (8, 12, None)
    assert HiddenStates(TEACHER).modules(bert(8, 2), bert(8, 4)) is None
    ours, theirs = states(1, 4, seed=1), states(1, 6, seed=1)
    with pytest.raises(DefinitionError, match=r"4 dimensions and the teacher's 6.*modules"):
        HiddenStates(TEACHER).loss(Outputs(hidden_states=ours), Outputs(hidden_states=theirs), {})


def test_models_that_share_no_hidden_state_are_refused_before_training():
    class Convolution(nn.Module):
        config = SimpleNamespace(depths=[2, 2])

    for pair in ((Convolution(), bert(8, 2)), (bert(8, 2), Convolution()), (bert(8, 2), None)):
        with pytest.raises(MethodMisfit, match="shares no hidden states: its config has no hidden_size"):
            HiddenStates(TEACHER).modules(*pair)
    t5 = transformers.T5Config(vocab_size=16, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=2)
    with pytest.raises(MethodMisfit, match="share no hidden states: one is an encoder-decoder"):
        HiddenStates(TEACHER).modules(bert(8, 2), transformers.T5ForConditionalGeneration(t5))
    with pytest.raises(MethodMisfit, match="layers maps 3 to 1, but the student has 2 layers and the teacher 4"):
        HiddenStates(TEACHER, layers={3: 1}).modules(bert(8, 2), bert(8, 4))
    cut = Outputs(hidden_states=tuple(state[:, :2] for state in states(2, 4, seed=1)))
    with pytest.raises(MethodMisfit, match=r"positions of shape \(2, 3\) and \(2, 2\)"):
        HiddenStates(TEACHER).loss(Outputs(hidden_states=states(2, 4, seed=1)), cut, {})
    with pytest.raises(MethodMisfit, match="The teacher gives no hidden states"):
        HiddenStates(TEACHER).loss(Outputs(hidden_states=states(2, 4, seed=1)), Outputs(), {})


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(DefinitionError, match='"cosin" is unknown. Did you mean "cosine"'):
        HiddenStates(TEACHER, distance="cosin")
    for layers in ({}, {-1: 2}, {"1": 2}, {1: "2"}, {1: 2.0}, [1, 2], 3):
        with pytest.raises(DefinitionError, match="must map layers"):
            HiddenStates(TEACHER, layers=layers)
    with pytest.raises(ArgumentTypeError, match="cannot be a teacher"):
        HiddenStates("bert")


@pytest.mark.parametrize(
    ("stored", "layers", "words"),
    [
        ([9], {2: 9}, "layers maps 2 to 9, but the student has 2 layers and the teacher 4"),
        ([4, 9], {2: 4}, "keeps layer 9, and the teacher has 4 layers"),
        ([3], {2: 4}, "Store 4 too"),
    ],
)
def test_stored_layers_that_do_not_exist_are_refused_before_the_teacher_runs(stored, layers, words):
    objective = HiddenStates(StoredTeacher(TEACHER, Hidden(stored)), layers=layers)
    with pytest.raises(MethodMisfit, match=words):
        objective.check_signals([Hidden(stored)], bert(8, 2), bert(8, 4))
