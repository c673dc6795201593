from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from engines import Echo
from pydantic import BaseModel, Field, create_model

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.models import Answer, Request
from datadreamer_like.models.llms.answer_text import answer_of, answer_text
from datadreamer_like.steps import (
    DataFromPrompt,
    DataSource,
    FilterWithPrompt,
    JudgePairsWithPrompt,
    ProcessWithPrompt,
    Prompt,
    RankWithPrompt,
)

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "score": {"type": "number"}, "count": {"type": "integer"}},
    "required": ["name", "score"],
    "additionalProperties": False,
}


class Animal(BaseModel):
    name: str
    legs: int = Field(ge=0)
    tags: list[str] = []


def echo(*replies: str) -> Echo:
    """Answers a prompt "i" with the i-th text, and its follow-up with the same text unless it holds "|"."""

    def reply(prompt: str) -> str:
        again = "cannot be used" in prompt
        digits = [c for c in prompt if c.isdigit()]
        first, _, second = replies[int(digits[0])].partition("|")
        return second if again and second else first

    return Echo(reply)


def extract(llm: Any, rows: int, schema: Any = SCHEMA, **args: Any) -> Prompt:
    source = DataSource("Rows", data={"text": [f"{i}" for i in range(rows)]})
    return Prompt("Extract", {"prompts": source.output["text"]}, {"llm": llm, "output_schema": schema, **args})


def test_each_property_is_a_column_of_its_type(session: DataDreamer) -> None:
    llm = echo('{"name": "cat", "score": 1, "count": 3.0}', '```json\n{"name": "dog", "score": 2.5}\n```')
    made = extract(llm, 2)
    assert made.output.column_names == ["prompts", "generations", "name", "score", "count"]
    rows = list(made.output)
    assert [(row["name"], row["score"], row["count"]) for row in rows] == [("cat", 1.0, 3), ("dog", 2.5, None)]
    assert [type(rows[0][name]) for name in ("name", "score", "count")] == [str, float, int]
    assert all("fits this JSON schema" in prompt for prompt in made.output["prompts"])


def test_an_answer_that_does_not_fit_is_asked_again_with_the_validation_error(session: DataDreamer) -> None:
    llm = echo("no JSON|" + '{"name": "cat", "score": 1}', '{"name": 7}|{"name": "dog", "score": 2}')
    made = extract(llm, 2)
    assert list(made.output["name"]) == ["cat", "dog"]
    assert list(made.output["generations"]) == ['{"name": "cat", "score": 1}', '{"name": "dog", "score": 2}']
    assert made.errors == {}
    chats = [request.prompt for request in llm.asked if not isinstance(request.prompt, str)]
    reasons = sorted(str(chat[-1]["content"]) for chat in chats)
    assert "name: 7 is not of type 'string'; the answer: 'score' is a required property" in reasons[0]
    assert "not one JSON object" in reasons[1]


def test_a_schema_that_the_answer_fails_twice_leaves_the_error_and_the_last_answer(session: DataDreamer) -> None:
    made = extract(echo('{"name": "cat", "score": 1}', 'worse|{"name": "dog", "score": "high"}'), 2)
    assert made.output[1] | {"prompts": ""} == {
        "prompts": "", "generations": '{"name": "dog", "score": "high"}', "name": None, "score": None, "count": None,
    }  # fmt: skip
    assert made.errors[1].startswith("It does not fit the schema: score: 'high' is not of type 'number'.")
    assert """The last answer was: '{"name": "dog", "score": "high"}'.""" in made.errors[1]


def test_an_answer_that_is_cut_off_is_in_its_error_only(session: DataDreamer) -> None:
    class CutOff(Enforcing):
        def answer_batch(self, requests: Any) -> list[Answer]:
            return [answer_of([answer_text('{"name": "ca', "length", shaped=True)]) for _ in requests]

    made = extract(CutOff(), 2)
    assert list(made.output["generations"]) == list(made.output["name"]) == [None, None]
    assert "cut off" in made.errors[1]
    assert '{"name": "ca' in made.errors[1]


def test_a_pydantic_model_validates_and_fills_defaults(session: DataDreamer) -> None:
    llm = echo('{"name": "cat", "legs": 4, "tags": ["soft"]}', '{"name": "x", "legs": -1}|{"name": "eel", "legs": 0}')
    made = extract(llm, 2, Animal)
    assert [made.output[i]["tags"] for i in range(2)] == [["soft"], []]
    assert list(made.output["legs"]) == [4, 0]
    assert any("legs: Input should be greater than or equal to 0" in str(request.prompt) for request in llm.asked)


