"""A calibrated or abstaining classifier ships with what was fitted on it, and on nothing else."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from scipy.special import logsumexp
from transformers import AutoModelForSequenceClassification
from warm import printed_by

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Ensemble, SoftTargets
from datadreamer_like.errors import (
    DataError,
    DefinitionError,
    LabelError,
    MethodMisfit,
    NewerFormat,
    NotTrained,
    StepOutputError,
    StorageError,
)
from datadreamer_like.evaluation import expected_calibration_error, fit_threshold
from datadreamer_like.models import EnsembleModel
from datadreamer_like.models.trained.confidence import CONFIDENCE_NAME
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.quantization import DynamicInt8
from datadreamer_like.stages import Abstain, Calibrate, Quantize
from datadreamer_like.steps.sources.data_source import DataSource
from datadreamer_like.trainers import TrainHFClassifier, TrainLinearClassifier

from .conftest import FILLERS, LABELS, classifier, rows, save, tokenizer

Column = Callable[[str], Any]
BOUND: dict[str, Any] = {"max_error": 0.1, "confidence": 0.9}


def mixed(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Rows of which every third has no telling word, so that its label is anyone's guess."""
    generator = random.Random(seed)
    texts, labels = rows(count, seed)
    for row in range(0, count, 3):
        texts[row], labels[row] = " ".join(generator.choices(FILLERS, k=5)), generator.choice(LABELS)
    return texts, labels


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory, good: Path) -> Abstain:
    with DataDreamer(tmp_path_factory.mktemp("sure"), verbose=False):
        texts, labels = mixed(600, 7)
        held_out = DataSource("Held out", data={"text": texts, "label": labels}).output
        return Abstain("Sure", good, held_out["text"], held_out["label"], **BOUND)


def raw_logits(folder: Path | str, texts: list[str]) -> Any:
    model, tokens = AutoModelForSequenceClassification.from_pretrained(folder), TrainedModel(folder).tokenizer
    return np.stack([model(**tokens(text, return_tensors="pt")).logits[0].detach().double().numpy() for text in texts])


def test_threshold_is_on_the_log_odds_of_the_model(sure: Abstain):
    texts, labels = mixed(600, 7)
    logits = raw_logits(sure.path, texts)
    best = logits.argmax(1)
    chances = np.exp(logits - logsumexp(logits, axis=1, keepdims=True)).max(1)
    right = np.array([LABELS[index] for index in best]) == labels
    assert 0.1 < right.mean() < 1
    expected = fit_threshold(np.log(chances / (1 - chances)), right, **BOUND)
    assert sure.threshold.log_odds == pytest.approx(expected.log_odds, abs=1e-3)
    assert (sure.threshold.answered, sure.threshold.errors) == (expected.answered, expected.errors)
    assert 0 < sure.coverage < 1
    found = sure.predict_or_abstain(texts[:50])
    assert list(found.answered) == [bool(p > sure.threshold.probability) for p in chances[:50]]
    assert found.labels == [
        label if s else None for label, s in zip(found.predictions.labels, found.answered, strict=True)
    ]
    assert sure.card.metrics["coverage"] == pytest.approx(sure.coverage, abs=1e-6)
    assert "2110.01052" in " ".join(sure.card.citations)


def test_texts_below_the_threshold_go_to_the_fallback_once_and_in_order(
    sure: Abstain, caplog: pytest.LogCaptureFixture
):
    texts, asked = mixed(60, 8)[0], []

    def fallback(given: list[str]) -> list[str]:
        asked.append(given)
        return [f"asked {text}" for text in given]

    found = sure.predict_or_abstain(texts, fallback)
    left = [text for text, own in zip(texts, found.answered, strict=True) if not own]
    assert asked == [left]
    assert left
    assert found.coverage == pytest.approx(1 - len(left) / 60)
    for text, label, own in zip(texts, found.labels, found.answered, strict=True):
        assert (label in LABELS) if own else label == f"asked {text}"
    assert found.outside == [row for row, own in enumerate(found.answered) if not own]
    assert f"not classes of the model: {len(left)} ('asked {left[0]}' in row {found.outside[0]}, " in caplog.text
    caplog.clear()
    assert sure.predict_or_abstain(texts, lambda given: [LABELS[0]] * len(given)).outside == []
    assert not caplog.text
    with pytest.raises(StepOutputError, match="returned 1 labels for"):
        sure.predict_or_abstain(texts, lambda given: ["one"])
    for wrong in (None, "x" * len(left)):  # as many letters as texts
        with pytest.raises(StepOutputError, match=r"it must return a list with the label of each"):
            sure.predict_or_abstain(texts, lambda given, wrong=wrong: wrong)
    assert len(sure.predict_or_abstain([], fallback)) == 0


