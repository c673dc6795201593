"""TrainHFClassifier: it learns, it is found again, and it refuses what cannot be learnt."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import signal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, TrainerCallback
from warm import printed_by

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    LabelError,
    MethodMisfit,
    NotTrained,
    SessionError,
)
from datadreamer_like.evaluation.labels import find_labels
from datadreamer_like.evaluation.tasks.token_classification import find_span_labels
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier, TrainLinearClassifier
from datadreamer_like.trainers.training.options import Training

from .conftest import Rows, opinions

QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3}


def test_it_learns_and_predicts_in_the_order_of_the_texts(session, tiny_encoder, data):
    trainer = TrainHFClassifier("Opinions", model_name=str(tiny_encoder))
    trainer.train(**data(opinions(256)), **{**QUICK, "epochs": 6})
    held_out = opinions(40, seed=2)
    said = trainer.predict(held_out["text"])
    assert said.classes == ["negative", "positive"]
    assert said.labels == held_out["label"]
    assert np.allclose(said.probabilities.sum(axis=1), 1, atol=1e-5)
    assert trainer.model.config.id2label == {0: "negative", 1: "positive"}
    one_by_one = np.concatenate([trainer.predict([text]).probabilities for text in held_out["text"][:5]])
    assert np.allclose(one_by_one, said.probabilities[:5], atol=1e-4)


def test_metrics_are_those_of_the_saved_model_on_the_validation_rows(session, tiny_encoder, data):
    trainer = TrainHFClassifier("Opinions", model_name=str(tiny_encoder))
    trainer.train(**data(), **{**QUICK, "epochs": 1, "learning_rate": 1e-3})
    rows = opinions(32, seed=1)
    said = trainer.predict(rows["text"])
    assert trainer.metrics["accuracy"] == pytest.approx(accuracy_score(rows["label"], said.labels), abs=1e-6)
    assert trainer.metrics["macro_f1"] == pytest.approx(f1_score(rows["label"], said.labels, average="macro"), abs=1e-6)
    wanted = [said.classes.index(label) for label in rows["label"]]
    loss = -np.log(said.probabilities[np.arange(32), wanted]).mean()
    assert trainer.metrics["loss"] == pytest.approx(loss, abs=1e-4)


def test_same_seed_same_weights_and_another_seed_other_weights(session, tiny_encoder, data):
    columns = data()
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = TrainHFClassifier(name, model_name=str(tiny_encoder), force=True)
        trainer.train(**columns, **QUICK, seed=seed)
        weights.append(trainer.model.classifier.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_leaves_the_random_generators_as_they_were(session, tiny_encoder, data):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    TrainHFClassifier("a", model_name=str(tiny_encoder)).train(**data(), **{**QUICK, "epochs": 1})
    assert torch.equal(torch.rand(3), wanted)


def test_a_rerun_does_no_work_and_loads_no_model(tmp_path, tiny_encoder, data, monkeypatch):
    def run() -> TrainHFClassifier:
        with DataDreamer(tmp_path, verbose=False):
            trainer = TrainHFClassifier("a", model_name=str(tiny_encoder))
            return trainer.train(**data(), **{**QUICK, "epochs": 1})

    first = run()
    made = Path(first.path, "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", None)
    second = run()
    assert Path(second.path, "model.safetensors").stat().st_mtime_ns == made
    assert "model" not in vars(second.trained)
    assert second.metrics == first.metrics
    monkeypatch.undo()
    assert second.predict(["good"]).labels == first.predict(["good"]).labels


def test_a_changed_argument_says_so_and_undoing_it_finds_the_older_model(tmp_path, tiny_encoder, data, caplog):
    def run(**options: Any) -> TrainHFClassifier:
        with DataDreamer(tmp_path), caplog.at_level(logging.INFO, logger="datadreamer_like"):
            caplog.clear()
            trainer = TrainHFClassifier("a", model_name=str(tiny_encoder))
            return trainer.train(**data(), **{**QUICK, "epochs": 1, **options})

    seconds = run().card.seconds
    run(learning_rate=1e-4)
    assert 'rerunning "a": argument learning_rate changed' in caplog.text
    assert run().card.seconds == seconds
    assert "found finished" in caplog.text


def test_how_a_model_is_fetched_is_no_part_of_the_fingerprint(session, tiny_encoder, data):
    columns = data(opinions(8), opinions(8))
    fetched = {"token": "hf_secret", "cache_dir": str(session.folder / "elsewhere")}
    plain, elsewhere, other = (
        TrainHFClassifier(f"Trainer {number}", model_name=tiny_encoder, **options).train(**columns, epochs=1)
        for number, options in enumerate(({}, fetched, {"attn_implementation": "eager"}))
    )
    assert plain.fingerprint_parts() == elsewhere.fingerprint_parts() != other.fingerprint_parts()


def test_a_renamed_trainer_step_and_another_device_change_no_fingerprint(session, tiny_encoder, data):
    columns = data()
    one = TrainHFClassifier("a", model_name=str(tiny_encoder)).train(**columns, **QUICK)
    two = TrainHFClassifier("b", model_name=str(tiny_encoder), device="cpu").train(**data(), **QUICK)
    assert one.fingerprint == two.fingerprint


def test_curves_are_kept_with_the_model(session, tiny_encoder, data):
    trainer = TrainHFClassifier("a", model_name=str(tiny_encoder))
    with pytest.raises(NotTrained):
        _ = trainer.curves
    trainer.train(**data(), **QUICK)
    history = trainer.manifest.result["history"]
    measured = [point for point in trainer.curves if "eval_loss" in point]
    assert [point["eval_loss"] for point in measured] == [entry["loss"] for entry in history]
    assert [point["epoch"] for point in measured] == [*range(1, len(history) + 1)]
    trained = [point for point in trainer.curves if "loss" in point]
    assert trained[-1]["loss"] < trained[0]["loss"]
    steps = [point["step"] for point in trained]
    assert steps == sorted(set(steps))
    assert steps[-1] == measured[-1]["step"]
    assert (trainer.result_folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_early_stopping_stops_and_the_best_epoch_is_kept(session, tiny_encoder, data):
    # Labels without a pattern: validation can only become worse.
    train = opinions(64)
    train["label"] = [("positive", "negative")[i % 2] for i in range(64)]
    trainer = TrainHFClassifier("a", model_name=str(tiny_encoder))
    trainer.train(**data(train), epochs=30, batch_size=8, learning_rate=3e-3, early_stopping_patience=2)
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert len(losses) < 30
    assert losses.index(min(losses)) == len(losses) - 3
    assert trainer.metrics["loss"] == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "names"),
    [([3, 1, 10], ["1", "3", "10"]), ([True, False], ["False", "True"]), (["b", "a"], ["a", "b"])],
)
def test_labels_may_be_texts_numbers_or_truth_values(session, tiny_encoder, data, labels, names):
    rows = {"text": opinions(12)["text"], "label": [labels[i % len(labels)] for i in range(12)]}
    trainer = TrainHFClassifier("a", model_name=str(tiny_encoder)).train(**data(rows, rows), **{**QUICK, "epochs": 1})
    assert trainer.trained.labels == names
    assert trainer.trained.label2id == {name: index for index, name in enumerate(names)}


def test_names_of_a_class_label_column_become_the_classes(session, tiny_encoder, data):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative", "mixed"])}
    )
    rows = datasets.Dataset.from_dict(opinions(24), features=features)
    trainer = TrainHFClassifier("a", model_name=str(tiny_encoder)).train(**data(rows, rows), **{**QUICK, "epochs": 1})
    assert trainer.trained.labels == ["positive", "negative", "mixed"]


def test_several_labels_a_row_are_learnt_as_questions_of_their_own(session, tiny_encoder, data):
    def tagged(rows: int, seed: int) -> dict[str, Any]:
        texts = opinions(rows, seed)["text"]
        return {"text": texts, "label": [[w for w in ("tea", "very", "film") if w in text.split()] for text in texts]}

    trainer = TrainHFClassifier("a", model_name=str(tiny_encoder))
    trainer.train(**data(tagged(256, 0), tagged(32, 1)), **{**QUICK, "epochs": 15, "learning_rate": 5e-3})
    said = trainer.predict(["the tea was very", "film", "day"])
    assert said.labels == [["tea", "very"], ["film"], []]
    assert trainer.trained.is_multi_label
    assert trainer.metrics["accuracy"] > 0.9


def test_training_goes_on_from_a_trained_classifier_with_its_classes_in_their_order(session, tiny_encoder, data):
    columns = data()
    first = TrainHFClassifier("a", model_name=str(tiny_encoder)).train(**columns, **QUICK)
    second = TrainHFClassifier("b", model_name=first)
    second.train(**columns, **{**QUICK, "learning_rate": 0.0, "epochs": 1})
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert [card.name for card in second.card.lineage()] == ["Train rows", "Validation rows", "a", "b"]
    assert second.card.base_model == str(tiny_encoder)


def test_a_saved_model_loads_in_a_fresh_process_with_its_lineage(session, tiny_encoder, data, tmp_path):
    trainer = TrainHFClassifier("a", model_name=str(tiny_encoder)).train(**data(), **QUICK)
    folder = trainer.export(to=tmp_path / "export")
    trainer.export(to=folder)  # again: an earlier export is replaced
    script = (
        "import sys; from datadreamer_like.models.trained.trained_model import TrainedModel\n"
        "m = TrainedModel.load(sys.argv[1])\n"
        "print(m.predict(['the tea was good', 'awful film']).labels, m.task, [c.name for c in m.card.lineage()])\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "print(AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).config.label2id)"
    )
    out = printed_by(script, str(folder)).splitlines()
    here = trainer.predict(["the tea was good", "awful film"]).labels
    assert out[0] == f"{here} text-classification ['Train rows', 'Validation rows', 'a']"
    assert out[1] == "{'negative': 0, 'positive': 1}"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, in this test
def test_lora_trains_an_adapter_that_is_merged_and_can_be_passed_on_alone(session, tiny_encoder, data, tmp_path):
    from peft import LoraConfig, PeftModel

    trainer = TrainHFClassifier("a", str(tiny_encoder), peft_config=LoraConfig(r=8, target_modules=["query", "value"]))
    trainer.train(**data(opinions(256)), **{**QUICK, "epochs": 10, "learning_rate": 1e-2})
    assert trainer.metrics["accuracy"] > 0.9
    assert not any("lora" in name for name, _ in trainer.model.named_parameters())
    base = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    frozen = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(trainer.model.get_parameter(frozen), base.get_parameter(frozen))
    adapter = trainer.export_to_disk(tmp_path / "adapter", adapter_only=True)
    assert sum(file.stat().st_size for file in adapter.glob("*.safetensors")) < trainer.trained.bytes_on_disk / 2
    with_adapter = PeftModel.from_pretrained(base, str(adapter)).eval()
    batch = trainer.tokenizer(["the tea was good"], return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(with_adapter(**batch).logits, trainer.model(**batch).logits, atol=1e-4)
    plain = TrainHFClassifier("b", str(tiny_encoder)).train(**data(), **{**QUICK, "epochs": 1})
    with pytest.raises(DefinitionError, match="trained no adapter"):
        plain.export_to_disk(tmp_path / "none", adapter_only=True)


def test_a_pruned_model_keeps_its_zeros_through_training(session, tiny_encoder, data):
    from datadreamer_like.pruning import Magnitude

    columns = data()
    dense = TrainHFClassifier("dense", str(tiny_encoder)).train(**columns, **QUICK)
    sparse = TrainedModel.save(
        Magnitude(sparsity=0.6).apply(dense.model), dense.tokenizer, session.folder / "sparse", dense.card
    )
    again = TrainHFClassifier("again", sparse).train(**columns, **QUICK)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    zeros = sparse.model.get_parameter(name) == 0
    assert 0.2 < zeros.float().mean() < 0.9
    assert torch.equal(again.model.get_parameter(name) == 0, zeros)
    assert not torch.equal(again.model.get_parameter(name), sparse.model.get_parameter(name))


def test_a_trained_model_can_be_pickled_without_its_weights(session, tiny_encoder, data):
    trainer = TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **{**QUICK, "epochs": 1})
    before = trainer.predict(["good"]).probabilities
    sent = pickle.dumps(trainer.trained)
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent).predict(["good"]).probabilities, before)
    trainer.unload_model()
    assert "model" not in vars(trainer.trained)


# What is refused


def test_an_untrained_trainer_says_so_by_name(session, tiny_encoder, data):
    from datadreamer_like.distillation import SoftTargets

    teacher = TrainHFClassifier("Teacher", str(tiny_encoder))
    for use in (
        lambda: teacher.model,
        lambda: teacher.path,
        lambda: teacher.predict(["x"]),
        lambda: teacher.model_path,
    ):
        with pytest.raises(NotTrained, match='"Teacher" is not trained yet'):
            use()
    student = TrainHFClassifier("Student", str(tiny_encoder))
    with pytest.raises(NotTrained, match='"Teacher"'):
        student.train(**data(), objective=SoftTargets(teacher))
    with pytest.raises(NotTrained, match='"Teacher"'):
        TrainHFClassifier("Other", teacher).train(**data())


def test_outside_a_session_it_says_so(tiny_encoder):
    with pytest.raises(SessionError, match="outside a session"):
        TrainHFClassifier("a", str(tiny_encoder)).train(None, None, None, None)


def test_training_twice_on_other_things_is_refused_and_on_the_same_is_nothing(session, tiny_encoder, data):
    columns = data()
    trainer = TrainHFClassifier("a", str(tiny_encoder)).train(**columns, **QUICK)
    assert trainer.train(**columns, **QUICK) is trainer
    with pytest.raises(DefinitionError, match="argument epochs changed"):
        trainer.train(**columns, **{**QUICK, "epochs": 4})


@pytest.mark.parametrize(
    ("train", "validation", "error", "words"),
    [
        ({"text": [], "label": []}, None, EmptyDataset, 'train_input, "text" of "Train rows", has no rows'),
        (None, {"text": [], "label": []}, EmptyDataset, "validation_input"),
        ({"text": ["a", None], "label": ["x", "y"]}, None, DataError, "train_input.*None in row 1"),
        ({"text": ["a", "b"], "label": ["x", None]}, None, DataError, "train_output.*None in row 1"),
        ({"text": [1, 2], "label": ["x", "y"]}, None, ArgumentTypeError, "train_input must contain texts; row 0 has 1"),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, None, LabelError, "0.5 in row 0"),
        ({"text": ["a", "b"], "label": ["x", "x"]}, None, LabelError, "only one label"),
        (None, {"text": ["a", "b"], "label": ["positive", "positiv"]}, LabelError, '"positiv" in row 1.*Did you mean'),
    ],
)
def test_bad_rows_are_refused_before_training(session, tiny_encoder, data, train, validation, error, words):
    if train == {"text": [], "label": []} or validation == {"text": [], "label": []}:
        empty = datasets.Dataset.from_dict({"text": [], "label": []}).cast(
            datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("string")})
        )
        first = Rows("Train rows", empty if train else opinions(8)).output
        second = Rows("Validation rows", empty if validation else opinions(8)).output
        columns = (first["text"], first["label"], second["text"], second["label"])
    else:
        columns = tuple(data(train, validation).values())
    with pytest.raises(error, match=words):
        TrainHFClassifier("a", str(tiny_encoder)).train(*columns)


CLASSES = datasets.ClassLabel(names=["cat", "dog"])
LABEL_COLUMNS = [
    ("all empty lists", [[], []], None, LabelError, "empty list of labels in every row"),
    ("all the same list", [["a", "b"], ["b", "a"]], None, LabelError, r"same labels in every row \(a, b\)"),
    ("one class of two", [1, 1], CLASSES, LabelError, 'only one label, "dog"'),
    ("one text", ["x", "x"], None, LabelError, "only one label"),
    ("all None", [None, None], datasets.Value("string"), DataError, "train_output.*None in row 0"),
    ("a missing label", [0, -1], CLASSES, LabelError, "-1 in row 1.*numbered from 0"),
    ("NaN", [float("nan"), 1.0], None, LabelError, "nan in row 0"),
    ("floats", [0.0, 1.0], None, LabelError, r"0\.0 in row 0, of type float"),
    ("None in a list", [["a"], [None, "b"]], None, LabelError, "None in row 1"),
    ("lists of lists", [[["a"]], [["b"]]], None, LabelError, r"\['a'\] in row 0, of type list"),
    ("bytes", [b"a", b"b"], None, LabelError, "of type bytes"),
    ("zeros and ones", [[0, 1], [1, 1]], None, LabelError, r"repeats a label in row 1: \[1, 1\].*names\[i\]"),
    ("two classes", [[0, 1], [1, 0]], None, LabelError, r"same labels in every row \(0, 1\).*vector\.index\(1\)"),
    ("truth values", [[True, False, True], []], None, LabelError, "repeats a label in row 0"),
]


@pytest.mark.parametrize(
    ("labels", "kind", "error", "words"), [c[1:] for c in LABEL_COLUMNS], ids=[c[0] for c in LABEL_COLUMNS]
)
def test_columns_that_label_nothing_are_refused_before_training(session, tiny_encoder, labels, kind, error, words):
    train = datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels})
    train = train if kind is None else train.cast_column("label", kind)
    rows = Rows("rows", train).output
    with pytest.raises(error, match=words):
        TrainHFClassifier("a", str(tiny_encoder)).train(*[rows["text"], rows["label"]] * 2)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["yes", "yes ", "no"], "train_output has labels that differ only in upper case or blanks.*: 'yes' and 'yes '"),
        ([["Red"], ["red", "blue"], ["blue"]], "'Red' and 'red'"),
        (["yes", "no", "no way"], None),
    ],
)
def test_labels_of_two_spellings_are_named_in_a_warning(session, caplog, labels, words):
    column = Rows("rows", {"label": labels}).output["label"]
    assert len(find_labels(column, "train_output")) == 3
    assert re.search(words, caplog.text) if words else not caplog.text


def test_soft_labels_of_two_spellings_are_named_in_a_warning(session, caplog):
    rows = Rows("rows", {"text": ["a", "b"], "label": [{"yes": 0.8, "Yes": 0.2}, {"yes": 0.3, "Yes": 0.7}]}).output
    TrainLinearClassifier("a").train(*[rows["text"], rows["label"]] * 2, C=1.0)
    assert "'Yes' and 'yes'" in caplog.text


def test_spans_of_labels_of_two_spellings_are_named_in_a_warning(session, caplog):
    spans = [[{"start": 0, "end": 4, "label": "Food"}], [{"start": 0, "end": 4, "label": "food"}]]
    rows = Rows("rows", {"text": ["good tea", "nice day"], "spans": spans}).output
    assert len(find_span_labels({"train_input": rows["text"], "train_output": rows["spans"]})) == 5
    assert "train_output has labels that differ only in upper case or blanks" in caplog.text


def test_classes_are_matched_by_name_whatever_their_numbers(session, tiny_encoder, data):
    def numbered(names: list[str], rows: dict[str, Any]) -> datasets.Dataset:
        made = datasets.Dataset.from_dict({**rows, "label": [names.index(label) for label in rows["label"]]})
        return made.cast_column("label", datasets.ClassLabel(names=names))

    train, other = opinions(64), opinions(24, seed=1)
    first = TrainHFClassifier("a", str(tiny_encoder)).train(**data(train, other), **QUICK)
    turned = data(numbered(["negative", "positive"], train), numbered(["positive", "negative"], other))
    second = TrainHFClassifier("b", str(tiny_encoder)).train(**turned, **QUICK)
    assert second.metrics == first.metrics
    unseen = numbered(["mixed"], {"text": ["a"], "label": ["mixed"]})
    columns = data(numbered(["negative", "positive"], train), unseen)
    with pytest.raises(LabelError, match='label "mixed" in row 0'):
        TrainHFClassifier("c", str(tiny_encoder)).train(**columns)


def test_columns_of_different_length_and_other_things_than_columns_are_refused(session, tiny_encoder, data):
    columns = data()
    trainer = TrainHFClassifier("a", str(tiny_encoder))
    with pytest.raises(DefinitionError, match="the same number of rows, but have 96 and 32"):
        trainer.train(**{**columns, "train_output": columns["validation_output"]})
    with pytest.raises(ArgumentTypeError, match="train_input is of type list"):
        trainer.train(**{**columns, "train_input": ["a"]})
    with pytest.raises(ArgumentTypeError, match=r'whole dataset.*output\["text"\]'):
        trainer.train(**{**columns, "train_input": Rows("r", opinions(4)).output})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": 3}, 'Did you mean "epochs"'),
        ({"num_train_epochs": 3}, 'it is called "epochs"'),
        ({"output_dir": "x"}, 'decides "output_dir" itself'),
        ({"label_smoothing_factor": 1.0}, "must be below 1"),
        ({"label_smoothing_factor": -0.1}, "label_smoothing_factor"),
        ({"dataloader_drop_last": True}, "every row is learned from"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf; it must be a finite number"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0; it must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 0; it must be at least 1"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"pover": 2}}, 'Did you mean "power"'),
        ({"lr_scheduler_kwargs": {"power": 2}}, 'schedule "linear" does not take'),
        ({"epochs": 0}, "must be over 0"),
        ({"batch_size": 2.5}, "a whole number"),
        ({"optim": "adamw_torhc"}, 'Did you mean "adamw_torch"'),
        ({"truncate": False, "max_length": 4}, "more than the 4 tokens"),
        ({"learning_rate": 1e30}, "Lower learning_rate"),
    ],
)
def test_options_that_cannot_be_are_refused(session, tiny_encoder, data, options, words):
    with pytest.raises((DefinitionError, DataError), match=words):
        TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **options)


def test_options_of_the_trainer_itself_are_checked(session, tiny_encoder):
    with pytest.raises(DefinitionError, match='Did you mean "peft_config"'):
        TrainHFClassifier("a", str(tiny_encoder), pef_config=None)
    with pytest.raises(DefinitionError, match="dtype"):
        TrainHFClassifier("a", str(tiny_encoder), dtype="float33")


def test_further_training_arguments_are_passed_on(session, tiny_encoder, data):
    trainer = TrainHFClassifier("a", str(tiny_encoder))
    trainer.train(**data(), **QUICK, gradient_accumulation_steps=2, metric_for_best_model="accuracy", max_grad_norm=0.5)
    history = trainer.manifest.result["history"]
    assert trainer.metrics["accuracy"] == pytest.approx(max(entry["accuracy"] for entry in history), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric_for_best_model": "acuracy"}, 'no metric "acuracy".*give: loss, accuracy, macro_f1'),
        ({"greater_is_better": True}, "highest loss"),
        ({"metric_for_best_model": "eval_loss", "greater_is_better": True}, "highest loss"),
    ],
)
def test_the_best_epoch_is_never_chosen_by_nonsense(session, tiny_encoder, data, options, words):
    with pytest.raises(DefinitionError, match=words):
        TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **QUICK, **options)


class StopsAfter(TrainerCallback):
    """Stops after some steps; it counts, as callbacks of users do."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seen = steps, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen += 1
        control.should_training_stop = self.seen >= self.steps


