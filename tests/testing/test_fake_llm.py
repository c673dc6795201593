"""Fake models: what they are told to answer comes out of the real pipeline."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel, Field

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, RateLimited, Unavailable
from datadreamer_like.models import Answer, EmbeddingRetriever, Rejected
from datadreamer_like.steps import DataSource, Prompt
from datadreamer_like.testing import FakeEmbedder, FakeLLM, Fault, WithFaults, temporary_session
from datadreamer_like.testing.schema_values import value_for


def test_a_function_answers_each_prompt_in_its_place() -> None:
    llm = FakeLLM(str.upper)
    assert llm.run(["b", "a", "b"]) == ["B", "A", "B"]
    assert llm.prompts == ["b", "a"]
    assert llm.run([[{"role": "user", "content": "x"}, {"role": "user", "content": "last"}]]) == ["LAST"]


def test_a_list_answers_new_prompts_in_order_and_says_when_it_is_used_up() -> None:
    llm = FakeLLM(["one", "two", "three"], seconds=0.001)
    assert llm.run(["a", "b"]) == ["one", "two"]
    assert llm.run(["c"]) == ["three"]
    with pytest.raises(DefinitionError, match=r"given 3 answers .* to 'd'\. Add it"):
        llm.run(["d"])
    assert FakeLLM(["x", "y", "z"]).run(["a"], n=2, temperature=1.0, top_p=1.0) == [["x", "y"]]


def test_patterns_answer_what_they_find_the_first_one_first() -> None:
    llm = FakeLLM({r"(\d+) \+ (\d+)": lambda found: int(found[1]) + int(found[2]), "sky": "blue", ".": "?"})
    assert llm.run(["What is 2 + 3?", "Is the sky 1 or 2?", "Who?"]) == ["5", "blue", "?"]
    with pytest.raises(DefinitionError, match=r"no pattern for the prompt 'Who\?'; its patterns are sky"):
        FakeLLM({"sky": "blue"}).run(["Who?"])


def test_an_answer_may_be_a_value_an_answer_an_error_or_none() -> None:
    given = {"a": {"x": 1}, "b": Answer(["whole"], 7, 8), "c": BadRequest("no"), "d": None}
    answers = list(FakeLLM(given.__getitem__).answers(list("abcd")))
    assert [answer.text for answer in answers] == ['{"x": 1}', "whole", None, None]
    assert (answers[1].prompt_tokens, answers[1].completion_tokens) == (7, 8)
    assert isinstance(answers[2].error, BadRequest)
    assert "no answer to 'd'" in str(answers[3].error)


def test_an_error_that_passes_costs_no_time() -> None:
    with pytest.raises(RateLimited, match="each tried 40 times: 429"):
        FakeLLM(lambda prompt: RateLimited("429")).run(["a"])
    with pytest.raises(Unavailable, match="each tried 40 times: 503"):
        WithFaults(FakeLLM(), Fault("unavailable", at=[0], times=None), max_tries=8).run(["a"])


def test_tokens_limits_stops_and_log_probabilities_are_those_of_an_engine() -> None:
    llm = FakeLLM(lambda prompt: "One two, three. Four", logprob=lambda token: -0.5 if "two" in token else -0.25)
    (answer,) = llm.answers(["How many?"], top_logprobs=2)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reasons) == (3, 6, ["stop"])
    assert answer.logprobs is not None
    assert "".join(token.token for token in answer.logprobs[0]) == answer.text
    assert [token.logprob for token in answer.logprobs[0]] == [-0.25, -0.5, -0.25, -0.25, -0.25, -0.25]
    assert all(token.top[0] == (token.token, token.logprob) and len(token.top) == 2 for token in answer.logprobs[0])
    (cut,) = llm.answers(["How many?"], max_new_tokens=2)
    assert (cut.text, cut.finish_reasons, cut.completion_tokens) == ("One two", ["length"], 2)
    assert llm.run(["How many?"], stop=[".", ","]) == ["One two"]


def test_scores_are_those_that_are_given() -> None:
    llm = FakeLLM(score=lambda prompt, text: -1.0 if text in prompt else -9.0)
    assert llm.score(["red or blue"], ["red", "green"]).tolist() == [[-1.0, -9.0]]
    assert FakeLLM(logprob=-0.5).score(["x"], ["a b", "c"]).tolist() == [[-1.0, -0.5]]


def test_a_context_bounds_the_examples_of_a_prompt() -> None:
    llm = FakeLLM(context_length=7)
    assert llm.format_prompt(in_context_examples=["a b c", "d e f", "g h i"], max_new_tokens=1) == "a b c\nd e f"


class Mood(Enum):
    good = "good"
    bad = "bad"


class Leaf(BaseModel):
    name: str = Field(min_length=3, max_length=8)
    children: list[Leaf] = Field(max_length=2)
    parent: Leaf | None


class Review(BaseModel):
    mood: Mood
    stars: int = Field(ge=1, le=5)
    share: float = Field(gt=0, lt=1)
    kind: Literal["a", "b"]
    tags: list[str] = Field(min_length=2, max_length=3)
    day: str = Field(json_schema_extra={"format": "date"})
    sure: bool
    leaf: Leaf


SCHEMAS: list[dict[str, Any]] = [
    Review.model_json_schema(),
    {"type": "integer", "minimum": 3, "exclusiveMaximum": 5},
    {"type": "integer", "exclusiveMinimum": 7},
    {"type": "number", "minimum": -3, "maximum": -2},
    {"type": "integer", "multipleOf": 7, "minimum": 50},
    {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": False},
    {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"const": 5}}}]},
    {"type": ["string", "null"]},
    {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "boolean"}]},
    {},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_made_up_answers_fit_every_schema_and_stay_the_same(schema: dict[str, Any]) -> None:
    for seed in range(15):
        jsonschema.validate(value_for(schema, str(seed)), schema)
        assert value_for(schema, str(seed)) == value_for(schema, str(seed))


def test_a_schema_is_answered_and_one_that_cannot_be_is_named() -> None:
    llm = FakeLLM()
    texts = llm.run(["good?", "bad?", "ugly?"], schema=Review)
    assert len({Review.model_validate_json(text).model_dump_json() for text in texts}) == 3
    with pytest.raises(DefinitionError, match=r"cannot make up a value .* Give it the answers"):
        llm.run(["?"], schema={"type": "string", "pattern": "^[0-9]{9}$"})
    endless = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}}
    with pytest.raises(DefinitionError, match="cannot make up a value"):
        llm.run(["?"], schema={"$ref": "#/$defs/a", "$defs": {"a": endless}})


def test_a_step_asks_again_caches_and_counts_as_with_any_llm() -> None:
    def number(answer: Answer, row: Any) -> Any:
        return int(answer.text) if (answer.text or "").isdigit() else Rejected("It must be a number.")

    llm = FakeLLM(lambda prompt: "7" if "number" in prompt or prompt == "seven" else "seven")
    with temporary_session() as session:
        rows = DataSource("Rows", data={"text": ["seven", "word"]})
        asked = Prompt("Ask", inputs={"prompts": rows.output["text"]}, args={"llm": llm, "parse": number})
        assert list(asked.output["generations"]) == [7, 7]
        assert (asked.usage.requests, asked.errors) == (3, {})
        Prompt("Again", inputs={"prompts": rows.output["text"]}, args={"llm": llm, "parse": number})
        assert len(llm.asked) == 3
        folder = session.folder
    assert not folder.exists()


def test_other_answers_make_another_result_and_the_same_ones_do_not() -> None:
    from datadreamer_like.graph.fingerprint import fingerprint

    def of(*answers: Any, **options: Any) -> str:
        return fingerprint(FakeLLM(*answers, **options))

    assert of(["a"]) == of(["a"]) != of(["b"])
    assert of(lambda prompt: "a") == of(lambda prompt: "a") != of(lambda prompt: "b")
    assert of({"x": "a"}) != of({"y": "a"})
    assert of() != of(logprob=-3.0)


@pytest.mark.parametrize("wrong", ["a text", 5])
def test_answers_of_another_kind_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="must be a function, a list, a dictionary or None"):
        FakeLLM(wrong)


@pytest.mark.parametrize("wrong", ["(", 1])
def test_a_pattern_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="not a regular expression"):
        FakeLLM({"a": "b", wrong: "c"})


def test_a_fake_embedder_finds_what_shares_words() -> None:
    embedder = FakeEmbedder()
    vectors = np.array(embedder.run(["the red ball", "red ball", "deep sea", ""]))
    assert vectors.shape == (4, embedder.dims)
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1.0)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    found = EmbeddingRetriever(["a cat sat", "rain fell", "dogs ran"], embedder).run(["the cat"], k=1)
    assert "a cat sat" in json.dumps(found, default=str)
    assert np.array_equal(FakeEmbedder(lambda text: [len(text), 1.0], dims=2).run(["abc"])[0], [3.0, 1.0])


def test_a_fake_embedder_finds_characters_of_texts_without_blanks() -> None:
    asked, near, far = np.array(FakeEmbedder().run(["苹果", "我喜欢吃苹果", "他打篮球"]))
    assert asked @ near > asked @ far + 0.3


def test_a_temporary_session_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with temporary_session():
        DataSource("Rows", data={"text": ["a"]})
    assert capfd.readouterr() == ("", "")


def test_the_room_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, datadreamer_like.testing as t; t.FakeLLM().run(['x']); print([m for m in sys.modules if re])"
    code = code.replace("if re]", "if m in ('torch', 'transformers', 'openai', 'pytest')]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\[\]\s*", done.stdout)
