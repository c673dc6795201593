"""A classifier labels what it is certain of; the rest goes through an LLM step, once, and comes back in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from subjects import Parrot, Sure

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, StepOutputError
from datadreamer_like.steps import DataSource, PredictOrAbstain, ProcessWithPrompt, Step
from datadreamer_like.testing import FakeLLM

TEXTS = ["short", None, "a text that is long", "brief", "another that is long"]


def labelled(fallback: Any = None, texts: list[Any] | None = None, model: Any = None, **options: Any) -> Step:
    rows = DataSource("Rows", {"text": TEXTS if texts is None else texts})
    args = {"model": model or Sure(), "fallback": fallback}
    return PredictOrAbstain("Labels", inputs={"texts": rows.output["text"]}, args=args, **options)


def test_rows_under_the_threshold_go_to_the_llm_step_and_no_others(tmp_path: Path):
    llm = Parrot()

    def ask(texts: Any) -> Any:
        args = {"llm": llm, "instruction": "Long?", "post_process": str.lower}
        return ProcessWithPrompt("Ask", inputs={"inputs": texts}, args=args).output["generations"]

    for _ in range(2):
        with DataDreamer(tmp_path / "out", verbose=False):
            step = labelled(ask)
            assert list(step.output["labels"]) == [
                "short",
                None,
                *["yes. 7. response a", "short"],
                "yes. 7. response a",
            ]
            assert list(step.output["answered"]) == [True, False, False, True, False]
            assert list(step.output["probabilities"]) == [0.9, None, 0.5, 0.9, 0.5]
            assert list(step.output["texts"]) == TEXTS
            assert step.card.facts["Coverage"] == "50.00 % of 4 texts"
    assert len(llm.asked) == 2  # the rerun asked nothing
    assert all("long" in prompt for prompt in llm.asked)


def test_without_a_fallback_labels_are_none_and_with_nothing_left_it_is_not_called(session: DataDreamer):
    assert list(labelled().output["labels"]) == ["short", None, None, "short", None]

    def never(texts: Any) -> Any:
        raise AssertionError

    assert list(labelled(never, ["one", "two"]).output["labels"]) == ["short", "short"]


def test_fallback_may_return_a_step_with_one_output_or_a_column(session: DataDreamer):
    step = labelled(lambda texts: DataSource("Given", {"label": ["a", "b"]}))
    assert list(step.output["labels"]) == ["short", None, "a", "short", "b"]


def test_rows_that_the_fallback_fails_on_have_its_reason(session: DataDreamer):
    def ask(texts: Any) -> Any:
        llm = FakeLLM(lambda prompt: None if "another" in prompt else "long")
        return ProcessWithPrompt("Ask", inputs={"inputs": texts}, args={"llm": llm, "instruction": "Long?"}).output[
            "generations"
        ]

    step = labelled(ask)
    assert list(step.output["labels"]) == ["short", None, "long", "short", None]
    (reason,) = step.errors.values()
    assert [*step.errors] == [4]
    assert reason.startswith("Ask: ")


def test_labels_of_the_fallback_that_are_no_classes_are_kept_counted_and_named(
    session: DataDreamer, caplog: pytest.LogCaptureFixture
):
    step = labelled(lambda texts: DataSource("Given", {"label": ["long", "Long."]}))
    assert list(step.output["labels"]) == ["short", None, "long", "short", "Long."]
    assert step.card.facts["Labels outside the classes"] == "1 of 2 from the fallback"
    assert "Labels: labels from the fallback that are not classes of the model: 1 ('Long.' in row 4)" in caplog.text
    assert "(short, long)" in caplog.text
    caplog.clear()
    fine = labelled(lambda texts: DataSource("Right", {"label": ["long", None]}))  # None: it does not know either
    assert "Labels outside the classes" not in fine.card.facts
    assert "not classes" not in caplog.text


@pytest.mark.parametrize(
    ("fallback", "error", "message"),
    [
        (lambda texts: ["long", "long"], StepOutputError, "fallback returned.*must return a column"),
        (lambda texts: DataSource("Given", {"label": ["a"]}), StepOutputError, "1 labels for 2 texts"),
        (lambda texts: DataSource("Given", {"a": [1, 2], "b": [1, 2]}), StepOutputError, "must return a column"),
        (Parrot(), ArgumentTypeError, "fallback must be a function of a column"),
    ],
)
def test_fallback_that_does_not_fit_is_named(session: DataDreamer, fallback: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        labelled(fallback)


def test_model_must_be_a_classifier(session: DataDreamer):
    with pytest.raises(ArgumentTypeError, match="model"):
        labelled(model=Parrot())
