"""The base of steps that ask a model other than an LLM: an embedder, a retriever, a task model."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Iterable, Iterator
from typing import Any, ClassVar

import typing_extensions

from datadreamer_like.errors import DefinitionError, did_you_mean
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.output import Batch

from .lazy_rows import LazyRowBatches
from .row_answers import HOW_ASKED, answered
from .step import Step


class ModelStep(Step):
    """Base of steps with one input, one model, and one answer a row; None in, or a failed row, gives None.

    Attributes:
        model_arg: Name of the argument that holds the model.
        answers_to: Names of the input, which is also an output, and of the output for the answers.
    """

    neutral_args: ClassVar[frozenset[str]] = Step.neutral_args | HOW_ASKED

    model_arg: ClassVar[str]
    answers_to: ClassVar[tuple[str, str]]

    def register_model(self, kind: type, help: str) -> None:
        """Registers what every such step takes."""
        self.register_arg(self.model_arg, type=kind, help=help)
        self.register_arg(
            "lazy", required=False, default=False, type=bool, help="Ask when the rows are asked for, and keep nothing."
        )

    def run(self) -> LazyRowBatches:
        """Asks the model."""
        model = self.args[self.model_arg]
        self.register_data_card(DataCardType.MODEL_NAME, getattr(model, "model_name", None) or model.display_name)
        self.register_data_card(DataCardType.MODEL_CARD, model.model_card)
        self.register_data_card(DataCardType.LICENSE, model.license)
        for citation in model.citation or ():
            self.register_data_card(DataCardType.CITATION, citation)
        return LazyRowBatches(self.asked, total_num_rows=self._column.num_rows, save=not self.args["lazy"])

    def asked(self) -> Iterator[Batch]:
        """Yields the rows with their answers."""
        given, made = self.answers_to
        name = self._column.column_names[0]
        portions = ((batch[name], {given: batch[name]}) for batch in self._column.batches())
        for answers, rows in answered(portions, self._ask):
            yield {**rows, made: answers}

    @property
    def _column(self) -> Any:
        return self._inputs[self.answers_to[0]]

    def _ask(self, values: Iterator[Any]) -> Iterator[Any]:
        given = {name for name in self._args if name not in (self.model_arg, "lazy")}
        options = {name: self._args[name] for name in given if self._args[name] is not None}
        yield from self._args[self.model_arg].run(values, return_generator=True, **options)

    def _takes_extra(self, what: str) -> bool:
        return what == "argument"

    def _checked_args(self, given: dict[str, Any]) -> dict[str, Any]:
        args = super()._checked_args(given)
        check_options(self.name, self._arg_specs, given, args[self.model_arg], self.model_arg)
        return args


def check_options(step: str, own: Collection[str], given: Iterable[str], model: Any, role: str) -> None:
    """Refuses arguments that neither a step nor its model's `run` knows.

    Args:
        step: Name of the step.
        own: Arguments of the step.
        given: Arguments that it was given.
        model: The model.
        role: Name of the argument that holds it.

    Raises:
        DefinitionError: One is unknown.
    """
    known = _options_of(model)
    if known is None:
        return
    for name in given:
        if name not in own and name not in known:
            raise DefinitionError(
                f'"{step}" has no argument "{name}", and its {role} has no such option.'
                f"{did_you_mean(name, {*own, *known})} The step takes: {', '.join(own)}. "
                f"The {role} takes: {', '.join(sorted(known - set(own)))}."
            )


def _options_of(model: Any) -> set[str] | None:
    """Returns the names that a model's `run` takes, or None where it takes any."""
    names: set[str] = set()
    for parameter in list(inspect.signature(model.run).parameters.values())[1:]:
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            names.add(parameter.name)
            continue
        try:
            hint = typing.get_type_hints(model.run, include_extras=True).get(parameter.name)
        except NameError:  # a name that only type checkers see
            return None
        (options,) = typing.get_args(hint) or (None,)
        if not typing_extensions.is_typeddict(options):
            return None
        names |= set(options.__annotations__)
    return {name for name in names if name != "return_generator" and not name.startswith("total_num_")}
