"""Teachers of classes without tokens: probabilities, predictors, ensembles, and LLMs that score labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from datadreamer_like.distillation import Ensemble, Predictor, Probabilities, ScoreLabels
from datadreamer_like.errors import (
    ArgumentTypeError,
    BadRequest,
    DataError,
    DefinitionError,
    LabelError,
    MethodMisfit,
    ModelError,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import LLM, HFTransformers, Scored


def test_known_probabilities_are_found_by_text_whatever_their_form():
    texts = ["a", "b", "a"]
    of_mappings = Probabilities(texts, [{"x": 0.25, "y": 0.75}, {"y": 1.0}, {"x": 0.75, "y": 0.25}])
    of_lists = Probabilities(texts, np.array([[0.25, 0.75], [0, 1], [0.75, 0.25]]), classes=["x", "y"])
    for teacher in (of_mappings, of_lists):
        assert list(teacher.classes) == ["x", "y"]
        found = teacher.class_logits(["b", "a"])
        assert torch.allclose(found.softmax(-1), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))  # the mean of equal texts
    assert fingerprint(of_mappings) == fingerprint(of_lists)
    assert fingerprint(of_lists) != fingerprint(Probabilities(["a"], [[0.25, 0.75]], classes=["x", "y"]))
    decisions = Probabilities(["a"], [[0.25, 1.0, 0.9]], classes=["x", "y", "z"], multi_label=True)
    found = decisions.class_logits(["a"])
    assert torch.allclose(found.sigmoid(), torch.tensor([[0.25, 1.0, 0.9]]), atol=1e-5)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("rows", "options", "error", "words"),
    [
        ([[0.5, 0.6]], {"classes": ["x", "y"]}, DataError, r"in row 0, whose sum is 1.1; .* must sum to 1"),
        ([[1.5, -0.5]], {"classes": ["x", "y"]}, DataError, "must be from 0 to 1"),
        ([[math.nan, 1.0]], {"classes": ["x", "y"]}, DataError, "must be from 0 to 1"),
        ([["a", 1.0]], {"classes": ["x", "y"]}, DataError, "must be a number"),
        ([[1.0]], {"classes": ["x", "y"]}, DataError, "one probability for each of the 2 classes"),
        ([None], {"classes": ["x", "y"]}, DataError, "one probability for each of the 2 classes"),
        ([{"x": 0.5, "yy": 0.5}], {"classes": ["x", "y"]}, LabelError, '"yy" is not one of the 2 classes: x, y'),
        ([[0.5, 0.5]], {}, DefinitionError, "whose classes are unknown"),
        ([None], {}, DataError, "is None in row 0, such as that of a text without votes"),
        ([{"x": 1.0}], {}, DefinitionError, "two or more"),
        ([[0.5, 0.5]], {"classes": ["x", "x"]}, DefinitionError, "all of them different"),
        ([[0.5, 0.5]] * 2, {"classes": ["x", "y"]}, DefinitionError, "1 texts and 2 rows"),
    ],
)
def test_what_are_no_probabilities_is_refused_with_its_row(rows, options, error, words):
    with pytest.raises(error, match=words):
        Probabilities(["a"], rows, **options)


def test_a_text_without_probabilities_is_named():
    with pytest.raises(DataError, match="has no probabilities of the text 'other'"):
        Probabilities(["a"], [{"x": 0.5, "y": 0.5}]).class_logits(["a", "other"])


def test_any_object_that_predicts_probabilities_teaches():
    pipeline = make_pipeline(CountVectorizer(), LogisticRegression()).fit(["good", "bad", "fine"], ["p", "n", "p"])
    teacher = Predictor(pipeline)
    assert list(teacher.classes) == ["n", "p"]
    expected = torch.from_numpy(pipeline.predict_proba(["good", "so bad"])).float()
    assert torch.allclose(teacher.class_logits(["good", "so bad"]).softmax(-1), expected, atol=1e-6)
    other = make_pipeline(CountVectorizer(), LogisticRegression()).fit(["good", "bad", "fine"], ["n", "p", "p"])
    assert fingerprint(teacher) != fingerprint(Predictor(other))
    with pytest.raises(ArgumentTypeError, match="has no predict_proba"):
        Predictor("model")

    class Unnamed:
        def predict_proba(self, texts: list[str]) -> Any:
            return [[0.5, 0.5]]

    with pytest.raises(DefinitionError, match=r"Pass classes=\[\.\.\.\]"):
        Predictor(Unnamed())
    with pytest.raises(DataError, match="1 rows for 2 texts"):
        Predictor(Unnamed(), classes=["x", "y"]).class_logits(["a", "b"])


def test_an_ensemble_is_the_weighted_mean_of_probabilities_matched_by_name():
    first = Probabilities(["a"], [{"x": 0.2, "y": 0.8}])
    other = Probabilities(["a"], [[0.5, 0.5]], classes=["y", "x"])
    sure = Probabilities(["a"], [[0.0, 1.0]], classes=["y", "x"])
    ensemble = Ensemble([first, other, sure], weights=[1, 1, 2])
    assert list(ensemble.classes) == ["x", "y"]
    expected = torch.tensor([[0.25 * 0.2 + 0.25 * 0.5 + 0.5, 0.25 * 0.8 + 0.25 * 0.5]])
    assert torch.allclose(ensemble.class_logits(["a"]).exp(), expected, atol=1e-6)
    alone = Ensemble([first]).class_logits(["a"])
    assert torch.allclose(alone, first.class_logits(["a"]))
    decisions = [Probabilities(["a"], [row], ["x", "y"], multi_label=True) for row in ([0.2, 0.9], [0.6, 0.1])]
    together = Ensemble(decisions)
    assert together.multi_label
    assert torch.allclose(together.class_logits(["a"]).sigmoid(), torch.tensor([[0.4, 0.5]]), atol=1e-5)
    with pytest.raises(MethodMisfit, match="Some of the ensemble's teachers are multi-label"):
        Ensemble([first, decisions[0]]).class_logits(["a"])
    with pytest.raises(LabelError, match=r"the ensemble's other teacher lacks y; its first lacks z"):
        Ensemble([first, Probabilities(["a"], [{"x": 0.5, "z": 0.5}])]).class_logits(["a"])
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.inf]):
        with pytest.raises(DefinitionError, match=r"2 teachers and 1 weights|weights\[1\] is (0.0|-1.0|inf); it must"):
            Ensemble([first, other], weights=weights)
    with pytest.raises(DefinitionError, match="at least one teacher"):
        Ensemble([])
    with pytest.raises(ArgumentTypeError, match="cannot be a teacher.*column of probabilities teaches as train_output"):
        Ensemble(["first"])  # type: ignore[list-item]


class Letters(LLM):
    """Finds a continuation as likely as its letters occur in the prompt; a token is a letter."""

    model_name = "letters"
    result_version = 1

    def __init__(self, folder: Path, chat: bool = True) -> None:
        super().__init__(folder)
        self.chat = chat
        self.asked: list[Any] = []

    @property
    def takes_chat(self) -> bool:
        return self.chat

    def score_batch(self, requests: Any) -> Any:
        self.asked += requests
        return [
            Scored.failed(BadRequest("It is too long.")) if "long" in request.prompt else
            Scored(
                tuple(by_hand(request.prompt, text) for text in request.continuations),
                tuple(map(len, request.continuations)),
            )
            for request in requests
        ]  # fmt: skip

    def identity(self) -> dict[str, Any]:
        return {}


def by_hand(prompt: str, text: str) -> float:
    return sum(-1.0 / (1 + prompt.count(letter)) for letter in text)


def test_an_llm_teaches_by_the_probability_of_each_labels_text(tmp_path):
    prompt = "{labels}? {text}:"
    found = {
        how: ScoreLabels(Letters(tmp_path), {"up": "aab", "down": "cc"}, prompt, how).class_logits(["xa", "xcc"])
        for how in ("none", "length", "prior")
    }
    prompts = ["aab, cc? xa:", "aab, cc? xcc:"]
    raw = torch.tensor([[by_hand(prompt, text) for text in ("aab", "cc")] for prompt in prompts])
    assert torch.allclose(found["none"], raw)
    assert torch.allclose(found["length"], raw / torch.tensor([3.0, 2.0]))
    prior = torch.tensor([by_hand("aab, cc? N/A:", text) for text in ("aab", "cc")])
    assert torch.allclose(found["prior"], raw - prior)
    assert list(ScoreLabels(Letters(tmp_path), {"up": "aab", "down": "cc"}).classes) == ["up", "down"]


def test_placeholders_in_a_text_are_text_and_plain_models_get_a_blank_before_a_label(tmp_path):
    llm = Letters(tmp_path, chat=False)
    ScoreLabels(llm, ["a", "b"], "{text} is one of {labels}:").class_logits(["{labels} {text}"])
    [request] = llm.asked
    assert request.prompt == "{labels} {text} is one of a, b:"
    assert request.continuations == (" a", " b")
    ScoreLabels(llm, ["a", "b"], "{text}\n").class_logits(["x"])
    assert llm.asked[-1].continuations == ("a", "b")


def test_scores_are_paid_for_once_whatever_they_are_divided_by(tmp_path):
    for _ in range(2):
        llm = Letters(tmp_path)
        ScoreLabels(llm, ["a", "b"]).class_logits(["x", "y"])
        ScoreLabels(llm, ["a", "b"], normalise="length").class_logits(["y", "x"])
    assert llm.asked == []
    one, other = (ScoreLabels(Letters(tmp_path), ["a", "b"], normalise=how) for how in ("none", "length"))
    assert fingerprint(one) != fingerprint(other)
    same = (ScoreLabels(Letters(tmp_path), ["a", "b"], content_free=free) for free in ("N/A", "nothing"))
    assert len({fingerprint(each) for each in same}) == 1


def test_a_row_that_fails_ends_the_teaching_with_its_reason(tmp_path):
    with pytest.raises(ModelError, match=r"no scores of the text 'long': It is too long.* Filter such rows out"):
        ScoreLabels(Letters(tmp_path), ["a", "b"]).class_logits(["x", "long"])


class Silent(LLM):
    model_name = "silent"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"llm": Silent()}, DefinitionError, "gives no log-probabilities of given texts"),
        ({"llm": "gpt"}, ArgumentTypeError, "llm must be an LLM"),
        ({"labels": "yes"}, ArgumentTypeError, "labels must be texts"),
        ({"labels": ["yes", 1]}, ArgumentTypeError, "labels must be texts"),
        ({"labels": ["yes"]}, DefinitionError, "two or more"),
        ({"labels": ["yes", "yes"]}, DefinitionError, "two or more, with different texts"),
        ({"labels": {"a": "yes", "b": "yes"}}, DefinitionError, "different texts"),
        ({"prompt": "Label:"}, DefinitionError, "must contain {text}"),
        ({"normalise": "lenght"}, DefinitionError, 'Did you mean "length"'),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_asked(tmp_path, arguments, error, words):
    llm = Letters(tmp_path)
    with pytest.raises(error, match=words):
        ScoreLabels(**{"llm": llm, "labels": ["yes", "no"], **arguments})
    assert llm.asked == []


def test_a_real_models_soft_targets_are_its_probabilities_of_the_labels(tiny_causal_lm, tmp_path):
    llm = HFTransformers(str(tiny_causal_lm), device="cpu", cache_folder_path=tmp_path)
    labels = ["The cat sat", "A dog"]
    found = ScoreLabels(llm, labels, prompt="{text}").class_logits(["The cat sat on the warm mat.", "Rain"])
    for row, text in zip(found, ["The cat sat on the warm mat.", "Rain"], strict=True):
        asked = llm.tokenizer(f"<|user|>{text}<eos><|assistant|>", add_special_tokens=False)["input_ids"]
        for value, label in zip(row, labels, strict=True):
            ids = llm.tokenizer(label, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                steps = llm.model(torch.tensor([asked + ids])).logits[0, len(asked) - 1 : -1].double().log_softmax(-1)
            assert value.item() == pytest.approx(steps[range(len(ids)), ids].sum().item(), abs=1e-4)
    assert found[0].argmax() == 0
