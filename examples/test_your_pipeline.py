"""A pipeline and its tests in one file: no network, no key, a few seconds.

`python test_your_pipeline.py` runs the tests, as `pytest test_your_pipeline.py` does. In a project, `pipeline` is in a
module of its own, and a script gives it `OpenAI("gpt-5-mini")`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DataError
from datadreamer_like.models import LLM, EmbeddingRetriever
from datadreamer_like.steps import DataSource, FilterWithPrompt, ProcessWithPrompt, Step
from datadreamer_like.testing import FakeEmbedder, FakeLLM, Fault, Recorded, WithFaults, temporary_session

# The pipeline


class Mood(Enum):
    """How a review sounds."""

    positive = "positive"
    negative = "negative"


class Review(BaseModel):
    """What a review says."""

    mood: Mood
    stars: int = Field(ge=1, le=5)


def pipeline(llm: LLM, texts: Sequence[str]) -> Step:
    """Keeps what is a review, and reads its mood and its stars."""
    source = DataSource("Texts", data={"text": list(texts)})
    reviews = FilterWithPrompt(
        "Keep reviews",
        inputs={"inputs": source.output["text"]},
        args={"llm": llm, "instruction": "Is this a review? Answer yes or no."},
    )
    return ProcessWithPrompt(
        "Read reviews",
        inputs={"inputs": reviews.output["text"]},
        args={"llm": llm, "instruction": "What is its mood, and how many stars?", "output_schema": Review},
    )


# Its tests

TEXTS = ["The soup was cold.", "Buy cheap pills!", "Lovely place."]
SAYS = {
    r"pills[\s\S]*yes or no": "No.",
    r"yes or no": "Yes.",
    r"cold": {"mood": "negative", "stars": 1},
    r"Lovely": {"mood": "positive", "stars": 5},
}


@pytest.fixture
def session() -> Iterator[DataDreamer]:
    """A quiet session in a folder of its own."""
    with temporary_session() as opened:
        yield opened


def test_reviews_are_kept_and_read(session: DataDreamer) -> None:
    read = pipeline(FakeLLM(SAYS), TEXTS)
    assert list(read.output["inputs"]) == ["The soup was cold.", "Lovely place."]
    assert list(read.output["stars"]) == [1, 5]


def test_made_up_answers_fit_the_schema() -> None:
    for answer in FakeLLM().run(TEXTS, schema=Review):  # without answers of the test's own
        assert 1 <= Review.model_validate_json(answer).stars <= 5


def test_rate_limits_and_time_outs_cost_no_row(session: DataDreamer) -> None:
    llm = WithFaults(FakeLLM(SAYS), Fault("rate_limited", at=[0]), Fault("timeout", rate=0.5, times=1), seed=1)
    assert list(pipeline(llm, TEXTS).output["stars"]) == [1, 5]


def test_a_refusal_stays_with_its_row(session: DataDreamer) -> None:
    llm = WithFaults(FakeLLM(SAYS), Fault("refused", at=[3], times=None))  # the fourth prompt: the first review's
    read = pipeline(llm, TEXTS)
    assert list(read.output["stars"]) == [None, 5]
    assert "refused" in read.errors[0]


def test_a_recording_replays_without_a_key(tmp_path: Path) -> None:
    cassette = tmp_path / "reviews.jsonl"  # in a project: a file next to the tests, recorded once and committed
    with temporary_session():
        pipeline(Recorded(cassette, lambda: FakeLLM(SAYS)), TEXTS)  # in a project: lambda: OpenAI("gpt-5-mini")
    with temporary_session():
        assert list(pipeline(Recorded(cassette), TEXTS).output["stars"]) == [1, 5]
    with temporary_session(), pytest.raises(DataError, match="no answer .* to the prompt"):
        pipeline(Recorded(cassette), ["A text that was not recorded."])


def test_what_shares_words_is_found_without_a_model() -> None:
    retriever = EmbeddingRetriever(TEXTS, FakeEmbedder())
    assert "soup" in str(retriever.run(["cold soup"], k=1))


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--no-header", __file__]))
