"""A found dataset rewritten to the format of a task."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError, ModelError
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.models.llms.llm import LLM

from ..base.columns import columns_together
from ..base.lazy_rows import LazyRowBatches
from ..base.registration import ANY_ARGUMENT
from ..prompting.data_from_prompt import DataFromPrompt
from .prompt_rounds import PromptRounds, Row, literal

_PLAN = """\
A dataset is to be rewritten into examples of a task.

Task: {task}
{examples}
The dataset has these columns: {columns}. Some of its rows:
{rows}

Write a short numbered plan of how to turn one row of this dataset into one example of the task: which columns give \
the input, what to change or add, how to find the output, and which rows to leave out. Write the plan only."""

_EXECUTE = """\
Task: <task>
<examples>
Plan:
<plan>

Row of the dataset:
{{ <row> | tojson }}

Follow the plan for this row. Answer with one JSON object, {"input": "...", "output": "..."}, both of them texts, or \
with {"skip": "the reason"} if the row does not fit the task."""

_SHOWN_CHARACTERS = 500
# Options that shape the answers for rows; a plan is a text.
_SHAPES = {"schema", "response_format", "json_schema", "grammar"}
# Next to the inputs, none of which has such a name.
_FOUND = "its example"


class Transform(PromptRounds):
    """Rewrites the rows of a dataset to examples of a task: an LLM plans how, and follows the plan for each row.

    Inputs: any columns of the dataset. Args: `llm`, `planner` (an LLM; by default `llm`), `task` (what the examples are
    to be), `examples` (a list of dictionaries with `input` and `output`, shown in each prompt), `plan` (your own, so
    that none is asked for), `num_planned` (3: rows that the planner sees), `max_follow_ups`, and the options of
    `llm.run`. Outputs: the inputs, `input`, `output` (None for a row that is left out), `skipped` (why it is left out,
    else None). A row whose inputs are all missing or blank is not sent and has None in all three.

    An answer that is not such a JSON object, or repeats one of `examples`, is asked for again with the reason. The
    option `schema` holds for the rows alone, not for the plan; small local LLMs need one, such as an object whose
    `output` is one of some labels. The plan is in the step's card, under "Plan"; a preview of fewer rows than
    `num_planned` has another one.
    `rows.filter(lambda row: row["skipped"] is None and row["output"] is not None)` keeps the examples.

    Reference: Gandhi et al. 2024, "Better Synthetic Data by Retrieving and Transforming Existing Datasets" (DataTune),
    arXiv:2404.14361: planning and execution; the dataset is given here.

    Example:
        >>> made = Transform(  # doctest: +SKIP
        ...     "Intents from reviews",
        ...     inputs={"review": found.output["text"], "stars": found.output["stars"]},
        ...     args={"llm": llm, "task": "A customer's message and its intent: complaint, praise or question."},
        ... )
    """

    result_version: ClassVar[int] = 3  # 2: a repeated example is no row; 3: nor is a blank row sent
    least: ClassVar[dict[str, int]] = {"num_planned": 1}

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input(ANY_ARGUMENT)
        self.register_rounds("The LLM that rewrites rows.")
        self.register_arg("planner", required=False, type=LLM, help="The LLM that plans.", default_help="llm")
        self.register_arg("task", type=str, help="What the examples are to be.")
        self.register_arg("examples", required=False, default=(), type=(list, tuple), help="Examples of the task.")
        self.register_arg("plan", required=False, type=str, help="A plan of your own.", default_help="asks for one")
        self.register_arg("num_planned", required=False, default=3, type=int, help="Rows that the planner sees.")
        self.register_output("*", help="The inputs.")
        self.register_output("input", help="The input of the example.")
        self.register_output("output", help="Its output.")
        self.register_output("skipped", help="Why the row is left out.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        inputs = {"review": ["It is good.", "Where are you?"], "stars": ["5", "3"]}
        return {"inputs": inputs, "args": {"task": "A message and its intent."}}

    def configure(self) -> None:
        """Checks inputs and examples, and registers the inputs as outputs."""
        from ..prompting.template import check_names

        super().configure()
        if not self._inputs:
            raise DefinitionError(f'"{self.name}": there are no inputs. Give the columns to rewrite.')
        check_names(self._inputs, f'"{self.name}"')
        for name in self._inputs:
            if name in ("input", "output", "skipped"):
                raise DefinitionError(
                    f'"{self.name}": the input "{name}" has the name of an output. Give it another one: '
                    f'inputs={{"given_{name}": ...}}.'
                )
        for number, example in enumerate(self._args["examples"]):
            if not isinstance(example, dict) or set(example) != {"input", "output"}:
                raise DefinitionError(
                    f'"{self.name}": element {number} of examples is {example!r:.100}; expected a dictionary with '
                    '"input" and "output".'
                )
        self.replace_output("*", self._inputs)

    def run(self) -> LazyRowBatches:
        """Asks for a plan, then follows it for each row."""
        plan = self._args["plan"] or self.asked_plan()
        self.register_data_card("Plan", plan)
        row = "{" + ", ".join(f"{json.dumps(name)}: {name}" for name in self._inputs) + "}"
        parts = {"task": self._args["task"], "examples": self._shown_examples(), "plan": plan}
        texts = {name: literal(text) for name, text in parts.items()} | {"row": row}
        # In one pass: a task or a plan may have such a mark in it.
        template = re.sub("<(task|examples|plan|row)>", lambda mark: texts[mark[1]], _EXECUTE)
        read = partial(read_example, shown=[str(example["input"]).strip() for example in self._args["examples"]])
        made = self.ask("Rows", template, read, "llm", list(self._inputs), **self._inputs).output["generations"]
        return self.rows(self.row, **self._inputs, **{_FOUND: made})

    def row(self, row: Row) -> Row:
        """Returns the output row."""
        found = row.pop(_FOUND) or {}
        return {**row, **{name: found.get(name) for name in ("input", "output", "skipped")}}

    def asked_plan(self) -> str:
        """Returns the plan of the LLM, which sees the first rows."""
        rows: list[Row] = []
        for batch in columns_together(self._inputs, f'"{self.name}"'):
            rows += [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            if len(rows) >= self._args["num_planned"]:
                break
        shown = [json.dumps(row, ensure_ascii=False, default=str) for row in islice(rows, self._args["num_planned"])]
        instruction = _PLAN.format(
            task=self._args["task"],
            examples=self._shown_examples(),
            columns=", ".join(self._inputs),
            rows="\n".join(text[:_SHOWN_CHARACTERS] for text in shown),
        )
        args = {"llm": self._args["planner"] or self._args["llm"], "instruction": instruction, "n": 1}
        options = {name: value for name, value in self.options().items() if name not in _SHAPES}
        step = DataFromPrompt("Plan", args={**args, "temperature": 0.0, **options}, force=self.force)
        plan = next(iter(step.output["generations"]))
        if plan is None:
            raise ModelError(
                f'"{self.name}": there is no plan. {step.errors.get(0, "")} Give one: args={{"plan": ...}}.'
            )
        return str(plan)

    def _shown_examples(self) -> str:
        lines = [json.dumps(example, ensure_ascii=False) for example in self._args["examples"]]
        return "\n".join(["Examples of the task:", *lines, ""]) if lines else ""


def read_example(answer: Answer, row: Row, shown: Sequence[str] = ()) -> Any:
    """Returns the example in an answer, or why the row is left out; `shown` are the inputs of the task's examples."""
    found = re.search(r"\{.*\}", answer.text or "", re.DOTALL)
    try:
        value = json.loads(found[0]) if found else None
    except ValueError:
        value = None
    if isinstance(value, dict) and set(value) == {"skip"}:
        return {"input": None, "output": None, "skipped": str(value["skip"])}
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("input", "output")):
        return Rejected('It must be one JSON object, {"input": "...", "output": "..."} with texts, or {"skip": "..."}.')
    if not value["input"].strip() or not value["output"].strip():
        return Rejected("Neither input nor output may be empty.")
    if value["input"].strip() in shown:
        return Rejected("It repeats an example of the task. Write the example that follows from the row.")
    return {"input": value["input"], "output": value["output"], "skipped": None}
