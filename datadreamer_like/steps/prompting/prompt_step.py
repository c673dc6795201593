"""The base of steps that prompt an LLM: building prompts, sending them and reading the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

from datadreamer_like.errors import BadRequest, DefinitionError, ModelError, RejectedAnswer
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.node import reading_engine
from datadreamer_like.graph.origin import From, Traced
from datadreamer_like.graph.output import Batch
from datadreamer_like.graph.threads import uninterrupted
from datadreamer_like.graph.usage import log_cut_off
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.calls.llm_calls import Repeated
from datadreamer_like.models.llms.generation import Answer, Generation, Prompt
from datadreamer_like.models.llms.llm import LLM, overrides_only_run

from ..base.columns import columns_together, inputs_schema, num_rows_of, one_per_row
from ..base.lazy_rows import LazyRowBatches
from ..base.model_step import check_options
from ..base.preview import previewed_batches
from ..base.row_answers import FETCH_OPTIONS, AnsweredRows, Questions, RowAnswers, is_sent
from ..base.step import Step
from .cell_text import cell_text
from .forecast import forecast_prompts
from .logprobs import LOGPROBS, check_logprobs, logprob_columns, logprob_options, stores_logprobs
from .numbered import numbered
from .output_schema import OutputSchema
from .read_answer import keeps_end, read_answer
from .tool_column import TOOL_CALLS, TOOLS, bare, call_column, check_step_tools, tools_input, with_tools
from .value_column import ValueColumn, described

# Arguments that read a value from an answer; at most one may be given.
_READERS = ("post_process", "parse", "output_schema")

RowPrompt: TypeAlias = Prompt | ModelError | None
"""The prompt of a row: a text or chat messages, None for a row without one, or the error of building it."""


class PromptStep(Step):
    """Base of steps that prompt an LLM. A subclass registers its names in `setup` and writes `prompts`.

    They take `llm`, `post_process`, `parse`, `output_schema`, `max_follow_ups`, `lazy`, `logprobs`, and the options of
    `llm.run`. A row whose prompt fails holds None and has its error in `step.errors`.

    - `post_process(text)` returns the value of an answer; with `n > 1` it takes the list of its texts.
    - `parse(answer, row)` returns the value of an `Answer`, or `Rejected(reason)`: then the LLM is asked again, with
      the reason, up to `max_follow_ups` times (1). `row` is a dictionary of the row's columns.
    - `output_schema`, a pydantic model class or a JSON schema, adds a column for each of its properties; one that may
      be of several types holds JSON texts. The LLM's engine enforces it if it can; an invalid answer is rejected.
    - `logprobs=k` adds a column of each answer's tokens with the `k` likeliest there, for `StoredTeacher.from_step`.
    - `tools`, a list for all rows (functions, models, dictionaries) or the name of an input with those of each row,
      adds the column `tool_calls`: dictionaries of `id`, `name` and `arguments` (JSON), with `thought` where a
      provider wants it back. An answer may be calls alone.

    A row fails if its last answer is rejected, or if one of these functions raises or returns what does not fit its
    column: `step.errors` holds the reason and the answer. The functions get objects of their own, which they may
    change. Follow-ups are cached too, so a rerun sends nothing twice.

    Example:
        >>> class Translate(PromptStep):
        ...     def setup(self):
        ...         self.register_input("texts")
        ...         self.register_llm()
        ...         self.register_prompt_outputs()
        ...
        ...     def prompts(self, batch):
        ...         return [text and f"Translate into French: {text}" for text in batch["texts"]]
        ...
        ...     def parse(self, answer, row):
        ...         return Rejected("It is not translated.") if answer.text == row["texts"] else answer.text
    """

    neutral_args: ClassVar[frozenset[str]] = Step.neutral_args | FETCH_OPTIONS
    takes_options = True
    forecast = forecast_prompts

    # Registered arguments that are passed to the LLM under the same name.
    run_args: ClassVar[tuple[str, ...]] = ("max_new_tokens", "temperature", "top_p", "seed")

    schema: OutputSchema | None = None
    """The argument `output_schema`, checked."""

    tools_column: str | None = None
    """The input with the tools of each row, if there is one."""

    verdict_field: str | None = None
    """The property of `output_schema` whose value `read` returns, for a step that judges; None for all of them."""

    # What a subclass writes

    def input_batches(self) -> Iterator[Batch]:
        """Yields batches of the rows to prompt for; by default the step's inputs, by input name.

        Batches are made in order in the main process, so stateful work (random choices, retrieval) belongs here; its
        results are further columns.
        """
        return columns_together(self._inputs, f'"{self.name}"')

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the prompt of each row of a batch of `input_batches`; a subclass writes this.

        A prompt is a text or chat messages, None for a row without a prompt, or an error that fails the row.
        """
        raise NotImplementedError(f"{type(self).__name__} has no prompts().")

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns the value of an answer with one text, or `Rejected(reason)` to ask the LLM again."""
        return self.value_of(self.read(answer), row)

    def value_of(self, said: Any, row: dict[str, Any], alone: bool = False) -> Any:
        """Returns the value of a result of `read`, by default that result; a step that judges reads a verdict.

        It is the row's only one if `n` is 1, or if `alone`: then `post_process` made one result of several texts.
        """
        return said

    def combine(self, values: list[Any]) -> Any:
        """Combines a row's values if `n > 1`: by default a list, with None for rejected answers."""
        return values

    def output_batch(self, rows: AnsweredRows) -> Batch:
        """Returns the output columns of answered rows: by default those of `input_batches`, prompts and generations.

        Each row has an `Answer` with its `value` or `error`, or None if there was no prompt.
        """
        batch = {name: values for name, values in rows.rows.items() if name in self._output_specs}
        return {**batch, "prompts": rows.values, "generations": self.generations(rows)} | self.field_columns(rows)

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the origin of answered rows, by default the inputs' rows; a subclass adds examples and documents."""
        return [From(name) for name in self._inputs]

    def num_prompts(self) -> int | None:
        """Returns the number of rows, if known."""
        return num_rows_of(self._inputs)

    @property
    def num_answers(self) -> int:
        """Answers per prompt: the option `n` of the LLM, unless the step has an argument of that name."""
        return 1 if "n" in self._arg_specs else self._args.get("n", 1)

    # How it runs: `questions`, then `answers` and `output_batch` for each batch, in any process

    def run(self) -> LazyRowBatches:
        """Prompts the LLM."""
        self.register_facts()
        save, known = not self._args["lazy"], inputs_schema(self._inputs)
        return LazyRowBatches(self.result_batches, total_num_rows=self.num_prompts(), save=save, like=known)

    def result_batches(self) -> Iterator[Traced]:
        """Yields output columns with their origin."""
        for rows in self.answered():
            yield Traced(self.output_batch(rows), *self.origin(rows))

    def answered(self) -> Iterator[AnsweredRows]:
        """Yields the rows with their answers, and counts failed ones."""
        count, is_read = 0, self._reads_answers()
        self.usage.forget_failures()  # lazy rows are generated again in each pass
        column = ValueColumn(self.reader_name()) if self.values_are_a_column() else None
        for rows in self.engine_answers(reading_engine()):
            if column is not None:
                rows = rows._replace(answers=column.fitting(rows.answers))
            for index, answer in enumerate(rows.answers, count):
                if answer is not None and answer.error is not None:
                    if self._args.get("on_error") == "raise":
                        raise answer.error
                    self.usage.row_failed(index, answer.error)
                elif answer is not None and answer.finish_reasons != ["stop"] and keeps_end(answer, is_read):
                    self.usage.row_cut_off(index)
            count += len(rows.answers)
            yield rows if self.tools_column is None else rows._replace(values=[bare(value) for value in rows.values])
        if self._args["lazy"]:
            if failed := self.usage.failed_rows:
                self.logger.warning("%s: %s of %s rows failed; see its errors", self.name, f"{failed:,}", f"{count:,}")
            log_cut_off(self.name, self.usage.cut_off)

    def engine_answers(self, engine: Engine) -> Iterator[AnsweredRows]:
        """Yields the rows with their answers, from the LLM in the engine's processes."""
        what, parts = f'"{self.name}"', self.sent_parts()
        if engine.batch_size is None:
            yield from engine.batches(self.answers, self.questions(), what, parts)
            return
        # A worker sees only some of the prompts, so repetitions are counted here, over all of them.
        questions = numbered(part for each in self.questions() for part in each.split(engine.batch_size))
        for rows in engine.batches(self.worker(engine).answers, questions, what, parts):
            yield rows._replace(values=[v.prompt if isinstance(v, Repeated) else v for v in rows.values])

    def questions(self) -> Iterator[Questions]:
        """Yields prompts with their rows."""
        schema = None if self._enforces_schema() else self.schema
        given = self.input_batches()
        for batch in given if self.preview_rows is None else previewed_batches(self, given):
            prompts = one_per_row(self.prompts(batch), batch, f'"{self.name}": prompts()')
            if schema is not None:
                prompts = [schema.with_instruction(prompt) if is_sent(prompt) else prompt for prompt in prompts]
            if (column := self.tools_column) is None:
                yield Questions(prompts, batch)
            else:
                choice = self._args.get("tool_choice")
                yield Questions([with_tools(*row, choice) for row in zip(prompts, batch[column], strict=True)], batch)

    def answers(self, questions: Iterable[Questions]) -> Iterator[AnsweredRows]:
        """Yields rows with the LLM's answers, in order; uses only the LLM and the arguments.

        If `questions` are only some of all rows, each prompt is a `Repeated`: repetitions are counted over all rows.
        """
        joined = RowAnswers(questions)
        answers = self._args["llm"].answers(
            joined.values(),
            check=(lambda index, answer: read_answer(self, answer, joined.row(index)))
            if self._reads_answers()
            else None,
            max_follow_ups=self._args["max_follow_ups"],
            total_num_prompts=self.num_prompts(),
            **self.run_options(),
        )
        for rows in joined.joined(answers):
            failed = [Answer.failed(answer) if isinstance(answer, ModelError) else answer for answer in rows.answers]
            yield rows._replace(answers=failed)

    # For subclasses

    def register_llm(self) -> None:
        """Registers the arguments of every prompting step."""
        self.register_arg("llm", type=LLM, help="The LLM to prompt.")
        self.register_arg("post_process", required=False, help="A function of each generation; replaces it.")
        self.register_arg("parse", required=False, help="A function of an Answer and its row; may return Rejected.")
        self.register_arg("output_schema", required=False, help="Pydantic model or JSON schema; a column per property.")
        self.register_arg("max_follow_ups", required=False, default=1, type=int, help="Most tries after a rejection.")
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate rows lazily; save nothing.")
        self.register_arg(LOGPROBS, required=False, type=int, help="Likeliest tokens to store for each token.")

    def register_format(self, sep: str, **labels: str) -> None:
        """Registers the arguments for the form of a prompt: labels, `max_new_tokens` and `sep`, with their defaults."""
        for name, label in labels.items():
            what = name.removesuffix("_label").replace("_", " ")
            self.register_arg(name, required=False, default=label, type=str, help=f"Before each {what}.")
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("sep", required=False, default=sep, type=str, help="Between the parts of a prompt.")

    def register_prompt_outputs(self) -> None:
        """Registers the outputs `prompts` and `generations`."""
        self.register_output("prompts", help="The prompts as sent.")
        self.register_output("generations", help="The answers; lists if n > 1, None where there is no answer.")

    def register_facts(self) -> None:
        """Adds the model and the instruction to the card."""
        self.register_model_facts(self._args["llm"])
        self.register_data_card(DataCardType.PROMPT, self._args.get("instruction"))

    def labelled(self, label: str, text: Any) -> str:
        """Returns a text after the label that is the value of an argument."""
        return f"{self._args[label]} {cell_text(text)}" if self._args[label] else cell_text(text)

    def shown(self, rows: AnsweredRows) -> list[list[int]]:
        """Returns the positions of the texts that each prompt shows: the first of its row's `texts` and `positions`."""
        found = []
        for prompt, texts, positions in zip(rows.values, rows.rows["texts"], rows.rows["positions"], strict=True):
            count = place = 0
            if isinstance(prompt, str):
                for text in texts:
                    place = prompt.find(text, place) + len(text)
                    if place < len(text):
                        break
                    count += 1
            found.append(list(positions[:count]))
        return found

    def input_rows(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yields the values of some inputs, row by row."""
        for batch in columns_together({name: self._inputs[name] for name in names}, f'"{self.name}"'):
            yield from zip(*batch.values(), strict=True)

    def generations(self, rows: AnsweredRows) -> list[Any]:
        """Returns the column `generations`: values, or with `output_schema` the texts, also of rejected answers."""
        return self.values(rows) if self.schema is None and self._reads_answers() else self.texts(rows)

    def texts(self, rows: AnsweredRows) -> list[Any]:
        """Returns each row's text; lists if `n > 1`, None without an answer and for errors other than a rejection."""
        several = self.num_answers != 1
        found = [() if a is None or not isinstance(a.error, RejectedAnswer | None) else a.texts for a in rows.answers]
        return [None if not texts else list(texts) if several else texts[0] for texts in found]

    def values(self, rows: AnsweredRows) -> list[Any]:
        """Returns the value of each row's answer; None for rows that failed or had no prompt."""
        return [None if answer is None or answer.error is not None else answer.value for answer in rows.answers]

    def field_columns(self, rows: AnsweredRows) -> Batch:
        """Returns `logprobs`, `tool_calls` and a column for each property of `output_schema`; None if not answered."""
        stored = logprob_columns(self._args, rows.answers) if self._args[LOGPROBS] is not None else {}
        if TOOL_CALLS in self._output_specs:
            stored[TOOL_CALLS] = call_column(rows.answers, self.num_answers != 1)
        if self.schema is None:
            return stored
        columns: Batch = {name: [] for name in self.schema.types}
        for answer in rows.answers:
            fields = None if answer is None or answer.error is not None else self.schema.read(answer.text)
            for name, values in columns.items():
                values.append(fields[name] if isinstance(fields, dict) else None)
        return columns | stored

    def read(self, answer: Answer) -> Any:
        """Returns an answer's text, or the result of `post_process` or `output_schema` (possibly `Rejected`)."""
        if self.schema is not None:
            fields = self.schema.read(answer.text)
            return fields if self.verdict_field is None or isinstance(fields, Rejected) else fields[self.verdict_field]
        if self._args["post_process"] is None or (answer.text is None and answer.tool_calls):
            return answer.text
        return self.call("post_process", answer.text)

    def call(self, name: str, *values: Any) -> Any:
        """Calls a function given as an argument; if it raises, raises `RejectedAnswer`, which fails the row."""
        try:
            return uninterrupted(self._args[name], *values)
        except Exception as error:
            text = values[0].text if isinstance(values[0], Answer) else str(values[0])
            raise RejectedAnswer.of(text, f"{name} raised {described(error)}.") from error

    def reader_name(self) -> str:
        """Returns the name of the function that makes the values, for messages."""
        return next((name for name in _READERS if self._args[name] is not None), "parse")

    def values_are_a_column(self) -> bool:
        """Whether the values of functions are an output column; False for a subclass that makes its own columns."""
        return self._reads_answers() and self.schema is None and type(self).output_batch is PromptStep.output_batch

    def run_options(self) -> dict[str, Any]:
        """Returns the options for the LLM: arguments that the step does not have itself, and `run_args`."""
        given = [(n, v) for n, v in self._args.items() if n in self.run_args or n not in self._arg_specs]
        options = {n: v for n, v in given if v is not None or n not in self._arg_specs}
        options |= logprob_options(self._args) if self._args[LOGPROBS] is not None else {}
        if isinstance(options.get(TOOLS), str):
            del options[TOOLS]  # the name of an input
        return {**options, "schema": self.schema.json_schema} if self.schema and self._enforces_schema() else options

    def fitted(self, **parts: Any) -> RowPrompt:
        """Returns `llm.format_prompt(**parts)` with the step's `max_new_tokens` and `sep`, or why it has none."""
        parts |= {name: self._args[name] for name in ("max_new_tokens", "sep")}
        try:
            return str(self._args["llm"].format_prompt(**parts))
        except BadRequest as error:  # too long, or too few examples
            return error

    def configure(self) -> None:
        """Rejects incompatible arguments, and registers a column for each property of `output_schema`."""
        args, llm = self._args, self._args["llm"]
        if len(readers := [name for name in _READERS if args[name] is not None]) > 1:
            raise DefinitionError(f'"{self.name}": give {readers[0]} or {readers[1]}, not both.')
        if args["max_follow_ups"] < 0:
            raise DefinitionError(f'"{self.name}": max_follow_ups is {args["max_follow_ups"]}; expected 0 or more.')
        if args["output_schema"] is not None:
            self.schema = OutputSchema(args["output_schema"], self.name)
            if self.num_answers != 1:
                raise DefinitionError(f'"{self.name}": with output_schema, n must be 1: each property is one column.')
            for name in self.schema.types:
                if name in self._output_specs or name in self._input_specs:
                    raise DefinitionError(
                        f'"{self.name}": output_schema has a property "{name}", but the step already has that column. '
                        "Rename the property."
                    )
                self.register_output(name, help="A property of the answer; None where there is no valid answer.")
        if args[LOGPROBS] is not None and stores_logprobs(args):
            check_logprobs(self.name, args, self.num_answers)
            self.register_output(LOGPROBS, help="Each answer's tokens with the likeliest at their place.")
        self.tools_column = tools_input(args, self._inputs, TOOLS in self._input_specs)
        if self.tools_column is not None or args.get(TOOLS) or args.get("tool_choice") is not None:
            if tools := check_step_tools(self.name, args, self._inputs, self.tools_column):
                args[TOOLS] = list(tools)
            self.register_output(TOOL_CALLS, help="The calls of tools in each answer; None without an answer.")
        if not overrides_only_run(llm):  # else its options are unknown
            check_options(self.name, self._arg_specs, args, llm, "llm")
            Generation.from_options(self.run_options(), llm.extra_options)

    def fingerprint_parts(self) -> dict[str, str]:
        """Adds the context length that the script gave: it affects prompts, but not an answer to a given prompt."""
        parts = super().fingerprint_parts()
        if self._args[LOGPROBS] is None:
            parts.pop(f"argument {LOGPROBS}", None)
        given = self._args["llm"].max_context_length
        return parts if given is None else {**parts, "argument llm: max_context_length": fingerprint(given)}

    def _enforces_schema(self) -> bool:
        llm = self._args["llm"]
        if self.schema is None or not llm.enforces_schemas:
            return False
        try:
            llm.check(Generation.from_options({"schema": self.schema.json_schema}, llm.extra_options).sampling)
        except DefinitionError:  # a keyword that this engine does not support
            return False
        return True

    def _reads_answers(self) -> bool:
        overrides = type(self).parse is not PromptStep.parse or type(self).combine is not PromptStep.combine
        return overrides or any(self._args[name] is not None for name in _READERS)