@pytest.mark.slow
def test_exported_model_abstains_in_the_same_way_in_a_fresh_process(sure: Abstain, tmp_path: Path):
    texts = mixed(40, 9)[0]
    folder = sure.export(to=tmp_path / "exported")
    code = (
        "import json, sys; from datadreamer_like import TrainedModel\n"
        "print(json.dumps(TrainedModel.load(sys.argv[1]).predict_or_abstain(json.loads(sys.argv[2])).labels))"
    )
    found = json.loads(printed_by(code, str(folder), json.dumps(texts)).splitlines()[-1])
    assert found == sure.predict_or_abstain(texts).labels


def test_model_with_other_weights_is_refused(sure: Abstain, poor: Path, tmp_path: Path):
    folder = sure.export(to=tmp_path / "exported")
    (folder / "README.md").write_text("# Published", encoding="utf-8")
    TrainedModel.load(folder).predict_or_abstain(["the cat"])
    shutil.copy(poor / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(MethodMisfit, match=r"fitted on other model files.*delete the file"):
        TrainedModel.load(folder).predict_or_abstain(["the cat"])
    with pytest.raises(StorageError, match=r"model.safetensors was changed after it was saved"):
        TrainedModel.load(folder).predict(["the cat"])


def test_quantized_model_and_another_data_type_have_no_threshold(session: DataDreamer, sure: Abstain):
    small = Quantize("8 bit", sure, DynamicInt8())
    with pytest.raises(MethodMisfit, match=r"has no threshold.*Abstain"):
        small.predict_or_abstain(["the cat"])
    with pytest.raises(MethodMisfit, match="fitted with dtype=None, and the model was loaded with dtype=bfloat16"):
        TrainedModel(sure.path, dtype="bfloat16").predict_or_abstain(["the cat"])


def test_quantized_model_gets_a_threshold_of_its_own(session: DataDreamer, good: Path, column: Column):
    small = Quantize("8 bit", good, DynamicInt8())
    sure = Abstain("Sure", small, column("text"), column("label"), **BOUND)
    assert sure.predict_or_abstain(rows(20, 3)[0]).coverage > 0.5


def test_temperature_calibrates_probabilities_and_leaves_logits_and_labels(
    session: DataDreamer, good: Path, column: Column, tmp_path: Path
):
    sharp = AutoModelForSequenceClassification.from_pretrained(good)
    sharp.classifier.weight.data *= 20
    sharp.classifier.bias.data *= 20
    folder = save(sharp, tmp_path / "sharp")
    texts, labels = mixed(600, 11)
    made = DataSource("Validation", data={"text": texts, "label": labels}).output
    calibrated = Calibrate("Calibrated", folder, made["text"], made["label"])
    before, after = TrainedModel(folder), calibrated.trained
    assert calibrated.temperature > 1
    fresh = mixed(300, 12)
    positions = [LABELS.index(label) for label in fresh[1]]
    np.testing.assert_array_equal(before.logits(fresh[0]), after.logits(fresh[0]))
    first, second = before.predict(fresh[0]), after.predict(fresh[0])
    assert first.labels == second.labels
    scaled = before.logits(fresh[0]).astype(float) / calibrated.temperature
    np.testing.assert_allclose(
        second.probabilities, np.exp(scaled - logsumexp(scaled, axis=1, keepdims=True)), atol=1e-6
    )
    errors = [expected_calibration_error(found.probabilities, positions) for found in (first, second)]
    assert errors[1] < errors[0]
    assert calibrated.metrics["ece"] < calibrated.metrics["ece_before"]
    # What is made of it has other weights, and so no temperature.
    assert Quantize("8 bit", calibrated, DynamicInt8()).trained.confidence.temperature is None
    # A threshold on top keeps the temperature.
    sure = Abstain("Sure", calibrated, column("text"), column("label"), **BOUND)
    assert sure.trained.confidence.temperature == calibrated.temperature


@pytest.mark.parametrize(
    ("share", "count", "temperature", "effect"),
    [(1.0, 40, 0.01, "almost exactly 0 and 1"), (0.0, 40, 100.0, "almost the same"), (1.0, 1, 0.01, "0 and 1"),
     (0.9, 40, None, "")],
)  # fmt: skip
@pytest.mark.parametrize("multi", [False, True])
def test_a_temperature_at_a_limit_of_the_search_is_warned_of(
    session: DataDreamer, caplog: pytest.LogCaptureFixture, multi: bool, share: float, count: int,
    temperature: float | None, effect: str,
):  # fmt: skip
    texts, labels = mixed(200, 3)
    pair = DataSource("Rows", data={"text": texts, "label": [[each] for each in labels] if multi else labels}).output
    model = TrainLinearClassifier("Model").train(*[pair["text"], pair["label"]] * 2, C=1000.0)
    texts = rows(count, 9)[0]
    said = model.predict(texts).labels
    wrong = [[each for each in LABELS if each not in own] if multi else LABELS[LABELS.index(own) - 1] for own in said]
    given = [own if row < share * count else other for row, (own, other) in enumerate(zip(said, wrong, strict=True))]
    held = DataSource("Held", data={"text": texts, "label": given}).output
    caplog.clear()
    found = Calibrate("Calibrated", model, held["text"], held["label"])
    fitted = found.temperature if multi else [found.temperature]
    if temperature is None:
        assert not found.at_limit
        assert not caplog.text
        return
    assert fitted == [temperature] * len(fitted)
    assert found.at_limit
    assert "Calibrated: the temperature" in caplog.text
    assert effect in caplog.text
    assert (f"of {', '.join(LABELS)} is" in caplog.text) == multi
    assert "at a limit" in found.card.facts["Temperature"]


def test_multi_label_model_abstains_unless_all_its_decisions_are_certain(session: DataDreamer, tmp_path: Path):
    model = classifier(25, LABELS)
    model.config.problem_type = "multi_label_classification"
    folder = save(model, tmp_path / "multi")
    texts, labels = rows(300, 5)
    made = DataSource("Held out", data={"text": texts, "label": [[label] for label in labels]}).output
    calibrated = Calibrate("Calibrated", folder, made["text"], made["label"])
    assert len(calibrated.temperature) == 3
    sure = Abstain("Sure", folder, made["text"], made["label"], **BOUND)
    logits = raw_logits(folder, texts[:40])
    found = sure.predict_or_abstain(texts[:40])
    assert list(found.answered) == list(np.abs(logits).min(1) > sure.threshold.log_odds)
    assert found.predictions.labels == [[LABELS[i] for i in np.flatnonzero(row > 0)] for row in logits]
    left = int((~found.answered).sum())
    assert left > 1
    given = [[LABELS[0], "other"], *[LABELS[:2]] * (left - 1)]
    (outside,) = sure.predict_or_abstain(texts[:40], lambda texts: given).outside
    assert outside == int(np.flatnonzero(~found.answered)[0])


def test_rerun_finds_the_result_and_runs_no_model(tmp_path: Path, good: Path):
    texts, labels = rows(60, 7)
    for expected in (False, True):
        with DataDreamer(tmp_path / "out", verbose=False):
            made = DataSource("Held out", data={"text": texts, "label": labels}).output
            model = TrainedModel(good)
            found = Abstain("Sure", model, made["text"], made["label"], **BOUND)
            assert (found.usage.rows == 0) == expected
            assert "model" not in vars(model)


def test_model_that_keeps_no_bound_hands_everything_over_and_says_so(
    session: DataDreamer, poor: Path, column: Column, caplog: pytest.LogCaptureFixture
):
    sure = Abstain("Sure", poor, column("text"), column("label"), max_error=0.05, confidence=0.9)
    assert (sure.coverage, sure.threshold.log_odds) == (0.0, math.inf)
    assert "hands every row over" in caplog.text
    assert sure.predict_or_abstain(["the cat"], lambda texts: ["asked"]).labels == ["asked"]


def test_bad_arguments_are_named_before_the_model_runs(
    session: DataDreamer, good: Path, byte_lm: Path, column: Column, tmp_path: Path
):
    def abstain(model: Any = good, labels: Any = None, **options: Any) -> Abstain:
        return Abstain("Sure", model, column("text"), labels or column("label"), **{**BOUND, **options})

    with pytest.raises(DataError, match=r'"Sure": inputs has 100 rows.*needs at least 149'):
        abstain(max_error=0.02, confidence=0.95)
    with pytest.raises(TypeError, match=r'Abstain has no option "max_eror"\. Did you mean "max_error"'):
        abstain(max_eror=0.1)
    with pytest.raises(DefinitionError, match='Quantize has no option "retrian"\\. Did you mean "retrain"'):
        Quantize("Small", good, DynamicInt8(), retrian={})
    with pytest.raises(DefinitionError, match="max_error is 2;"):
        abstain(max_error=2)
    score = save(tiny_models.bert(tokenizer(), num_labels=1), tmp_path / "score")
    with pytest.raises(MethodMisfit, match="has one output, as those that give a score do"):
        abstain(score)
    with pytest.raises(MethodMisfit, match="does text-generation; Abstain takes a classifier"):
        abstain(byte_lm)
    with pytest.raises(NotTrained):
        abstain(TrainHFClassifier("Untrained", model_name=str(good)))
    other = DataSource("Other", data={"label": ["stones"] * 100}).output["label"]
    with pytest.raises(LabelError, match='the label "stones" in row 0'):
        abstain(labels=other)
    short = DataSource("Short", data={"label": ["food"] * 99}).output["label"]
    with pytest.raises(DefinitionError, match="same number of rows"):
        abstain(labels=short)


def test_damaged_or_newer_file_is_named(sure: Abstain, tmp_path: Path):
    folder = sure.export(to=tmp_path / "exported")
    file = folder / CONFIDENCE_NAME
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "format": 99}), encoding="utf-8")
    with pytest.raises(NewerFormat):
        TrainedModel.load(folder).predict(["the cat"])
    file.write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"confidence.json is damaged"):
        TrainedModel.load(folder).predict(["the cat"])


