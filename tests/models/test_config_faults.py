"""A `config.json` edited by hand: one error that names the file and the key, and nothing wrong is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers

from datadreamer_like.errors import DataDreamerError, DataError, StorageError
from datadreamer_like.graph import Card
from datadreamer_like.models import TrainedModel
from datadreamer_like.quantization import NF4


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_models.word_pieces(["the cat sat on the mat"])
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    return tiny_models.save(tiny_models.bert(tokenizer, **names), tokenizer, tmp_path_factory.mktemp("saved") / "model")


def edited(saved: Path, folder: Path, **changes: Any) -> TrainedModel:
    """A copy with other values in its config; None takes a key out."""
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if key not in changes or value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return TrainedModel.load(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "bertt"}, r'"model_type" is \'bertt\', an architecture .* Did you mean "bert"'),
        ({"model_type": None}, '"model_type" is missing'),
        ({"hidden_size": 64}, r'"hidden_size" is 64: bert.embeddings.* is then \[.*, 64\], and the weights .*, 32\]'),
        ({"hidden_size": None}, '"hidden_size" is 768, by default as it is missing'),
        ({"hidden_size": 33}, '"hidden_size" is 33, with which transformers makes no model'),
        ({"hidden_size": "32"}, "\"hidden_size\" is '32', .* expected int"),
        ({"vocab_size": 10}, '"vocab_size" is 10: bert.embeddings.word_embeddings.weight'),
        ({"id2label": None}, '"num_labels" is 2, by default as it is missing: classifier.weight'),
        ({"num_attention_heads": 0}, '"num_attention_heads" is 0, with which'),
        ({"hidden_act": "gelux"}, "\"hidden_act\" is 'gelux'"),
        ({"dtype": "float99"}, "\"dtype\" is 'float99'"),
        ({"num_hidden_layers": 1}, "states 1 layers .* the files hold more, such as bert.encoder.layer.1"),
        ({"num_hidden_layers": 3}, "states 3 layers .* lack 16 of their weights, such as bert.encoder.layer.2"),
    ],
    ids=str,
)
def test_an_edited_config_is_refused_by_file_and_key(saved: Path, tmp_path: Path, changes: dict[str, Any], says: str):
    with pytest.raises((DataError, StorageError), match=f"config.json.*{says}"):
        _ = edited(saved, tmp_path / "edited", **changes).model


def test_so_is_that_of_a_quantized_model(saved: Path, tmp_path: Path):
    source = TrainedModel.load(saved)
    TrainedModel.save(NF4().apply(source.model), source.tokenizer, tmp_path / "small")
    with pytest.raises(DataDreamerError, match=r'config\.json: "hidden_size" is 64'):
        _ = edited(tmp_path / "small", tmp_path / "edited", hidden_size=64).model


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_attention_heads": 2}, '"num_attention_heads" was 4 when the model was saved, and is 2 now'),
        ({"layer_norm_eps": 1e-3}, '"layer_norm_eps" was 1e-12 when'),
        ({"id2label": {"0": "b", "1": "a", "2": "c"}}, '"id2label" was {"0": "a"'),
        ({"id2label": {"0": "new", "1": "a", "2": "c"}}, '"id2label" was {"0": "a"'),
        ({"label2id": {"b": 0, "a": 1, "c": 2}}, '"label2id" was {"a": 0'),
        ({"intermediate_size": None}, '"intermediate_size" was 64 when the model was saved, and is missing now'),
        ({"position_embedding_type": "relative_key"}, '"position_embedding_type" was missing when'),
        ({"dtype": "bfloat16"}, '"dtype" was "float32" when'),
        ({"hidden_size": 64}, '"hidden_size" was 32'),
    ],
    ids=str,
)
@pytest.mark.parametrize("small", [False, True])
def test_a_saved_model_whose_config_was_edited_is_refused(
    saved: Path, tmp_path: Path, changes: dict[str, Any], says: str, small: bool
):
    source = TrainedModel.load(saved)
    model = NF4().apply(source.model) if small else source.model
    TrainedModel.save(model, source.tokenizer, tmp_path / "saved", Card("Model", "trainer", "TrainHFClassifier"))
    with pytest.raises(StorageError, match=r"config\.json: " + says):
        _ = edited(tmp_path / "saved", tmp_path / "edited", **changes).model


HARMLESS: list[dict[str, Any]] = [
    {"_name_or_path": "elsewhere", "transformers_version": "9"},
    {"use_cache": False, "_attn_implementation_autoset": True},
    {"position_embedding_type": "absolute", "hidden_dropout_prob": 0.1, "output_attentions": False},
    {"hidden_act": None},
    {"dtype": None, "torch_dtype": "float32"},
    {"id2label": {"0": "good", "1": "b", "2": "poor"}, "label2id": {"good": 0, "b": 1, "poor": 2}},
]


@pytest.mark.parametrize("changes", HARMLESS, ids=str)
def test_an_edit_that_changes_no_answer_is_taken(saved: Path, tmp_path: Path, changes: dict[str, Any]):
    source = TrainedModel.load(saved)
    before = TrainedModel.save(source.model, source.tokenizer, tmp_path / "saved", Card("Model", "trainer", "Trainer"))
    after = edited(tmp_path / "saved", tmp_path / "edited", **changes)
    assert (after.logits(["the cat", "the mat"]) == before.logits(["the cat", "the mat"])).all()
    assert after.labels == list(changes.get("id2label", before.config.id2label).values())


@pytest.mark.parametrize(
    ("kind", "old", "new", "taken"),
    [
        (transformers.LlamaForCausalLM, 0, 2, True),
        (transformers.LlamaForCausalLM, 0, None, True),
        (transformers.LlamaForSequenceClassification, None, 2, True),
        (transformers.LlamaForSequenceClassification, 0, 2, False),
    ],
)
def test_padding_counts_where_the_last_token_of_a_text_is_found_by_it(tmp_path, kind, old, new, taken):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = kind(transformers.LlamaConfig(**sizes, vocab_size=20, pad_token_id=old))
    TrainedModel.save(model, None, tmp_path / "saved", Card("Model", "trainer", "Trainer"))
    config = json.loads((tmp_path / "saved" / "config.json").read_text()) | {"pad_token_id": new}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    if taken:
        assert TrainedModel.load(tmp_path / "saved").model.config.pad_token_id == new
        return
    with pytest.raises(StorageError, match='"pad_token_id" was 0 when the model was saved, and is 2 now'):
        _ = TrainedModel.load(tmp_path / "saved").model


def test_a_config_that_is_no_object_is_refused(saved: Path, tmp_path: Path):
    shutil.copytree(saved, tmp_path / "list")
    (tmp_path / "list" / "config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"config\.json holds a list"):
        _ = TrainedModel.load(tmp_path / "list").config


def test_an_untouched_config_loads_the_same_model(saved: Path, tmp_path: Path):
    again, before = edited(saved, tmp_path / "copy").model, TrainedModel.load(saved).model
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in before.state_dict().items())
