"""The base of steps that prompt an LLM: building prompts, sending them and reading the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

from datadreamer_like.errors import DefinitionError, ModelError, PromptTooLong, RejectedAnswer, did_you_mean
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.node import reading_engine
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.calls.llm_calls import Repeated, Repetitions
from datadreamer_like.models.llms.generation import Answer, Generation, GenerationOptions, Prompt
from datadreamer_like.models.llms.llm import LLM, overrides_only_run

from ..base.columns import columns_together, inputs_schema, num_rows_of
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..base.row_answers import FETCH_OPTIONS, AnsweredRows, Questions, RowAnswers
from ..base.step import Step
from .output_schema import OutputSchema

logger = logging.getLogger("datadreamer_like")

# Options of the LLM that the step sets itself.
_SET_BY_STEP = {"return_generator", "total_num_prompts"}

# Arguments that read a value from an answer; at most one may be given.
_READERS = ("post_process", "parse", "output_schema")

RowPrompt: TypeAlias = Prompt | ModelError | None
"""The prompt of a row: a text or chat messages, None for a row without one, or the error of building it."""


class PromptStep(Step):
    """Base of steps that prompt an LLM. A subclass registers its names in `setup` and writes `prompts`.

    They take the arguments `llm`, `post_process`, `parse`, `output_schema`, `max_follow_ups`, `lazy`, and the options
    of `llm.run`. A row whose prompt fails holds None and has its error in `step.errors`.

    - `post_process(text)` returns the value of an answer.
    - `parse(answer, row)` returns the value of an `Answer`, or `Rejected(reason)`: then the LLM is asked again, with
      the reason, up to `max_follow_ups` times (1). `row` is a dictionary of the row's columns.
    - `output_schema`, a pydantic model class or a JSON schema, adds a column for each of its properties. The LLM's
      engine enforces it if it can; an invalid answer is rejected with the validation error.

    A row fails if its last answer is rejected or one of these functions raises: `step.errors` holds the reason and the
    answer. Follow-ups are cached too, so a rerun sends nothing twice.

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

    # Registered arguments that are passed to the LLM under the same name.
    run_args: ClassVar[tuple[str, ...]] = ("max_new_tokens", "temperature", "top_p", "seed")

    schema: OutputSchema | None = None
    """The argument `output_schema`, checked."""

    # What a subclass writes

    def input_batches(self) -> Iterator[Batch]:
        """Yields batches of the rows to prompt for; by default the step's inputs, by input name.

        Batches are made in order in the main process, so stateful work (random choices, retrieval) belongs here; its
        results are further columns.
        """
        return columns_together(self._inputs, f'"{self.name}"')

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the prompt of each row; a subclass writes this.

        Args:
            batch: A batch of `input_batches`.

        Returns:
            For each row a text or chat messages, None for a row without a prompt, or an error that fails the row.
        """
        raise NotImplementedError(f"{type(self).__name__} has no prompts().")

    def parse(self, answer: Answer, row: dict[str, Any]) -> Any:
        """Returns the value of an answer with one text, or `Rejected(reason)` to ask the LLM again."""
        return self.read(answer)

    def combine(self, values: list[Any]) -> Any:
        """Combines a row's values if `n > 1`: by default a list, with None for rejected answers."""
        return values

    def output_batch(self, rows: AnsweredRows) -> Batch:
        """Returns the output columns of answered rows: by default those of `input_batches`, prompts and generations.

        Args:
            rows: The rows, their prompts, and for each an `Answer` with its `value` or `error`; None without a prompt.
        """
        batch = {name: values for name, values in rows.rows.items() if name in self._output_specs}
        return {**batch, "prompts": rows.values, "generations": self.generations(rows)} | self.field_columns(rows)

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the origin of answered rows: by default the inputs' rows at the same positions.

        A subclass adds examples and documents in its prompts, for `trace`.
        """
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
        return LazyRowBatches(
            self.result_batches,
            total_num_rows=self.num_prompts(),
            save=not self._args["lazy"],
            like=inputs_schema(self._inputs),
        )

    def result_batches(self) -> Iterator[Traced]:
        """Yields output columns with their origin."""
        for rows in self.answered():
            yield Traced(self.output_batch(rows), *self.origin(rows))

    def answered(self) -> Iterator[AnsweredRows]:
        """Yields the rows with their answers, and counts failed ones."""
        count = 0
        self.usage.forget_failures()  # lazy rows are generated again in each pass
        for rows in self.engine_answers(reading_engine()):
            self.note_failures(count, rows)
            count += len(rows.answers)
            yield rows
        if self._args["lazy"] and self.usage.failed_rows:
            failed = f"{self.usage.failed_rows:,}"
            logger.warning("%s: %s of %s rows failed; see its errors", self.name, failed, f"{count:,}")

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
        schema = self.schema if self.schema is not None and not self._enforces_schema() else None
        for batch in self.input_batches():
            prompts = self.prompts(batch)
            if schema is not None:
                prompts = [p if p is None or isinstance(p, ModelError) else schema.with_instruction(p) for p in prompts]
            yield Questions(prompts, batch)

    def answers(self, questions: Iterable[Questions]) -> Iterator[AnsweredRows]:
        """Yields rows with the LLM's answers, in order; uses only the LLM and the arguments.

        Args:
            questions: Those of all rows, or of some of them; then each prompt is a `Repeated`, so that repetitions are
                counted over all rows.
        """
        joined = RowAnswers(questions)
        reads = any(self._args[name] is not None for name in _READERS) or _overrides_parse(type(self))
        answers = self._args["llm"].answers(
            joined.values(),
            check=(lambda index, answer: self._read(answer, joined.row(index))) if reads else None,
            max_follow_ups=self._args["max_follow_ups"],
            total_num_prompts=self.num_prompts(),
            **self.run_options(),
        )
        for rows in joined.joined(answers):
            failed = [Answer.failed(answer) if isinstance(answer, ModelError) else answer for answer in rows.answers]
            yield rows._replace(answers=failed)

    def note_failures(self, first: int, rows: AnsweredRows) -> None:
        """Counts failed rows, or raises with `on_error="raise"`; `first` is the position of the first row."""
        for index, answer in enumerate(rows.answers, first):
            if answer is not None and answer.error is not None:
                if self._args.get("on_error") == "raise":
                    raise answer.error
                self.usage.row_failed(index, str(answer.error))

    # For subclasses

    def register_llm(self) -> None:
        """Registers the arguments of every prompting step."""
        self.register_arg("llm", type=LLM, help="The LLM to prompt.")
        self.register_arg("post_process", required=False, help="A function of each generation; replaces it.")
        self.register_arg(
            "parse", required=False, help="A function of an Answer and its row: a value, or Rejected(reason)."
        )
        self.register_arg(
            "output_schema", required=False, help="A pydantic model or JSON schema; each property is a column."
        )
        self.register_arg(
            "max_follow_ups", required=False, default=1, type=int, help="Times to ask again after a rejected answer."
        )
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate rows lazily; save nothing.")

    def register_prompt_outputs(self) -> None:
        """Registers the outputs `prompts` and `generations`."""
        self.register_output("prompts", help="The prompts as sent.")
        self.register_output("generations", help="The answers; lists if n > 1, None where there is no answer.")

    def register_facts(self) -> None:
        """Adds the model and the instruction to the card."""
        self.register_model_facts(self._args["llm"])
        self.register_data_card(DataCardType.PROMPT, self._args.get("instruction"))

    def generations(self, rows: AnsweredRows) -> list[Any]:
        """Returns the column `generations`: values, or with `output_schema` the texts, also of rejected answers."""
        answers = rows.answers
        if self.schema is not None:
            return self.texts(rows)
        if self._args["post_process"] is not None or self._args["parse"] is not None or _overrides_parse(type(self)):
            return self.values(rows)
        several = self.num_answers != 1
        return [
            None if answer is None or answer.error is not None else list(answer.texts) if several else answer.texts[0]
            for answer in answers
        ]

    def texts(self, rows: AnsweredRows) -> list[Any]:
        """Returns each row's text, also of rejected answers; lists if `n > 1`, None where there is none."""
        if self.num_answers != 1:
            return [None if answer is None or not answer.texts else list(answer.texts) for answer in rows.answers]
        return [None if answer is None else answer.text for answer in rows.answers]

    def values(self, rows: AnsweredRows) -> list[Any]:
        """Returns the value of each row's answer; None for rows that failed or had no prompt."""
        return [None if answer is None or answer.error is not None else answer.value for answer in rows.answers]

    def field_columns(self, rows: AnsweredRows) -> Batch:
        """Returns a column for each property of `output_schema`; None in rows that failed or had no prompt."""
        if self.schema is None:
            return {}
        columns: Batch = {name: [] for name in self.schema.types}
        for answer in rows.answers:
            fields = None if answer is None or answer.error is not None else self.schema.read(answer.text)
            for name, values in columns.items():
                values.append(fields[name] if isinstance(fields, dict) else None)
        return columns

    def read(self, answer: Answer) -> Any:
        """Returns an answer's text, or the result of `post_process` or `output_schema` (possibly `Rejected`)."""
        if self.schema is not None:
            return self.schema.read(answer.text)
        return answer.text if self._args["post_process"] is None else self.call("post_process", answer.text)

    def call(self, name: str, *values: Any) -> Any:
        """Calls a function given as an argument.

        Raises:
            RejectedAnswer: The function raised; the answer's row fails.
        """
        try:
            return self._args[name](*values)
        except Exception as error:
            text = values[0].text if isinstance(values[0], Answer) else str(values[0])
            raise RejectedAnswer.of(text, f"{name} raised {type(error).__name__}: {error}.") from error

    def run_options(self) -> dict[str, Any]:
        """Returns the options for the LLM: arguments that the step does not have itself, and `run_args`."""
        own = set(self._arg_specs) - set(self.run_args)
        options = {
            name: value
            for name, value in self._args.items()
            if name not in own and not (value is None and name in self._arg_specs)
        }
        if self.schema is not None and self._enforces_schema():
            options["schema"] = self.schema.json_schema
        return options

    def fitted(self, make: Callable[[], str]) -> RowPrompt:
        """Returns the prompt of a call of `llm.format_prompt`, or the error of one that is too long."""
        try:
            return make()
        except PromptTooLong as error:
            return error

    # Checking

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
        if overrides_only_run(llm):  # its options are unknown
            return
        known = (set(GenerationOptions.__annotations__) | set(llm.extra_options)) - _SET_BY_STEP
        for name in args:
            if name not in self._arg_specs and name not in known:
                raise DefinitionError(
                    f'"{self.name}" has no argument "{name}", and {llm.display_name} has no such option.'
                    f"{did_you_mean(name, {*self._arg_specs, *known})} The step takes: {', '.join(self._arg_specs)}. "
                    f"The LLM takes: {', '.join(sorted(known - set(self._arg_specs)))}."
                )
        Generation.from_options(self.run_options(), llm.extra_options)

    def fingerprint_parts(self) -> dict[str, str]:
        """Adds the context length that the script gave: it affects prompts, but not an answer to a given prompt."""
        parts = super().fingerprint_parts()
        given = self._args["llm"].max_context_length
        return parts if given is None else {**parts, "argument llm: max_context_length": fingerprint(given)}

    def _enforces_schema(self) -> bool:
        """Whether the LLM's engine enforces the schema."""
        llm = self._args["llm"]
        if self.schema is None or not llm.enforces_schemas:
            return False
        try:
            llm.check(Generation.from_options({"schema": self.schema.json_schema}, llm.extra_options).sampling)
        except DefinitionError:  # a keyword that this engine does not support
            return False
        return True

    def _read(self, answer: Answer, row: dict[str, Any]) -> Answer | Rejected:
        """Returns the answer with its value or with the error of a function that raised, or `Rejected`."""
        try:
            if self.num_answers == 1:
                value = self._parsed(answer, row)
                return value if isinstance(value, Rejected) else answer.with_value(value)
            values = [self._parsed(one, row) for one in answer.each()]
            if len(rejected := [value for value in values if isinstance(value, Rejected)]) == len(values):
                return rejected[0]
            return answer.with_value(self.combine([None if isinstance(v, Rejected) else v for v in values]))
        except RejectedAnswer as error:
            return answer.with_error(error)
        except Exception as error:
            reason = f"parse raised {type(error).__name__}: {error}."
            return answer.with_error(RejectedAnswer.of(answer.text, reason))

    def _parsed(self, answer: Answer, row: dict[str, Any]) -> Any:
        return self.parse(answer, row) if self._args["parse"] is None else self.call("parse", answer, row)


def _overrides_parse(kind: type[PromptStep]) -> bool:
    return kind.parse is not PromptStep.parse or kind.combine is not PromptStep.combine


def numbered(questions: Iterable[Questions]) -> Iterator[Questions]:
    """Yields questions with their prompts numbered by repetition."""
    repetitions = Repetitions()
    for each in questions:
        sent = [value for value in each.values if value is not None and not isinstance(value, ModelError)]
        counted = iter(repetitions.number(sent))
        values = [v if v is None or isinstance(v, ModelError) else next(counted) for v in each.values]
        yield each._replace(values=values)
