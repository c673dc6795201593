"""The teacher that runs once: its signals are stored, and every training reads them instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from datadreamer_like.errors import ArgumentTypeError, DefinitionError

from .signals import Sampled, Signals, TopK, check_signals
from .sparse_losses import Tail
from .teacher import Teacher, TextTeacher, check_teacher


@dataclass(frozen=True, repr=False)
class Generations:
    """Columns of a prompting step with `logprobs`: prompts, their answers, and the tokens' log-probabilities."""

    prompts: Any
    generations: Any
    logprobs: Any

    def __repr__(self) -> str:
        return f"Generations({self.node.name!r})"

    @property
    def node(self) -> Any:
        """The step."""
        return self.logprobs.step


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher whose outputs are computed once for each row, stored, and read by every training: it is asked, not run.

    It is the `teacher` of any objective that can learn from the `signals`: `Sampled` (the default) and `TopK` for
    `SoftTargets` and other objectives on the next token's logits, `Hidden` for `HiddenStates`; a list of them for
    `Combined` objectives.
    They are stored in the session's cache folder under a fingerprint of the teacher, the signals and each tokenized
    row: further epochs, seeds and students with the same tokenizer never run the teacher again, and changed rows ask
    for themselves only. The teacher is loaded only to answer, before the student is, and unloaded again. The student
    reads the same tokens, so it needs the teacher's tokenizer.

    A classifier's logits are stored without it: pass that teacher itself, also together with stored hidden states.

    Example:
        `student.train(..., objective=SoftTargets(StoredTeacher(teacher), temperature=1.0, alpha=1.0))`

    Raises:
        ArgumentTypeError: An argument is not a teacher, or no signals.
    """

    teacher: Teacher | TextTeacher | Generations
    signals: Signals | Sequence[Signals] = field(default_factory=Sampled)

    def __post_init__(self) -> None:
        if isinstance(self.teacher, StoredTeacher):
            raise ArgumentTypeError("The teacher of a StoredTeacher is stored already. Pass its teacher.")
        kinds = check_signals(self.signals)
        if not isinstance(self.teacher, Generations):
            check_teacher(self.teacher)
        elif not all(isinstance(each, TopK) for each in kinds):
            raise DefinitionError("A prompting step stores the likeliest tokens only. Pass TopK(k).")

    @classmethod
    def from_step(
        cls, step: Any, k: int | None = None, tail: Tail = "bucket", *, prompts: str = "prompts"
    ) -> StoredTeacher:
        """Returns the teacher that generated a step's rows with `logprobs=k`: the generation was its only run.

        The student is fine-tuned on rows of the step, its column `prompts` (or another that the step passes on, such as
        `inputs`) and `generations`, in any order and split. The texts of tokens are matched to the student's, whose
        tokenizer must be of the teacher's family. Tokens that a provider does not return, such as the end of a text,
        are learned as they were generated.

        Args:
            step: A prompting step with `logprobs`, or an operation on its rows.
            k: Tokens to learn from at each position; None for all that the step stored.
            tail: See `TopK`; the temperature of a loss must be 1, or the tail "renormalise".
            prompts: The column of the student's prompts.

        Raises:
            DefinitionError: The step has no such columns, or `k` is not known.
        """
        names = (prompts, "generations", "logprobs")
        offered = list(getattr(step.output, "column_names", ()))
        if missing := [name for name in names if name not in offered]:
            raise DefinitionError(
                f'"{step.name}" has no column {" and ".join(missing)}; it has {", ".join(offered)}. Pass logprobs=16 '
                "to a prompting step, and keep its columns."
            )
        count = k or getattr(step, "args", {}).get("logprobs")
        if count is None:
            raise DefinitionError(f'How many tokens "{step.name}" stores is not known. Pass k=16.')
        columns = (step.output[name] for name in names)
        return cls(Generations(*columns), TopK(count, tail, temperatures=[1.0]))

    @property
    def kinds(self) -> tuple[Signals, ...]:
        """The signals as a tuple."""
        return check_signals(self.signals)

    @property
    def model(self) -> Described:
        """The teacher's config in a module without weights; the model itself is loaded only to answer."""
        return described(self.teacher)

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""
        return getattr(self.teacher, "tokenizer", None)


class Described(nn.Module):
    """A model that is not loaded, as far as an objective's `modules` reads it: its config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = type(config).__name__.removesuffix("Config")


def described(teacher: Any) -> Described:
    """Returns what describes a teacher, also one behind a `StoredTeacher`; its config is None if it has none."""
    own = teacher.teacher if isinstance(teacher, StoredTeacher) else teacher
    trained = getattr(own, "trained", own)
    config = getattr(trained, "config", None)
    return Described(getattr(getattr(trained, "model", None), "config", None) if config is None else config)
