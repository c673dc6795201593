"""Active distillation: which rows the teacher sees, what they cost, and the control beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Predictor
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, LabelError, SessionError
from datadreamer_like.recipes import DistillationLoop
from datadreamer_like.steps import DataSource, Step, zipped
from datadreamer_like.trainers import TrainLinearClassifier

from .conftest import QUICK, opinions, rows

LINEAR = partial(TrainLinearClassifier, char_ngrams=None, max_features=100)
GOOD = ("good", "fine", "great")


class Rule:
    """Knows the right label, with 0.9, and keeps what it was asked."""

    classes_ = ("negative", "positive")

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __fingerprint__(self) -> str:
        return "the rule"

    def predict_proba(self, texts: list[str]) -> Any:
        self.asked += texts
        return np.array([[0.1, 0.9] if any(word in text.split() for word in GOOD) else [0.9, 0.1] for text in texts])


class Paid(Step):
    """Labels by the rule, for 2 cents a text; None for a text that begins with "the"."""

    def setup(self) -> None:
        self.register_input("texts")
        self.register_arg("price", required=False)
        self.register_output("label")

    def run(self) -> Any:
        texts = list(self.inputs["texts"])
        price = self.args["price"]
        self.usage.add(cost=None if price is None else price * len(texts))
        labels = ["positive" if any(word in text.split() for word in GOOD) else "negative" for text in texts]
        return [None if text.startswith("the ") else label for text, label in zip(texts, labels, strict=True)]


def paid(price: float | None) -> Any:
    return lambda texts: Paid("Ask", inputs={"texts": texts}, args={"price": price})


def given(pool: int = 160) -> dict[str, Any]:
    held_out = rows("Validation", 60, 1)
    return {
        "pool": rows("Pool", pool, 2)["text"],
        "validation_input": held_out["text"], "validation_output": held_out["label"],
    }  # fmt: skip


def test_the_teacher_sees_the_rows_that_the_student_is_least_certain_of_and_no_others(session):
    columns, rule = given(), Rule()
    budget = {"rows_per_round": 12, "budget_rows": 30, "soft_labels": False, "C": 10.0}
    loop = DistillationLoop("Loop", LINEAR, Predictor(rule), **columns, **budget)
    assert [row["rows"] for row in loop.curve] == [12, 24, 30]
    learned = [list(student.parents[0].output) for student in loop.students]
    assert [len(part) for part in learned] == [12, 24, 30]
    assert rule.asked == [row["text"] for row in loop.rows.output]
    assert len({*rule.asked}) == 30
    # Each round: of what was left, the smallest margins of the student before.
    pool = list(dict.fromkeys(text for text in columns["pool"] if text not in {*columns["validation_input"]}))
    for student, before, after in zip(loop.students, learned, learned[1:], strict=False):
        known, new = [row["text"] for row in before], [row["text"] for row in after[len(before) :]]
        left = [text for text in pool if text not in known]
        margins = dict(zip(left, np.ptp(student.predict(left).probabilities, axis=1), strict=True))
        assert max(margins[text] for text in new) <= min(margins[text] for text in left if text not in new) + 1e-6
    # What the student had said of the new rows, against the teacher.
    first, new = loop.students[0], learned[1][12:]
    said = first.predict([row["text"] for row in new]).labels
    assert loop.curve[1]["disagreement"] == np.mean([a != row["label"] for a, row in zip(said, new, strict=True)])
    assert loop.curve[0]["disagreement"] is None
    assert [row["accuracy"] for row in loop.curve] == [student.metrics["accuracy"] for student in loop.students]


def test_the_control_asks_for_as_many_random_rows_and_shares_the_first_round(session):
    held_out = rows("Test", 80, 5)
    columns, rule = given(), Rule()
    loop = DistillationLoop(
        "Loop", LINEAR, Predictor(rule), **columns, rows_per_round=10, budget_rows=30, control=True,
        test_input=held_out["text"], test_output=held_out["label"], C=10.0,
    )  # fmt: skip
    assert loop.random_students[0] is loop.students[0]
    chosen, random = (list(each[-1].parents[0].output["text"]) for each in (loop.students, loop.random_students))
    assert chosen[:10] == random[:10]
    assert {*chosen[10:]} != {*random[10:]}
    assert len(random) == len({*random}) == 30
    assert len(rule.asked) == 10 + 20 + 20
    for row, student, control in zip(loop.curve, loop.students, loop.random_students, strict=True):
        for model, key in ((student, "accuracy"), (control, "random")):
            said = model.predict(list(held_out["text"])).labels
            assert row[key] == np.mean([a == b for a, b in zip(said, held_out["label"], strict=True)])
    shown = str(loop)
    assert "random" in shown
    assert "disagreed" in shown
    figure = loop.plot()
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["chosen", "random"]


def test_money_ends_it_before_it_is_overspent_and_failed_rows_are_left_out(session):
    budget = {"rows_per_round": 15, "budget_rows": 150, "budget_cost": 0.8, "C": 10.0}
    loop = DistillationLoop("Loop", LINEAR, paid(0.02), **given(), **budget)
    assert [row["rows"] for row in loop.curve] == [15, 30, 40]  # 40 rows at 2 cents
    assert loop.curve[-1]["cost"] == pytest.approx(0.8)
    learned = list(loop.rows.output)
    assert 0 < len(learned) < 40
    assert not any(row["text"].startswith("the ") for row in learned)
    assert {row["label"] for row in learned} == {"negative", "positive"}
    with pytest.raises(DefinitionError, match="cost of the teacher's answers is unknown"):
        DistillationLoop("Unknown", LINEAR, paid(None), **given(), **budget)
    free = DistillationLoop("No limit", LINEAR, paid(None), **given(), rows_per_round=15, budget_rows=30, C=10.0)
    assert [row["cost"] for row in free.curve] == [None, None]


def test_a_pool_may_be_generated_round_by_round_and_an_empty_one_ends_the_loop(session):
    made: list[int] = []

    def pool(number: int) -> Any:
        made.append(number)
        return DataSource(f"Made {number}", opinions(14, seed=20 + number)).output["text"]

    columns = {**given(), "pool": pool}
    loop = DistillationLoop("Loop", LINEAR, Predictor(Rule()), **columns, rows_per_round=10, budget_rows=20, C=10.0)
    assert made == [1, 2]
    first, both = ({*opinions(14, seed=21)["text"]}, {*opinions(14, seed=21)["text"], *opinions(14, seed=22)["text"]})
    learned = list(loop.rows.output["text"])
    assert {*learned[:10]} <= first
    assert {*learned[10:]} <= both
    small = {**given(), "pool": rows("Small", 14, 9)["text"]}
    ended = DistillationLoop("Ended", LINEAR, Predictor(Rule()), **small, rows_per_round=10, budget_rows=90, C=10.0)
    assert ended.curve[-1]["rows"] == len({*small["pool"]} - {*small["validation_input"]})


def test_a_committee_of_transformers_learns_soft_labels_and_a_finished_loop_does_no_work(tmp_path, trainer):
    found, asked = [], []
    options = {**QUICK, "epochs": 1, "rows_per_round": 16, "budget_rows": 32, "by": "committee", "committee": 2}
    for _ in range(2):
        rule = Rule()
        with DataDreamer(tmp_path / "output", verbose=False):
            loop = DistillationLoop("Loop", trainer, Predictor(rule), **given(60), **options)
            found.append(str(loop))
            asked.append(len(rule.asked))
            label = loop.rows.output[0]["label"]
            heads = [node.folder.name for node in loop.students]
    assert found[0] == found[1]
    assert asked == [32, 0]
    assert sorted(label.values()) == pytest.approx([0.1, 0.9])
    assert heads == ["loop,-round-1,-student,-member-1", "loop,-round-2,-student,-member-1"]


def test_a_student_knows_the_classes_that_its_first_rows_lack_and_never_sees_a_validation_row(session):
    texts = ["a good tea"] + [f"a poor day {word}" for word in "abcdefgh"]
    pool = DataSource("Pool", {"text": texts}).output["text"]
    held_out = DataSource("Validation", {"text": texts[:5], "label": ["positive"] + ["negative"] * 4}).output
    rule = Rule()
    loop = DistillationLoop(
        "Loop", LINEAR, Predictor(rule), pool, held_out["text"], held_out["label"],
        rows_per_round=2, budget_rows=9, soft_labels=False, C=10.0,
    )  # fmt: skip
    assert sorted(rule.asked) == texts[5:]
    assert all(student.trained.labels == ["negative", "positive"] for student in loop.students)
    assert {*loop.rows.output["label"]} == {"negative"}


@pytest.mark.parametrize("texts", [["a", "b"], ["b", None, "b"], ["c", "a", "b"]])
def test_a_pool_without_other_texts_than_validation_rows_says_so(session, texts):
    pool, rule = DataSource("Pool", {"text": texts}).output["text"], Rule()
    held_out = DataSource("Validation", {"text": ["a", "b", "c"], "label": ["positive", "negative", "negative"]}).output
    with pytest.raises(EmptyDataset, match="the pool has no text but those of validation rows.*Pass others"):
        DistillationLoop("Loop", LINEAR, Predictor(rule), pool, held_out["text"], held_out["label"])
    assert not rule.asked


def test_wrong_arguments_are_refused_before_any_work(session):
    columns, rule = given(), Rule()
    for more, error, message in (
        ({"teacher": 3}, ArgumentTypeError, "teacher must be a classifier, or a function"),
        ({"pool": ["a"]}, ArgumentTypeError, "pool is of type list"),
        ({"by": "margins"}, DefinitionError, "no choice by"),
        ({"by": "random"}, DefinitionError, "is the control"),
        ({"by": "committee"}, DefinitionError, "Pass committee=3"),
        ({"rows_per_round": 0}, DefinitionError, "rows_per_round is 0"),
        ({"budget_rows": 0}, DefinitionError, "budget_rows is 0"),
        ({"budget_cost": 0}, DefinitionError, "budget_cost is 0"),
        ({"test_input": columns["pool"]}, ArgumentTypeError, "test_output is of type NoneType"),
    ):
        with pytest.raises(error, match=message):
            DistillationLoop("Loop", **{"trainer": LINEAR, "teacher": Predictor(rule), **columns, **more})
    assert rule.asked == []
    assert not list(session.folder.glob("loop*"))
    with pytest.raises(ArgumentTypeError, match="what teacher returns is of type list"):
        DistillationLoop("Loop", LINEAR, lambda texts: ["positive"], **columns)


def test_there_must_be_a_session():
    with pytest.raises(SessionError, match="Put it inside"):
        DistillationLoop("Loop", LINEAR, Predictor(Rule()), None, None, None)


def test_the_example_is_one(session):
    lists = {name: value for name, value in DistillationLoop.example().items() if isinstance(value, list)}
    columns = {name: DataSource(name, {"value": value}).output["value"] for name, value in lists.items()}
    teacher = Predictor(Rule(), ["cat", "dog"])
    loop = DistillationLoop("Loop", LINEAR, teacher, **{**DistillationLoop.example(), **columns})
    assert [row["rows"] for row in loop.curve] == [2, 4]


def never(texts: Any) -> Any:
    raise AssertionError("the teacher was asked")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows_per_roud": 3}, 'has no option "rows_per_roud".*Did you mean "rows_per_round"'),
        ({"objective": None}, 'decides "objective" itself'),
        ({"train_input": None}, 'decides "train_input" itself'),
        ({"epochs": 3}, 'has no option "epochs"'),
        ({"by": "committee", "committee": 3}, "TrainLinearClassifier has no seed"),
    ],
)
def test_options_are_checked_before_the_teacher_is_asked(session, options, words):
    with pytest.raises(DefinitionError, match=words):
        DistillationLoop("Loop", LINEAR, never, **given(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rat": 1e-3}, 'no option "learning_rat".*Did you mean "learning_rate"'),
        ({"budget_row": 3}, 'Did you mean "budget_rows"'),
        ({"epochs": -1}, "epochs is -1"),
    ],
)
def test_options_of_a_training_loop_are_checked_too(session, trainer, options, words):
    with pytest.raises(DefinitionError, match=words):
        DistillationLoop("Loop", trainer, never, **given(), **options)


def test_a_teacher_of_other_labels_is_refused_as_soon_as_it_shows(session):
    teacher = Predictor(Rule(), classes=["bad", "good"])
    with pytest.raises(LabelError, match=r"none of the labels of validation_output \(negative, positive\) is among"):
        DistillationLoop("Loop", LINEAR, teacher, **given())
    assert teacher.model.asked == []
    calls = []

    def other(texts: Any) -> Any:
        calls.append(len(texts))
        return DataSource("Said", {"label": ["bad"] * len(texts)}).output["label"]

    with pytest.raises(LabelError, match=r"the labels that the teacher gave \(bad\)"):
        DistillationLoop("Second", LINEAR, other, **given(), rows_per_round=4)
    assert calls == [4]


def test_the_control_has_as_many_rows_as_the_chosen_ones_where_their_prices_differ(session):
    class ByLength(Paid):
        def run(self) -> Any:
            found = [label or "negative" for label in super().run()]
            self.usage.add(cost=sum(0.001 * len(text) for text in self.inputs["texts"]))
            return found

    loop = DistillationLoop(
        "Loop", LINEAR, lambda texts: ByLength("Ask", inputs={"texts": texts}, args={"price": 0.0}), **given(),
        rows_per_round=10, budget_rows=100, budget_cost=1.0, control=True, C=10.0,
    )  # fmt: skip
    counts = [row["rows"] for row in loop.curve]
    assert counts[-1] < 100
    assert len({*np.diff(counts)}) > 1  # the last round is a short one
    control = {len(each.parents[0].output): each.metrics["accuracy"] for each in loop.random_students}
    assert [*control] == counts[: len(control)]
    assert [row["random"] for row in loop.curve] == [control.get(count) for count in counts]


def test_what_a_teacher_was_trained_on_is_not_paid_for_in_each_round(session):
    columns, seed = given(), rows("Seed", 40, 6)
    bought = Paid("Bought", inputs={"texts": seed["text"]}, args={"price": 0.5}).output["label"]
    known = zipped(seed.step, bought.step.rename_column("label", "said")).filter(lambda row: row["said"] is not None)
    known = known.save(name="Known").output
    held_out = (columns["validation_input"], columns["validation_output"])
    teacher = LINEAR("Teacher").train(known["text"], known["said"], *held_out, C=10.0)
    loop = DistillationLoop(
        "Loop", LINEAR, teacher, **columns, rows_per_round=10, budget_rows=20, budget_cost=1.0, C=10.0
    )
    assert bought.step.card.cost == 20.0
    assert [(row["rows"], row["cost"]) for row in loop.curve] == [(10, 0.0), (20, 0.0)]


def test_a_teacher_that_labels_nothing_is_one_error(session):
    def teacher(texts: Any) -> Any:
        return texts.step.map(lambda row: {"label": None}, remove_columns=["texts", "scores"]).save(name="Said")

    with pytest.raises(EmptyDataset, match="gave none of the first 10 texts a label.*Said"):
        DistillationLoop("Loop", LINEAR, teacher, **given(), rows_per_round=10, budget_rows=20)


def test_a_teacher_that_gives_one_label_to_all_rows_is_reported(session, caplog):
    def teacher(texts: Any) -> Any:
        return texts.step.map(lambda row: {"label": "positive"}).output["label"]

    DistillationLoop("Loop", LINEAR, teacher, **given(20), rows_per_round=5, budget_rows=10, C=10.0)
    assert 'Loop: the teacher gave all 10 texts the label "positive", so the student' in caplog.text
    caplog.clear()
    DistillationLoop("Other", LINEAR, Predictor(Rule()), **given(20), rows_per_round=5, budget_rows=10, C=10.0)
    assert "the teacher gave all" not in caplog.text
