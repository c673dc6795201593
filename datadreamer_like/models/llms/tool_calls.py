"""Calls of tools in answers: read from what an engine sent, and checked against their tools."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datadreamer_like.errors import DefinitionError

from ..calls.failures import Rejected
from .generation import Answer, Request, Sampling
from .schema_check import Problem, json_value, schema_problems, shown_problems
from .thoughts import chat_thoughts
from .tools import Tool, ToolCall, kind_of, shown_calls


def tool_call(id: object, name: object, arguments: object, index: int = 0, thought: str | None = None) -> ToolCall:
    """Returns a call, with its `thought` if there is one; arguments that are a JSON object become a dictionary."""
    if isinstance(arguments, str) or arguments is None:
        try:
            value = json_value(arguments) if arguments and arguments.strip() else {}
            arguments = value if isinstance(value, dict) else arguments
        except ValueError:
            pass
    elif isinstance(arguments, Mapping):
        arguments = dict(arguments)
    call = ToolCall(id=str(id or f"call_{index}"), name=str(name or ""), arguments=arguments)
    return call if thought is None else {**call, "thought": thought}


def openai_calls(message: Any, thoughts: Collection[str] = ()) -> tuple[ToolCall, ...]:
    """Returns the calls in a message of OpenAI's chat completions, a mapping; raises AttributeError for others.

    `thoughts` are the fields in which the server sends thoughts that it wants back.
    """
    calls = message.get("tool_calls") or ()
    functions = [(call.get("id"), call.get("function") or {}) for call in calls]
    own = chat_thoughts(message, thoughts) if thoughts else [None] * len(functions)
    return tuple(
        tool_call(call_id, function.get("name"), function.get("arguments"), index, thought)
        for index, ((call_id, function), thought) in enumerate(zip(functions, own, strict=True))
    )


def answer_words(answer: Answer) -> str | None:
    """Returns the first text of an answer with its calls, as a text; None if there is neither."""
    calls = answer.tool_calls[0] if answer.tool_calls else ()
    return "\n".join([*([answer.text] if answer.text else []), shown_calls(calls)]) if calls else answer.text


def check_tools(llm: Any, sampling: Sampling, tools: Sequence[Tool]) -> None:
    """Refuses tools, before anything is sent, that an LLM does not take, or not with these options."""
    if not tools:
        return
    if not llm.tool_choices:
        raise DefinitionError(
            f"{llm.display_name} takes no tools. Leave them out, or use a model of an API, or one in LlamaCPP "
            "whose chat template has a place for tools."
        )
    kind, choice = kind_of(sampling.tool_choice), sampling.tool_choice
    if kind not in llm.tool_choices:
        can = sorted(f'"{each}"' if each != "name" else "the name of a tool" for each in llm.tool_choices)
        raise DefinitionError(
            f'{llm.display_name} does not take tool_choice="{choice}"; it takes {", ".join(can)}. Change it, or '
            "ask for the call in the prompt."
        )
    if kind == "name" and choice not in [tool["name"] for tool in tools]:
        names = ", ".join(tool["name"] for tool in tools)
        raise DefinitionError(f'tool_choice="{choice}" names no tool; the tools are: {names}.')
    if sampling.schema is not None:
        raise DefinitionError(
            "Give schema or tools, not both: an answer that calls a tool has no text that could fit the schema."
        )
    if tools is not sampling.tools:
        llm.check(replace(sampling, tools=tuple(tools)))


def checked_calls(request: Request, answer: Answer) -> Answer | Rejected:
    """Returns the answer, or why it is rejected: its calls do not fit their tools or `tool_choice`, or none is there.

    Of several texts those whose calls do not fit lose them, unless all do.
    """
    choice = request.sampling.tool_choice if request.tools else None
    required = kind_of(choice) in ("required", "name")
    if answer.tool_calls is None and not required:
        return answer
    problems = _problems(json.dumps(request.tools))
    calls = answer.tool_calls if answer.tool_calls is not None else [[] for _ in answer.texts]
    wrong = [
        _wrong(each, problems, choice) or ("It calls no tool." if required and not each else None) for each in calls
    ]
    if not any(wrong):
        return answer
    if all(wrong):
        return Rejected(next(reason for reason in wrong if reason))
    kept = [[] if reason else each for reason, each in zip(wrong, calls, strict=True)]
    texts = [None if reason else text for reason, text in zip(wrong, answer.texts, strict=True)]
    return replace(answer, texts=texts, tool_calls=kept)


def _wrong(
    calls: Sequence[ToolCall], tools: Mapping[str, Callable[[Any], Iterator[Problem]]], choice: str | None
) -> str | None:
    if calls and choice == "none":
        return "It calls a tool; answer without one."
    for call in calls:
        name, arguments = call["name"], call["arguments"]
        if not name:
            return "It has a call that cannot be read."
        if name not in tools:
            return f'It calls "{name}", which is no tool; the tools are: {", ".join(tools) or "none"}.'
        if kind_of(choice) == "name" and name != choice:
            return f'It calls "{name}" instead of "{choice}".'
        if not isinstance(arguments, dict):
            return f"The arguments of {name} are not one JSON object."
        if found := list(tools[name](arguments)):
            return f"The arguments of {name} do not fit its parameters: {shown_problems(found, 'the whole')}."
    return None


@functools.lru_cache(maxsize=256)
def _problems(tools: str) -> dict[str, Callable[[Any], Iterator[Problem]]]:
    return {tool["name"]: schema_problems(tool["parameters"]) for tool in json.loads(tools)}
