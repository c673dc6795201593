"""The schema that an answer must fit: one JSON schema for all providers, and what each engine can keep of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError

JSONSchema = Mapping[str, Any]

_ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$comment", "$defs", "definitions", "discriminator",
}  # fmt: skip


def json_schema_of(schema: object) -> dict[str, Any]:
    """Returns the JSON schema of a pydantic model class, or a checked copy of a JSON schema."""
    import jsonschema

    from_pydantic = getattr(schema, "model_json_schema", None)
    found: Any = from_pydantic() if isinstance(schema, type) and from_pydantic is not None else schema
    if not isinstance(found, Mapping):
        raise ArgumentTypeError(f"schema must be a pydantic model class or a JSON schema (a dict), not {schema!r}.")
    found_schema: dict[str, Any] = copy.deepcopy(dict(found))
    checked = jsonschema.validators.validator_for(found_schema, jsonschema.Draft202012Validator)
    reference = None
    try:
        checked.check_schema(found_schema)
        for _, node in subschemas(found_schema):
            if isinstance(node, Mapping) and (reference := node.get("$ref")) is not None:
                checked(found_schema).evolve(schema={"$ref": reference}).is_valid(None)
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "its root"
        raise DefinitionError(f"schema is not a valid JSON schema: at {place}, {error.message}.") from error
    except Exception as error:
        raise DefinitionError(f"schema: the reference {reference!r} leads nowhere.") from error
    return found_schema


def schema_of_response_format(response_format: object) -> object | None:
    """Returns the schema that OpenAI's `response_format` stands for, None for plain text; refuses unknown kinds."""
    if response_format is None or hasattr(response_format, "model_json_schema"):
        return response_format
    if isinstance(response_format, Mapping):
        kind, shape = response_format.get("type"), response_format.get("json_schema")
        if kind == "text":
            return None
        if kind == "json_object":
            return {"type": "object"}
        if kind == "json_schema" and isinstance(shape, Mapping) and "schema" in shape:
            inner: object = shape["schema"]
            return inner
    raise DefinitionError(
        f'response_format cannot be {response_format!r}; expected a pydantic model class or a dict of type "text", '
        '"json_object" or "json_schema". schema=... is the short form.'
    )


def openai_response_format(schema: JSONSchema) -> dict[str, Any]:
    """Returns the `response_format` that asks for a schema.

    In strict mode OpenAI constrains decoding, and requires every object to be closed and every property to be required.
    Both only narrow the schema, so they are added. A schema with keywords that strict mode lacks is sent as is.
    """
    if not schema.get("properties") and schema.get("type") == "object" and "additionalProperties" not in schema:
        return {"type": "json_object"}
    strict = strict_schema(schema)
    shape = {"name": "answer", "schema": dict(schema) if strict is None else strict, "strict": strict is not None}
    return {"type": "json_schema", "json_schema": shape}


def with_schema(messages: list[dict[str, Any]], schema: JSONSchema) -> list[dict[str, Any]]:
    """Returns messages whose system message also has the schema, for servers that only guarantee JSON."""
    words = f"Answer with JSON that fits this JSON schema, and nothing else:\n{json.dumps(schema, ensure_ascii=False)}"
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{words}"}, *messages[1:]]
    # Some servers take a system message only at the start.
    return [{"role": "system", "content": words}, *messages]


_NOT_STRICT = {
    "allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties", "unevaluatedItems", "contains",
    "minContains", "maxContains", "uniqueItems", "prefixItems",
}  # fmt: skip


def strict_schema(schema: JSONSchema) -> dict[str, Any] | None:
    """Returns the schema in the form that strict mode requires, or None if that is not possible."""
    strict: dict[str, Any] = copy.deepcopy(dict(schema))
    if strict.get("type") != "object" and "$ref" not in strict:
        return None
    for _, node in subschemas(strict):
        if not isinstance(node, dict) or _NOT_STRICT & node.keys():
            return None
        if node.get("type") == "object" or "properties" in node:
            if node.get("additionalProperties") not in (None, False):
                return None
            properties = node.setdefault("properties", {})
            node["additionalProperties"] = False
            node["required"] = list(properties)
        elif not {"type", "enum", "const", "anyOf", "$ref"} & node.keys():
            return None  # any value at all
        node.pop("default", None)
    return strict


ANSWER_FIELD = "answer"
"""The property that holds an answer which is not an object itself."""


def object_schema(schema: JSONSchema) -> tuple[dict[str, Any], bool]:
    """Returns a schema of an object, and whether the answer is wrapped in its property `ANSWER_FIELD`."""
    if schema.get("type") == "object":
        return dict(schema), False
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    inner = {name: value for name, value in schema.items() if name not in shared}
    wrapped = {"type": "object", "properties": {ANSWER_FIELD: inner}, "required": [ANSWER_FIELD]}
    return {**wrapped, "additionalProperties": False, **shared}, True


