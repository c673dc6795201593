"""Options of objectives, teachers and signals that make no sense are refused by name, when they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from datadreamer_like.distillation import (
    ULD,
    AttentionScores,
    Combined,
    ConfidenceWeighted,
    DistilBERT,
    Ensemble,
    Hidden,
    HiddenStates,
    OnPolicy,
    PermutedTargets,
    Probabilities,
    Relations,
    Sampled,
    SequenceLevel,
    SoftTargets,
    Supervised,
    TeacherModel,
    TinyBERT,
    TopK,
    WordLevel,
)
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, check_number
from datadreamer_like.evaluation import label_suspects

T: Any = TeacherModel(torch.nn.Linear(2, 2), str)
TWO: Any = Probabilities(["a"], [{"x": 0.5, "y": 0.5}])
Make = Callable[[Any], object]

# An option, how it is given, and whether it is a whole number.
NUMBERS: dict[str, Make] = {
    "alpha": lambda value: SoftTargets(T, alpha=value),
    "temperature": lambda value: SoftTargets(T, temperature=value),
    "temperature of samples": lambda value: Sampled(temperature=value),
    "temperature of permutations": lambda value: PermutedTargets(T, temperature=value),
    "temperatures": lambda value: TopK(temperatures=[1.0, value]),
    "weight": lambda value: ULD(T, weight=value),
    "temperature of ranks": lambda value: ULD(T, temperature=value),
    "weights": lambda value: Combined([Supervised(), SoftTargets(T)], [1.0, value]),
    "weights of an ensemble": lambda value: Ensemble([TWO, TWO], weights=[1.0, value]),
    "weights of DistilBERT": lambda value: DistilBERT(T, weights=(1.0, value, 1.0)),
    "prediction": lambda value: TinyBERT(T, prediction=value),
    "alpha of words": lambda value: WordLevel(T, alpha=value),
    "beta": lambda value: WordLevel(T, kind="jsd", beta=value),
    "skew": lambda value: WordLevel(T, kind="skew_kl", skew=value),
    "alpha of sequences": lambda value: SequenceLevel(T, alpha=value),
    "temperature of completions": lambda value: OnPolicy(T, temperature=value),
}
COUNTS: dict[str, Make] = {
    "k": TopK,
    "n": Sampled,
    "seed": lambda value: Sampled(4, seed=value),
    "heads": lambda value: Relations(T, heads=value),
    "beam_size": lambda value: SequenceLevel(T, beam_size=value),
}
LISTS: dict[str, Make] = {
    "objectives": lambda value: Combined(value, [1.0]),
    "weights": lambda value: Combined([Supervised()], value),
    "teachers": lambda value: Ensemble(value),
    "weights of an ensemble": lambda value: Ensemble([TWO], weights=value),
    "temperatures": lambda value: TopK(temperatures=value),
    "kinds": lambda value: Relations(T, kinds=value),
    "layers": lambda value: Relations(T, layers=value),
    "weights of DistilBERT": lambda value: DistilBERT(T, weights=value),
}
LAYERS: dict[str, Make] = {
    "Hidden": lambda value: Hidden([value]),
    "HiddenStates": lambda value: HiddenStates(T, layers={1: value}),
    "AttentionScores": lambda value: AttentionScores(T, layers={value: 1}),
    "Relations": lambda value: Relations(T, layers=(1, value)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite_numbers(name: str):
    for value in ("0.5", True, [1.0], 1j):
        with pytest.raises(ArgumentTypeError, match="must be a number, not"):
            NUMBERS[name](value)
    for value in (math.inf, math.nan):
        with pytest.raises(DefinitionError, match=r"is (inf|nan); it must be a finite number"):
            NUMBERS[name](value)
    with pytest.raises(DefinitionError, match="is -1"):
        NUMBERS[name](-1)
    NUMBERS[name](torch.tensor(0.5).numpy()[()])  # a number of numpy is one


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers(name: str):
    for value in ("4", True, 2.5, [1]):
        with pytest.raises(ArgumentTypeError, match="must be a whole number, not"):
            COUNTS[name](value)
    with pytest.raises(DefinitionError, match="it must be at least"):
        COUNTS[name](-1)


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_lists(name: str):
    for value in (2.0, SoftTargets(T), T, "qk"):
        with pytest.raises(ArgumentTypeError, match="must be a list of"):
            LISTS[name](value)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_whole_numbers(name: str):
    for value in (True, 1.0, "1", -1):
        with pytest.raises(DefinitionError, match="layers is"):
            LAYERS[name](value)
    LAYERS[name](1)


def test_weights_of_distilbert_are_three_and_not_all_zero():
    for weights in ((0.0, 0.0, 0.0), (1.0, 1.0), [1.0] * 4):
        with pytest.raises(DefinitionError, match="pass three numbers"):
            DistilBERT(T, weights=weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "tokenizer"), [(torch.nn.Linear(2, 2), None), ("model", str), (None, None)])
def test_a_teacher_has_a_model_and_a_tokenizer(model: Any, tokenizer: Any):
    with pytest.raises(ArgumentTypeError, match="A TeacherModel is a model and its tokenizer"):
        ConfidenceWeighted(TeacherModel(model, tokenizer))


@pytest.mark.parametrize("texts", [["", "", "", ""], ["?", "!", ".", ","]])
def test_suspects_need_words(texts: list[str]):
    with pytest.raises(DataError, match="No text of examples has a word"):
        label_suspects(texts, ["a", "b"] * 2, folds=2)


@pytest.mark.parametrize("examples", [["one", "two", "one", "two"], torch.eye(4).numpy()])
def test_suspects_need_a_row_that_is_not_trusted(examples: Any):
    with pytest.raises(DataError, match="All rows are trusted"):
        label_suspects(examples, ["a", "b"] * 2, trusted=[True] * 4, folds=2)


def test_a_range_is_in_the_message():
    with pytest.raises(DefinitionError, match="share is 2; it must be at least 0 and at most 1"):
        check_number(2, "share", 0, 1)
    with pytest.raises(DefinitionError, match="share is 0; it must be over 0 and at most 1"):
        check_number(0, "share", 0, 1, over=True)
    check_number(None, "share", optional=True)
