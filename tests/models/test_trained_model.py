"""TrainedModel: a folder that is a model, with where it came from."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    MethodMisfit,
    StorageError,
    UnknownModel,
)
from datadreamer_like.graph import Card
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.task_models.hf_classification_task_model import HFClassificationTaskModel
from datadreamer_like.models.trained.model_facts import count_parameters, model_max_length
from datadreamer_like.models.trained.model_node import as_trained_model
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.storage import exports

TEXTS = ["A parser.", "Reads and writes tables of numbers, quickly.", "x", "Sends mail over a network. " * 30]


@pytest.fixture(scope="module")
def classifier(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm_path, num_labels=3, id2label={0: "b", 1: "a", 2: "c"}, label2id={"b": 0, "a": 1, "c": 2}
    )
    parent = Card("rows", "step", "DataSource", datasets=["descriptions"])
    card = Card("student", "trainer", "TrainHFClassifier", metrics={"accuracy": 0.5}, parents=[parent])
    folder = tmp_path_factory.mktemp("classifier") / "model"
    return TrainedModel.save(model, AutoTokenizer.from_pretrained(minilm_path), folder, card)


def test_predictions_are_the_models_own_in_the_order_of_the_texts(classifier):
    said = classifier.predict(TEXTS, batch_size=2)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(classifier.path).eval(), classifier.tokenizer
    for index, text in enumerate(TEXTS):
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
            wanted = model(**inputs).logits.softmax(-1)[0].numpy()
        assert np.allclose(said.probabilities[index], wanted, atol=1e-5)
        assert said.labels[index] == ["b", "a", "c"][wanted.argmax()]
    assert len(classifier.predict([])) == 0


def test_logits_that_are_not_finite_are_refused_in_the_models_name(classifier, tmp_path):
    shutil.copytree(classifier.path, tmp_path / "model", ignore=shutil.ignore_patterns("card.json"))
    broken = TrainedModel.load(tmp_path / "model")
    with torch.no_grad():
        broken.model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"The outputs of TrainedModel\('.*model'\) for the text '.*' are NaN"):
        broken.predict(TEXTS)


def test_what_it_tells_of_itself(classifier):
    assert classifier.task == "text-classification"
    assert classifier.labels == ["b", "a", "c"]
    assert classifier.label2id == {"b": 0, "a": 1, "c": 2}
    assert classifier.num_parameters == sum(p.numel() for p in classifier.model.parameters())
    files = [file for file in Path(classifier.path).iterdir() if file.name != "card.json"]
    assert classifier.bytes_on_disk == sum(file.stat().st_size for file in files)
    assert not classifier.model.training


def test_the_card_and_its_lineage_come_from_the_folder(classifier):
    card = TrainedModel.load(classifier.path).card
    assert [node.name for node in card.lineage()] == ["rows", "student"]
    assert card.metrics == {"accuracy": 0.5}
    assert card.parents[0].datasets == ["descriptions"]


def test_an_export_in_the_home_folder_loads_by_the_same_path(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    classifier.export(to="~/copy")
    assert fingerprint(TrainedModel.load("~/copy")) == fingerprint(classifier)
    assert not Path("~").exists()


def test_the_fingerprint_is_that_of_the_files_wherever_they_lie_and_whenever_they_were_made(classifier, tmp_path):
    copied = TrainedModel(classifier.export(to=tmp_path / "copy"))
    assert fingerprint(copied) == fingerprint(classifier)
    config = Path(copied.path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_dropout_prob": 0.3}))
    assert fingerprint(TrainedModel(copied.path)) != fingerprint(classifier)


@pytest.mark.parametrize("change", ["a flipped byte", "cut off", "longer", "missing"])
def test_weights_that_are_not_those_that_were_saved_are_one_clear_error(classifier, tmp_path, change):
    folder = classifier.export(to=tmp_path / "copy")
    assert TrainedModel.load(folder).model is not None
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    size = len(content)
    if change == "a flipped byte":
        content[-5] ^= 1  # one bit of a weight: safetensors itself sees nothing
        says = "was changed after it was saved: its digest is [0-9a-f]{32}, and was [0-9a-f]{32}"
    elif change == "cut off":
        del content[-100:]
        says = f"was cut off after it was saved: it has {size - 100:,} bytes, and had {size:,}"
    elif change == "longer":
        content += b"x"
        says = f"was changed after it was saved: it has {size + 1:,} bytes, and had {size:,}"
    else:
        says = f"is missing since it was saved: it had {size:,} bytes"
    file.unlink()
    if change != "missing":
        file.write_bytes(content)
    uses = (
        lambda: TrainedModel.load(folder).predict(["a"]),
        lambda: TrainedModel.load(folder).export(to=tmp_path / "again"),
        lambda: HFClassificationTaskModel(str(folder)).model,
    )
    for use in uses:
        with pytest.raises(StorageError, match=rf"model\.safetensors {says}\. .*delete card\.json"):
            use()
    assert not (tmp_path / "again").exists()
    if change == "a flipped byte":  # a user who changed the file on purpose
        (folder / "card.json").unlink()
        assert TrainedModel.load(folder).model is not None


def test_dtype_and_unloading(classifier):
    half = TrainedModel.load(classifier.path, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert fingerprint(half) != fingerprint(TrainedModel.load(classifier.path))
    half.unload_model()
    assert "model" not in vars(half)
    sent = pickle.loads(pickle.dumps(half))
    assert sent.model.dtype == torch.bfloat16
    assert [node.name for node in sent.card.lineage()] == ["rows", "student"]


def test_a_language_model_is_told_from_a_classifier(tiny_causal_lm, tiny_seq2seq, minilm_path):
    assert TrainedModel(tiny_causal_lm).task == "text-generation"
    assert TrainedModel(tiny_seq2seq).task == "text2text-generation"
    assert TrainedModel(minilm_path).task == "feature-extraction"
    assert isinstance(TrainedModel(tiny_causal_lm).model, type(AutoModelForCausalLM.from_pretrained(tiny_causal_lm)))
    with pytest.raises(MethodMisfit, match="HFTransformers"):
        TrainedModel(tiny_causal_lm).predict(["x"])
    with pytest.raises(MethodMisfit, match="not a classifier"):
        _ = TrainedModel(tiny_causal_lm).labels


def test_exports_replace_exports_and_nothing_else(classifier, tmp_path):
    target = tmp_path / "export"
    classifier.export(to=target)
    (target / "old.bin").write_bytes(b"")
    classifier.export(to=target)
    assert not (target / "old.bin").exists()
    assert AutoModel.from_pretrained(target) is not None
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("keep")
    with pytest.raises(StorageError, match="not an earlier export"):
        classifier.export(to=other)
    assert (other / "notes.txt").read_text() == "keep"
    with pytest.raises(DefinitionError, match='Did you mean "safetensors"'):
        classifier.export("safetensor", to=target)
    with pytest.raises(DefinitionError, match="needs the folder"):
        classifier.export()


@pytest.mark.parametrize(("module", "name"), [(shutil, "copytree"), (os, "fsync"), (exports, "_put_in_place")])
def test_an_interrupted_export_leaves_the_earlier_one(module, name, classifier, tmp_path, monkeypatch):
    target = classifier.export(to=tmp_path / "export")
    (target / "old.bin").write_bytes(b"")
    before = {file.name: file.read_bytes() for file in target.iterdir()}

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            classifier.export(to=target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    (tmp_path / ".export-new").mkdir()  # left by a kill
    (tmp_path / ".export-new" / "partial.bin").write_bytes(b"")
    classifier.export(to=target)
    assert set(before) - {file.name for file in target.iterdir()} == {"old.bin"}
    assert not (target / "partial.bin").exists()


def test_a_folder_without_a_model_and_things_that_are_none_are_refused(tmp_path):
    with pytest.raises(StorageError, match=r"no config\.json"):
        TrainedModel.load(tmp_path)
    with pytest.raises(ArgumentTypeError, match="base is of type int"):
        as_trained_model(3, "base")


def test_weights_of_packed_layers_count_as_what_they_stand_for(classifier):
    class Packed(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("codes", torch.zeros(linear.weight.numel() // 2, dtype=torch.uint8))
            self.bias = linear.bias

    model: Any = AutoModelForSequenceClassification.from_pretrained(classifier.path)
    before = count_parameters(model)
    model.set_submodule("bert.pooler.dense", Packed(model.bert.pooler.dense))
    assert count_parameters(model) == before


def test_shared_weights_count_once(tiny_causal_lm):
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())


def test_the_longest_text_is_what_positions_and_tokenizer_allow(classifier, tiny_seq2seq, tiny_causal_lm):
    assert model_max_length(classifier.config, classifier.tokenizer) == 512
    assert model_max_length(TrainedModel(tiny_causal_lm).config, TrainedModel(tiny_causal_lm).tokenizer) == 128
    assert model_max_length(TrainedModel(tiny_seq2seq).config, TrainedModel(tiny_seq2seq).tokenizer) == 128


def test_loading_is_quiet(classifier, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        TrainedModel.load(classifier.path).predict(["x"])
    out, err = capfd.readouterr()
    assert out == err == ""
    assert "transformers" not in {record.name.partition(".")[0] for record in caplog.records}


def test_one_text_in_place_of_a_list_is_refused(classifier):
    with pytest.raises(ArgumentTypeError, match="texts is one text, 'A parser.'; it must be a list"):
        classifier.predict("A parser.")


def test_a_folder_that_is_no_model_is_called_one(tmp_path):
    with pytest.raises(UnknownModel, match="There is no model folder"):
        _ = TrainedModel(tmp_path / "typo").config
