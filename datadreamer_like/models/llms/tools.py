"""Tools that a model may call, as data: a name, a description, and the JSON schema of the parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, require_extra

from .schema import json_schema_of

Tool: TypeAlias = Mapping[str, Any]
"""A tool in neutral form: `{"name": ..., "description": ..., "parameters": {...}}`."""


class ToolCall(TypedDict):
    """A call that a model asks for: never executed, only kept.

    `arguments` are a dictionary, or the text as the model wrote it if that is not a JSON object. `thought` is there if
    the provider sent thoughts that it wants back with the call: a text that only `thoughts` reads.
    """

    id: str
    name: str
    arguments: Any
    thought: NotRequired[str]


TOOL_CHOICES = frozenset({"auto", "none", "required", "name"})
"""What `tool_choice` may be; "name" stands for the name of a tool."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
# An entry of a docstring's list of arguments: "city: ...", "city (str): ..."
_ARGUMENT = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s+(.*)")
_HEADINGS = ("Args:", "Arguments:", "Parameters:")


def tools_of(given: object) -> tuple[dict[str, Any], ...]:
    """Returns tools in neutral form.

    Each is a dictionary in that form or in OpenAI's (`{"type": "function", "function": {...}}`), a typed Python
    function, whose docstring describes it and its arguments, or a pydantic model class.

    Raises:
        ArgumentTypeError: It is no list of these.
        DefinitionError: A name is not one that providers accept, or occurs twice, or a schema is not valid.
    """
    if given is None:
        return ()
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ArgumentTypeError(f"tools must be a list of functions or dictionaries, not {given!r:.200}.")
    tools = tuple(_tool_of(each) for each in given)
    names = [tool["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DefinitionError(f'tools has two tools with the name "{twice}". Rename one: a call names its tool.')
    return tools


def checked_choice(choice: object, tools: Sequence[Tool]) -> str | None:
    """Returns `tool_choice`, None for the default; without tools, any name: rows may have tools of their own."""
    if choice is None or choice == "auto":
        return None  # as a request without it, which some servers that have no `tool_choice` refuse otherwise
    if not isinstance(choice, str):
        raise ArgumentTypeError(
            f'tool_choice must be "auto", "none", "required" or the name of a tool, not {choice!r:.200}.'
        )
    names = [tool["name"] for tool in tools]
    if names and kind_of(choice) == "name" and choice not in names:
        raise DefinitionError(
            f'tool_choice cannot be "{choice}"; expected "auto", "none", "required" or the name of a tool: '
            f"{', '.join(names)}."
        )
    return choice


def calls_with_own_ids(calls: Sequence[Any], used: set[str]) -> list[Any]:
    """Returns calls of which none has the id of another, nor one of those `used`, to which theirs are added."""
    made = []
    for call in calls:
        given = own = str(call["id"])
        number = 0
        while own in used:
            number += 1
            own = f"{given}_{number}"
        used.add(own)
        made.append(call if own == call["id"] else {**call, "id": own})
    return made


def kind_of(choice: str | None) -> str:
    """Returns which of `TOOL_CHOICES` a `tool_choice` is."""
    return "auto" if choice is None else choice if choice in ("auto", "none", "required") else "name"


def shown_calls(calls: Sequence[ToolCall]) -> str:
    """Returns calls as a text, for messages and follow-ups."""
    return "\n".join(
        f"{call['name']}({call['arguments'] if isinstance(call['arguments'], str) else json.dumps(call['arguments'])})"
        for call in calls
    )


def _tool_of(given: object) -> dict[str, Any]:
    if isinstance(given, Mapping):
        inner = given.get("function", given)
        if given.get("type", "function") != "function" or not isinstance(inner, Mapping) or "name" not in inner:
            raise DefinitionError(
                f"A tool needs a name, a description and parameters (a JSON schema), not {given!r:.200}. A "
                "provider's built-in tool is an option of its model: OpenAIResponses(..., tools=[...])."
            )
        known = {"name", "description", "parameters", "strict"}
        if unknown := sorted(inner.keys() - known):
            raise DefinitionError(
                f'The tool {inner["name"]!r} has "{unknown[0]}"; expected name, description, parameters.'
            )
        return _checked(inner["name"], inner.get("description"), inner.get("parameters") or _NO_PARAMETERS)
    if isinstance(given, type) and hasattr(given, "model_json_schema"):
        schema = given.model_json_schema()
        described = schema.pop("description", None)
        schema.pop("title", None)
        return _checked(given.__name__, described, schema)
    if callable(given) and hasattr(given, "__name__"):
        return _of_function(given)
    raise ArgumentTypeError(f"A tool must be a function, a pydantic model class or a dictionary, not {given!r:.200}.")


def _checked(name: object, description: object, parameters: object) -> dict[str, Any]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(f"A tool cannot have the name {name!r}; expected up to 64 letters, digits, _ and -.")
    if name in TOOL_CHOICES - {"name"}:
        raise DefinitionError(f'A tool cannot have the name "{name}", which is a tool_choice. Rename it.')
    if description is not None and not isinstance(description, str):
        raise ArgumentTypeError(f'The description of the tool "{name}" must be a text, not {description!r:.200}.')
    try:
        schema = json_schema_of(parameters)
    except DefinitionError as error:
        raise DefinitionError(f'The parameters of the tool "{name}": {error}') from error
    if schema.get("type") != "object":
        raise DefinitionError(
            f'The parameters of the tool "{name}" must be the JSON schema of an object, as in {{"type": "object", '
            f'"properties": {{...}}}}, not {json.dumps(schema):.200}.'
        )
    return {"name": name, "description": description or "", "parameters": schema}


def _of_function(function: Any) -> dict[str, Any]:
    import inspect

    require_extra("openai", "pydantic", what="A tool made from a Python function")
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    name = function.__name__
    parameters = inspect.signature(function).parameters.values()
    untyped = [each.name for each in parameters if each.annotation is inspect.Parameter.empty]
    others = [each.name for each in parameters if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if untyped or others:
        raise DefinitionError(
            f'The function "{name}" cannot be a tool: '
            + (f'its argument "{untyped[0]}" has no type. Annotate it.' if untyped else
               f'its argument "{others[0]}" cannot be given by name. Leave out /, *args and **kwargs.')
        )  # fmt: skip
    try:
        schema = TypeAdapter(function).json_schema()
    except (PydanticUserError, NameError) as error:
        raise DefinitionError(
            f'The function "{name}" cannot be a tool: a type of its arguments has no JSON schema: {str(error)[:300]}'
        ) from error
    summary, described = _docstring(inspect.getdoc(function) or "")
    for argument, spec in schema.get("properties", {}).items():
        spec.pop("title", None)
        if argument in described:
            spec.setdefault("description", described[argument])
    return _checked(name, summary, schema)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Returns a Google-style docstring's text before its first section, and its arguments' descriptions."""
    summary: list[str] = []
    described: dict[str, str] = {}
    section, indent, last = "", -1, ""
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped and line == stripped and re.fullmatch(r"[A-Z]\w*:", stripped):
            section, indent, last = stripped, -1, ""
        elif not section:
            summary.append(line)
        elif section in _HEADINGS and stripped:
            here = len(line) - len(line.lstrip())
            indent = here if indent < 0 else indent
            entry = _ARGUMENT.fullmatch(stripped) if here == indent else None
            if entry is not None:
                last = entry[1]
                described[last] = entry[2]
            elif last:
                described[last] += f" {stripped}"
    return "\n".join(summary).strip(), described
