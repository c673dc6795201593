"""Self-training: a model labels what it is certain of, and learns from it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from datadreamer_like.errors import DataError, DefinitionError, MethodMisfit, check_number
from datadreamer_like.evaluation.columns import SUPERVISED, check_column, named_columns
from datadreamer_like.graph.output import Column
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.stages import Calibrate
from datadreamer_like.steps import Predict, Step, concat

from .parts import (
    VALIDATION,
    MakeTrainer,
    check_options,
    check_pair,
    check_recipe,
    labelled,
    make_trainer,
    named,
    without_known,
)

logger = logging.getLogger("datadreamer_like")

_COLUMNS = (
    TableColumn("round", "round"),
    TableColumn("labelled", "labelled", "rows", ","),
    TableColumn("changed", "changed", "rows", ","),
    TableColumn("accuracy", "accuracy", "%", ".1f", 100),
)


class SelfTraining:
    """Trains on few labels and on what the model itself is certain of, until it says the same twice.

    Yarowsky 1995. In each round the last student labels all unlabelled rows; those whose probability is at least
    `threshold` are added to the seed, and the next student is trained on both from scratch. Labels of earlier rounds
    are not kept: a row can change its label, or lose it. It ends when no label changes, or after `rounds`.

    A model that is too certain of itself teaches itself its errors: watch the accuracy, and calibrate.

    Args:
        name: Prefix of the names of all steps, trainers and stages, which are cached nodes.
        trainer: Makes an untrained trainer of a name: `partial(TrainHFClassifier, model_name=...)`.
        train_input, train_output: Columns of the texts and labels of the seed, one label per row.
        unlabelled: Column of texts without labels; those of validation rows and of the seed are left out.
        validation_input, validation_output: Columns of held-out texts and labels.
        threshold: Probability from which a label counts, above 0 and at most 1.
        rounds: Maximum number of rounds after the first student.
        max_per_class: Maximum number of labelled rows of a class in a round, the most certain ones, so that an easy
            class does not take all; None for no maximum. A threshold of each class's own, as in class-balanced
            self-training (Zou et al. 2018, arXiv:1810.07911), with equal numbers instead of equal shares.
        calibrate: Fit a temperature on the validation rows before each labelling, so that of the labels at a
            probability of 0.9 about nine in ten are right.
        **options: Options of the trainer's `train`.

    Attributes:
        students: The students, the first one of the seed alone.
        rounds: For each student a dict: `round`, `labelled` (rows it learned from besides the seed), `changed` (labels
            that differ from those of the round before) and the metrics on the validation rows.
        converged: Whether no label changed in the end.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: `trainer` makes no new trainer, or an option makes no sense.
        DataError: A row of the seed has no label.
        MethodMisfit: The student is not a single-label classifier.
        DataDreamerError: See the trainer's `train`.

    Example:
        >>> grown = SelfTraining(  # doctest: +SKIP
        ...     "Topics", partial(TrainHFClassifier, model_name=encoder), seed.output["text"], seed.output["topic"],
        ...     pool.output["text"], validation.output["text"], validation.output["topic"], learning_rate=5e-5,
        ... )
        >>> grown.student.predict(["Parses command lines."]).labels  # doctest: +SKIP
        ['cli']
    """

    result_version: ClassVar[int] = 1

    def __init__(
        self,
        name: str,
        trainer: MakeTrainer,
        train_input: Column,
        train_output: Column,
        unlabelled: Column,
        validation_input: Column,
        validation_output: Column,
        *,
        threshold: float = 0.9,
        rounds: int = 5,
        max_per_class: int | None = None,
        calibrate: bool = False,
        **options: Any,
    ) -> None:
        check_recipe(self, name, trainer)
        check_number(threshold, f'"{name}": threshold', 0, over=True)
        if threshold > 1:
            raise DefinitionError(f'"{name}": threshold is {threshold}; a probability is at most 1.')
        check_number(rounds, f'"{name}": rounds', 1, whole=True)
        check_number(max_per_class, f'"{name}": max_per_class', 1, whole=True, optional=True)
        train = check_pair(name, {"train_input": train_input, "train_output": train_output})
        validation = check_pair(name, dict(zip(VALIDATION, (validation_input, validation_output), strict=True)))
        check_column(unlabelled, f'"{name}": unlabelled')
        self.name, self.converged = name, False
        self.students: list[Any] = []
        self.rounds: list[dict[str, Any]] = []
        missing = next((row for row, label in enumerate(train_output) if label is None), None)
        if missing is not None:
            raise DataError(
                f'"{name}": train_output is None in row {missing}; each row of the seed has a label. Filter such rows '
                "out, and pass their texts as unlabelled."
            )
        first = make_trainer(trainer, f"{name}, student 0")
        check_options(self, first, options, ("train_input", "train_output"))
        unlabelled = without_known(name, unlabelled, validation_input, train_input)
        seed = named(labelled(train_input, train_output), train["train_output"], "train_output")
        seed = seed.save(name=f"{name}, seed")
        known: dict[int, str] = {}
        self._train(first, seed, validation, options, {"labelled": 0, "changed": 0})
        for number in range(1, rounds + 1):
            model = self.students[-1]
            if model.trained.is_multi_label:
                raise MethodMisfit(f'"{name}": {model.name} is a multi-label classifier. Give each row one label.')
            if calibrate:
                model = Calibrate(f"{name}, calibrated {number}", model, validation_input, validation_output)
                if model.at_limit:
                    logger.warning(
                        "%s: the validation rows do not determine the temperature of %s, so a threshold of %g on its "
                        "probabilities says little: it is %g. Pass more validation rows, or calibrate=False.",
                        name, self.students[-1].name, threshold, model.temperature,
                    )  # fmt: skip
            said = Predict(f"{name}, labels {number}", inputs={"texts": unlabelled}, args={"model": model})
            found = _certain(said.output["labels"], said.output["probabilities"], threshold, max_per_class)
            changed = sum(known.get(row) != found.get(row) for row in {*known, *found})
            if not changed:
                self.converged = bool(found)
                if not found:
                    logger.warning(
                        "%s: the model is certain of no row, at a threshold of %g. Lower it, or label more rows.",
                        name, threshold,
                    )  # fmt: skip
                break
            known = found
            sure = said.select([*found])
            added = sure.select_columns(["texts", "labels"]).rename_columns({"texts": "text", "labels": "label"})
            rows = concat(seed, added).save(name=f"{name}, rows {number}")
            student = make_trainer(trainer, f"{name}, student {number}")
            self._train(student, rows, validation, options, {"labelled": len(found), "changed": changed})
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name and trainer, for tests and documentation; columns are lists."""
        texts, labels = ["a cat", "a dog"], ["cat", "dog"]
        columns = named_columns(SUPERVISED, *[(texts, labels)] * 2)
        return {**columns, "unlabelled": ["the cat", "the dog"], "threshold": 0.5, "rounds": 1}

    def _train(self, student: Any, rows: Step, validation: Any, options: Any, facts: dict[str, Any]) -> None:
        number = len(self.students)
        student.train(rows.output["text"], rows.output["label"], *validation.values(), **options)
        self.students.append(student)
        self.rounds.append({"round": number, **facts, **student.metrics})

    @property
    def student(self) -> Any:
        """The last student."""
        return self.students[-1]

    @property
    def table(self) -> Table:
        """The rounds, with the accuracy on the validation rows."""
        return Table(_COLUMNS, self.rounds, title=self.name)

    def __str__(self) -> str:
        return str(self.table)


def _certain(
    labels: Iterable[Any], probabilities: Iterable[Any], threshold: float, max_per_class: int | None
) -> dict[int, str]:
    """Returns the labels that count by row, in the order of rows; see `SelfTraining`."""
    found = [
        (row, label, chance)
        for row, (label, chance) in enumerate(zip(labels, probabilities, strict=True))
        if label is not None and chance >= threshold
    ]
    if max_per_class is not None:
        taken: Counter[str] = Counter()
        found.sort(key=lambda each: -each[2])  # of equal ones the first row
        best = []
        for each in found:
            taken[each[1]] += 1
            if taken[each[1]] <= max_per_class:
                best.append(each)
        found = sorted(best)
    return {row: label for row, label, _ in found}
