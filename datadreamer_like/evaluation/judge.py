"""The interface between a comparison and a kind of task: each kind has one judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.output import Column as Rows
from datadreamer_like.models.llms.chat_template import AUTO, AutoText
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.report import Interval, TableColumn

NAMES = ("inputs", "labels")
"""Argument names of a comparison's two columns, for messages."""


Prefer: TypeAlias = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]
"""Takes prompts, answers and other answers, and gives each answer 1 point, 0, or 0.5 for a tie."""


class Further(NamedTuple):
    """Scores of a model that are not those of its answers alone, and the texts that it wrote for some rows, if any."""

    scores: Mapping[str, float]
    texts: Sequence[str | None] = ()


@dataclass(eq=False)
class Judge(ABC):
    """Reads a task's rows, runs models on them, and scores their answers.

    To a comparison, rows and answers are opaque: there is one answer per row. `labels` are None if the expected answers
    follow from the inputs. `max_length` None is each model's own limit, in tokens per row; `chat_prompt_template` and
    `system_prompt` AUTO are each model's own. Intervals are from `resamples` resamples. For the others see `Compare`.

    Attributes:
        rows: One input per row, as `answers` takes them.
        columns: The rows as columns, saved next to the answers.
        facts: JSON values about the rows, for `note`.
    """

    kind: ClassVar[str]
    """Name of the kind of task, saved with the scores."""
    tasks: ClassVar[frozenset[str]]
    """Hub task names of the models that this judge handles."""
    figures: ClassVar[tuple[TableColumn, ...]]
    """Table columns for the scores. The first is the main score; its paired difference is `<key>_difference`."""
    axis: ClassVar[str]
    """Axis label of the main score on a plot."""
    timed: ClassVar[str]
    """What the timing covers, for the notes."""
    foreign: ClassVar[tuple[str, ...]]
    """Options that have no meaning for this kind of task."""

    inputs: Rows
    labels: Rows | None
    models: Mapping[str, TrainedModel]
    max_length: int | None = None
    chat_prompt_template: AutoText = AUTO
    system_prompt: AutoText = AUTO
    resamples: int = 10_000
    seed: int = 0
    teacher: TrainedModel | None = None
    max_error: float | None = None
    confidence: float = 0.95
    rejected: Rows | None = None
    generate: int = 0
    max_new_tokens: int = 64
    judge: Prefer | None = None

    def __post_init__(self) -> None:
        for option in self.foreign:
            if getattr(self, option) not in (None, 0):
                raise DefinitionError(f"{option} is not an option of comparing models for {self.kind}. Leave it out.")
        self.rows: Sequence[Any] = ()
        self.columns: Mapping[str, list[str]] = {}
        self.facts: Mapping[str, Any] = {}
        self.read()

    @abstractmethod
    def read(self) -> None:
        """Sets `rows`, `columns` and `facts`, and refuses models that cannot be compared, without loading any."""

    @abstractmethod
    def answers(self, model: TrainedModel, rows: Sequence[Any], batch_size: int) -> list[Any]:
        """Runs a model on some of `rows` and returns one answer per row, in CPU memory; timing measures this call."""

    def kept(self, answers: Sequence[Any]) -> list[Any]:
        """Returns what is saved of each answer, a text or a number; by default the answer."""
        return list(answers)

    @abstractmethod
    def quality(self, answers: Sequence[Any]) -> dict[str, float]:
        """Returns the scores of a model's answers to all rows, by the keys of `figures`."""

    def further(self, model: TrainedModel, answers: Sequence[Any], batch_size: int) -> Further:
        """Returns further scores of a loaded model, given its answers to all rows; by default none."""
        return Further({})

    def preferred(self, first: Sequence[str | None], other: Sequence[str | None]) -> Interval | None:
        """Returns how often the `judge` prefers the texts of a model to the baseline's, `first`; None without one."""
        return None

    @abstractmethod
    def differences(self, first: Sequence[Any], other: Sequence[Any]) -> dict[str, Interval]:
        """Returns the score differences between two models on the same rows, with 95 % intervals."""

    @classmethod
    @abstractmethod
    def note(cls, rows: int, facts: Mapping[str, Any], first: str) -> str:
        """Returns the note under a table of `rows` rows that explains the scores; `first` names the baseline."""
