"""Validating answers that are JSON objects of a schema, and turning them into columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from datadreamer_like.errors import DefinitionError
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Prompt
from datadreamer_like.models.llms.schema import json_schema_of
from datadreamer_like.models.llms.schema_check import Problem, json_value, misfit, schema_problems

_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class OutputSchema:
    """The schema of answers, a pydantic model class or a JSON schema (draft 2020-12).

    Each property becomes a column, under its Python name if a model gives it an alias. A property that may hold values
    of several types, or of any, is a column of JSON texts; None stays None.

    Raises:
        ArgumentTypeError: `given` is neither.
        DefinitionError: It is not a valid JSON schema of an object with properties.
    """

    def __init__(self, given: Any, step: str) -> None:
        is_model = isinstance(given, type) and hasattr(given, "model_json_schema")
        self._model: Any = given if is_model else None
        try:
            self.json_schema = schema = json_schema_of(given)
        except DefinitionError as error:
            raise type(error)(f'"{step}": output_schema: {error}') from error
        self._problems = schema_problems(schema)
        # An answer has the names and types that a model reads, its columns those that it writes.
        shape = given.model_json_schema(by_alias=False, mode="serialization") if is_model else schema
        properties = shape.get("properties")
        if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
            raise DefinitionError(
                f'"{step}": output_schema must describe an object with properties, as in {{"type": "object", '
                '"properties": {"name": {"type": "string"}}}: each property becomes a column.'
            )
        places = [(f"#/{place}", shape.get(place, {})) for place in ("$defs", "definitions")]
        shared = {f"{place}/{name}": each for place, named in places for name, each in named.items()}
        self.types: dict[str, Any] = {name: _kind_of(spec, shared) for name, spec in properties.items()}

    def read(self, text: str | None) -> dict[str, Any] | Rejected:
        """Returns the object in an answer, or `Rejected` with the validation errors."""
        try:
            value = json_value(text)
        except ValueError as error:
            return Rejected(f"It is not one JSON object: {error}.")
        if self._model is not None:
            value, problems = self._validated(value)
        else:
            problems = list(self._problems(value))
        if problems:
            return Rejected(misfit(problems))
        try:
            return {name: _typed(value.get(name), kind) for name, kind in self.types.items()}
        except OverflowError as error:
            return Rejected(f"It does not fit the schema: {error}.")

    def _validated(self, value: Any) -> tuple[Any, list[Problem]]:
        try:
            return self._model.model_validate_json(json.dumps(value)).model_dump(mode="json", by_alias=False), []
        except ValueError as error:
            found: Any = getattr(error, "errors", list)()
            return None, [(problem["loc"], problem["msg"]) for problem in found] or [((), str(error))]

    def only_field(self, kinds: Sequence[str], step: str, needs: str) -> str:
        """Returns the only property of the given types; raises `DefinitionError` unless there is exactly one."""
        names = [name for name, kind in self.types.items() if kind in kinds]
        if len(names) != 1:
            raise DefinitionError(
                f'"{step}": output_schema has {len(names)} properties of type {" or ".join(kinds)}; expected exactly '
                f"one, which {needs}."
            )
        return names[0]

    def with_instruction(self, prompt: Prompt) -> Prompt:
        """Returns a prompt that also shows the schema, for engines that do not enforce it."""
        schema = json.dumps(self.json_schema, ensure_ascii=False)
        instruction = f"Answer with one JSON object that fits this JSON schema, and nothing else:\n{schema}"
        if isinstance(prompt, str):
            return f"{prompt}\n\n{instruction}"
        return [*prompt, {"role": "user", "content": instruction}]


def _kind_of(spec: Any, shared: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    """Returns what all values of a schema are: a JSON type, `[kind]` for lists, a dictionary of kinds for objects.

    Its key None holds the kind under other names. "null" stands for no value, None for values of several types.
    """
    if not isinstance(spec, Mapping):
        return None
    if (place := spec.get("$ref")) is not None:
        return None if place in within else _kind_of(shared.get(place), shared, (*within, place))

    def all_of(specs: Sequence[Any]) -> Any:
        return reduce(_joined, [_kind_of(each, shared, within) for each in specs])

    named = spec.get("type")
    if isinstance(named, list):
        return all_of([{**spec, "type": each} for each in named])
    if named is None and ("enum" in spec or "const" in spec):
        return reduce(_joined, [_JSON_TYPES.get(type(value)) for value in spec.get("enum", [spec.get("const")])])
    if named is None:
        return all_of(spec.get("anyOf") or spec.get("oneOf") or spec.get("allOf") or [None])
    if named == "array":
        first = spec.get("prefixItems", [])
        inner = all_of(first if first and spec.get("maxItems") == len(first) else [*first, spec.get("items")])
        return None if inner is None else [inner]
    if named == "object":
        kinds: dict[str | None, Any] = {name: all_of([each]) for name, each in spec.get("properties", {}).items()}
        if isinstance(others := spec.get("additionalProperties"), Mapping):
            kinds[None] = all_of([others])
        return kinds if kinds and None not in kinds.values() else None
    return named


def _joined(a: Any, b: Any) -> Any:
    """Returns the kind of values that are of one kind or of another."""
    if a == b or "null" in (a, b):
        return b if a == "null" else a
    return "number" if (a, b) in (("integer", "number"), ("number", "integer")) else None


def _typed(value: Any, kind: Any) -> Any:
    """Converts a valid value to the type of its column, so that a column of 1 and 2.5 is of floats."""
    if value is None:
        return None
    if kind is None:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(kind, list):
        return [_typed(each, kind[0]) for each in value]
    if isinstance(kind, dict):
        kinds = {name: kind.get(name, kind.get(None)) for name in value}
        return {name: _typed(each, kinds[name]) for name, each in value.items() if kinds[name] is not None}
    if kind == "integer" and not -(2**63) <= value < 2**63:
        raise OverflowError(f"{value} is beyond 64 bits")
    return float(value) if kind == "number" else int(value) if kind == "integer" else value