_LLAMACPP_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_LLAMACPP_FORMATS = {"date", "time", "date-time", "uuid"}
# The parts of regular expressions that its converter supports; for others it would accept any text.
_LLAMACPP_PATTERN = re.compile(
    r"""\^(?:
        [\w\ \-:;,/@\#%&=<>!~'_.]      # a character, or any
        | \\[.\-+*?()\[\]{}|^$/]       # an escaped special one
        | \[(?!\^)[\w\ \-:;,/.]+\]     # one of a set
        | \((?!\?) | [)|*+?] | \{\d+(?:,\d*)?\}
    )*\$""",
    re.VERBOSE | re.ASCII,
)


def check_llamacpp_schema(schema: JSONSchema) -> None:
    """Refuses a schema that llama.cpp's grammars cannot enforce, since they ignore unknown keywords."""
    if not {"type", "enum", "const", "anyOf", "oneOf", "$ref"} & schema.keys():
        raise DefinitionError('llama.cpp needs a schema with "type", "enum", "const", "anyOf", "oneOf" or "$ref".')
    for place, node in subschemas(schema):
        problem = _llamacpp_problem(node)
        if problem:
            raise DefinitionError(
                f"llama.cpp cannot keep {problem} (in the schema at {place}). Leave it out and check the answers, or "
                "use a provider that has it."
            )


def _llamacpp_problem(node: object) -> str | None:
    if not isinstance(node, Mapping):
        return None if node is True else "a schema of False"
    used = node.keys() - _ANNOTATIONS
    for alone in ("$ref", "anyOf", "oneOf", "enum", "const"):
        if alone in used:
            # The type of an enum or const adds nothing to its values.
            others = used - {alone} - ({"type"} if alone in ("enum", "const") else set())
            if others:
                return f'"{min(others)}" next to "{alone}"'
            if alone == "$ref" and not str(node["$ref"]).startswith(("#/$defs/", "#/definitions/")):
                return f'the reference {node["$ref"]!r}: only "#/$defs/..." is read'
            if alone == "oneOf" and "discriminator" not in node and not _disjoint(node["oneOf"]):
                return '"oneOf" with alternatives that overlap'
            return None
    types = [node["type"]] if isinstance(node.get("type"), str) else list(node.get("type", ()))
    unknown = used - {"type"}.union(*(_LLAMACPP_KEYWORDS.get(kind, ()) for kind in types))
    if unknown:
        return f'"{min(unknown)}"' + (f" of type {' or '.join(types)}" if types else " without a type")
    pattern, form = node.get("pattern"), node.get("format")
    if form is not None and form not in _LLAMACPP_FORMATS:
        return f'the format "{form}"; it has {", ".join(sorted(_LLAMACPP_FORMATS))}'
    if pattern is not None and not _LLAMACPP_PATTERN.fullmatch(pattern):
        return f"the pattern {pattern!r}: it must be ^...$, without escapes such as \\d and without [^...]"
    limits = {"pattern", "format", "minLength", "maxLength"} & node.keys()
    if len(limits) > 1 and limits & {"pattern", "format"}:
        return " next to ".join(f'"{name}"' for name in sorted(limits))
    missing = set(node.get("required", ())) - set(node.get("properties", ()))
    return f'the required property "{min(missing)}" that "properties" does not have' if missing else None


def _disjoint(alternatives: list[Any]) -> bool:
    if all(isinstance(each, Mapping) and "const" in each for each in alternatives):
        return len({repr(each["const"]) for each in alternatives}) == len(alternatives)
    kinds = [each.get("type") if isinstance(each, Mapping) else None for each in alternatives]
    if not all(isinstance(kind, str) for kind in kinds):
        return False
    return len(set(kinds)) == len(kinds) and not {"integer", "number"} <= set(kinds)


# Keywords that hold schemas by name; that hold a list of them; and that hold one.
_NAMED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties",
    "unevaluatedItems",
)  # fmt: skip


def subschemas(schema: Any, place: str = "#") -> Iterator[tuple[str, Any]]:
    """Yields a schema and all schemas inside it, outermost first, each after its path."""
    yield place, schema
    if not isinstance(schema, Mapping):
        return
    inner = [(f"{name}/{key}", each) for name in _NAMED for key, each in (schema.get(name) or {}).items()]
    inner += [(f"{name}/{index}", each) for name in _LISTED for index, each in enumerate(schema.get(name) or ())]
    # Other single schemas may be True or False, which is not a schema with keywords.
    single = {name: schema[name] for name in _SINGLE if name in schema}
    inner += [(name, each) for name, each in single.items() if name == "items" or isinstance(each, Mapping)]
    for path, each in inner:
        yield from subschemas(each, f"{place}/{path}")
