"""Labelling functions: rules of the script that vote for a row's label, or abstain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, StepOutputError
from datadreamer_like.evaluation.columns import check_column
from datadreamer_like.evaluation.votes import Votes
from datadreamer_like.graph.output import Column
from datadreamer_like.report import Table
from datadreamer_like.storage.values import to_columns

from ..base.columns import whole
from ..base.lazy_rows import LazyRowBatches
from ..base.step import Step

ABSTAIN: Final = None
"""What a labelling function returns for a row on which it does not vote."""


@dataclass(frozen=True, eq=False)
class LabellingFunction:
    """A function that votes for the label of a row, or abstains; see `labelling_function`.

    Attributes:
        function: The undecorated function.
        name: The name of its column of votes.
        resources: What it is given besides the row, by parameter.
    """

    function: Callable[..., Any]
    name: str
    resources: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """Returns the vote on a row."""
        return self.function(row, **self.resources)

    def __repr__(self) -> str:
        return f"<labelling function {self.name}>"


@overload
def labelling_function(function: Callable[..., Any], /) -> LabellingFunction: ...
@overload
def labelling_function(
    *, name: str | None = None, resources: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., Any]], LabellingFunction]: ...
def labelling_function(
    function: Any = None, /, *, name: str | None = None, resources: Mapping[str, Any] | None = None
) -> Any:
    """Makes a labelling function of a function of a row, a dictionary of its columns (Ratner et al. 2016).

    It returns a label, or `ABSTAIN`. Votes are computed again when its code or its resources change.

    Args:
        function: The function.
        name: The name of its column of votes; None for the function's name.
        resources: Values that it is given as further parameters, such as lists of words.

    Raises:
        ArgumentTypeError: It does not decorate a function, or an argument has the wrong type.

    Example:
        >>> from datadreamer_like.steps import ABSTAIN, labelling_function
        >>> @labelling_function(resources={"words": {"chess", "puzzle"}})
        ... def names_a_game(row, words):
        ...     return "games" if words & {*row["text"].split()} else ABSTAIN
        >>> names_a_game({"text": "a chess clock"}), names_a_game({"text": "a wall clock"})
        ('games', None)
    """
    if resources is not None and not isinstance(resources, Mapping):
        raise ArgumentTypeError(f"resources must be a dictionary of parameters and values, not {resources!r:.100}.")
    if name is not None and not isinstance(name, str):
        raise ArgumentTypeError(f"The name of a labelling function must be a text, not {name!r:.100}.")

    def made(decorated: Any) -> LabellingFunction:
        if not callable(decorated) or (name is None and not hasattr(decorated, "__name__")):
            help = " Name it: labelling_function(name=...)(...)." if callable(decorated) else ""
            raise ArgumentTypeError(f"@labelling_function decorates functions; got {decorated!r:.100}.{help}")
        return LabellingFunction(decorated, name or decorated.__name__, dict(resources or {}))

    return made if function is None else made(function)


class ApplyLabellingFunctions(Step):
    """Asks labelling functions for the label of each row, and adds a column of votes for each of them.

    Inputs: `inputs`, a column; the functions see all columns of its step. Args: `functions` (a list of functions
    decorated with `@labelling_function`), `labels` (all labels that they may vote for). Outputs: all columns of the
    inputs' step, and the votes of each function under its name: labels as texts, None where it abstains.

    A function that raises, or votes for anything but a label, ends the step with an error that names function and row.

    Example:
        >>> args = {"functions": [names_a_game, names_a_font], "labels": ["games", "fonts"]}  # doctest: +SKIP
        >>> step = ApplyLabellingFunctions(  # doctest: +SKIP
        ...     "Votes", inputs={"inputs": rows.output["text"]}, args=args
        ... )
        >>> print(step.summary(gold=rows.output["topic"]))  # doctest: +SKIP
        >>> labels = LabelModel("Labels", inputs={**step.votes, "llm": asked.output["topic"]})  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("inputs", help="A column; the functions see all columns of its step.")
        self.register_arg("functions", type=(list, tuple), help="The labelling functions.")
        self.register_arg("labels", type=(list, tuple), help="The labels that they may vote for.")
        self.register_output("*", help="All columns of the step that the inputs come from.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        functions = [LabellingFunction(_is_cat, "is_cat")]
        return {"inputs": {"inputs": ["a cat", "a dog"]}, "args": {"functions": functions, "labels": ["cat", "dog"]}}

    def configure(self) -> None:
        """Checks functions and labels, and registers their columns."""
        functions, labels = self.args["functions"], self.args["labels"]
        if not functions:
            raise DefinitionError(f'"{self.name}": functions is empty. Pass at least one labelling function.')
        for index, function in enumerate(functions):
            if not isinstance(function, LabellingFunction):
                raise ArgumentTypeError(
                    f'"{self.name}": functions[{index}] is {function!r:.100}, which is not a labelling function. '
                    "Decorate it with @labelling_function."
                )
        if len(labels) < 2:
            raise DefinitionError(f'"{self.name}": labels are {labels!r}; there must be two or more.')
        Votes.of({"labels": labels}, labels, f'"{self.name}"')
        columns, names = whole(self._inputs["inputs"]).column_names, [function.name for function in functions]
        for name in names:
            if name in columns or names.count(name) > 1:
                owner = "the step of its inputs already has a column" if name in columns else "two functions are called"
                raise DefinitionError(
                    f'"{self.name}": {owner} "{name}". Name the function differently: @labelling_function(name=...).'
                )
        self.replace_output("*", columns)
        for name in names:
            self.register_output(name, help="The function's votes.")

    def run(self) -> LazyRowBatches:
        """Calls the functions on each row."""
        given = whole(self._inputs["inputs"])
        return LazyRowBatches(self._batches, given.num_rows, save=True, row_by_row=True, like=given.rows.schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in whole(self._inputs["inputs"]).rows.read():
            given, columns = batch, to_columns(batch)
            has_parts = any(isinstance(value, list | dict) for values in columns.values() for value in values)
            for function in self.args["functions"]:
                rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
                votes = [self._vote(function, row, start + place) for place, row in enumerate(rows)]
                batch = batch.append_column(function.name, pa.array(votes, pa.string()))
                if has_parts:  # a function may have changed a list or dictionary, which others would then see
                    columns = to_columns(given)
            start += batch.num_rows
            yield batch

    @cached_property
    def _label_names(self) -> frozenset[str]:
        return frozenset(map(str, self.args["labels"]))

    def _vote(self, function: LabellingFunction, row: dict[str, Any], place: int) -> str | None:
        where = f'"{self.name}": labelling function "{function.name}"'
        try:
            vote = function(row)
        except Exception as error:
            raise StepOutputError(
                f"{where} raised {type(error).__name__} on row {place}: {error}. Return ABSTAIN for rows that "
                "it cannot read."
            ) from error
        return self._named(vote, where, place)

    def _named(self, vote: Any, where: str, place: int) -> str | None:
        if vote is ABSTAIN:
            return None
        if isinstance(vote, str | Integral | np.bool_) and str(vote) in self._label_names:
            return str(vote)
        raise StepOutputError(
            f"{where} returned {vote!r:.100} on row {place}, which is not one of the labels: "
            f"{', '.join(map(str, self.args['labels'][:20]))}. Return one of them, or ABSTAIN."
        )

    @property
    def votes(self) -> dict[str, Column]:
        """The column of votes of each function, by its name: inputs of `LabelModel` and `MajorityVote`."""
        names = self.output_name_mapping
        return {function.name: self.output[names[function.name]] for function in self.args["functions"]}

    def summary(self, gold: Column | Iterable[Any] | None = None) -> Table:
        """Returns coverage, overlap, conflicts and, on a column of `gold` labels, accuracy of each function.

        `gold` has a label or None for each row.
        """
        return Votes.of(self.votes, self.args["labels"], f'"{self.name}"').summary(checked_gold(gold), title=self.name)


def checked_gold(gold: Column | Iterable[Any] | None) -> Iterable[Any] | None:
    """Returns gold labels that are a column or a list; raises `ArgumentTypeError` for others, such as a dataset."""
    return gold if gold is None or isinstance(gold, list | tuple) else check_column(gold, "gold")


def _is_cat(row: Mapping[str, Any]) -> str | None:
    return "cat" if "cat" in row["inputs"] else ABSTAIN