@pytest.mark.parametrize("edited", [{"log_odds": "0.0"}, {"max_error": 0.001}, {"errors": 0}, None])
def test_a_threshold_changed_by_hand_is_refused(sure: Abstain, tmp_path: Path, edited: dict[str, Any] | None):
    folder = sure.export(to=tmp_path / "exported")
    file = folder / CONFIDENCE_NAME
    content = json.loads(file.read_text(encoding="utf-8"))
    change = {"temperature": 9.0} if edited is None else {"threshold": content["threshold"] | edited}
    file.write_text(json.dumps(content), encoding="utf-8")  # in another layout
    assert TrainedModel.load(folder).predict(["the cat"]).labels
    file.write_text(json.dumps({**content, **change}), encoding="utf-8")
    with pytest.raises(StorageError, match=r"confidence.json was changed after it was written"):
        TrainedModel.load(folder).predict(["the cat"])


@pytest.mark.parametrize("split", ["train", "validation", "calibration", "other"])
def test_rows_that_the_model_has_seen_are_warned_of(
    session: DataDreamer, column: Column, caplog: pytest.LogCaptureFixture, split: str
):
    columns = {name: DataSource(name, data=dict(zip(("text", "label"), rows(120, seed), strict=True))).output
               for seed, name in enumerate(("train", "validation", "calibration", "other"))}  # fmt: skip
    pairs = [(each["text"], each["label"]) for each in columns.values()]
    model = TrainLinearClassifier("Model").train(*pairs[0], *pairs[1], C=1.0)
    model = Calibrate("Calibrated", model, *pairs[2])
    caplog.clear()
    used = columns[split]
    Abstain("Sure", model, used["text"], used["label"], **BOUND)
    assert ("rows that the model has seen" in caplog.text) == (split != "other")
    caplog.clear()
    Calibrate("Again", model, used["text"], used["label"])
    assert ("rows that the model has seen" in caplog.text) == (split == "train")


