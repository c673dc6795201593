from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from flaky_server import FlakyServer, Reply
from pydantic import BaseModel, Field

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.models import LlamaCPP, OpenAI
from datadreamer_like.models.llms.generation import Generation, Sampling
from datadreamer_like.models.llms.schema import check_llamacpp_schema, json_schema_of, openai_response_format

CLOSED = {"additionalProperties": False}


class City(BaseModel):
    name: str = Field(max_length=12)
    people: int = Field(ge=0, le=9, default=3)


CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "people": {"type": "integer"}},
    "required": ["name"],
}


def sampling(**options: Any) -> Sampling:
    return Generation.from_options(options, extra=["response_format"]).sampling


def test_a_model_class_a_schema_and_a_response_format_become_the_same_schema() -> None:
    schema = City.model_json_schema()
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    forms: list[dict[str, Any]] = [{"schema": City}, {"schema": schema}, {"response_format": City}]
    forms.append({"response_format": wrapped})
    assert [sampling(**form).schema for form in forms] == [schema] * 4
    assert len({sampling(**form).key_material() for form in forms}) == 1
    assert sampling(response_format={"type": "json_object"}).schema == {"type": "object"}
    assert sampling(response_format={"type": "text"}).schema is None
    assert sampling(response_format={"type": "json_object"}).extra == {}


def test_the_order_of_properties_belongs_to_the_key_because_engines_write_in_it() -> None:
    turned = {**CITY, "properties": dict(reversed(CITY["properties"].items()))}  # type: ignore[attr-defined]
    assert sampling(schema=CITY).key_material() != sampling(schema=turned).key_material()


def test_a_schema_is_copied_so_that_a_later_change_does_not_reach_it() -> None:
    given = {"type": "object", "properties": {"a": {"type": "string"}}}
    kept = json_schema_of(given)
    given["properties"]["a"] = 1  # type: ignore[index]
    assert kept["properties"] == {"a": {"type": "string"}}


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"schema": 3}, ArgumentTypeError, "pydantic model class or a JSON schema"),
        ({"schema": int}, ArgumentTypeError, "pydantic model class or a JSON schema"),
        ({"schema": {"type": "sandwich"}}, DefinitionError, "at type"),
        ({"schema": {"type": "object", "properties": {"a": {"minLength": -1}}}}, DefinitionError, "at properties/a"),
        ({"schema": CITY, "response_format": CITY}, DefinitionError, "not both"),
        ({"response_format": {"type": "yaml"}}, DefinitionError, "response_format cannot be"),
    ],
)  # fmt: skip
def test_what_is_no_schema_is_refused(options: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        sampling(**options)


# OpenAI's form


def test_strict_mode_gets_closed_objects_with_all_properties_required() -> None:
    shape = openai_response_format(CITY)["json_schema"]
    assert shape["strict"] is True
    assert shape["schema"] == {**CITY, "required": ["name", "people"], "additionalProperties": False}
    assert "additionalProperties" not in CITY
    cities = {"type": "array", "items": {"$ref": "#/$defs/c"}}
    nested = {"$defs": {"c": CITY}, "type": "object", "properties": {"c": cities}}
    inner = openai_response_format(nested)["json_schema"]["schema"]["$defs"]["c"]
    assert (inner["required"], inner["additionalProperties"]) == (["name", "people"], False)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"anyOf": [CITY, {"type": "null"}]},
        {**CITY, "additionalProperties": {"type": "string"}},
        {**CITY, "additionalProperties": True},
        {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": True}},
    ],
)
def test_a_schema_that_strict_mode_cannot_take_is_sent_as_it_is(schema: Any) -> None:
    shape = openai_response_format(schema)["json_schema"]
    assert (shape["strict"], shape["schema"]) == (False, schema)


def test_any_object_is_json_mode() -> None:
    assert openai_response_format({"type": "object"}) == {"type": "json_object"}


def test_openai_is_asked_for_the_schema_and_half_an_answer_fails_its_row(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        whole = Reply('{"name": "Paris", "people": 2}')
        return whole if body["messages"][-1]["content"] == "a" else Reply('{"name": "Par', finish_reason="length")

    with FlakyServer(behave) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path)
        good, cut = llm.answers(["a", "b"], schema=City)
        assert llm.run(["b"], schema=City) == [None]
    assert City.model_validate_json(str(good.text)).name == "Paris"
    assert cut.text is None
    assert '{"name": "Par' in str(cut.error)
    assert "cut off" in str(cut.error)
    assert server.requests[0]["response_format"]["json_schema"]["strict"] is True