def column(session: DataDreamer, kind: Any, values: list[str]) -> tuple[list[Any], dict[int, str]]:
    """Returns the column of a property whose schema or type is `kind`, and the step's errors."""
    schema: Any = {"type": "object", "properties": {"a": kind}} if isinstance(kind, dict) else None
    made = extract(echo(*(f'{{"a": {value}}}' for value in values)), len(values), schema or create_model("A", a=kind))
    return list(made.output["a"]), made.errors


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ({"type": "integer"}, "1", str(2**63)),
        (int, "1", str(-(2**70))),
        (list[dict[str, int]], '[{"x": 1}]', f'[{{"x": {2**64}}}]'),
        ({"type": "number"}, "1.5", f"1{'0' * 400}"),
        ({"type": "string"}, '"x"', r'"\ud800"'),
        ({"type": "object", "additionalProperties": {"type": "string"}}, '{"x": "y"}', r'{"\udc00": "y"}'),
    ],
)
def test_a_valid_answer_that_fits_no_column_fails_its_row_alone(session: Any, kind: Any, good: str, bad: str) -> None:
    found, errors = column(session, kind, [good, bad, good])
    assert found == [json.loads(good), None, json.loads(good)]
    assert list(errors) == [1]


class Plant(BaseModel):
    name: str
    height: float


class Tree(BaseModel):
    inner: list[Tree] = []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ({}, ["1", '"x"', '{"k": 1}']),
        ({"type": "array"}, ["[1]", '["x"]']),
        ({"enum": [1, "x"]}, ["1", '"x"']),
        ({"type": ["integer", "string"]}, ["1", '"x"']),
        ({"type": "object", "properties": {"b": {}}}, ['{"b": 1}', '{"b": "x"}']),
        ({"anyOf": [{"type": "boolean"}, {"type": "integer"}]}, ["true", "1"]),
        (Any, ["1", '"x"', "[true]"]),
        (int | str, ["1", '"x"']),
        (list[Any], ["[1]", '["x", 1]']),
        (dict[str, Any], ['{"b": 1}', '{"b": "x"}']),
        (tuple[int, str], ['[1, "x"]']),
        (int | Animal, ["1"]),
        (Animal | Plant, ['{"name": "x", "legs": 1, "tags": []}', '{"name": "x", "height": 1.0}']),
        (Tree, ['{"inner": [{"inner": []}]}']),
    ],
)  # fmt: skip
def test_a_property_of_several_types_is_a_column_of_json_texts(session: Any, kind: Any, values: list[str]) -> None:
    assert column(session, kind, values) == (values, {})


def test_no_value_is_no_json_text(session: Any) -> None:
    assert column(session, {}, ["1", "null"]) == (["1", None], {})


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (int | None, ["1", "null"]),
        (Literal["x", "y"], ['"x"']),
        ({"enum": ["x", None]}, ['"x"', "null"]),
        (tuple[float, int], ["[1, 2]", "[2.5, 1]"]),
        (int | float, ["1", "2.5"]),
        (dict[str, list[int]], ['{"b": [1]}', '{"c": []}']),
        ({"type": "object", "properties": {"b": {"type": "number"}}}, ['{"b": 1}', '{"b": 2.5}', "{}"]),
    ],
)
def test_a_property_of_one_type_keeps_it(session: Any, kind: Any, values: list[str]) -> None:
    assert column(session, kind, values) == ([json.loads(value) for value in values], {})


def test_names_that_an_object_may_have_besides_its_own_are_left_out(session: Any) -> None:
    kind = {"type": "object", "properties": {"b": {"type": "integer"}}}
    assert column(session, kind, ['{"b": 1, "c": 2}', '{"b": 1, "c": "x"}'])[0] == [{"b": 1}, {"b": 1}]


@pytest.mark.parametrize("given", [{"alias": "wire"}, {"validation_alias": "wire"}, {"serialization_alias": "other"}])
def test_an_alias_is_the_name_in_the_answer_and_the_field_the_column(session: Any, given: dict[str, str]) -> None:
    name = "food" if "serialization_alias" in given else "wire"
    schema = create_model("Aliased", food=(str, Field(**given)), __config__={"serialize_by_alias": True})  # type: ignore[call-overload]
    llm = echo(f'{{"{name}": "egg"}}')
    made = extract(llm, 1, schema)
    assert (list(made.output["food"]), made.errors) == (["egg"], {})
    assert f'"{name}": {{' in str(llm.asked[0].prompt)