def test_single_texts_that_the_model_has_seen_are_counted_wherever_they_are_from(
    session: DataDreamer, caplog: pytest.LogCaptureFixture
):
    columns = {}
    for seed, name in enumerate(("train", "validation", "fresh")):
        texts, labels = rows(120, seed)
        texts = [f"{text} {name} {row}" for row, text in enumerate(texts)]  # no text is in two columns
        columns[name] = DataSource(name, data={"text": texts, "label": labels}).output
    train, validation, fresh = columns.values()
    model = TrainLinearClassifier("Model").train(
        train["text"], train["label"], validation["text"], validation["label"], C=1.0
    )
    Abstain("Sure", model, fresh["text"], fresh["label"], **BOUND)
    assert "rows of inputs have a text" not in caplog.text
    leaked = {name: [*fresh[name][:90], *train[name][5:15], *validation[name][:20]] for name in ("text", "label")}
    mixed_up = DataSource("Mixed", data=leaked).output
    sure = Abstain("Surer", Calibrate("Calibrated", model, fresh["text"], fresh["label"]), mixed_up["text"],
                   mixed_up["label"], **BOUND)  # fmt: skip
    for count, name, argument in ((10, "Model", "train_input"), (20, "Model", "validation_input"),
                                  (90, "Calibrated", "inputs")):  # fmt: skip
        assert f'Surer: {count} of the 120 rows of inputs have a text that "{name}" read as {argument}' in caplog.text
    assert "Rows seen before" in sure.card.facts
    caplog.clear()
    Calibrate("Again", model, mixed_up["text"], mixed_up["label"])
    assert caplog.text.count("have a text that") == 1  # a temperature may be fitted on validation rows
    assert "10 of the 120" in caplog.text


