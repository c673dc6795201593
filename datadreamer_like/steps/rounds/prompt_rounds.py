"""The base of steps that ask LLMs in several rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from datadreamer_like.errors import DataError, DefinitionError, ModelError
from datadreamer_like.graph.identity import class_id
from datadreamer_like.graph.output import Batch, Column
from datadreamer_like.models.llms.answer_text import INVISIBLE
from datadreamer_like.models.llms.llm import LLM, overrides_only_run

from ..base.columns import columns_together, num_rows_of
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..base.model_step import check_options
from ..base.row_answers import FETCH_OPTIONS
from ..base.step import SuperStep
from ..prompting.prompt_step import PromptStep, RowPrompt
from ..prompting.template_prompt import TemplatePrompt

Row = dict[str, Any]


class PromptRounds(SuperStep):
    """Base of steps that ask LLMs in several rounds, each a step inside this one, which is cached by itself.

    They take `llm`, `max_follow_ups` and the options of `llm.run` except `n` and tools. A row without a prompt in one
    round has None there, and the templates of later rounds leave it out.
    """

    neutral_args: ClassVar[frozenset[str]] = SuperStep.neutral_args | FETCH_OPTIONS
    takes_options = True

    least: ClassVar[dict[str, int]] = {}
    """The smallest value of arguments that are numbers."""

    texts: ClassVar[tuple[str, ...]] = ()
    """The inputs that must be texts: a chat cannot take their place."""

    def register_rounds(self, what: str = "The LLM to prompt.") -> None:
        """Registers the arguments of every such step."""
        self.register_arg("llm", type=LLM, help=what)
        help = "Most tries after an answer that cannot be read."
        self.register_arg("max_follow_ups", required=False, default=1, type=int, help=help)

    def configure(self) -> None:
        """Rejects options that an LLM does not take, and numbers out of range."""
        if self._args.get("n", 1) != 1:
            raise DefinitionError(
                f'"{self.name}": n is {self._args["n"]}; each prompt has one answer here. Leave it out.'
            )
        if given := [name for name in ("tools", "tool_choice") if self._args.get(name) is not None]:
            raise DefinitionError(
                f'"{self.name}": {given[0]} cannot be given: {type(self).__name__} has no column for calls. Use Prompt '
                "or TemplatePrompt for each round."
            )
        for name, least in {"max_follow_ups": 0, **self.least}.items():
            if self._args[name] < least:
                raise DefinitionError(f'"{self.name}": {name} is {self._args[name]}; expected {least} or more.')
        for name in self.texts:
            if name in self._inputs and pa.types.is_nested(self._inputs[name].rows.schema.field(0).type):
                raise DefinitionError(f'"{self.name}": {not_a_text(name)}')
        for role in self.llms():
            if not overrides_only_run(self._args[role]):
                check_options(self.name, self._arg_specs, self._args, self._args[role], role)

    def llms(self) -> list[str]:
        """Returns the names of the arguments that are LLMs."""
        return [name for name in self._arg_specs if isinstance(self._args[name], LLM)]

    def options(self) -> dict[str, Any]:
        """Returns the options for the LLMs, with `max_follow_ups`."""
        given = {name: value for name, value in self._args.items() if name not in self._arg_specs}
        return {**given, "max_follow_ups": self._args["max_follow_ups"]}

    def ask(
        self,
        name: str,
        template: Any,
        parse: Callable[..., Any] | None = None,
        llm: str = "llm",
        optional: Sequence[str] = (),
        /,
        **columns: Column,
    ) -> TemplatePrompt:
        """Makes a step that asks an LLM, the argument `llm`, for each row; its answers are its `generations`.

        A row is not sent if a column is missing or blank there, unless `optional` names it, or if all columns are.
        """
        args = {"llm": self._args[llm] or self._args["llm"], "template": template, "asked_by": class_id(type(self))}
        args["needed"] = [column for column in columns if column not in optional]
        if parse is not None:
            args["parse"] = parse
        return Asked(name, inputs=dict(columns), args={**args, **self.options()}, force=self.force)

    def rows(self, make: Callable[[Row], Row], /, **columns: Column) -> LazyRowBatches:
        """Returns the output: what `make` returns for each row of the columns, which have the same length.

        A row that failed in a step of the columns fails here too.
        """
        for name in self.llms():
            self.register_model_facts(self._args[name])
        steps = list(dict.fromkeys(column.step for column in columns.values()))
        self.fail_with([step for step in steps if isinstance(step, PromptStep)])

        def batches() -> Iterator[Traced]:
            for batch in columns_together(columns, f'"{self.name}"'):
                made = [make(dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
                output = {name: [row[name] for row in made] for name in self._output_specs}
                yield Traced(output, *(From(step) for step in steps))

        return LazyRowBatches(batches, num_rows_of(columns), save=True)

    def fail_blank(self, column: Column, start: int = 0) -> None:
        """Counts the missing and blank texts of a column as failed rows; `start` is the row of the first one."""
        for index, text in enumerate(column):
            if is_blank(text):
                self.usage.row_failed(start + index, DataError(f'the input "{self.texts[0]}" has no text.'))

    def fail_with(
        self, steps: Sequence[PromptStep], row_of: Callable[[PromptStep, int], int] = lambda step, index: index
    ) -> None:
        """Counts the rows that failed in steps, or were cut off; `row_of` returns the row here of a row there."""
        failed: dict[int, str] = {}
        for step in steps:
            for index in step.cut_off:
                self.usage.row_cut_off(row_of(step, index))
            indices = step.manifest.failed if step.manifest is not None else step.usage.failed
            for index in indices:
                message = step.errors.get(index, "see the first errors")
                failed.setdefault(row_of(step, index), f"{step.name.rpartition(' / ')[2]}: {message}")
        for index in sorted(failed):
            self.usage.row_failed(index, ModelError(failed[index]))


class Asked(TemplatePrompt):
    """One round; it is made anew when the `result_version` of the step that asks is raised."""

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("asked_by", type=str, help="The identity of the step that asks.")
        self.register_arg("needed", type=list, help="The inputs without whose text a row is not sent.")

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the filled templates, of rows that have all that is needed."""
        made = list(super().prompts(batch))
        for row, values in enumerate(zip(*batch.values(), strict=True)):
            blank = {name for name, value in zip(batch, values, strict=True) if is_blank(value)}
            if len(blank) == len(values) or not blank.isdisjoint(self.args["needed"]):
                made[row] = None
        return made


def is_blank(value: Any) -> bool:
    """Returns whether there is nothing to send: no visible text, or a list or mapping without any."""
    if isinstance(value, str):
        return all(character.isspace() or character in INVISIBLE for character in value)
    if isinstance(value, dict):
        return all(is_blank(part) for name, part in value.items() if name != "role")
    return value is None or (isinstance(value, list | tuple) and all(map(is_blank, value)))


def not_a_text(name: str) -> str:
    """Returns what is wrong with an input of lists or mappings."""
    return (
        f'the input "{name}" has lists or dictionaries; expected texts. Pass the text that is meant, such as '
        '`step.map(lambda row: {"text": row["messages"][0]["content"]}).output["text"]`.'
    )


def literal(text: str) -> str:
    """Returns a text as a part of a template that prints it as it is, braces included."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"
