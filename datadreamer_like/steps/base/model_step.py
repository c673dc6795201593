"""The base of steps that use a model other than an LLM: an embedder, a retriever, a task model."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import typing_extensions

from datadreamer_like.errors import DefinitionError, NotMade, did_you_mean
from datadreamer_like.graph.node import reading_engine
from datadreamer_like.graph.origin import From, Traced
from datadreamer_like.graph.plan import Forecast
from datadreamer_like.graph.rows import Batch

from .columns import inputs_schema
from .lazy_rows import LazyRowBatches
from .row_answers import FETCH_OPTIONS, AnsweredRows, Questions, RowAnswers
from .step import Step


class ModelStep(Step):
    """Base of steps with one input, one model, and one answer per row; None for a row that is None or fails.

    Attributes:
        model_arg: Name of the argument that holds the model.
        answers_to: Names of the input, which is also an output, and of the output with the answers.
    """

    neutral_args: ClassVar[frozenset[str]] = Step.neutral_args | FETCH_OPTIONS

    takes_options = True

    model_arg: ClassVar[str]
    answers_to: ClassVar[tuple[str, str]]

    def register_model(self, kind: type, help: str) -> None:
        """Registers the model and `lazy`."""
        self.register_arg(self.model_arg, type=kind, help=help)
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate rows lazily; save nothing.")

    def configure(self) -> None:
        """Rejects arguments that neither the step nor its model takes."""
        check_options(self.name, self._arg_specs, self._args, self.args[self.model_arg], self.model_arg)

    def forecast(self) -> Forecast:
        """Returns the rows, each of which may be a call of the model; which results are stored is not looked up."""
        known = super().forecast()
        try:
            rows = self.inputs[self.answers_to[0]].num_rows
        except NotMade as error:
            return replace(known, requests=None, cost=None, most_cost=None, unknown=f"unknown: {error}")
        return replace(known, rows=rows, requests=rows, unknown="how many of its results are stored is unknown")

    def run(self) -> LazyRowBatches:
        """Sends the inputs to the model."""
        self.register_model_facts(self.args[self.model_arg])
        column = self.inputs[self.answers_to[0]]
        save, known = not self.args["lazy"], inputs_schema(self._inputs)
        return LazyRowBatches(self.result_batches, column.num_rows, save=save, like=known)

    def origin(self, results: list[Any]) -> Sequence[From]:
        """Returns the origin of a batch of results: by default the input's rows at the same positions.

        `results` are those of the model, one per row; None for a row that failed.
        """
        return [From(self.answers_to[0])]

    def answers(self, questions: Iterable[Questions]) -> Iterator[AnsweredRows]:
        """Yields rows with the model's results, in order; uses only the model and the arguments."""
        rows = RowAnswers(questions)
        own = (self.model_arg, "lazy")
        options = {name: value for name, value in self.args.items() if name not in own and value is not None}
        return rows.joined(self.args[self.model_arg].results(rows.values(), **options))

    def result_batches(self) -> Iterator[Traced]:
        """Yields the rows with the model's results."""
        given, _ = self.answers_to
        column = self.inputs[given]
        name = column.column_names[0]
        engine = reading_engine()
        questions = (Questions(batch[name], {given: batch[name]}) for batch in column.batches())
        if engine.batch_size is not None:
            questions = (part for each in questions for part in each.split(engine.batch_size or 1))
        work, what = self.worker(engine).answers, f'"{self.name}"'
        count = 0
        for _, batch, answers in engine.batches(work, questions, what, self.sent_parts()):
            for index, answer in enumerate(answers, count):
                if answer is not None and answer.error is not None:
                    self.usage.row_failed(index, answer.error)
            count += len(answers)
            values = [None if answer is None else answer.value for answer in answers]
            yield Traced({**batch, **self.output_columns(values)}, *self.origin(values))

    def output_columns(self, values: list[Any]) -> Batch:
        """Returns the output columns of a batch of results; by default one, named by `answers_to`."""
        return {self.answers_to[1]: values}


def check_options(step: str, own: Collection[str], given: Iterable[str], model: Any, role: str) -> None:
    """Rejects `given` arguments that neither a step (its `own`) nor the `run` of its model takes."""
    known = _options_of(model)
    if known is None:
        return
    for name in given:
        if name not in own and name not in known:
            raise DefinitionError(
                f'"{step}" has no argument "{name}", and its {role} has no such option.'
                f"{did_you_mean(name, {*own, *known})} It takes: {', '.join(own)}. "
                f"The {role} takes: {', '.join(sorted(known - set(own)))}."
            )


def _options_of(model: Any) -> set[str] | None:
    """Returns the option names of a model's `run`, or None where it takes any."""
    names: set[str] = set(getattr(model, "extra_options", ()))  # of an LLM's provider
    for parameter in list(inspect.signature(model.run).parameters.values())[1:]:
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            names.add(parameter.name)
            continue
        try:
            hint = typing.get_type_hints(model.run, include_extras=True).get(parameter.name)
        except NameError:  # a name imported for type checkers only
            return None
        (options,) = typing.get_args(hint) or (None,)
        if not typing_extensions.is_typeddict(options):
            return None
        names |= set(options.__annotations__)
    return {name for name in names if name != "return_generator" and not name.startswith("total_num_")}
