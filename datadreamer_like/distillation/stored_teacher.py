"""The teacher that runs once: its signals are stored, and every training reads them instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from datadreamer_like.errors import ArgumentTypeError

from .signals import Signals, TopK, check_signals
from .teacher import Teacher, TextTeacher, check_teacher


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher whose outputs are computed once for each row, stored, and read by every training: it is asked, not run.

    It is the `teacher` of any objective that can learn from the `signals`: `TopK` and `Sampled` for `SoftTargets` and
    other objectives on the next token's logits, `Hidden` for `HiddenStates`; a list of them for `Combined` objectives.
    They are stored in the session's cache folder under a fingerprint of the teacher, the signals and each tokenized
    row: further epochs, seeds and students with the same tokenizer never run the teacher again, and changed rows ask
    for themselves only. The teacher is loaded only to answer, before the student is, and unloaded again. The student
    reads the same tokens, so it needs the teacher's tokenizer.

    A classifier's logits are stored without it: pass that teacher itself.

    Example:
        `student.train(..., objective=SoftTargets(StoredTeacher(teacher, TopK(k=16)), alpha=1.0))`

    Raises:
        ArgumentTypeError: An argument is not a teacher, or no signals.
    """

    teacher: Teacher | TextTeacher
    signals: Signals | Sequence[Signals] = field(default_factory=TopK)

    def __post_init__(self) -> None:
        if isinstance(self.teacher, StoredTeacher):
            raise ArgumentTypeError("The teacher of a StoredTeacher is stored already. Pass its teacher.")
        check_teacher(self.teacher)
        check_signals(self.signals)

    @property
    def kinds(self) -> tuple[Signals, ...]:
        """The signals as a tuple."""
        return check_signals(self.signals)

    @property
    def model(self) -> Described:
        """The teacher's config in a module without weights; the model itself is loaded only to answer."""
        trained = getattr(self.teacher, "trained", self.teacher)
        config = getattr(trained, "config", None)
        return Described(getattr(getattr(trained, "model", None), "config", None) if config is None else config)

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""
        return getattr(self.teacher, "tokenizer", None)


class Described(nn.Module):
    """A model that is not loaded, as far as an objective's `modules` reads it: its config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
