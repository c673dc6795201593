"""What `Compare` reports is what independent counting finds, and it is measured once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import HOSTILE
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    LabelError,
    MethodMisfit,
    NewerFormat,
    NotTrained,
    SessionError,
)
from datadreamer_like.evaluation.costs import undisturbed
from datadreamer_like.graph import OutputDataset
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Magnitude
from datadreamer_like.quantization import DynamicInt8
from datadreamer_like.stages import Compare, Prune, Quantize
from datadreamer_like.stages.comparison import Comparison
from datadreamer_like.steps.sources.data_source import DataSource
from datadreamer_like.storage.shown import clean, one_line
from datadreamer_like.trainers import TrainHFClassifier

from .conftest import LABELS, rows

Column = Callable[[str], Any]
QUICK: dict[str, Any] = {
    "repeats": 2, "threads": 1, "latency_texts": 3, "throughput_texts": 8, "resamples": 500,
}  # fmt: skip


def _compare(models: list[Any], column: Column, name: str = "Cost", **options: Any) -> Compare:
    return Compare(name, models, column("text"), column("label"), **{**QUICK, **options})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, good: Path, poor: Path) -> Compare:
    """Five models on a hundred rows: one twice, one sparse, one quantized, and names that need care."""
    with DataDreamer(tmp_path_factory.mktemp("compared"), verbose=False):
        texts, labels = rows(100, 7)
        held_out = DataSource("Held out", data={"text": texts, "label": labels}).output
        slim = Prune("Slim", good, Magnitude(sparsity=0.5))
        small = Quantize("8 bit", slim, DynamicInt8())
        return Compare(
            "Cost", [good, poor, slim, small, good], held_out["text"], held_out["label"],
            names=["big & good", "small <poor>", "label", "label", "big & good"],
            repeats=3, latency_texts=5, throughput_texts=8, resamples=500, threads=1,
        )  # fmt: skip


def test_figures_are_those_of_independent_counting(compared: Compare, good: Path, poor: Path):
    texts, labels = rows(100, 7)
    for folder, row in zip((good, poor), compared.rows, strict=False):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        tokens = TrainedModel(folder).tokenizer
        with torch.no_grad():
            said = [
                model.config.id2label[int(model(**tokens(text, return_tensors="pt")).logits.argmax())] for text in texts
            ]
        assert row["accuracy"] == pytest.approx(accuracy_score(labels, said))
        assert row["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro", labels=LABELS, zero_division=0))
        assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert row["nonzero_parameters"] is None
        files = [os.path.join(root, file) for root, _, names in os.walk(folder) for file in names]
        assert row["bytes_on_disk"] == sum(map(os.path.getsize, files))
        assert compared.predictions[row["model"]] == said
    difference = compared.rows[1]["accuracy_difference"]
    assert difference.value == pytest.approx(compared.rows[1]["accuracy"] - compared.rows[0]["accuracy"])
    assert difference.low <= difference.value <= difference.high < 0


def test_card_of_a_model_is_not_counted_as_its_size(compared: Compare):
    for row, model in list(zip(compared.rows, compared.models, strict=True))[2:4]:
        files = [file for file in Path(model.path).rglob("*") if file.is_file()]
        assert "card.json" in {file.name for file in files}
        assert row["bytes_on_disk"] == sum(file.stat().st_size for file in files if file.name != "card.json")


def test_sparse_model_shows_the_weights_that_are_left(compared: Compare):
    dense, _, sparse, small, _ = compared.rows
    assert sparse["parameters"] == small["parameters"] == dense["parameters"]
    model = BertForSequenceClassification.from_pretrained(compared.models[2].path)
    assert sparse["nonzero_parameters"] == sum(int((p != 0).sum()) for p in model.parameters())
    assert dense["nonzero_parameters"] is None


def test_the_same_model_twice_differs_by_exactly_nothing(compared: Compare):
    first, *_, again = compared.rows
    assert first["accuracy_difference"] is None
    assert again["model"] == "big & good #2"
    for key in ("accuracy_difference", "macro_f1_difference"):
        assert (again[key].value, again[key].low, again[key].high) == (0, 0, 0)


def test_differences_are_to_the_baseline_that_was_named(session: DataDreamer, good: Path, poor: Path, column: Column):
    first = _compare([good, poor], column)
    there = first.rows[1]["accuracy_difference"]
    for number, baseline in enumerate(["poor", str(poor)]):
        found = _compare([good, poor], column, f"Cost {number}", baseline=baseline)
        assert [row["model"] for row in found.rows] == ["good", "poor"]
        back, none = (row["accuracy_difference"] for row in found.rows)
        assert none is None
        assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
        assert "to poor on the same rows" in str(found)
    student = TrainedModel(poor)
    by_model = _compare([good, student], column, "Cost by model", names=["good", "Student, hard"], baseline=student)
    assert by_model.comparison.baseline == 1
    with pytest.raises(DefinitionError, match=r'"poop" \(baseline\).*"good", "poor".*Did you mean "poor"'):
        _compare([good, poor], column, baseline="poop")
    with pytest.raises(DefinitionError, match="not in models"):
        _compare([good, poor], column, baseline=TrainedModel(poor))


def test_every_model_is_timed_on_the_same_texts_in_every_round(compared: Compare):
    for model, row in zip(compared.comparison.models, compared.rows, strict=True):
        assert np.shape(model.round_seconds) == (3, 5)
        assert len(model.round_rates) == 3
        fastest = np.min(model.round_seconds, axis=0)
        assert row["latency"].value == pytest.approx(np.median(fastest))
        assert (row["latency"].low, row["latency"].high) == pytest.approx(tuple(np.quantile(fastest, [0.25, 0.75])))
        assert row["throughput"].value == pytest.approx(np.median(model.round_rates))


def test_threads_are_fixed_while_timing_and_given_back(session: DataDreamer, good: Path, column: Column):
    before = torch.get_num_threads()
    found = _compare([good], column, threads=before + 1, repeats=1, latency_texts=1, throughput_texts=1)
    assert torch.get_num_threads() == before
    assert found.comparison.threads == before + 1
    with undisturbed(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_result_on_disk_stands_alone(compared: Compare):
    data = json.loads((compared.html_path.parent / "comparison.json").read_text(encoding="utf-8"))
    assert data["format"] == 1
    assert [model["quality"]["accuracy"] for model in data["models"]] == [row["accuracy"] for row in compared.rows]
    text = compared.html_path.read_text(encoding="utf-8")
    assert "small &lt;poor&gt;" in text
    assert "<svg" in text
    assert compared.plot_path is not None
    assert compared.plot_path.read_bytes().startswith(b"\x89PNG")
    assert str(compared) == compared.table.to_text()
    assert max(map(len, str(compared).splitlines())) <= 120
    assert compared.to_pandas()["model"].tolist() == [row["model"] for row in compared.rows]


def test_keys_that_a_later_version_added_to_the_same_format_are_ignored(compared: Compare, tmp_path: Path):
    folder = compared.html_path.parent
    data = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    added = {**data, "joules": 3.0, "models": [{**model, "joules": 3.0} for model in data["models"]]}
    (tmp_path / "comparison.json").write_text(json.dumps(added), encoding="utf-8")
    assert Comparison.read(tmp_path) == Comparison.read(folder)
    (tmp_path / "comparison.json").write_text(json.dumps({**data, "format": 99}), encoding="utf-8")
    with pytest.raises(NewerFormat, match="newer version.*format is 99, this version reads up to 1"):
        Comparison.read(tmp_path)


def test_model_may_be_called_like_a_column_of_the_rows(compared: Compare):
    named = ["big & good", "small <poor>", "label #2", "label #3", "big & good #2"]
    assert compared.predictions.column_names == ["text", "label", *named]
    assert compared.predictions["label"] == rows(100, 7)[1]


def test_parents_are_the_models_and_the_rows(compared: Compare):
    assert [parent.name for parent in compared.parents] == ["Slim", "8 bit", "Held out"]
    assert compared.card.facts["Rows compared"] == "100"


def test_memory_is_freed_unless_the_model_was_in_use(session: DataDreamer, good: Path, poor: Path, column: Column):
    in_use, other = TrainedModel(good), TrainedModel(poor)
    held = in_use.model
    for keep_loaded in (True, False):
        _compare([in_use, other], column, keep_loaded=keep_loaded)
        assert vars(in_use).get("model") is held
        assert "model" not in vars(other)


def test_rerun_finds_the_result_and_loads_no_model_and_a_changed_option_says_so(
    tmp_path: Path, good: Path, poor: Path, caplog: pytest.LogCaptureFixture
):
    texts, labels = rows(40, 7)
    shown = []
    for seed in (0, 0, 1):
        with DataDreamer(tmp_path / "out"), caplog.at_level("INFO", "datadreamer_like"):
            data = DataSource("Rows", data={"text": texts, "label": labels})
            models = [TrainedModel(good), TrainedModel(poor)]
            compared = Compare("Cost", models, data.output["text"], data.output["label"], **QUICK, seed=seed)
            files = [compared.html_path, compared.plot_path or compared.html_path]
            shown.append((str(compared), [file.stat().st_mtime_ns for file in files]))
        if len(shown) == 2:
            assert not any("model" in vars(model) or "config" in vars(model) for model in models)
            assert "rerunning" not in caplog.text
    assert shown[0] == shown[1] != shown[2]
    assert 'rerunning "Cost": argument seed changed' in caplog.text


def test_renaming_what_came_before_measures_nothing_anew(tmp_path: Path, good: Path):
    texts, labels = rows(40, 7)
    found = []
    for name in ("Slim", "Thin"):
        with DataDreamer(tmp_path / "out", verbose=False):
            data = DataSource("Rows", data={"text": texts, "label": labels})
            slim = Prune(name, good, Magnitude(sparsity=0.5))
            compared = Compare("Cost", [slim], data.output["text"], data.output["label"], **QUICK)
            found.append(compared.comparison.models)
            assert name in str(compared)
            assert name in compared.html_path.read_text(encoding="utf-8")
            assert compared.predictions.column_names == ["text", "label", name]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ({"text": ["a cat", "rain"], "label": ["animals", "wether"]}, LabelError, 'Row 1 .*"wether".*good.*"weather"'),
        ({"text": ["a cat", None], "label": ["animals", "food"]}, DataError, "inputs.*None in row 1"),
        ({"text": ["a cat", "tea"], "label": ["animals", None]}, DataError, "labels.*None in row 1"),
        ({"text": [1, 2], "label": ["animals", "food"]}, ArgumentTypeError, "inputs must contain texts; row 0 has 1"),
        ({"text": ["a"], "label": [0.5]}, LabelError, "0.5 in row 0"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused_before_a_model_runs(
    session: DataDreamer, good: Path, data: dict[str, Any], error: type[Exception], says: str
):
    rows_ = DataSource("Rows", data=data)
    model = TrainedModel(good)
    with pytest.raises(error, match=says):
        Compare("Cost", [model], rows_.output["text"], rows_.output["label"], **QUICK)
    assert "model" not in vars(model)


def test_no_rows_are_refused(session: DataDreamer, good: Path, column: Column):
    none = DataSource("Rows", data={"text": ["a"], "label": ["food"]}).filter(lambda row: False, lazy=False)
    with pytest.raises(EmptyDataset, match="no rows"):
        Compare("Cost", [good], none.output["text"], none.output["label"], **QUICK)


def test_models_that_cannot_be_compared_are_refused(session: DataDreamer, good: Path, column: Column):
    with pytest.raises(DefinitionError, match=r"good is a classifier.*no labels"):
        Compare("Cost", [good], column("text"), **QUICK)
    with pytest.raises(NotTrained, match="Student"):
        _compare([good, TrainHFClassifier("Student", model_name=str(good))], column)
    with pytest.raises(DefinitionError, match="models is empty"):
        _compare([], column)
    with pytest.raises(ArgumentTypeError, match="list of models"):
        _compare(good, column)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"models\[1\] is of type int"):
        _compare([good, 3], column)
    with pytest.raises(DefinitionError, match="1 models and 2 names"):
        _compare([good], column, names=["a", "b"])
    with pytest.raises(DefinitionError, match="repeats is 0"):
        _compare([good], column, repeats=0)


def test_a_reward_model_is_no_classifier_of_one_class(session: DataDreamer, good: Path, tmp_path: Path):
    scorer = shutil.copytree(good, tmp_path / "scorer")
    config = json.loads((scorer / "config.json").read_text())
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    (scorer / "config.json").write_text(json.dumps(config))
    answers = DataSource("Answers", {"text": ["a cat", "a dog"], "label": ["reward", "reward"]}).output
    with pytest.raises(MethodMisfit, match=r'scorer gives one number a text, "reward", and is no classifier'):
        Compare("Scorers", [scorer], answers["text"], answers["label"], **QUICK)


def test_numbers_of_a_class_label_column_are_read_by_their_names(session: DataDreamer, good: Path, compared: Compare):
    from datasets import ClassLabel, Dataset, Features, Value

    texts, labels = rows(100, 7)
    order = ["weather", "food", "animals"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=order)})
    numbers = Dataset.from_dict({"text": texts, "label": [order.index(label) for label in labels]}, features=features)
    by_number = OutputDataset(DataSource("Rows", data={"text": texts}), numbers)
    found = Compare("Cost", [good], by_number["text"], by_number["label"], **QUICK).rows[0]
    assert found["accuracy"] == compared.rows[0]["accuracy"] > 0.4


def test_outside_a_session_it_says_where_it_belongs(tmp_path: Path, good: Path):
    with DataDreamer(tmp_path / "out", verbose=False):
        data = DataSource("Rows", data={"text": ["a cat"], "label": ["animals"]})
    with pytest.raises(SessionError, match=r"with DataDreamer\(folder\)"):
        Compare("Cost", [good], data.output["text"], data.output["label"], **QUICK)


def test_models_and_comparisons_may_be_called_anything(session: DataDreamer, good: Path, column: Column):
    fast = {"repeats": 1, "latency_texts": 1, "throughput_texts": 2, "resamples": 10}
    names = HOSTILE[1::2]
    named = _compare([good] * len(names), column, HOSTILE[0], names=names, **fast)
    assert named.names == [clean(name) for name in names]
    assert named.predictions.column_names == ["text", "label", *named.names]
    page = named.html_path.read_text(encoding="utf-8")
    assert not {"<script>alert", "<img src"} & {part for part in ("<script>alert", "<img src") if part in page}
    assert session.folder in named.html_path.parents
    for title in HOSTILE[1:3]:
        drawn = named.comparison.plot(title)
        assert drawn.get_suptitle() == one_line(title)
    assert _compare([good] * 2, column, names=["half \ud800", "b"], baseline="b", **fast).comparison.baseline == 1
