"""Active distillation: the teacher is asked where the student does not know."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from datadreamer_like.distillation import Probabilities, SoftTargets
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, LabelError, check_number
from datadreamer_like.evaluation.columns import check_column
from datadreamer_like.evaluation.labels import class_names, label_name
from datadreamer_like.graph.card import Card
from datadreamer_like.graph.output import Column
from datadreamer_like.report import Table, TableColumn, curves
from datadreamer_like.steps import ChooseRowsToLabel, Predict, Step, concat
from datadreamer_like.steps.labelling.choose_rows import check_choice
from datadreamer_like.steps.labelling.predict import can_classify, check_classifier

from .parts import (
    VALIDATION,
    MakeTrainer,
    accuracy,
    check_options,
    check_pair,
    check_recipe,
    draws,
    held_out_texts,
    labelled,
    make_trainer,
    renamed,
    with_seed,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("datadreamer_like")

_COLUMNS = (
    TableColumn("round", "round"),
    TableColumn("rows", "asked", "rows", ","),
    TableColumn("cost", "cost", "USD", ",.2f"),
    TableColumn("disagreement", "disagreed", "% of new", ".0f", 100),
    TableColumn("accuracy", "accuracy", "%", ".1f", 100),
    TableColumn("random", "random", "%", ".1f", 100),
)


@dataclass
class _Arm:
    """One way of choosing rows, and what it has come to."""

    title: str
    by: str
    students: list[list[Any]] = field(default_factory=list)  # of each round
    rows: list[Step] = field(default_factory=list)  # texts and labels, of each round
    asked: list[str] = field(default_factory=list)
    cost: float | None = 0.0
    paid: list[Card] = field(default_factory=list)  # whose cost is in it
    curve: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    def copy(self, title: str, by: str) -> _Arm:
        """Returns an arm that goes on from here by itself."""
        return _Arm(title, by, [*self.students], [*self.rows], [*self.asked], self.cost, [*self.paid], [*self.curve])


class DistillationLoop:
    """Labels rows by a teacher where the student is least certain, trains it on all of them, and repeats.

    Pool-based active learning (Lewis and Gale 1994; query by committee, Seung et al. 1992) with a model as the oracle.
    The first rows are drawn at random. In each further round the last students choose rows of the pool by what they say
    of them; only these rows are shown to the teacher. A new student is trained from scratch on all labelled rows. With
    `control`, the same is done with rows drawn at random, for as many more answers of the teacher: without it nobody
    knows whether choosing paid.

    Args:
        name: Prefix of the names of all steps and trainers, which are cached nodes.
        trainer: Makes an untrained trainer of a name: `partial(TrainHFClassifier, model_name=...)`.
        teacher: A classifier (a trainer, a stage, a `TrainedModel`, a folder, or a `TextTeacher`, such as
            `ScoreLabels`), or a function that is given a column of texts and returns a column of their labels: an LLM
            step. A row whose label is None counts as asked and is left out.
        pool: Column of unlabelled texts, of which those that are validation texts too are left out; or a function of
            the round, from 1, that returns such a column: a generating step, whose texts are added to the earlier ones.
        validation_input, validation_output: Columns of held-out texts and their right labels.
        rows_per_round: Rows that the teacher labels in a round.
        budget_rows: Rows that it labels in all.
        budget_cost: US dollars that its answers may cost in all; None for no limit. A round takes as many rows as the
            mean cost so far allows. The price must be known. `control` costs as much again.
        by: How rows are chosen: "margin", "entropy" or "committee"; see `ChooseRowsToLabel`.
        committee: Number of students of a round, with seeds of their own, that choose together.
        control: Also run the loop with rows drawn at random.
        soft_labels: Learn the probabilities of a teacher that is a classifier; False for its labels alone. A function
            may return mappings from class to probability itself.
        test_input, test_output: Columns of further texts and labels, for the curve; None for the validation rows.
        seed: Seed of the first rows and of all drawing.
        **options: Options of the trainer's `train`.

    Attributes:
        student: The last student, trained.
        students: The student of each round; `random_students` are those of the control.
        rows: The step with the rows that the last student learned from: `text`, `label`.
        curve: For each round a dict: `round`, `rows` (labelled so far), `cost` (US dollars so far; None if unknown),
            `disagreement` (share of the new rows where the student before it said something else than the teacher),
            `accuracy`, and `random`, the accuracy of the control after as many rows (None if `budget_cost` ended it).

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: `trainer` makes no new trainer, the teacher is neither a classifier nor a
            function that returns a column, an option makes no sense, or the cost has a limit and its price is unknown.
        LabelError: None of the validation labels is one of the teacher's: before anything is asked if it has classes.
        DataDreamerError: See the trainer's `train`.

    Example:
        >>> loop = DistillationLoop(  # doctest: +SKIP
        ...     "Topics", partial(TrainHFClassifier, model_name=encoder), ScoreLabels(llm, topics), pool.output["text"],
        ...     validation.output["text"], validation.output["topic"], budget_rows=500, control=True,
        ... )
        >>> print(loop)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 1

    def __init__(
        self,
        name: str,
        trainer: MakeTrainer,
        teacher: Any,
        pool: Column | Callable[[int], Column],
        validation_input: Column,
        validation_output: Column,
        *,
        rows_per_round: int = 100,
        budget_rows: int = 500,
        budget_cost: float | None = None,
        by: str = "margin",
        committee: int = 1,
        control: bool = False,
        soft_labels: bool = True,
        test_input: Column | None = None,
        test_output: Column | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        check_recipe(self, name, trainer)
        self.name, self.trainer, self.teacher, self.soft_labels = name, trainer, teacher, soft_labels
        self.rows_per_round, self.budget_rows, self.budget_cost = rows_per_round, budget_rows, budget_cost
        self.committee, self.seed, self.options = committee, seed, options
        self.pool = pool if callable(pool) else check_column(pool, f'"{name}": pool')
        given = (validation_input, validation_output)
        self.validation = check_pair(name, dict(zip(VALIDATION, given, strict=True)))
        self.test = None
        if test_input is not None or test_output is not None:
            self.test = check_pair(name, {"test_input": test_input, "test_output": test_output})
        self._check(by)
        self._held_out = held_out_texts(validation_input)  # never asked about
        first = _Arm(name, by)
        self._run_round(first)
        arms = [first, *([first.copy(f"{name}, random", "random")] if control else [])]
        while not all(arm.done for arm in arms):
            for arm in arms:
                self._run_round(arm, None if arm is first else len(first.asked))
        self.students = [students[0] for students in first.students]
        self.random_students = [students[0] for students in arms[-1].students] if control else []
        self.rows = first.rows[-1]
        answers = [_shares(row) for row in self.rows.output["label"]]
        said = {max(row, key=row.__getitem__) for row in answers}
        if len(said) == 1:
            logger.warning(
                '%s: the teacher gave all %s texts the label "%s", so the student learned no other. Look at its '
                "answers, or at the pool.", name, f"{len(answers):,}", *said,
            )  # fmt: skip
        control_scores = {row["rows"]: row["accuracy"] for row in arms[-1].curve} if control else {}
        self.curve = [{**row, "random": control_scores.get(row["rows"])} for row in first.curve]
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name, trainer and teacher, for tests and docs; columns are lists."""
        texts, pool = ["a cat", "a dog"], ["the cat", "the dog", "my cat", "my dog"]
        columns = {"pool": pool, "validation_input": texts, "validation_output": ["cat", "dog"]}
        return {**columns, "rows_per_round": 2, "budget_rows": 4}

    @property
    def student(self) -> Any:
        """The last student."""
        return self.students[-1]

    @property
    def table(self) -> Table:
        """The curve as a table."""
        known = [column for column in _COLUMNS if any(row.get(column.key) is not None for row in self.curve)]
        return Table(known, self.curve, title=self.name)

    def plot(self) -> Figure:
        """Returns the curve as a figure; needs matplotlib."""
        lines = {}
        for label, key in (("chosen", "accuracy"), ("random", "random")):
            points = [(row["rows"], 100 * row[key]) for row in self.curve if row[key] is not None]
            if points:
                lines[label] = ([x for x, _ in points], [y for _, y in points])
        return curves(lines, "rows labelled", "accuracy (%)")

    def __str__(self) -> str:
        return str(self.table)

    # One round

    def _run_round(self, arm: _Arm, up_to: int | None = None) -> None:
        rows = self._rows_to_ask(arm, up_to)
        if rows < 1 or arm.done:
            arm.done = True
            return
        number = len(arm.rows) + 1
        title = f"{arm.title}, round {number}"
        before = arm.students[-1] if arm.students else []
        by = arm.by if before else "random"
        args = {
            "n": rows, "models": before if by != "random" else [], "by": by, "exclude": arm.asked + self._held_out,
            "seed": self.seed + number, "max_length": self.options.get("max_length"),
        }  # fmt: skip
        try:
            chosen = ChooseRowsToLabel(f"{title}, choice", inputs={"texts": self._pool(number)}, args=args)
        except EmptyDataset as error:
            if not before:
                raise EmptyDataset(
                    f'"{self.name}": the pool has no text but those of validation rows, which the teacher never sees: '
                    "the metrics would be those of rows that the model has learned. Pass others."
                ) from error
            logger.warning("%s: the pool has no text left that the teacher has not labelled.", arm.title)
            arm.done = True
            return
        texts = chosen.output["texts"]
        labels, hard = self._ask(f"{title}, labels", texts)
        arm.asked += texts
        if not before and all(label is None for label in hard):
            raise EmptyDataset(
                f'"{self.name}": the teacher gave none of the first {len(arm.asked):,} texts a label, so there is '
                f"nothing to learn. Look at what it said: {labels.step.name!r}, and its errors."
            )
        if number == 1:
            said_so = {label for row in hard if row is not None for label in _shares(row)}
            self._check_classes(said_so, "the labels that the teacher gave")
        new = labelled(texts, labels)
        joined = (concat(arm.rows[-1], new) if arm.rows else new).save(name=f"{title}, rows")
        self._add_cost(arm, labels, chosen)
        disagreement = None
        if before:
            said = Predict(f"{title}, student before", inputs={"texts": texts}, args={"model": before[0]})
            disagreement = _disagreement(hard, said.output["labels"])
        objective, students = self._objective(joined), []
        for member in range(self.committee):
            more = f", member {member + 1}" if self.committee > 1 else ""
            student = self._new_student(f"{title}, student{more}")
            own = with_seed(student, self.options, member)
            students.append(
                student.train(joined.output["text"], None, *self.validation.values(), objective=objective, **own)
            )
        score = students[0].metrics["accuracy"]
        if self.test is not None:
            score = accuracy(f"{title}, test", students[0], self.test)
        arm.students.append(students)
        arm.rows.append(joined)
        facts = {"round": number, "rows": len(arm.asked), "cost": arm.cost}
        arm.curve.append({**facts, "disagreement": disagreement, "accuracy": score})

    def _new_student(self, title: str) -> Any:
        return self._checked.pop(title, None) or make_trainer(self.trainer, title)

    def _rows_to_ask(self, arm: _Arm, up_to: int | None) -> int:
        """Returns how many rows a round of an arm labels; those of the control bring it to `up_to` rows."""
        total = len(arm.asked) + self.rows_per_round if up_to is None else up_to
        rows = min(total, self.budget_rows) - len(arm.asked)
        if self.budget_cost is None or not arm.asked:
            return rows
        if arm.cost is None:
            raise DefinitionError(
                f'"{self.name}": the cost of the teacher\'s answers is unknown, so budget_cost cannot be kept. Give '
                "its model a price, or limit the rows: budget_rows."
            )
        left = self.budget_cost - arm.cost
        return rows if not arm.cost else min(rows, math.floor(left * len(arm.asked) / arm.cost + 1e-9))

    def _pool(self, number: int) -> Column:
        if isinstance(self.pool, Column):
            return self.pool
        parts = []
        for each in range(1, number + 1):
            column = check_column(self._generated(each), f'"{self.name}": what pool returns for round {each}')
            parts.append(renamed(column, "text"))
        pool: Any = concat(*parts) if len(parts) > 1 else parts[0]
        return check_column(pool.output["text"], "pool")

    def _generated(self, number: int) -> Column:
        if number not in self._made:
            assert callable(self.pool)
            self._made[number] = self.pool(number)
        return self._made[number]

    def _ask(self, title: str, texts: Column) -> tuple[Column, Column]:
        """Returns the teacher's labels for a column: what the student learns, and the labels alone."""
        if can_classify(self.teacher):
            said = Predict(title, inputs={"texts": texts}, args={"model": self.teacher}).output
            return said["soft_labels" if self.soft_labels else "labels"], said["labels"]
        found = self.teacher(texts)
        if isinstance(found, Step) and len(found.output.column_names) == 1:
            found = found.output[found.output.column_names[0]]
        column = check_column(found, f'"{self.name}": what teacher returns')
        return column, column

    def _objective(self, rows: Step) -> SoftTargets:
        """Returns the objective of a student: what the teacher said of the rows, and the right labels to validate by.

        The first rows may lack some classes; the student has those of the validation rows and of the teacher too.
        """
        texts, shares = [*rows.output["text"]], [*map(_shares, rows.output["label"])]
        inputs, outputs = self.validation.values()
        naming = class_names(outputs)
        texts += inputs
        shares += [{label_name(label, VALIDATION[1], row, naming): 1.0} for row, label in enumerate(outputs)]
        classes = sorted({name for row in shares for name in row})
        taught: Any = Probabilities(texts, shares, classes)
        return SoftTargets(taught, temperature=1.0, alpha=1.0)

    def _add_cost(self, arm: _Arm, labels: Column, chosen: Step) -> None:
        # What the teacher is made of was paid for before: its training, or examples that each prompt shows.
        said = [labels.step.card] if can_classify(self.teacher) else labels.step.card.lineage()
        before = {id(card) for card in (*chosen.card.lineage(), *arm.paid)}
        new = [card for card in said if id(card) not in before]
        arm.paid += new
        costs = [card.cost for card in new]
        known = [cost for cost in costs if cost is not None]
        arm.cost = None if arm.cost is None or len(known) < len(costs) else arm.cost + sum(known)

    def _check(self, by: str) -> None:
        name = self.name
        self._made: dict[int, Column] = {}
        if can_classify(self.teacher):
            check_classifier(self.teacher, f'"{name}": teacher')
        elif not callable(self.teacher):
            raise ArgumentTypeError(
                f'"{name}": teacher must be a classifier, or a function of a column of texts that returns a column of '
                f"labels; got {self.teacher!r:.100}."
            )
        check_choice(by, f'"{name}"')
        for option, least in (("rows_per_round", 1), ("budget_rows", 1), ("committee", 1), ("seed", 0)):
            check_number(getattr(self, option), f'"{name}": {option}', least, whole=True)
        check_number(self.budget_cost, f'"{name}": budget_cost', 0, over=True, optional=True)
        if by == "committee" and self.committee < 2:
            raise DefinitionError(f'"{name}": by="committee" needs several students a round. Pass committee=3.')
        if by == "random":
            raise DefinitionError(f'"{name}": by="random" is the control. Pass control=True, and by="margin".')
        title = f"{name}, round 1, student{', member 1' if self.committee > 1 else ''}"
        self._checked = {title: make_trainer(self.trainer, title)}
        check_options(self, self._checked[title], self.options, ("objective", "train_input", "train_output"))
        if by == "committee" and not draws(self._checked[title]):
            raise DefinitionError(
                f'"{name}": by="committee" needs students that differ, and {type(self._checked[title]).__name__} has '
                'no seed: all of them would say the same. Pass by="margin", or another trainer.'
            )
        taught = getattr(self.teacher, "classes", None) or getattr(self.teacher, "labels", None)
        if isinstance(taught, list | tuple):
            self._check_classes({str(each) for each in taught}, "the teacher's classes")

    def _check_classes(self, known: Collection[str], what: str) -> None:
        """Refuses validation labels none of which a teacher gives: every student would look wrong."""
        labels = self.validation[VALIDATION[1]]
        naming = class_names(labels)
        wanted = {
            label_name(label, VALIDATION[1], row, naming) for row, label in enumerate(labels) if label is not None
        }
        if known and wanted.isdisjoint(known):
            raise LabelError(
                f'"{self.name}": none of the labels of validation_output ({_some(wanted)}) is among {what} '
                f"({_some(known)}). Rename one or the other."
            )


def _some(names: Collection[str]) -> str:
    return ", ".join([*sorted(names)[:10], *(["..."] if len(names) > 10 else [])])


def _disagreement(taught: Iterable[Any], said: Iterable[str]) -> float | None:
    """Returns the share of the labelled rows where the student said something else; None if no row is labelled."""
    pairs = [(label, own) for label, own in zip(taught, said, strict=True) if label is not None]
    shares = [(_shares(label), own) for label, own in pairs]
    return sum(max(row, key=row.__getitem__) != own for row, own in shares) / len(shares) if shares else None


def _shares(label: Any) -> dict[str, float]:
    """Returns the probabilities of a row's classes, from a label or a mapping."""
    if isinstance(label, Mapping):
        return {str(name): float(share or 0.0) for name, share in label.items()}
    return {label_name(label, "the teacher's labels", 0, None): 1.0}
