"""The table of steps in docs/steps.md is what the classes say; `python tests/contracts/freeze.py` writes it."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from subjects import ALL_STEPS

from datadreamer_like.steps.base.registration import registered

PAGE = Path(__file__).parents[2] / "docs" / "steps.md"
BEGIN, END = "<!-- the table of steps -->\n", "<!-- its end -->\n"
HEAD = "| step | what it does | inputs | args | outputs |\n| --- | --- | --- | --- | --- |\n"
# Those that every step has which prompts an LLM, named once above the table.
SHARED = ("post_process", "parse", "output_schema", "max_follow_ups", "lazy", "logprobs")


def cell(specs: dict[str, Any], any_other: bool = False) -> str:
    """Names, optional ones in parentheses."""
    names = [name if spec.required else f"({name})" for name, spec in specs.items() if name not in SHARED]
    return ", ".join(names + ["any columns"] * any_other).replace("*", "all columns ") or "none"


def row(kind: Any) -> str:
    """A step's line: the first sentence of its docstring, and what it registers."""
    does = " ".join(inspect.getdoc(kind).partition("\n\n")[0].split()).replace("|", "\\|")  # type: ignore[union-attr]
    if "inputs" not in inspect.signature(kind.__init__).parameters:  # a source says in its constructor what it reads
        taken = [
            name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "name", "options")
        ]
        return f"| `{kind.__name__}` | {does} | none | {', '.join(taken)} | those of the data |\n"
    step = registered(kind)
    parts = (cell(step._input_specs, step.takes_inputs), cell(step._arg_specs), cell(step._output_specs))
    return f"| `{kind.__name__}` | {does} | {' | '.join(parts)} |\n"


def test_the_table_of_steps_is_what_the_classes_say() -> None:
    table = HEAD + "".join(row(kind) for kind in sorted(ALL_STEPS, key=lambda kind: kind.__name__))
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    if os.environ.get("DATADREAMER_LIKE_FREEZE"):
        PAGE.write_text(before + begin + table + end + after, encoding="utf-8")
    assert table in PAGE.read_text(encoding="utf-8"), "run `python tests/contracts/freeze.py`"
