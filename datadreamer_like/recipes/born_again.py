"""Born-again networks: a student of the teacher's own size, taught by it, and so on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from datadreamer_like.distillation import Objective, SoftTargets
from datadreamer_like.errors import ArgumentTypeError, check_number
from datadreamer_like.evaluation.columns import SUPERVISED, named_columns
from datadreamer_like.graph.output import Column
from datadreamer_like.models import EnsembleModel
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.stages import FreshWeights
from datadreamer_like.trainers.training.teaching import itself

from .parts import MakeTrainer, check_options, check_recipe, make_trainer, with_seed

logger = logging.getLogger("datadreamer_like")

_COLUMNS = (
    TableColumn("model", "model", align="left"),
    TableColumn("accuracy", "accuracy", "%", ".1f", 100),
    TableColumn("macro_f1", "macro-F1", "%", ".1f", 100),
    TableColumn("loss", "loss", "nats", ".3f"),
)


class BornAgain:
    """Trains generations of a model, each from a fresh start, with the one before as its teacher.

    Furlanello et al. 2018, arXiv:1805.04770. The teacher, generation 0, learns from the labels; generation k from the
    best checkpoint of k-1. All are of one architecture, and none starts from the weights of another: each begins at the
    model that `trainer` names, with a head, an order of rows and dropout of its own seed, or with `random_weights` at
    nothing at all. Later generations are often better than the teacher, and not always better than the one before;
    their ensemble usually is.

    Args:
        name: Prefix of the names of all generations, which are cached nodes.
        trainer: Makes an untrained trainer of a name: `partial(TrainHFClassifier, model_name=...)`.
        train_input, train_output, validation_input, validation_output: Columns, see the trainer's `train`. With a given
            `teacher`, labels may be None where the objective needs none.
        generations: Number of students.
        objective: A function of the teacher that returns the objective, such as the class of one. By default
            `SoftTargets(teacher, temperature=1.0, alpha=1.0)`, the teacher alone, as for images in the paper; its
            language models needed the labels too: `partial(SoftTargets, temperature=1.0, alpha=0.5)`. The paper's
            controls are `ConfidenceWeighted` and `PermutedTargets`.
        teacher: A trained generation 0; None to train it, with the labels.
        random_weights: Start each student from random weights of the teacher's architecture, as in the paper, not from
            a pretrained model. `trainer` is then called with `model_name`.
        **options: Options of the trainer's `train`; the seed of generation k is `seed + k`.

    Attributes:
        teacher: Generation 0.
        students: Generations 1 and on, trained.
        ensemble: An `EnsembleModel` of the students: predict with it, compare it, distil it into one model.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: `trainer` makes no new trainer, `objective` is not a function that returns
            an objective with this teacher, or an option makes no sense.
        DataDreamerError: See the trainer's `train`.

    Example:
        >>> born = BornAgain(  # doctest: +SKIP
        ...     "Topics", partial(TrainHFClassifier, model_name=encoder), *columns, generations=3, learning_rate=5e-5,
        ... )
        >>> Compare("Generations", [born.teacher, *born.students, born.ensemble], texts, topics)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 1
    papers = ("1805.04770",)

    def __init__(
        self,
        name: str,
        trainer: MakeTrainer,
        train_input: Column,
        train_output: Column | None,
        validation_input: Column,
        validation_output: Column | None,
        *,
        generations: int = 3,
        objective: Callable[[Any], Objective] | None = None,
        teacher: ModelNode | None = None,
        random_weights: bool = False,
        **options: Any,
    ) -> None:
        check_recipe(self, name, trainer)
        check_number(generations, f'"{name}": generations', 1, whole=True)
        check_number(options.get("seed", 42), f'"{name}": seed', 0, whole=True)
        objective = objective or partial(SoftTargets, temperature=1.0, alpha=1.0)
        if isinstance(objective, Objective) or not callable(objective):
            raise ArgumentTypeError(
                f'"{name}": objective must be a function of the teacher, since each generation has its own; got '
                f"{objective!r:.100}. Pass a class, SoftTargets, or partial(SoftTargets, alpha=0.5)."
            )
        self.name = name
        columns = (train_input, train_output, validation_input, validation_output)
        if teacher is None:
            first = make_trainer(trainer, f"{name}, teacher")
            check_options(self, first, options, ())
            teacher = first.train(*columns, **options)
        self.teacher: Any = teacher
        self.students: list[Any] = []
        for number in range(1, generations + 1):
            title, before = f"{name}, generation {number}", (self.students or [self.teacher])[-1]
            start = {}
            if random_weights:
                seed = options.get("seed", 42) + number
                start["model_name"] = FreshWeights(f"{title}, start", self.teacher, seed=seed)
            student = make_trainer(trainer, title, **start)
            check_options(self, student, options, ())
            minimised = objective(before)
            if not isinstance(minimised, Objective) or itself(minimised.teacher) is not before:
                raise ArgumentTypeError(
                    f'"{name}": objective returned {minimised!r:.100}; it must return an objective whose teacher is '
                    "the model that it was given."
                )
            self.students.append(student.train(*columns, objective=minimised, **with_seed(student, options, number)))
        self.ensemble = EnsembleModel(self.students, name=f"{name}, ensemble")
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name and trainer, for tests and documentation; columns are lists."""
        texts, labels = ["a cat", "a dog", "the cat", "the dog"], ["cat", "dog"] * 2
        columns = named_columns(SUPERVISED, *[(texts, labels)] * 2)
        return {**columns, "generations": 2, "epochs": 1, "batch_size": 2, "learning_rate": 1e-3}

    @property
    def generations(self) -> list[Any]:
        """The teacher and all students, oldest first."""
        return [self.teacher, *self.students]

    @property
    def table(self) -> Table:
        """The metrics on the validation rows, which chose each generation's best epoch; a student's loss is its own."""
        rows = [{"model": f"generation {number}", **each.metrics} for number, each in enumerate(self.generations)]
        return Table(_COLUMNS, rows, title=self.name)

    def __str__(self) -> str:
        return str(self.table)