SEEN: list[int] = []


class SeesSteps(StopsAfter):
    """Counts outside of itself too."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        super().on_step_end(args, state, control)
        SEEN.append(state.global_step)


def test_what_callbacks_count_is_no_change_of_the_script(tmp_path, tiny_encoder, data):
    def run():
        SEEN.clear()
        shared = SeesSteps(1)
        with DataDreamer(tmp_path, verbose=False):
            for name, epochs in (("a", 1), ("b", 2)):
                options = {**data(), **QUICK, "epochs": epochs}
                TrainHFClassifier(name, str(tiny_encoder)).train(**options, callbacks=[shared])
        return len(SEEN)

    assert run() == 2
    assert run() == 0


class IgnoresCtrlC(SeesSteps):
    """A callback that is interrupted, and catches everything."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        super().on_step_end(args, state, control)
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)


def test_a_callback_that_catches_ctrl_c_ends_the_training(tmp_path, tiny_encoder, data):
    SEEN.clear()
    with pytest.raises(KeyboardInterrupt), DataDreamer(tmp_path, verbose=False):
        TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **QUICK, callbacks=[IgnoresCtrlC(100)])
    assert len(SEEN) == 1


def test_callbacks_take_part_and_decide_the_result(tmp_path, tiny_encoder, data):
    def trained(steps: int) -> TrainHFClassifier:
        with DataDreamer(tmp_path / "out", verbose=False):
            return TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **QUICK, callbacks=[StopsAfter(steps)])

    first = trained(5)
    assert first.manifest.result["epochs"] < 1
    assert trained(5).fingerprint == first.fingerprint
    assert trained(5).usage.rows == 0
    assert trained(7).fingerprint != first.fingerprint
    with (
        DataDreamer(tmp_path / "out", verbose=False),
        pytest.raises(ArgumentTypeError, match="TrainerCallback objects"),
    ):
        TrainHFClassifier("b", str(tiny_encoder)).train(**data(), callbacks=[print])


