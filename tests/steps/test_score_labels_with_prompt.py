"""Labels by their probability: the softmax of an LLM's own scores, without a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Echo

from datadreamer_like.distillation import ScoreLabels
from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, ModelError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.models import LLM, LlamaCPP
from datadreamer_like.models.llms.scoring import Scored, ScoreRequest
from datadreamer_like.steps import DataSource, FewShotPrompt, ScoreLabelsWithPrompt
from datadreamer_like.testing import FakeLLM

LOGPROBS = {"good": -1.5, "very bad": -4.0}
TOKENS = {"good": 1, "very bad": 4}


class Scores(LLM):
    """Scores "good" and "very bad" by the table above, the other way round for a text with "not"; fails for "fail"."""

    model_name = "scores"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[ScoreRequest] = []

    def identity(self) -> dict[str, Any]:
        return {}

    def score_batch(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        self.asked += requests
        return [self.scored(request) for request in requests]

    def scored(self, request: ScoreRequest) -> Scored:
        if "fail" in request.prompt:
            return Scored.failed(BadRequest("no"))
        found = [LOGPROBS[text] for text in request.continuations]
        return Scored(
            tuple(found[::-1] if "not" in request.prompt else found), tuple(TOKENS[t] for t in request.continuations)
        )


def label(llm: LLM, texts: list[Any], **args: Any) -> ScoreLabelsWithPrompt:
    column = DataSource("Rows", data={"text": texts}).output["text"]
    return ScoreLabelsWithPrompt(
        "It", inputs={"texts": column}, args={"llm": llm, "labels": ["good", "very bad"], **args}
    )


@pytest.mark.parametrize("normalise", ["none", "length"])
def test_probabilities_are_the_softmax_of_the_scores(session: DataDreamer, normalise: str) -> None:
    llm = Scores()
    made = label(llm, ["one", "not one", None, "fail"], normalise=normalise)
    for row, (good, bad) in zip(made.output, [(-1.5, -4.0), (-4.0, -1.5)], strict=False):
        good, bad = (good, bad / 4) if normalise == "length" else (good, bad)
        expected = np.exp(good) / (np.exp(good) + np.exp(bad))
        assert row["probabilities"]["good"] == pytest.approx(expected, abs=1e-12)
        assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-12)
        assert row["labels"] == ("good" if good > bad else "very bad")
    assert list(made.output["labels"])[2:] == [None, None]
    assert list(made.errors) == [3]
    assert len(llm.asked) == 3


def test_texts_of_labels_and_a_prompt_of_ones_own_are_scored(session: DataDreamer) -> None:
    llm = Scores()
    made = label(llm, ["{labels} {text}"], labels={"a": "good", "b": "very bad"}, prompt="{text}: {labels}?")
    assert [request.prompt for request in llm.asked] == ["{labels} {text}: good, very bad?"]
    assert list(made.output["labels"]) == ["a"]


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({"labels": ["good"]}, DefinitionError, "two or more different texts"),
        ({"labels": {"a": "x", "b": "x"}}, DefinitionError, "two or more different texts"),
        ({"labels": ["good", 5]}, ArgumentTypeError, "must be texts"),
        ({"prompt": "Which?"}, DefinitionError, "must contain {text}"),
        ({"normalise": "prior"}, DefinitionError, 'normalise is "prior"'),
        ({"temperature": 1.0}, DefinitionError, 'no argument "temperature"'),
        ({"llm": Echo()}, DefinitionError, "gives no log-probabilities"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_asked(
    session: DataDreamer, args: dict[str, Any], error: type[Exception], message: str
) -> None:
    llm = Scores()
    with pytest.raises(error, match=message):
        label(**{"llm": llm, "texts": ["one"], **args})
    assert llm.asked == []


@pytest.mark.slow
def test_a_real_model_tells_moods_apart_as_its_scores_do(tmp_path: Path, smollm_gguf: Path) -> None:
    texts = ["The food was wonderful and we loved it.", "Terrible. The worst evening of my life."]
    with DataDreamer(tmp_path, verbose=False):
        llm = LlamaCPP(str(smollm_gguf))
        made = label(llm, texts, labels=["positive", "negative"], prompt="Is this review positive or negative? {text}")
        prompts = [f"Is this review positive or negative? {text}" for text in texts]
        scores = llm.score(prompts, ["positive", "negative"])
        llm.unload_model()
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    found = [[row["probabilities"][name] for name in ("positive", "negative")] for row in made.output]
    assert np.allclose(found, chances, atol=1e-9)
    assert found[0][0] > found[1][0]


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), float("inf")])
def test_a_row_fails_whose_label_has_no_finite_log_probability(session: DataDreamer, wrong: float) -> None:
    llm = FakeLLM(score=lambda prompt, label: wrong if "odd" in prompt and "bad" in label else -1.0 - ("bad" in label))
    texts = DataSource("Texts", {"text": ["odd", "fine"]}).output["text"]
    made = ScoreLabelsWithPrompt("Labels", {"texts": texts}, {"llm": llm, "labels": ["good", "bad"]})
    assert list(made.output["labels"]) == [None, "good"]
    assert list(made.output["probabilities"])[0] is None
    assert made.errors[0] == f"The log-probability of 'bad' is {wrong}; expected a finite number."
    with pytest.raises(ModelError, match="expected a finite number"):
        ScoreLabels(llm, ["good", "bad"], "{text}").class_logits(["fine", "odd"])
    assert np.isnan(llm.score(["odd"], ["good", "bad"])).all()


def test_examples_can_be_messages_of_a_chat(session: DataDreamer) -> None:
    llm = Echo(lambda prompt: "fine", context=9)
    rows = DataSource("Rows", data={"in": ["one two", "three", None], "out": ["1 2", "3", "4"]}).output
    asked = DataSource("Asked", data={"text": ["four five"]}).output["text"]
    inputs = {"input_examples": rows["in"], "output_examples": rows["out"], "inputs": asked}
    args = {"llm": llm, "instruction": "Count.", "as_messages": True}
    made = FewShotPrompt("Ask", inputs=inputs, args=args)
    assert [request.prompt for request in llm.asked] == [
        [
            {"role": "system", "content": "Count."},
            {"role": "user", "content": "one two"},
            {"role": "assistant", "content": "1 2"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "four five"},
        ]
    ]
    found = {(parent.node, parent.role, parent.index) for parent in made.trace(0).parents}
    assert found == {("Asked", "input", 0), ("Rows", "example", 0), ("Rows", "example", 1)}
    short = Echo(lambda prompt: "fine", context=8)
    made = FewShotPrompt("Ask in less room", inputs=inputs, args={**args, "llm": short})
    assert [len(request.prompt) for request in short.asked] == [4]
