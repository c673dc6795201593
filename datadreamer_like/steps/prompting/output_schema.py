"""Validating answers that are JSON objects of a schema, and turning them into columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import DefinitionError
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Prompt
from datadreamer_like.models.llms.schema import json_schema_of

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)
_ERRORS_SHOWN = 3


class OutputSchema:
    """The schema of answers, a pydantic model class or a JSON schema (draft 2020-12); each property becomes a column.

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
        import jsonschema

        self._validator: Any = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
        properties = schema.get("properties")
        if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
            raise DefinitionError(
                f'"{step}": output_schema must describe an object with properties, as in {{"type": "object", '
                '"properties": {"name": {"type": "string"}}}: each property becomes a column.'
            )
        specs = {name: spec if isinstance(spec, Mapping) else {} for name, spec in properties.items()}
        self.types: dict[str, Any] = {name: spec.get("type") for name, spec in specs.items()}

    def read(self, text: str | None) -> dict[str, Any] | Rejected:
        """Returns the object in an answer, or `Rejected` with the validation errors."""
        fenced = _FENCED.fullmatch(text or "")
        try:
            value = json.loads(fenced[1] if fenced else text or "")
        except ValueError as error:
            return Rejected(f"It is not one JSON object: {error}.")
        if self._model is not None:
            value, problems = self._validated(value)
        else:
            problems = [(error.absolute_path, error.message) for error in self._validator.iter_errors(value)]
        if problems:
            shown = [f"{'.'.join(map(str, path)) or 'the object'}: {why}" for path, why in problems[:_ERRORS_SHOWN]]
            return Rejected(f"It does not fit the schema: {'; '.join(shown)}.")
        return {name: _typed(value.get(name), kind) for name, kind in self.types.items()}

    def _validated(self, value: Any) -> tuple[Any, list[tuple[Sequence[Any], str]]]:
        try:
            return self._model.model_validate_json(json.dumps(value)).model_dump(mode="json"), []
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


def _typed(value: Any, kind: Any) -> Any:
    """Converts a number to the schema's type, so that a column of 1 and 2.5 is of floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    kinds = [kind] if isinstance(kind, str) else kind or ()
    return float(value) if "number" in kinds else int(value) if "integer" in kinds else value