def test_options_of_the_log_change_no_result(session, tiny_encoder, data):
    columns, quick = data(), {**QUICK, "epochs": 1, "max_steps": 2}
    plain = TrainHFClassifier("a", str(tiny_encoder)).train(**columns, **quick)
    for option in (
        {"logging_steps": 2}, {"logging_strategy": "steps"}, {"save_total_limit": 3}, {"report_to": "none"},
        {"dataloader_num_workers": 0}, {"eval_strategy": "epoch"}, {"load_best_model_at_end": True},
    ):  # fmt: skip
        again = TrainHFClassifier("b", str(tiny_encoder)).train(**columns, **quick, **option)
        assert again.fingerprint == plain.fingerprint
        assert again.metrics == plain.metrics


def test_max_steps_and_mixed_precision_are_passed_on(session, tiny_encoder, data):
    columns = data()
    short = TrainHFClassifier("short", str(tiny_encoder)).train(**columns, **QUICK, max_steps=3)
    assert short.manifest.result["epochs"] == pytest.approx(3 / 12)
    assert short.usage.total_rows == 24
    mixed = TrainHFClassifier("mixed", str(tiny_encoder)).train(**columns, **QUICK, bf16=True)
    assert mixed.model.dtype == torch.float32
    assert mixed.fingerprint != short.fingerprint


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"eval_strategy": "steps"}, "each epoch is evaluated and saved"),
        ({"evaluation_strategy": "no"}, "each epoch is evaluated"),
        ({"save_steps": 50}, "each epoch is evaluated"),
        ({"load_best_model_at_end": False}, "the best epoch is kept"),
        ({"resume_from_checkpoint": "x"}, "resumes by itself"),
        ({"push_to_hub": True}, "publish_to_hf_hub"),
        ({"output_dir": "x"}, "export_to_disk"),
        ({"use_cpu": True}, "pass device="),
        ({"deepspeed": "x.json"}, "each device holds the whole model"),
        ({"per_device_train_batch_size": 4}, 'called "batch_size"'),
        ({"lr": 4}, 'called "learning_rate"'),
        ({"data_seed": 4}, "seed= seeds everything"),
    ],
)
def test_arguments_that_would_break_a_promise_are_refused_with_the_reason(session, tiny_encoder, data, option, words):
    with pytest.raises(DefinitionError, match=words):
        TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **option)


