"""Labelling functions, and labels from their votes and those of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from user_scripts import made

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    LabelError,
    StepOutputError,
)
from datadreamer_like.evaluation import Votes, fit_label_model
from datadreamer_like.steps import (
    ABSTAIN,
    ApplyLabellingFunctions,
    DataSource,
    GoldAudit,
    LabellingFunction,
    LabelModel,
    MajorityVote,
    labelling_function,
    zipped,
)

LABELS = ["games", "fonts"]


@labelling_function(name="plays", resources={"words": ("chess", "puzzle")})
def names_a_game(row: dict[str, Any], words: tuple[str, ...]) -> str | None:
    return "games" if any(word in row["text"] for word in words) else ABSTAIN


@labelling_function
def names_a_font(row: dict[str, Any]) -> str | None:
    return "fonts" if "font" in row["text"] else ABSTAIN


@labelling_function
def is_silent(row: dict[str, Any]) -> str | None:
    return ABSTAIN


def rows() -> DataSource:
    texts = ["chess", "a font", "a clock", "a font of chess pieces"]
    return DataSource("Rows", {"text": texts, "size": [1, 2, 3, 4]})


def applied(*functions: Any, labels: Any = LABELS, **more: Any) -> ApplyLabellingFunctions:
    args = {"functions": list(functions), "labels": labels}
    return ApplyLabellingFunctions("Votes", inputs={"inputs": rows().output["size"]}, args=args, **more)


def test_functions_see_whole_rows_and_their_votes_are_typed_columns(session: DataDreamer):
    step = applied(names_a_game, names_a_font, is_silent)
    assert step.output.column_names == ["text", "size", "plays", "names_a_font", "is_silent"]
    assert list(step.output["plays"]) == ["games", None, None, "games"]
    assert list(step.output["names_a_font"]) == [None, "fonts", None, "fonts"]
    schema = step.output.rows.schema
    assert [schema.field(name).type for name in step.votes] == [pa.string()] * 3  # also where all are None
    assert step.trace(1).parents[0].values["text"] == "a font"
    assert [row["conflict"] for row in step.summary().rows] == [0.25, 0.25, 0.0]


def test_votes_of_numpy_are_labels_too(session: DataDreamer):
    functions = [
        LabellingFunction(lambda row: np.int64(row["size"] > 2), "number"),
        LabellingFunction(lambda row: np.str_("1"), "words"),
    ]
    step = applied(*functions, labels=[0, 1])
    assert list(step.output["number"]) == ["0", "0", "1", "1"]
    assert list(step.output["words"]) == ["1"] * 4
    truths = applied(LabellingFunction(lambda row: np.bool_(row["size"] > 2), "large"), labels=[False, True])
    assert list(truths.output["large"]) == ["False", "False", "True", "True"]


def test_a_changed_resource_votes_again_and_an_unchanged_one_does_not(tmp_path: Path):
    def voted(words: tuple[str, ...]) -> tuple[list[Any], list[int]]:
        with DataDreamer(tmp_path, verbose=False):
            function = LabellingFunction(names_a_game.function, "plays", {"words": words})
            step = applied(function, names_a_font)
            return list(step.output["plays"]), made(step)

    first = voted(("chess",))
    assert voted(("chess",)) == first
    changed, file = voted(("clock",))
    assert changed == [None, None, "games", None]
    assert file != first[1]


def test_a_function_does_not_change_the_rows_that_others_see(session: DataDreamer):
    @labelling_function
    def spoils(row: dict[str, Any]) -> str | None:
        row["text"] = "chess"
        return ABSTAIN

    assert list(applied(spoils, names_a_font).output["names_a_font"]) == [None, "fonts", None, "fonts"]


def test_a_function_that_changes_a_list_in_a_row_does_not_change_it_for_the_next_one(session: DataDreamer):
    @labelling_function
    def empties(row: dict[str, Any]) -> str | None:
        row["words"].clear()

    @labelling_function
    def counts(row: dict[str, Any]) -> str | None:
        return "fonts" if row["words"] else "games"

    given = DataSource("Lists", {"words": [["a", "b"], ["c"]]}).output["words"]
    args = {"functions": [empties, counts], "labels": LABELS}
    step = ApplyLabellingFunctions("Votes on lists", inputs={"inputs": given}, args=args)
    assert list(step.output["counts"]) == ["fonts", "fonts"]


@pytest.mark.parametrize("kind", [MajorityVote, LabelModel])
def test_voters_that_never_vote_are_named_as_the_reason_why_there_are_no_labels(session: DataDreamer, kind: Any):
    silent = DataSource("Silent", {"a": [None, None], "text": ["x", "y"]}).output["a"]
    with pytest.raises(EmptyDataset, match='"Labels": all voters abstain on all rows'):
        kind("Labels", inputs={"a": silent, "b": silent})


def raises(row: dict[str, Any]) -> str | None:
    return "games" if row["size"] < 3 else row["pages"]


def invents(row: dict[str, Any]) -> Any:
    return "fonts" if row["size"] < 3 else "font"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises, r'"Votes": labelling function "raises" raised KeyError on row 2: \'pages\'.*ABSTAIN'),
        (invents, r'"Votes": labelling function "invents" returned \'font\' on row 2.*games, fonts'),
        (lambda row: ["games"], r"\['games'\] on row 0"),
        (lambda row: 0.5, "returned 0.5 on row 0"),
    ],
)
def test_a_function_that_raises_or_returns_no_label_is_named_with_its_row(
    session: DataDreamer, function: Any, message: str
):
    with pytest.raises(StepOutputError, match=message):
        applied(names_a_font, labelling_function(function))


@pytest.mark.parametrize(
    ("functions", "labels", "error", "message"),
    [
        ([], LABELS, DefinitionError, "functions is empty"),
        ([raises], LABELS, ArgumentTypeError, r"functions\[0\] is <function raises.*Decorate it"),
        ([names_a_font, names_a_font], LABELS, DefinitionError, 'two functions are called "names_a_font"'),
        ([labelling_function(name="text")(raises)], LABELS, DefinitionError, 'already has a column "text"'),
        ([names_a_font], ["fonts"], DefinitionError, "two or more"),
        ([names_a_font], ["fonts", "games", "fonts"], DefinitionError, "may occur once"),
    ],
)
def test_wrong_functions_and_labels_are_refused_before_any_call(
    session: DataDreamer, functions: Any, labels: Any, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        applied(*functions, labels=labels)


@pytest.mark.parametrize("options", [{"name": 3}, {"resources": ["chess"]}])
def test_a_decorator_with_wrong_options_is_refused(options: Any):
    with pytest.raises(ArgumentTypeError):
        labelling_function(**options)


def test_any_columns_of_labels_vote_and_ties_have_no_label(session: DataDreamer):
    given = DataSource("Models", {
        "small": ["games", "fonts", None, "fonts"],
        "soft": [{"games": 0.9, "fonts": 0.1}, {"games": 0.7, "fonts": 0.3}, None, {"games": 0.5, "fonts": 0.5}],
    })  # fmt: skip
    votes = applied(names_a_game, is_silent).votes
    step = MajorityVote("Most", inputs={**votes, **{name: given.output[name] for name in ("small", "soft")}})
    assert list(step.output["labels"]) == ["games", None, None, None]
    assert list(step.output["probabilities"]) == [1.0, 0.5, None, 0.5]
    assert list(step.output["soft_labels"])[1:3] == [{"fonts": 0.5, "games": 0.5}, None]
    assert list(MajorityVote("Sure", inputs=votes, args={"labels": LABELS}).output["labels"]) == [
        "games", None, None, "games"
    ]  # fmt: skip


def planted(rows: int = 600) -> tuple[list[str], dict[str, list[str | None]]]:
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "c"], rows, p=[0.5, 0.3, 0.2]).tolist()
    votes = {}
    for name, accuracy in {"good": 0.9, "fair": 0.7, "poor": 0.5}.items():
        said = [label if rng.random() < accuracy else str(rng.choice(["a", "b", "c"])) for label in truth]
        votes[name] = [label if rng.random() < 0.7 else None for label in said]
    return truth, votes


def test_the_label_model_gives_the_fitted_probabilities_and_hides_what_is_below_the_threshold(session: DataDreamer):
    truth, votes = planted()
    columns = {name: DataSource(name, {"vote": said}).output["vote"] for name, said in votes.items()}
    step = LabelModel("Labels", inputs=columns, args={"threshold": 0.8})
    model = fit_label_model(Votes.of(votes))
    expected = model.probabilities(Votes.of(votes))
    for row, chances in zip(step.output, expected, strict=True):
        if row["soft_labels"] is None:
            assert row == {"labels": None, "probabilities": None, "soft_labels": None}
            continue
        assert list(row["soft_labels"].values()) == pytest.approx(chances)
        assert row["probabilities"] == pytest.approx(chances.max())
        assert row["labels"] == ("abc"[chances.argmax()] if chances.max() >= 0.8 else None)
    silent = [all(said[row] is None for said in votes.values()) for row in range(len(truth))]
    assert [soft is None for soft in step.output["soft_labels"]] == silent
    assert any(silent)
    table = step.summary(truth)
    assert [row["voter"] for row in table.rows] == ["good", "fair", "poor", "Labels"]
    for row in table.rows[:3]:
        assert row["learned"] == pytest.approx(row["accuracy"].value, abs=0.12)
    assert table.rows[3]["accuracy"].value > table.rows[1]["accuracy"].value
    assert "learned accuracy" in str(table)


def test_gold_labels_teach_the_label_model_and_are_no_votes(session: DataDreamer):
    truth, votes = planted(200)
    gold = [label if row < 60 else None for row, label in enumerate(truth)]
    data = DataSource("Votes", {**votes, "gold": gold}).output
    inputs = {name: data[name] for name in (*votes, "gold")}
    step = LabelModel("Labels", inputs=inputs)
    assert [*step.learned] == [*votes]
    expected = fit_label_model(Votes.of(votes), gold=gold)
    assert step.learned == pytest.approx(expected.accuracies)


def test_a_class_label_column_votes_by_its_names(session: DataDreamer):
    features = datasets.Features({"said": datasets.ClassLabel(names=["fonts", "games"])})
    data = DataSource("Rows", datasets.Dataset.from_dict({"said": [1, 0]}, features=features))
    step = MajorityVote("Most", inputs={"person": data.output["said"]})
    assert list(step.output["labels"]) == ["games", "fonts"]


@pytest.mark.parametrize(
    ("kind", "values", "args", "error", "message"),
    [
        (MajorityVote, ["Games!", "games", "Games!"], {"labels": LABELS}, LabelError, r'"Games!" in row 0 \(2 such'),
        (LabelModel, ["x", "x", None], {}, DefinitionError, "needs two or more"),
        (LabelModel, [None, None, None], {"labels": LABELS}, EmptyDataset, "abstain on all rows"),
        (LabelModel, ["x", "y", None], {"threshold": 1.5}, DefinitionError, "threshold is 1.5"),
        (LabelModel, ["x", "y", None], {"smoothing": 0}, DefinitionError, '"It": smoothing is 0'),
        (LabelModel, ["x", "y", None], {"class_balance": {"x": 1}}, DefinitionError, '"It": .*lacks the class "y"'),
        (LabelModel, ["x", "y", None], {"class_balance": {"x": 0.5, "y": 0.4}}, DataError, '"It": .*sum to 0.9'),
        (MajorityVote, ["x", "y", None], {"labels": ["x"]}, DefinitionError, "two or more"),
    ],
)
def test_votes_and_arguments_that_make_no_labels_are_refused(
    session: DataDreamer, kind: Any, values: Any, args: Any, error: type[Exception], message: str
):
    column = DataSource("Said", {"vote": values}).output["vote"]
    with pytest.raises(error, match=message):
        kind("It", inputs={"llm": column}, args=args)


@pytest.mark.parametrize("kind", [MajorityVote, LabelModel])
def test_voters_without_a_common_label_are_refused_unless_all_labels_are_given(session: DataDreamer, kind: Any):
    said = DataSource(
        "Said", {"a": ["x", "y", "x"], "b": [0, 1, 1], "c": ["x", None, "y"], "d": ["q", "q", "q"]}
    ).output
    apart = {name: said[name] for name in "ab"}
    with pytest.raises(LabelError, match='no label in common: "a" votes for x, y; "b" votes for 0, 1. Map its votes'):
        kind("It", inputs=apart)
    labels = [*kind("All", inputs=apart, args={"labels": ["x", "y", "0", "1"]}).output["soft_labels"]]
    assert all(set(each) == {"x", "y", "0", "1"} for each in labels)


def test_one_voter_with_other_labels_than_the_rest_is_named(session: DataDreamer, caplog: pytest.LogCaptureFixture):
    said = DataSource(
        "Said", {"a": ["x", "y", "x"], "b": [0, 1, 1], "c": ["x", None, "y"], "d": ["q", "q", "q"]}
    ).output
    MajorityVote("Rules of their own", inputs={name: said[name] for name in "acd"})
    assert not caplog.records
    MajorityVote("One apart", inputs={name: said[name] for name in "abcd"})
    (record,) = caplog.records
    assert (
        '"b" has no label in common with other voters: "a" votes for x, y; "b" votes for 0, 1;' in record.getMessage()
    )


def test_gold_labels_are_no_votes_of_a_majority(session: DataDreamer):
    given = DataSource("Given", {"rule": ["a", "b"], "gold": ["b", None]}).output
    with pytest.raises(DefinitionError, match='"It": gold labels are no votes.*LabelModel'):
        MajorityVote("It", inputs={"rule": given["rule"], "gold": given["gold"]})


def test_a_step_without_voters_and_voters_of_different_length_are_refused(session: DataDreamer):
    with pytest.raises(DefinitionError, match='"It" has no voters'):
        MajorityVote("It", inputs={})
    first, second = (DataSource(str(size), {"vote": ["x"] * size}).output["vote"] for size in (2, 3))
    with pytest.raises(DefinitionError, match="different numbers of rows"):
        MajorityVote("It", inputs={"a": first, "b": second})


def test_a_student_learns_the_soft_labels_of_the_rows_that_have_some(session: DataDreamer):
    from datadreamer_like.distillation import Probabilities, SoftTargets
    from datadreamer_like.trainers import TrainLinearClassifier

    texts = ["chess", "chess puzzle", "a font", "font of serif", "clock"] * 8
    data = DataSource("Texts", {"text": texts, "size": list(range(len(texts)))})
    args = {"functions": [names_a_game, names_a_font], "labels": LABELS}
    votes = ApplyLabellingFunctions("Votes", inputs={"inputs": data.output["text"]}, args=args)
    kept = zipped(data, LabelModel("Labels", inputs=votes.votes)).filter(lambda row: row["soft_labels"] is not None)
    teacher = Probabilities(kept.output["text"], kept.output["soft_labels"])
    columns = kept.output["text"], None
    student = TrainLinearClassifier("Student").train(*columns, *columns, objective=SoftTargets(teacher, alpha=1.0))
    assert student.predict(["a chess game", "the font"]).labels == LABELS


def audited(labels: Any, gold: Any, **args: Any) -> GoldAudit:
    data = DataSource("Labelled", {"labels": labels, "gold": gold}).output
    inputs = {"labels": data["labels"], "gold": data["gold"]}
    return GoldAudit("Audit", inputs=inputs, args={"min_accuracy": 0.8, **args})


def test_labels_and_gold_of_other_names_are_said_to_be(session: DataDreamer):
    with pytest.raises(DataError, match="no label is a gold label: the labels are 0, 1, the gold ones x, y. Map one"):
        audited(["0", "1"] * 20, ["x", "y"] * 20)


def test_an_audit_passes_labels_on_that_are_shown_to_be_good_enough(session: DataDreamer):
    labels = ["a", "b"] * 50 + ["a", None]
    gold = ["a", "b"] * 20 + ["b", "a"] + [None] * 58 + [None, "a"]
    step = audited(labels, gold)
    assert list(step.output["labels"]) == labels
    found = step.accuracy
    assert found.value == 40 / 42
    assert found.low == pytest.approx(0.838, abs=1e-3)  # of 40 among 42, from a table of Clopper-Pearson limits
    assert step.coverage == 101 / 102
    by_label = {row["label"]: (row["gold"], row["labelled"]) for row in step.summary().rows}
    assert by_label == {"all": (43, 42), "a": (22, 21), "b": (21, 21)}
    assert "hidden gold rows" in str(step.card)


def test_an_audit_on_gold_rows_of_one_label_says_what_it_does_not_measure(
    session: DataDreamer, caplog: pytest.LogCaptureFixture
):
    assert audited(["a", "b"] * 20, ["a", None] * 20).accuracy.value == 1
    assert 'all 20 gold rows have the label "a", so nothing is measured of the other labels: b.' in caplog.text


def test_an_audit_refuses_what_is_below_the_bar_and_what_is_not_shown(session: DataDreamer):
    with pytest.raises(DataError, match=r"50.0 \[27.2, 72.8\] % on 20 gold rows is below the bar of 80.0 %.*new gold"):
        audited(["a"] * 20, ["a", "b"] * 10)
    with pytest.raises(DataError, match=r"on 10 gold rows is not shown.*17 rows without an error.*Label more"):
        audited(["a"] * 10, ["a"] * 10)
    assert list(audited(["a"] * 17, ["a"] * 17).output["labels"]) == ["a"] * 17  # as the message says


@pytest.mark.parametrize(
    ("gold", "args", "error", "message"),
    [
        ([None, None], {}, EmptyDataset, "gold has no label"),
        (["a", None], {"min_accuracy": 1}, DefinitionError, "min_accuracy is 1"),
        (["a", None], {"confidence": 0.0}, DefinitionError, "confidence is 0.0"),
        ([None, "a"], {}, EmptyDataset, "no row with a gold label has a label"),
    ],
)
def test_an_audit_that_cannot_measure_is_refused(
    session: DataDreamer, gold: Any, args: Any, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        audited(["a", None], gold, **args)


def test_a_refused_audit_holds_up_what_depends_on_it_and_a_better_one_lets_it_run(tmp_path: Path):
    def run(labels: list[str]) -> list[Any]:
        with DataDreamer(tmp_path, verbose=False):
            step = audited(labels, ["a"] * 30)
            return list(step.map(lambda row: {"upper": row["labels"].upper()}, lazy=False).output["upper"])

    with pytest.raises(DataError, match="below the bar"):
        run(["b"] * 30)
    assert not list(tmp_path.glob("audit*/node.json"))
    assert run(["a"] * 30) == ["A"] * 30
