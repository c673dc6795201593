"""Prompts of instructions and as many in-context examples as fit the context window."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from datadreamer_like.errors import BadRequest, DefinitionError, PromptTooLong


def formatted_prompt(
    llm: Any,
    parts: tuple[str | None, list[str], str | None],
    max_new_tokens: int | None,
    sep: str,
    bounds: tuple[int | None, int | None],
) -> str:
    """Returns the prompt of `LLM.format_prompt`: `parts` are what is before the examples, they, and what is after.

    `bounds` are the least and the most examples; by default at least one, if there are any.
    """
    before, examples, after = parts
    longest = bounds[1]
    most = len(examples) if longest is None else min(longest, len(examples))
    least = min(1, most) if bounds[0] is None else bounds[0]
    if longest is not None and least > longest:
        raise DefinitionError(f"min_in_context_examples ({least}) is more than max_in_context_examples ({longest}).")

    if least > len(examples):
        raise BadRequest(
            f"There are {len(examples)} in-context examples, fewer than the {least} that are required. Give more, or "
            "require fewer."
        )

    def joined(count: int) -> str:
        return sep.join(part for part in (before, *examples[:count], after) if part is not None)

    try:
        room = llm.get_max_context_length(max_new_tokens or 0)  # an older subclass takes numbers only
    except NotImplementedError:
        return joined(most)
    # The length grows with the count, so bisection finds the largest count that fits.
    fits = bisect_right(range(most + 1), room, key=lambda count: llm.final_count_tokens(joined(count))) - 1
    if fits < max(least, 0):
        examples_named = "1 in-context example" if least == 1 else f"{least} in-context examples"
        raise PromptTooLong(
            f"The prompt with {examples_named} has {llm.final_count_tokens(joined(least))} tokens; {llm.display_name} "
            f"has room for {room}. Shorten the instruction or the examples, lower max_new_tokens, or require fewer "
            "examples."
        )
    return joined(fits)