def test_a_quantized_model_is_not_trained(session, tiny_encoder, data):
    from datadreamer_like.quantization import DynamicInt8

    columns = data()
    dense = TrainHFClassifier("dense", str(tiny_encoder)).train(**columns, **{**QUICK, "epochs": 1})
    small = TrainedModel.save(DynamicInt8().apply(dense.model), dense.tokenizer, session.folder / "int8")
    assert small.num_parameters == dense.trained.num_parameters
    assert small.predict(["good", "awful"]).labels == dense.predict(["good", "awful"]).labels
    with pytest.raises(MethodMisfit, match="Train before quantizing"):
        TrainHFClassifier("again", small).train(**columns, **QUICK)


@pytest.mark.parametrize("adapter", [False, True])
def test_bfloat16_trains_in_mixed_precision_and_is_saved_so(session, tiny_encoder, data, adapter):
    from peft import LoraConfig

    options = {"peft_config": LoraConfig(r=4, target_modules=["query"])} if adapter else {}
    trainer = TrainHFClassifier("a", str(tiny_encoder), dtype="bfloat16", device="cpu", **options)
    trainer.train(**data(), **{**QUICK, "epochs": 1})
    assert trainer.model.dtype == torch.bfloat16
    assert np.isfinite(trainer.metrics["loss"])
    with pytest.raises(DefinitionError, match="float16 needs a GPU"):
        TrainHFClassifier("b", str(tiny_encoder), dtype="float16", device="cpu").train(**data(), **QUICK)


