from __future__ import annotations

import json
from typing import Any

import pytest

from datadreamer_like.models import Answer
from datadreamer_like.models.llms.schema_check import json_value
from datadreamer_like.testing import FakeLLM

# Keywords that engines drop, each with a value that does not fit and one that does.
KEYWORDS: list[tuple[dict[str, Any], Any, Any]] = [
    ({"type": "string", "pattern": "[0-9]{3}"}, "sunny", "at 123 m"),
    ({"type": "string", "pattern": r"^\d+$"}, "12a", "12"),
    ({"type": "string", "format": "email"}, "me", "me@there"),
    ({"type": "string", "format": "date"}, "2024-13-01", "2024-12-01"),
    ({"type": "string", "format": "date-time"}, "yesterday", "2024-12-01T00:00:00Z"),
    ({"type": "string", "format": "time"}, "noon", "00:00:00"),
    ({"type": "string", "format": "ipv4"}, "1.2.3", "1.2.3.4"),
    ({"type": "string", "not": {"const": "no"}}, "no", "yes"),
    ({"type": "string", "minLength": 3}, "ab", "abc"),
    ({"type": "number", "multipleOf": 0.5}, 0.3, 1.5),
    ({"type": "number", "minimum": 1}, 0, 1),
    ({"type": "array", "uniqueItems": True}, [1, 1], [1, 2]),
    ({"type": "array", "contains": {"type": "string"}}, [1], [1, "a"]),
    ({"type": "object", "minProperties": 1}, {}, {"a": 1}),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"b": 1}, {"a": 1}),
    ({"if": {"type": "string"}, "then": {"enum": ["a"]}}, "b", "a"),
    ({"allOf": [{"type": "integer"}, {"minimum": 2}]}, 1, 2),
]


@pytest.mark.parametrize(("schema", "wrong", "right"), KEYWORDS)
def test_an_answer_that_does_not_fit_is_asked_again_and_never_an_answer(schema: dict, wrong: Any, right: Any) -> None:
    llm = FakeLLM([json.dumps(wrong), json.dumps(right)])
    assert llm.run(["?"], schema=schema) == [json.dumps(right)]
    assert "does not fit the schema" in llm.prompts[1]
    (failed,) = FakeLLM([json.dumps(wrong)] * 2).answers(["?"], schema=schema)
    assert "does not fit the schema" in str(failed.error)
    assert FakeLLM([json.dumps(right)]).run(["?"], schema=schema) == [json.dumps(right)]


@pytest.mark.parametrize("text", ["", "Sure!", '{"a": 1', "{'a': 1}", "NaN", "[1e999, Infinity]", "[" * 100_000, "1 2"])
def test_what_is_not_json_is_asked_again(text: str) -> None:
    assert FakeLLM([text, "[7]"]).run(["?"], schema={}) == ["[7]"]
    with pytest.raises(ValueError, match="."):
        json_value(text)


def test_json_in_a_fence_is_the_answer() -> None:
    assert FakeLLM(["```json\n[1]\n```"]).run(["?"], schema={"type": "array"}) == ["[1]"]


def test_of_several_answers_those_that_do_not_fit_are_none() -> None:
    schema = {"type": "integer"}
    assert FakeLLM(["1", "x", "3"]).run(["?"], schema=schema, n=3) == [["1", None, "3"]]
    assert FakeLLM(["x", "y", "2", "2"]).run(["?"], schema=schema, n=2) == [["2", "2"]]


def test_a_check_of_the_caller_sees_only_what_fits() -> None:
    seen = []

    def check(index: int, answer: Answer) -> Answer:
        seen.append(answer.text)
        return answer

    list(FakeLLM(["x", "2"]).answers(["?"], schema={"type": "integer"}, check=check))
    assert seen == ["2"]