@pytest.mark.parametrize(
    ("schema", "args", "says"),
    [
        ("name", {}, "output_schema: schema must be a pydantic"),
        (int, {}, "output_schema: schema must be a pydantic"),
        ({"type": "objekt", "properties": {"a": {}}}, {}, "not a valid JSON schema: at type"),
        ({"type": "array"}, {}, "object with properties"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/Q"}}}, {}, "'#/.defs/Q' leads nowhere"),
        ({"type": "object", "properties": {"a": {"items": {"$ref": "no.json"}}}}, {}, "'no.json' leads nowhere"),
        ({"type": "object", "properties": {"generations": {}}}, {}, 'property "generations"'),
        (SCHEMA, {"n": 2}, "n must be 1"),
        (SCHEMA, {"post_process": len}, "post_process or output_schema"),
    ],
)
def test_what_cannot_be_a_schema_is_refused_before_anything_is_sent(
    session: DataDreamer, schema: Any, args: dict[str, Any], says: str
) -> None:
    llm = echo("{}")
    with pytest.raises(DefinitionError, match=says):
        extract(llm, 1, schema, **args)
    assert not llm.asked


class Enforcing(Echo):
    """An engine that keeps its answers to a schema."""

    enforces_schemas = True

    def answer_batch(self, requests: Any) -> list[Answer]:
        self.asked.extend(requests)
        return [Answer([self.fitting(request)]) for request in requests]

    def fitting(self, request: Request) -> str:
        schema = request.sampling.schema
        assert schema is not None
        values = {"string": "x", "number": 1, "integer": 2}
        return json.dumps({name: values[spec["type"]] for name, spec in schema["properties"].items()})


def test_an_engine_that_enforces_schemas_gets_the_schema_and_the_prompt_as_it_is(session: DataDreamer) -> None:
    llm = Enforcing()
    made = extract(llm, 3)
    assert list(made.output["prompts"]) == ["0", "1", "2"]
    assert set(made.output["name"]) == {"x"}
    assert len(llm.asked) == 3


def test_every_prompting_step_takes_a_schema(session: DataDreamer) -> None:
    pets = DataSource("Pets", data={"pet": ["cat 0", "dog 1"], "other": ["ant", "bee"]})
    replies = ['{"why": "soft", "keep": true, "score": 2, "winner": "Input A"}',
               '{"why": "loud", "keep": false, "score": 9, "winner": "b"}']  # fmt: skip

    def properties(**kinds: str) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {"type": kind} for name, kind in kinds.items()}}

    def args(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
        llm = Echo(lambda prompt: replies["dog" in prompt])
        return {"llm": llm, "instruction": "Judge.", "output_schema": schema, **more}

    inputs = {"inputs": pets.output["pet"]}
    why = properties(why="string")
    assert list(ProcessWithPrompt("P", inputs, args(why)).output["why"]) == ["soft", "loud"]
    assert list(DataFromPrompt("D", args=args(why, n=2)).output["why"]) == ["soft", "soft"]
    kept = FilterWithPrompt("F", inputs, args(properties(why="string", keep="boolean")))
    assert list(kept.output) == [{"pet": "cat 0", "other": "ant", "why": "soft", "keep": True}]
    by_function = FilterWithPrompt("FF", inputs, args(why, filter_func=lambda fields: fields["why"] == "loud"))
    assert list(by_function.output["pet"]) == ["dog 1"]
    ranked = RankWithPrompt("R", inputs, args(properties(why="string", score="number")))
    assert [(row["scores"], row["score"], row["why"]) for row in ranked.output] == [(9, 9, "loud"), (2, 2, "soft")]
    pair = {"a": pets.output["pet"], "b": pets.output["other"]}
    judged = JudgePairsWithPrompt("J", pair, args(properties(winner="string"), randomize_order=False))
    assert list(judged.output["judgements"]) == ["Input A", "Input B"]
    assert list(judged.output["winner"]) == ["Input A", "b"]
    with pytest.raises(DefinitionError, match="0 properties of type boolean"):
        FilterWithPrompt("F", inputs, args(why))
    with pytest.raises(DefinitionError, match='property "pet"'):
        FilterWithPrompt("F", inputs, args(properties(pet="boolean")))


def test_a_changed_schema_reruns_the_step(tmp_path: Path) -> None:
    def run(schema: Any) -> int:
        llm = echo('{"name": "cat", "score": 1, "legs": 4}')
        with DataDreamer(tmp_path, verbose=False):
            extract(llm, 1, schema)
        return len(llm.asked)

    loose = {**SCHEMA, "additionalProperties": True}
    assert [run(loose), run(loose), run({**loose, "required": ["name"]}), run(Animal), run(Animal)] == [1, 0, 1, 1, 0]


def test_the_real_llm_keeps_its_answers_to_a_schema(session: DataDreamer, smollm_gguf: Path) -> None:
    from datadreamer_like.models.llms.llamacpp import LlamaCPP

    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["cat", "dog"]}, "legs": {"type": "integer"}},
        "required": ["animal", "legs"],
        "additionalProperties": False,
    }
    source = DataSource("Rows", data={"text": ["A dog has four legs.", "The cat sat down."]})
    llm = LlamaCPP(str(smollm_gguf))
    made = Prompt(
        "Read", {"prompts": source.output["text"]}, {"llm": llm, "output_schema": schema, "max_new_tokens": 40}
    )
    llm.unload_model()
    assert not made.errors
    assert set(made.output["animal"]) <= {"cat", "dog"}
    assert all(isinstance(legs, int) for legs in made.output["legs"])
