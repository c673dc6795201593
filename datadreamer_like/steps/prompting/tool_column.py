"""Tools of prompting steps: for all rows or from a column, and the column of the calls that answers have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, RejectedAnswer
from datadreamer_like.models.calls.llm_calls import Repeated
from datadreamer_like.models.llms.generation import Answer, Prompt, Sampling, ToolPrompt
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.models.llms.tool_calls import check_tools
from datadreamer_like.models.llms.tool_messages import without_empty
from datadreamer_like.models.llms.tools import checked_choice, kind_of, tools_of

TOOLS = "tools"
TOOL_CALLS = "tool_calls"


def tools_input(args: Mapping[str, Any], inputs: Mapping[str, Any], named: bool) -> str | None:
    """Returns the name of the input with the tools of each row; None if there is none.

    The argument `tools` may be that name; `named` is whether the step itself has an input for it, called "tools".
    """
    given = args.get(TOOLS)
    if isinstance(given, str):
        return given
    return TOOLS if named and TOOLS in inputs else None


def check_step_tools(step: str, args: Mapping[str, Any], inputs: Mapping[str, Any], column: str | None) -> Any:
    """Returns the tools for all rows in neutral form; refuses, before any row is read, what the LLM does not take."""
    llm: LLM = args["llm"]
    given = args.get(TOOLS)
    if column is not None and (column not in inputs or not isinstance(given, str | None)):
        names = ", ".join(inputs) or "none"
        raise DefinitionError(
            f'"{step}": give tools as a list for all rows, or as the name of an input; the inputs are: {names}.'
        )
    try:
        tools = () if column is not None else tools_of(given)
        choice = checked_choice(args.get("tool_choice"), tools)
        # The tools of rows are not known here, but whether the LLM takes any.
        some = tools_of([{"name": choice if kind_of(choice) == "name" else "tool"}]) if column is not None else tools
        if not some:
            raise DefinitionError(f'tool_choice="{choice}" needs tools. Pass tools=[...].')
        schema: Any = None if args.get("output_schema") is None else {}
        sampling = Sampling(tools=some, tool_choice=choice, schema=schema)
        check_tools(llm, sampling, sampling.tools)
    except (DefinitionError, ArgumentTypeError) as error:
        raise type(error)(f'"{step}": {error}') from error
    return tools


def with_tools(
    prompt: Prompt | ModelError | None, cell: Any, choice: str | None = None
) -> ToolPrompt | ModelError | None:
    """Returns a prompt with the tools in a cell: a list of tools or its JSON, or None for no tools.

    Where `choice` is the name of a tool, it is an error if the cell has tools, but not that one.
    """
    if prompt is None or isinstance(prompt, ModelError):
        return prompt
    try:
        given = _read(cell)
        tools = tools_of(given if isinstance(given, Mapping) else [_read(tool) for tool in given or ()])
        checked_choice(choice, tools)
        return ToolPrompt(prompt, tools)
    except (ValueError, TypeError, DefinitionError) as error:
        return ModelError(f"The tools of the row cannot be used: {error}")


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return without_empty(value)
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{value[:200]!r} is not JSON.") from error


def bare(value: Any) -> Any:
    """Returns a prompt without its number and its tools, as the output shows it."""
    value = value.prompt if isinstance(value, Repeated) else value
    return value.prompt if isinstance(value, ToolPrompt) else value


def call_column(answers: Sequence[Any], several: bool) -> list[Any]:
    """Returns the calls of each row, arguments as JSON; lists of lists if it has `several` answers.

    None without an answer; calls that were rejected are kept, as texts are.
    """
    return [
        None
        if answer is None or not isinstance(answer.error, RejectedAnswer | None) or not answer.texts
        else _calls(answer)
        if several
        else _calls(answer)[0]
        for answer in answers
    ]


def _calls(answer: Answer) -> list[list[dict[str, str]]]:
    calls = answer.tool_calls if answer.tool_calls is not None else [() for _ in answer.texts]
    return [
        [
            {
                "id": call["id"],
                "name": call["name"],
                "arguments": arguments
                if isinstance(arguments := call["arguments"], str)
                else json.dumps(arguments, ensure_ascii=False),
                **({"thought": call["thought"]} if "thought" in call else {}),
            }
            for call in each
        ]
        for each in calls
    ]