# llama.cpp's grammars

KEPT: dict[str, Any] = {
    "object": {**CITY, **CLOSED},
    "pydantic": City.model_json_schema(),
    "array": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 2, "maxItems": 3},
    "integer": {"type": "integer", "minimum": -17, "maximum": 1234},
    "exclusive": {"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5},
    "enum": {"type": "string", "enum": ["x", "y"]},
    "const": {"type": "object", "properties": {"k": {"const": "cat"}}, "required": ["k"], **CLOSED},
    "pattern": {"type": "string", "pattern": "^[A-Z][a-z]{1,3}(-[0-9]+|\\.x)?$"},
    "format": {"type": "string", "format": "date-time"},
    "nullable": {"type": ["string", "null"], "maxLength": 2},
    "union": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
    "one of": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 3}, {"const": "x", "type": "string"}]},
    "recursive": {
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                "required": ["v", "next"],
                **CLOSED,
            }
        },
        "$ref": "#/$defs/n",
    },
}


def refused(**node: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": node}}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "[0-9]{3}"}, "pattern"),
        (refused(type="string", pattern="^\\d{3}$"), "pattern"),
        (refused(type="string", pattern="^(?=a)abc$"), "pattern"),
        (refused(type="string", pattern="^[^a]$"), "pattern"),
        (refused(type="string", pattern="^[a-z]*$", maxLength=3), '"maxLength" next to "pattern"'),
        (refused(type="string", format="email"), 'format "email"'),
        (refused(type="number", minimum=5), '"minimum" of type number'),
        (refused(type="integer", multipleOf=7), '"multipleOf"'),
        (refused(type="array", uniqueItems=True), '"uniqueItems"'),
        (refused(type="array", contains={"const": 3}), '"contains"'),
        (refused(type="array", items=False), "False"),
        (refused(type="object", minProperties=2), '"minProperties"'),
        (refused(type="object", patternProperties={"^a": {}}), '"patternProperties"'),
        (refused(type="object", required=["z"]), 'required property "z"'),
        (refused(**{"not": {"type": "string"}}), '"not"'),
        (refused(allOf=[{"type": "integer"}]), '"allOf"'),
        (refused(anyOf=[{"maxLength": 2}], type="string"), '"type" next to "anyOf"'),
        (refused(enum=[1, 2], minimum=2), '"minimum" next to "enum"'),
        (refused(oneOf=[{"type": "integer"}, {"type": "number"}]), "overlap"),
        (refused(**{"$ref": "http://a/b.json"}), "reference"),
        ({}, "needs a schema with"),
    ],
)
def test_a_keyword_that_llamacpp_ignores_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        check_llamacpp_schema(schema)
    assert named in str(caught.value)


def test_llamacpp_refuses_such_a_schema_before_it_loads_the_model(smollm_gguf: Path) -> None:
    llm = LlamaCPP(str(smollm_gguf), context_length=256, slots=1)
    with pytest.raises(DefinitionError, match="not both"):
        llm.run(["a"], schema=City, grammar='root ::= "a"')
    with pytest.raises(DefinitionError, match="pattern"):
        llm.run(["a"], schema={"type": "string", "pattern": "[0-9]{3}"})
    assert llm._server is None


@pytest.mark.slow
@pytest.mark.parametrize("template", ["auto", None])
def test_what_is_not_refused_llamacpp_keeps(smollm_gguf: Path, template: str | None) -> None:
    """Samples at a temperature at which the model would stray; every whole answer must be valid for jsonschema."""
    options: dict[str, Any] = {} if template == "auto" else {"chat_prompt_template": None}
    llm = LlamaCPP(str(smollm_gguf), context_length=512, slots=4, **options)
    try:
        for name, schema in list(KEPT.items())[:: 1 if template == "auto" else 3]:
            sampled = {"temperature": 1.3, "top_p": 1.0, "seed": 1, "max_new_tokens": 60}
            (answer,) = llm.answers(["Describe something as JSON."], schema=schema, **sampled)
            for text in answer.texts:
                if text is not None and answer.error is None:
                    jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
            assert answer.error is None or name == "recursive", name
    finally:
        llm.unload_model()


def test_half_a_json_text_of_llamacpp_is_a_failed_row(smollm_gguf: Path) -> None:
    llm = LlamaCPP(str(smollm_gguf), context_length=256, slots=1)
    (answer,) = llm.answers(["Tell a long story as JSON."], schema={**CITY, **CLOSED}, max_new_tokens=4)
    assert answer.text is None
    assert "Raise max_new_tokens" in str(answer.error)
    llm.unload_model()
