"""Reads a prompt: the instruction, and the demonstrations that it has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from datadreamer_like.errors import DataError
from datadreamer_like.models import LLM
from datadreamer_like.steps import DataSource, Prompt

PAIR = re.compile(
    r"^[ \t*#]*Input[*]*:[* \t]*(?P<input>.*?)\s*\n[ \t*#]*Output[*]*:[* \t]*(?P<output>.*?)"
    r"(?=\n\s*\n|\n[ \t*#]*Input[*]*:|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_PARSE = """Split the prompt below into the instruction, and the demonstrations that it has: examples of an input with \
its output. There may be none. Copy them word by word.

Prompt:
{}"""
_SCHEMA = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string"},
        "demonstrations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"input": {"type": "string"}, "output": {"type": "string"}},
                "required": ["input", "output"],
            },
        },
    },
    "required": ["instruction", "demonstrations"],
}


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt as an instruction and demonstrations: pairs of an input and its output."""

    instruction: str
    demonstrations: tuple[tuple[str, str], ...] = ()


def parse_prompt(name: str, llm: LLM, prompt: str) -> ParsedPrompt:
    r"""Returns the instruction and the demonstrations of a prompt; `name` is that of the step that asks the LLM.

    A prompt whose demonstrations are lines that begin with "Input:" and "Output:" is read without the LLM.

    Raises:
        DataError: The LLM found no instruction.

    Example:
        >>> parse_prompt("Parsed", llm, "Name the topic.\n\nInput: A chess game.\nOutput: games")  # doctest: +SKIP
        ParsedPrompt(instruction='Name the topic.', demonstrations=(('A chess game.', 'games'),))
    """
    first = PAIR.search(prompt)
    if first is not None and prompt[: first.start()].strip():
        pairs = tuple((found["input"].strip(), found["output"].strip()) for found in PAIR.finditer(prompt))
        return ParsedPrompt(prompt[: first.start()].strip(), pairs)
    source = DataSource(f"{name}, prompt", {"prompt": [_PARSE.format(prompt)]})
    args = {"llm": llm, "output_schema": _SCHEMA, "temperature": 0.0}
    said = Prompt(name, {"prompts": source.output["prompt"]}, args).output
    instruction, found = said["instruction"][0], said["demonstrations"][0] or []
    if not instruction or not instruction.strip():
        raise DataError(f'"{name}": the LLM found no instruction in the prompt. Say in a sentence what is to be done.')
    return ParsedPrompt(instruction.strip(), tuple((each["input"], each["output"]) for each in found))