# What is passed on


def test_a_published_student_loads_from_the_hub_and_publishing_again_commits_nothing(
    session, tiny_encoder, data, hub_server, monkeypatch, tmp_path
):
    hub_server.connect(monkeypatch, tmp_path / "hf-home")
    trainer = TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **{**QUICK, "epochs": 1})
    trainer.publish_to_hf_hub("me/opinions", token=None)
    assert len(hub_server.commits("model", "me/opinions")) >= 1
    published = len(hub_server.commits("model", "me/opinions"))
    trainer.publish_to_hf_hub("me/opinions")
    assert len(hub_server.commits("model", "me/opinions")) == published
    loaded = AutoModelForSequenceClassification.from_pretrained("me/opinions")
    assert torch.equal(loaded.classifier.weight, trainer.model.classifier.weight)
    files = hub_server.files("model", "me/opinions")
    assert not any(str(tiny_encoder) in _text(content) for content in files.values())


def test_numbers_of_numpy_are_those_of_python():
    given = {
        "batch_size": np.int64(4),
        "max_length": np.int32(8),
        "learning_rate": np.float32(0.5),
        "seed": np.uint8(3),
    }
    training = Training.from_options(given)
    assert training == Training(batch_size=4, max_length=8, learning_rate=0.5, seed=3)
    assert {type(training.batch_size), type(training.max_length), type(training.seed)} == {int}
    for value in (np.float64(4.0), np.bool_(True)):
        with pytest.raises(ArgumentTypeError, match="batch_size must be a whole number"):
            Training.from_options({"batch_size": value})


def _text(content: Any) -> str:
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)


def test_a_script_that_was_started_in_several_processes_is_refused_before_it_hangs(
    session, tiny_encoder, data, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", None)
    with pytest.raises(DefinitionError, match="in 2 processes.*by accelerate launch or torchrun"):
        TrainHFClassifier("a", str(tiny_encoder)).train(**data(), **QUICK)