@pytest.mark.parametrize("multi", [False, True])
def test_a_calibrated_teacher_gives_its_probabilities_to_ensembles_and_students(session: DataDreamer, multi: bool):
    texts, labels = mixed(200, 3)
    given = [[label] for label in labels] if multi else labels
    columns = DataSource("Rows", data={"text": texts, "label": given}).output
    other, theirs = mixed(200, 4)
    held = DataSource("Held", data={"text": other, "label": [[x] for x in theirs] if multi else theirs}).output
    plain = TrainLinearClassifier("Plain").train(*[columns["text"], columns["label"]] * 2, C=1000.0)
    calibrated = Calibrate("Calibrated", plain, held["text"], held["label"])
    wanted = calibrated.predict(texts).probabilities
    assert np.abs(wanted - plain.predict(texts).probabilities).max() > 0.02
    for ensemble in (Ensemble([calibrated]), EnsembleModel([calibrated]).ensemble):
        logits = ensemble.class_logits(texts)
        found = logits.sigmoid() if multi else logits.softmax(-1)
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    pair = columns["text"], None
    students = [
        TrainLinearClassifier(f"Student {number}").train(
            *pair, *pair, objective=SoftTargets(teacher, temperature=1.0, alpha=1.0), C=10000.0
        )
        for number, teacher in enumerate((plain, calibrated))
    ]
    errors = [np.abs(student.predict(texts).probabilities - wanted).mean() for student in students]
    assert errors[1] < errors[0] / 2
