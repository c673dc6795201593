"""Self-training: which rows are added, when it ends, and that a rerun does no work."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, SessionError
from datadreamer_like.recipes import SelfTraining
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainLinearClassifier

from .conftest import QUICK, opinions, rows

LINEAR = partial(TrainLinearClassifier, char_ngrams=None, max_features=100)


def given(seed: int = 24, pool: int = 120) -> dict[str, Any]:
    first, second = rows("Seed", seed, 0), rows("Validation", 48, 1)
    texts = [text for text in rows("Drawn", pool, 2)["text"] if text not in {*first["text"], *second["text"]}]
    return {
        "train_input": first["text"], "train_output": first["label"],
        "unlabelled": DataSource("Pool", {"text": texts}).output["text"],
        "validation_input": second["text"], "validation_output": second["label"],
    }  # fmt: skip


def test_rows_above_the_threshold_are_learned_with_the_seed_until_no_label_changes(session):
    columns = given()
    grown = SelfTraining("Grown", LINEAR, **columns, threshold=0.8, rounds=8, C=10.0)
    assert grown.converged
    assert 2 <= len(grown.rounds) < 9
    seed, pool = list(columns["train_input"]), list(columns["unlabelled"])
    known: dict[int, str] = {}
    for number, (before, after) in enumerate(zip(grown.students, grown.students[1:], strict=False), 1):
        said = before.predict(pool)
        sure = {row: label for row, label in enumerate(said.labels) if said.probabilities[row].max() >= 0.8}
        learned = after.parents[0].output
        assert list(learned["text"]) == seed + [pool[row] for row in sure]
        assert list(learned["label"]) == list(columns["train_output"]) + list(sure.values())
        assert grown.rounds[number]["labelled"] == len(sure)
        assert grown.rounds[number]["changed"] == sum(known.get(row) != sure.get(row) for row in range(len(pool)))
        known = sure
    last = grown.student.predict(pool)
    assert known == {row: label for row, label in enumerate(last.labels) if last.probabilities[row].max() >= 0.8}
    assert grown.rounds[0]["labelled"] == 0
    assert "changed" in str(grown)


def test_a_pool_of_which_the_model_is_certain_nowhere_ends_it_with_a_warning(session, caplog):
    with caplog.at_level(logging.WARNING, logger="datadreamer_like"):
        grown = SelfTraining("Grown", LINEAR, **given(), threshold=1.0, C=0.01)
    assert len(grown.students) == 1
    assert not grown.converged
    assert "certain of no row" in caplog.text


def test_no_class_gets_more_rows_than_allowed_and_each_its_most_certain_ones(session):
    columns = given()
    before = SelfTraining("Free", LINEAR, **columns, threshold=0.6, rounds=1, C=10.0)
    pool = list(columns["unlabelled"])
    said = before.students[0].predict(pool)
    certain = [(label, float(row.max())) for label, row in zip(said.labels, said.probabilities, strict=True)]
    counts = {label: sum(each == label and chance >= 0.6 for each, chance in certain) for label in said.classes}
    most = min(counts.values()) + 2
    assert most < max(counts.values())
    grown = SelfTraining("Grown", LINEAR, **columns, threshold=0.6, rounds=1, max_per_class=most, C=10.0)
    learned = grown.student.parents[0].output
    added = list(zip(learned["text"], learned["label"], strict=True))[len(list(columns["train_input"])) :]
    for label, count in counts.items():
        texts = [text for text, given in added if given == label]
        assert len(texts) == min(most, count)
        chances = {text: chance for text, (each, chance) in zip(pool, certain, strict=True) if each == label}
        least = min(chances[text] for text in texts)
        assert all(chance <= least for text, chance in chances.items() if text not in texts)
        assert texts == [text for text in pool if text in texts]
    assert grown.rounds[1]["labelled"] == len(added)
    with pytest.raises(DefinitionError, match="max_per_class"):
        SelfTraining("Refused", LINEAR, **columns, max_per_class=0)


def test_with_calibration_the_temperature_decides_what_is_certain(session):
    columns = given()
    plain = SelfTraining("Plain", LINEAR, **columns, threshold=0.9, rounds=1, C=1.0)
    calibrated = SelfTraining("Calibrated", LINEAR, **columns, threshold=0.9, rounds=1, C=1.0, calibrate=True)
    # So strong a penalty makes it less certain than it is right; a temperature below 1 mends that.
    assert calibrated.rounds[1]["labelled"] > plain.rounds[-1]["labelled"]


@pytest.mark.parametrize(
    ("known", "whose", "all_of"),
    [
        (["validation_input"], ["a validation row"], "validation rows"),
        (["train_input"], ["a row of the seed"], "rows of the seed"),
        (["train_input", "validation_input"], ["a validation row", "a row of the seed"], "validation rows or rows of"),
    ],
)
def test_texts_that_have_a_label_already_are_left_out_of_the_pool(session, caplog, known, whose, all_of):
    columns = given()
    pool = list(columns["unlabelled"])
    held_out = {*columns["validation_input"]}
    texts = [[text for text in columns[name] if name != "train_input" or text not in held_out] for name in known]
    mixed = (
        [text for each in texts for text in each[:5]] + [*pool, None] + [text for each in texts for text in each[5:9]]
    )
    drawn = DataSource("Mixed", {"text": mixed}).output["text"]
    grown = SelfTraining("Grown", LINEAR, **{**columns, "unlabelled": drawn}, threshold=0.6, rounds=1, C=10.0)
    for each in whose:
        assert f"Grown: 9 of the {len(mixed)} rows of the pool have the text of {each}" in caplog.text
    assert caplog.text.count("rows of the pool have the text") == len(whose)
    alone = SelfTraining("Alone", LINEAR, **columns, threshold=0.6, rounds=1, C=10.0)
    learned = [list(each.student.parents[0].output["text"]) for each in (grown, alone)]
    assert learned[0] == learned[1]
    assert len(learned[0]) > 24
    assert "Alone: " not in caplog.text
    nothing = DataSource("Known", {"text": [text for each in texts for text in each]}).output["text"]
    with pytest.raises(EmptyDataset, match=f'"None": all texts of the pool are also {all_of}'):
        SelfTraining("None", LINEAR, **{**columns, "unlabelled": nothing})


def test_a_temperature_that_the_validation_rows_do_not_determine_is_named_with_what_it_does(session, caplog):
    columns = given()
    right = SelfTraining("First", LINEAR, **columns, threshold=0.9, rounds=1, C=100.0).students[0]
    texts = list(columns["validation_input"])
    labels = right.predict(texts).labels
    held_out = DataSource("All right", {"text": texts, "label": labels}).output
    columns |= {"validation_input": held_out["text"], "validation_output": held_out["label"]}
    SelfTraining("Grown", LINEAR, **columns, threshold=0.9, rounds=2, C=100.0, calibrate=True)
    assert "do not determine the temperature of Grown, student" in caplog.text
    assert "so a threshold of 0.9 on its probabilities says little" in caplog.text


def test_numbers_are_labels_too(session):
    some = opinions(24)
    labels = [int(label == "positive") for label in some["label"]]
    first = DataSource("Numbers", {"text": some["text"], "label": labels}).output
    columns = {**given(), "train_input": first["text"], "train_output": first["label"]}
    second = DataSource("Held out", {"text": some["text"], "label": labels}).output
    columns |= {"validation_input": second["text"], "validation_output": second["label"]}
    grown = SelfTraining("Grown", LINEAR, **columns, threshold=0.6, rounds=1, C=10.0)
    assert grown.student.trained.labels == ["0", "1"]
    learned = list(grown.student.parents[0].output["label"])
    assert learned[:24] == [str(label) for label in labels]
    assert {*learned} == {"0", "1"}


@pytest.mark.parametrize("row", [0, 3, 23])
def test_a_seed_row_without_a_label_is_refused(session, row):
    some = opinions(24)
    labels = [None if index == row else label for index, label in enumerate(some["label"])]
    first = DataSource("Seed", {"text": some["text"], "label": labels}).output
    columns = {**given(), "train_input": first["text"], "train_output": first["label"]}
    with pytest.raises(DataError, match=f"train_output is None in row {row}; each row of the seed has a label"):
        SelfTraining("Grown", LINEAR, **columns)


def test_it_takes_any_trainer_and_a_finished_one_does_no_work_again(tmp_path, trainer):
    steps: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        found = []
        for _ in range(2):
            with DataDreamer(tmp_path / "output", verbose=False):
                options = {**QUICK, "epochs": 2}
                grown = SelfTraining("Grown", trainer, **given(pool=24), threshold=0.55, rounds=1, **options)
                found.append((str(grown), len(steps)))
    finally:
        handle.remove()
    assert found[0] == found[1]
    assert len(grown.students) == 2
    assert found[0][1] == sum(2 * -(-len(list(each.parents[0].output["text"])) // 8) for each in grown.students)


def test_wrong_arguments_are_refused_before_any_training(session):
    columns = given()
    for more, error, message in (
        ({"threshold": 0}, DefinitionError, "threshold is 0"),
        ({"threshold": 1.1}, DefinitionError, "at most 1"),
        ({"rounds": 0}, DefinitionError, "rounds is 0"),
        ({"treshold": 0.8}, DefinitionError, 'Did you mean "threshold"'),
        ({"epochs": 3}, DefinitionError, 'has no option "epochs", and its trainer neither'),
        ({"unlabelled": ["a"]}, ArgumentTypeError, "unlabelled is of type list"),
        ({"train_output": columns["unlabelled"]}, DefinitionError, "same number of rows"),
        ({"trainer": LINEAR("Made")}, ArgumentTypeError, "makes a new trainer"),
    ):
        with pytest.raises(error, match=message):
            SelfTraining("Grown", **{"trainer": LINEAR, **columns, **more})
    assert not list(session.folder.glob("grown*"))


def test_there_must_be_a_session():
    with pytest.raises(SessionError, match="Put it inside"):
        SelfTraining("Grown", LINEAR, None, None, None, None, None)


def test_the_example_is_one(session):
    lists = {name: value for name, value in SelfTraining.example().items() if isinstance(value, list)}
    columns = {name: DataSource(name, {"value": value}).output["value"] for name, value in lists.items()}
    grown = SelfTraining("Grown", LINEAR, **{**SelfTraining.example(), **columns})
    assert len(grown.students) == 2
