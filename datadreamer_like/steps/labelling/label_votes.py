"""Labels from the votes of several labellers: functions, classifiers, LLMs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    LabelError,
    check_number,
)
from datadreamer_like.evaluation.label_model import FittedLabelModel, fit_label_model
from datadreamer_like.evaluation.votes import ABSTAINED, Codes, Votes
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.rows import BATCH_SIZE
from datadreamer_like.report import Table

from ..base.lazy_rows import LazyRowBatches
from ..base.preview import fail_unless_preview
from ..base.step import Step
from .labelling_functions import checked_gold

Floats = np.ndarray[Any, np.dtype[np.float64]]
_SAME = 1e-9  # probabilities this close are a tie


class LabelVotes(Step):
    """Base of steps that make labels of votes: a subclass writes `class_probabilities`."""

    not_voters: ClassVar[frozenset[str]] = frozenset()
    """Inputs that are not votes."""

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("**kwargs")
        self.register_arg(
            "labels", required=False, type=(list, tuple), help="The labels.", default_help="those that have votes"
        )
        self.register_arg(
            "threshold", required=False, default=0.0, type=float, help="Labels less probable than this are None."
        )
        self.register_output("labels", help="The likeliest label; None without votes, for a tie, or below `threshold`.")
        self.register_output("probabilities", help="The probability of the likeliest label.")
        self.register_output("soft_labels", help="The probability of each label; None for a row without votes.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {
            "inputs": {
                "a": ["cat", "dog", None, "cat"],
                "b": ["cat", "dog", None, None],
                "c": ["cat", "cat", None, "dog"],
            },
            "args": {},
        }

    def configure(self) -> None:
        """Checks the arguments."""
        if not self.voter_columns:
            raise DefinitionError(
                f'"{self.name}" has no voters. Pass a column of labels for each, under its name: '
                'inputs={"rule": votes.output["rule"], "llm": asked.output["topic"]}.'
            )
        check_number(self.args["threshold"], f'"{self.name}": threshold', 0, 1)
        labels = self.args["labels"]
        if labels is not None:
            Votes.of({"labels": labels}, labels, f'"{self.name}"')
            if len(labels) < 2:
                raise DefinitionError(f'"{self.name}": labels are {labels!r}; there must be two or more.')

    @property
    def voter_columns(self) -> dict[str, Column]:
        """The votes of each voter, by its name."""
        return {name: column for name, column in self._inputs.items() if name not in self.not_voters}

    @cached_property
    def given_votes(self) -> Votes:
        """The votes as they are read."""
        return Votes.of(self.voter_columns, self.args["labels"], f'"{self.name}"')

    @abstractmethod
    def class_probabilities(self, votes: Votes) -> Floats:
        """Returns the probability of each class [rows, classes]; that of rows without votes is not used."""

    def run(self) -> LazyRowBatches | dict[str, list[None]]:
        """Makes the labels."""
        votes = self.given_votes
        if not votes.classes:
            said = "all voters abstain on all rows, so there are no labels. Add voters that vote on more rows."
            fail_unless_preview(self, EmptyDataset(f'"{self.name}": {said}'), "its rows have no labels")
            return {name: [None] * len(votes) for name in self._output_specs}
        if self.args["labels"] is None:
            self._check_labels_are_shared(votes)
        chances = self.class_probabilities(votes)
        codes = self._codes(votes, chances)
        names = np.array([*votes.classes, None], dtype=object)
        kind = pa.struct([pa.field(name, pa.float64()) for name in votes.classes])

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(votes), BATCH_SIZE):
                part = slice(start, start + BATCH_SIZE)
                empty = ~votes.has_vote[part]
                parts = [pa.array(column, pa.float64()) for column in chances[part].T]
                columns = [
                    pa.array(names[codes[part]], pa.string()),
                    pa.array(chances[part].max(1), pa.float64(), mask=empty),
                    pa.StructArray.from_arrays(parts, fields=list(kind), mask=pa.array(empty)),
                ]
                yield pa.RecordBatch.from_arrays(columns, ["labels", "probabilities", "soft_labels"])

        return LazyRowBatches(batches, len(votes), save=True, row_by_row=True)

    def _check_labels_are_shared(self, votes: Votes) -> None:
        """Refuses voters that have no label in common, and warns of one that has none in common with the others.

        A voter with one label is left out of this: a rule may vote for a label of its own.
        """
        labels = {
            voter: {votes.classes[code] for code in np.unique(codes) if code != ABSTAINED}
            for voter, codes in zip(votes.voters, votes.codes.T, strict=True)
        }
        shared = {
            voter: any(own & labels[other] for other in labels if other != voter) for voter, own in labels.items()
        }
        alone = [voter for voter, own in labels.items() if len(labels) > 1 and len(own) > 1 and not shared[voter]]
        if not alone:
            return
        shown = "; ".join(
            f'"{voter}" votes for {", ".join(sorted(labels[voter])[:5])}' for voter in labels if labels[voter]
        )
        help = 'Map its votes to the same labels, or give args={"labels": [...]} if all of them are meant.'
        if len(alone) == len(labels):
            error = LabelError(f'"{self.name}": the voters have no label in common: {shown}. {help}')
            fail_unless_preview(self, error, "they may have in all rows")
            return
        which = " and ".join(f'"{voter}"' for voter in alone)
        self.logger.warning('"%s": %s has no label in common with other voters: %s. %s', self.name, which, shown, help)

    def _codes(self, votes: Votes, chances: Floats) -> Codes:
        """The likeliest class of each row [rows]; -1 where there is none."""
        most = chances.max(1)
        tied = (chances >= most[:, None] - _SAME).sum(1) > 1
        none = tied | ~votes.has_vote | (most < self.args["threshold"] - _SAME)
        return np.where(none, ABSTAINED, chances.argmax(1))

    def summary(self, gold: Column | Iterable[Any] | None = None) -> Table:
        """Returns coverage, overlap, conflicts and, on a column of `gold` labels, accuracy of voters and labels.

        `gold` has a label or None for each row. The last row is that of this step's labels.
        """
        votes = self.given_votes
        none = np.full(len(votes), ABSTAINED)
        result = self.name, self._codes(votes, self.class_probabilities(votes)) if votes.classes else none
        return votes.summary(checked_gold(gold), title=self.name, learned=self.learned, result=result)

    @property
    def learned(self) -> dict[str, float] | None:
        """The accuracy of each voter as learned from the votes, by its name; None where none is learned."""
        return None


class MajorityVote(LabelVotes):
    """Labels rows by the label that most voters give.

    Inputs: a column of labels for each voter, under its name: votes of labelling functions, labels of `Predict`, an
    LLM's answers read into labels, or mappings from label to probability, which vote for the likeliest. None is an
    abstention. Args: `labels`, `threshold`. Outputs: `labels`, `probabilities`, `soft_labels` (the share of votes for
    each label, which `TrainHFClassifier` takes as labels). A tie has no label; a row without votes has nothing.

    Example:
        >>> said = {"small": small.output["labels"], "large": large.output["labels"]}  # doctest: +SKIP
        >>> labels = MajorityVote("Most", inputs={**votes.votes, **said})  # doctest: +SKIP
    """

    def configure(self) -> None:
        """Refuses gold labels, which are no votes."""
        if "gold" in self._inputs:
            raise DefinitionError(
                f'"{self.name}": gold labels are no votes, and a majority learns nothing from them. Leave the input '
                '"gold" out, or use LabelModel. summary(gold=...) measures labels.'
            )
        super().configure()

    def class_probabilities(self, votes: Votes) -> Floats:
        """Returns the share of votes for each class [rows, classes]."""
        return votes.shares


class LabelModel(LabelVotes):
    """Labels rows by votes that count as much as the voters are accurate, which is learned from the votes alone.

    Inputs: a column of labels for each voter, under its name, as of `MajorityVote`; `gold` (optional): true labels of
    some rows, None for others, from which accuracies are learned too. Args: `labels`, `threshold`, `class_balance` (the
    share of each label; None learns it), `smoothing`. Outputs: `labels`, `probabilities`, `soft_labels` (the
    probability of each label, which `TrainHFClassifier` takes as labels, and `distillation.Probabilities` as a
    teacher). A row without votes has none.

    Each voter has its own probability of each vote, and of abstaining, given the true label: the estimator of Dawid and
    Skene (1979) for the label model of Ratner et al. (2016, arXiv:1605.07723; 2019, arXiv:1810.02840). See
    `evaluation.fit_label_model` for how it is fitted, and for what it cannot see: voters that err together.

    Example:
        >>> labels = LabelModel("Labels", inputs={**votes.votes, "llm": asked.output["topic"]})  # doctest: +SKIP
        >>> print(labels.summary(gold=checked.output["topic"]))  # doctest: +SKIP
        >>> rows = zipped(texts, labels).filter(lambda row: row["soft_labels"] is not None)  # doctest: +SKIP
        >>> student.train(rows.output["text"], rows.output["soft_labels"], ...)  # doctest: +SKIP
    """

    not_voters = frozenset({"gold"})

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_input("gold", required=False, help="True labels of some rows.")
        self.register_arg("class_balance", required=False, type=dict, help="The share of each label.")
        self.register_arg("smoothing", required=False, default=10.0, type=float, help="Rows that the prior counts for.")

    def configure(self) -> None:
        """Checks the arguments."""
        super().configure()
        check_number(self.args["smoothing"], f'"{self.name}": smoothing', 0, over=True)

    @cached_property
    def fitted(self) -> FittedLabelModel:
        """What was learned of the voters: class balance, and the probabilities of their votes."""
        votes, options = self.given_votes, {name: self.args[name] for name in ("class_balance", "smoothing")}
        try:
            return fit_label_model(votes, gold=self._inputs.get("gold"), **options)
        except (ArgumentTypeError, DataError, DefinitionError, LabelError) as error:
            raise type(error)(f'"{self.name}": {error}') from error

    def class_probabilities(self, votes: Votes) -> Floats:
        """Returns the probability of each class given the votes [rows, classes]; the share of votes in a preview."""
        try:
            return self.fitted.probabilities(votes)
        except (DataError, DefinitionError) as error:
            fail_unless_preview(self, error, "all voters count the same")
            return votes.shares

    @property
    def learned(self) -> dict[str, float] | None:
        """The accuracy of each voter as learned from the votes, by its name; None in a preview of too few votes."""
        try:
            return self.fitted.accuracies
        except (DataError, DefinitionError):
            if self.preview_rows is None:
                raise
            return None
