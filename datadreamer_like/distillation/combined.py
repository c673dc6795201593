"""Several objectives as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number, check_sequence

from .generated import Beams, Completions
from .objectives import HardTargets, Objective, Supervised
from .outputs import Batch, Outputs, WeightedMean
from .signals import Signals
from .stored_teacher import StoredTeacher
from .teacher import Teacher, TextTeacher


@dataclass(frozen=True)
class Combined(Objective):
    """The weighted sum of several objectives.

    Objectives with a teacher must share it; each has one positive weight. Some may read it through a `StoredTeacher`:
    then all do, but for a classifier's logits, which are stored for each text.

    Example:
        `Combined([SoftTargets(teacher), HiddenStates(teacher)], weights=[1.0, 0.5])`
    """

    objectives: Sequence[Objective]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        check_sequence(self.objectives, "objectives", "objectives")
        check_sequence(self.weights, "weights", "numbers")
        if not all(isinstance(objective, Objective) for objective in self.objectives):
            raise ArgumentTypeError(f"objectives must be a list of objectives, not {self.objectives!r}.")
        if not self.objectives or len(self.objectives) != len(self.weights):
            raise DefinitionError(
                f"There are {len(self.objectives)} objectives and {len(self.weights)} weights. Pass one weight for "
                "each objective."
            )
        for place, weight in enumerate(self.weights):
            check_number(weight, f"weights[{place}]", over=True)
        teachers = [objective.teacher for objective in self.objectives if objective.teacher is not None]
        stored = [teacher for teacher in teachers if isinstance(teacher, StoredTeacher)]
        behind = [teacher.teacher if isinstance(teacher, StoredTeacher) else teacher for teacher in teachers]
        if any(teacher is not behind[0] for teacher in behind):
            raise DefinitionError("The objectives have different teachers. Give all of them the same one.")
        if any(teacher != stored[0] for teacher in stored):
            raise DefinitionError(
                "The objectives read different signals of one teacher. Give all of them one StoredTeacher with a list "
                "of signals, such as StoredTeacher(teacher, [TopK(16), Hidden([6])])."
            )
        for what in ("beams", "completions"):
            if len([each for each in self.objectives if getattr(each, what) is not None]) > 1:
                raise DefinitionError(f"Two of the objectives choose the answers to learn ({what}). Keep one of them.")
        if len({each.own_tokens for each in self.objectives if each.teacher_wants}) > 1:
            raise DefinitionError(
                "Some of the objectives compare student and teacher token by token, and another gives the teacher its "
                "own tokens. Combine objectives of one kind."
            )
        if self.own_tokens and self.beams is not None and self.beams.keep_reference:
            raise DefinitionError(
                "A teacher with its own tokens reads one answer to a prompt, and alpha below 1 gives it two. Pass "
                "alpha=1.0 to the sequence-level objective."
            )

    @classmethod
    def example(cls, teacher: Teacher | TextTeacher) -> Self:
        """The objective with this teacher, for tests and documentation."""
        return cls([Supervised(), HardTargets(teacher)], [0.5, 0.5])

    @property
    def teacher(self) -> Teacher | TextTeacher | None:  # type: ignore[override]
        """The shared teacher: a `StoredTeacher` if one of the objectives has one."""
        teachers = [each.teacher for each in self.objectives if each.teacher is not None]
        return next((each for each in teachers if isinstance(each, StoredTeacher)), next(iter(teachers), None))

    @property
    def wants(self) -> frozenset[str]:
        """The union over all objectives."""
        return frozenset().union(*(objective.wants for objective in self.objectives))

    @property
    def teacher_wants(self) -> frozenset[str]:
        """The union over all objectives."""
        return frozenset().union(*(objective.teacher_wants for objective in self.objectives))

    @property
    def needs_labels(self) -> bool:
        """Whether any of the objectives uses labels."""
        return any(objective.needs_labels for objective in self.objectives)

    @property
    def fits(self) -> frozenset[str] | None:
        """The kinds of task that fit all objectives."""
        limits = [kinds for each in self.objectives if (kinds := each.fits) is not None]
        return frozenset.intersection(*limits) if limits else None

    @property
    def single_label(self) -> bool:
        """Whether any of the objectives needs single labels."""
        return any(objective.single_label for objective in self.objectives)

    @property
    def beams(self) -> Beams | None:
        """Those of the objective that has some."""
        return next((each.beams for each in self.objectives if each.beams is not None), None)

    def target(self, reference: str | None, candidates: Sequence[str]) -> str:
        """Returns the answer that the objective with `beams` chooses."""
        return next(each for each in self.objectives if each.beams is not None).target(reference, candidates)

    @property
    def completions(self) -> Completions | None:
        """Those of the objective that has some."""
        return next((each.completions for each in self.objectives if each.completions is not None), None)

    @property
    def own_tokens(self) -> bool:
        """Whether the teacher reads its own tokens."""
        return any(each.own_tokens for each in self.objectives)

    @property
    def takes_factors(self) -> bool:
        """Whether all objectives take them."""
        return all(objective.takes_factors for objective in self.objectives)

    @property
    def temperatures(self) -> frozenset[float]:
        """The union over all objectives."""
        return frozenset().union(*(objective.temperatures for objective in self.objectives))

    def check_signals(self, signals: Sequence[Signals], student: nn.Module, teacher: nn.Module) -> None:
        """Checks them for each objective with a teacher."""
        for objective in self.objectives:
            if objective.teacher is not None:
                objective.check_signals(signals, student, teacher)

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module | None:
        """Returns the modules of all objectives."""
        found = {str(index): each.modules(student, teacher) for index, each in enumerate(self.objectives)}
        own = {name: module for name, module in found.items() if module is not None}
        return nn.ModuleDict(own) if own else None

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the weighted sum of their losses."""
        losses = [
            weight * objective.loss(student, teacher, batch, own) for objective, weight, own in self._parts(modules)
        ]
        return torch.stack(losses).sum()

    def means(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        modules: nn.Module | None = None,
        *,
        all_labelled: bool = False,
    ) -> list[WeightedMean]:
        """Returns those of all objectives, weighted."""
        return [
            WeightedMean(weight * value, total)
            for objective, weight, own in self._parts(modules)
            for value, total in objective.means(student, teacher, batch, own, all_labelled=all_labelled)
        ]

    def _parts(self, modules: nn.Module | None) -> Iterator[tuple[Objective, float, nn.Module | None]]:
        own = dict(modules.items()) if isinstance(modules, nn.ModuleDict) else {}
        for index, (objective, weight) in enumerate(zip(self.objectives, self.weights, strict=True)):
            yield objective, weight, own.get(str(index))
