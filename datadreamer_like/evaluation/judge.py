"""The seam between a comparison and what is compared: one judge for each kind of task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datadreamer_like.graph.output import Column as Rows
from datadreamer_like.models.llms.chat_template import AUTO, AutoText
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.report import Column, Interval


@dataclass(frozen=True)
class Asking:
    """How models are asked.

    Attributes:
        max_length: The most tokens of a row; None for what each model takes.
        chat_prompt_template: How prompts are dressed; AUTO for each model's own way.
        system_prompt: The system prompt; AUTO for each model's own.
    """

    max_length: int | None = None
    chat_prompt_template: AutoText = AUTO
    system_prompt: AutoText = AUTO


class Judge(ABC):
    """Reads a task's rows, puts them to models, and says how good what comes back is.

    A comparison knows rows and answers only as things to hand on, one answer a row. Making a judge reads the rows and
    refuses models that cannot be compared on them; no model is loaded for that.

    Args:
        inputs: What models are given.
        labels: What they are to give; None where the inputs say that themselves.
        models: The models.
        names: What they are called.
        asking: How they are asked.

    Attributes:
        rows: What is put to a model, row by row.
        columns: The rows as columns that are kept beside the answers.
        facts: What the notes under the table need to know of the rows; goes to JSON.

    Raises:
        DataDreamerError: The rows cannot be read, or a model does not fit them.
    """

    kind: ClassVar[str]
    """Name of the kind of task, kept with the figures."""
    tasks: ClassVar[frozenset[str]]
    """Tasks of the models that belong to the kind, in the Hub's words."""
    figures: ClassVar[tuple[Column, ...]]
    """How quality is shown in a table. The first is the main figure; its paired difference is `<key>_difference`."""
    axis: ClassVar[str]
    """What the main figure is called on a plot."""
    timed: ClassVar[str]
    """What is done while the time is taken, for the notes."""

    rows: Sequence[Any]
    columns: Mapping[str, list[str]]
    facts: Mapping[str, Any]

    @abstractmethod
    def __init__(
        self, inputs: Rows, labels: Rows | None, models: Sequence[TrainedModel], names: Sequence[str], asking: Asking
    ) -> None: ...

    @abstractmethod
    def answers(self, model: TrainedModel, rows: Sequence[Any], batch_size: int) -> list[Any]:
        """Puts rows to a model; this is also what is timed.

        Args:
            model: The model.
            rows: Some of `rows`.
            batch_size: How many at once.

        Returns:
            One answer a row.
        """

    @abstractmethod
    def kept(self, answers: Sequence[Any]) -> list[Any]:
        """Returns what is written down of each answer, a text or a number."""

    @abstractmethod
    def quality(self, answers: Sequence[Any]) -> dict[str, float]:
        """Returns how good a model's answers to all rows are, by the keys of `figures`."""

    @abstractmethod
    def differences(
        self, first: Sequence[Any], other: Sequence[Any], *, resamples: int, seed: int
    ) -> dict[str, Interval]:
        """Returns how another model's quality differs from the first one's on the same rows, with 95 % intervals."""

    @classmethod
    @abstractmethod
    def note(cls, rows: int, facts: Mapping[str, Any], first: str) -> str:
        """Says under a table what the figures of quality are, and of what.

        Args:
            rows: Rows that were compared.
            facts: What `facts` was.
            first: What the first model is called.
        """
