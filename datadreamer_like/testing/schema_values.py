"""Values that fit a JSON schema, for fake answers."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from datadreamer_like.errors import DefinitionError
from datadreamer_like.models.llms.generation import Request

_FORMATS = {
    "date": "2024-05-17", "date-time": "2024-05-17T12:00:00Z", "time": "12:00:00Z", "email": "someone@example.com",
    "uri": "https://example.com/", "uuid": "12345678-1234-4234-8234-123456789abc", "ipv4": "192.0.2.1",
    "hostname": "example.com",
}  # fmt: skip
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fern", "grove", "harbour")
_DEEPEST = 12


def value_for(schema: Mapping[str, Any], seed: str) -> Any:
    """Returns a value that fits a schema, the same for the same seed.

    Raises:
        DefinitionError: The schema has keywords that cannot be kept this way, such as `pattern`.
    """
    import jsonschema

    chosen = random.Random(f"{seed}\0{json.dumps(schema, sort_keys=True)}")
    try:
        value = _value(schema, schema, chosen, 0)
        jsonschema.validate(value, schema)
    except (jsonschema.ValidationError, RecursionError, KeyError, TypeError, ValueError) as error:
        said = getattr(error, "message", error)
        raise DefinitionError(
            f"FakeLLM cannot make up a value for this schema: {said}. Give it the answers, as in "
            "FakeLLM(lambda prompt: ...)."
        ) from error
    return value


def made_up_call(request: Request, seed: str) -> list[dict[str, Any]]:
    """Returns a call of one of a request's tools, that of its `tool_choice` or any, the same for the same seed."""
    named = [tool for tool in request.tools if tool["name"] == request.sampling.tool_choice] or list(request.tools)
    tool = random.Random(f"{seed}\0tool").choice(named)
    return [{"name": tool["name"], "arguments": value_for(tool["parameters"], seed)}]


def _value(schema: Any, root: Mapping[str, Any], chosen: random.Random, depth: int) -> Any:
    if not isinstance(schema, Mapping) or not schema:
        return chosen.choice(_WORDS)
    if depth > _DEEPEST * 4:
        raise RecursionError("it refers to itself without an end")
    if "$ref" in schema:
        target: Any = root
        for part in str(schema["$ref"]).lstrip("#/").split("/"):
            target = target[part]
        return _value(target, root, chosen, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chosen.choice(list(schema["enum"]))
    for several in ("anyOf", "oneOf"):
        if several in schema:
            # The last one ends a type that refers to itself: it is usually null.
            options = schema[several]
            return _value(options[-1] if depth > _DEEPEST else chosen.choice(options), root, chosen, depth + 1)
    if "allOf" in schema:
        whole = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            whole |= part
        return _value(whole, root, chosen, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = chosen.choice(kind) if isinstance(kind, list) else kind
    return _MAKERS[kind](schema, root, chosen, depth)


def _object(schema: Any, root: Any, chosen: random.Random, depth: int) -> dict[str, Any]:
    required = schema.get("required", ())
    # Optional properties are left out where a type refers to itself.
    names = [name for name in schema.get("properties", {}) if depth <= _DEEPEST or name in required]
    return {name: _value(schema["properties"][name], root, chosen, depth + 1) for name in names}


def _array(schema: Any, root: Any, chosen: random.Random, depth: int) -> list[Any]:
    first = [_value(each, root, chosen, depth + 1) for each in schema.get("prefixItems", ())]
    least = schema.get("minItems", 0)
    most = schema.get("maxItems", max(least, 3))
    count = (
        least if depth > _DEEPEST or schema.get("items") is False else chosen.randint(max(least, min(1, most)), most)
    )
    rest: list[Any] = []
    for _ in range(100):
        if len(first) + len(rest) >= count:
            break
        value = _value(schema.get("items"), root, chosen, depth + 1)
        if not schema.get("uniqueItems") or value not in rest:
            rest.append(value)
    return [*first, *rest]


def _number(schema: Any, root: Any, chosen: random.Random, depth: int) -> float:
    least, most = _limits(schema)
    value = round(chosen.uniform(least, most), 2)
    if step := schema.get("multipleOf"):
        value = step * round(value / step)
    return min(max(value, least), most)


def _integer(schema: Any, root: Any, chosen: random.Random, depth: int) -> int:
    least, most = _limits(schema)
    step = int(schema.get("multipleOf", 1)) or 1
    first, last = -(-int(-(-least // 1)) // step), int(most // step)
    return chosen.randint(first, max(first, last)) * step


def _limits(schema: Any) -> tuple[float, float]:
    near = 1 if schema.get("type") == "integer" else 0.01
    least = schema.get("minimum", schema["exclusiveMinimum"] + near if "exclusiveMinimum" in schema else None)
    most = schema.get("maximum", schema["exclusiveMaximum"] - near if "exclusiveMaximum" in schema else None)
    if least is None:
        least = 0 if most is None else min(0, most)
    return least, max(least, 10) if most is None else most


def _text(schema: Any, root: Any, chosen: random.Random, depth: int) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = " ".join(chosen.choices(_WORDS, k=2))
    least = schema.get("minLength", 0)
    while len(text) < least:
        text += f" {chosen.choice(_WORDS)}"
    return text[: schema.get("maxLength", len(text))]


_MAKERS: dict[str, Any] = {
    "object": _object,
    "array": _array,
    "string": _text,
    "number": _number,
    "integer": _integer,
    "boolean": lambda schema, root, chosen, depth: chosen.random() < 0.5,
    "null": lambda schema, root, chosen, depth: None,
}
