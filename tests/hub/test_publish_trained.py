"""The code in the card of what trainers publish loads it, and it answers as the trainer's model does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny_models
import torch
import transformers
from hub_server import HubServer
from huggingface_hub import HfApi
from sentence_transformers import SentenceTransformer

from datadreamer_like import DataDreamer, trainers
from datadreamer_like.errors import DefinitionError, HubError, StorageError, UnknownModel
from datadreamer_like.models import TrainedModel
from datadreamer_like.models.trained.confidence import Confidence
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers.trainer import Trainer

# peft uses a name of transformers that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TEXTS = ["the cat sat on a mat", "the dog ran to a tree"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of an encoder and of a language model."""
    folder = tmp_path_factory.mktemp("bases")
    encoder = tiny_models.word_pieces(TEXTS, max_length=32)
    decoder = tiny_models.byte_pairs(TEXTS, 280, ["<s>", "</s>", "<pad>"], eos_token="</s>", pad_token="<pad>")
    made = {
        "me/encoder": (tiny_models.bert(encoder, transformers.BertModel), encoder),
        "me/decoder": (tiny_models.llama(decoder, num_key_value_heads=2, pad_token_id=None), decoder),
    }
    return {name: tiny_models.save(model, tokens, folder / name[3:]) for name, (model, tokens) in made.items()}


@pytest.fixture
def with_bases(hub: HubServer, bases: dict[str, Path]) -> HubServer:
    """The Hub with these two models."""
    for name, folder in bases.items():
        HfApi().create_repo(name)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    return hub


def trained(kind: str, base: Any, layers: int | None = None, **changed: Any) -> Trainer:
    """A trainer's result on its own example, far from the model that it started from."""
    trainer = getattr(trainers, kind)
    columns = {**trainer.example(), "learning_rate": 0.05, **changed}
    if kind == "TrainLinearClassifier":
        del columns["learning_rate"]
    for name, value in columns.items():
        if isinstance(value, list):
            columns[name] = DataSource(f"{kind} {name}", data={"value": value}).output["value"]
    given = () if kind == "TrainLinearClassifier" else (base,)
    options: dict[str, Any] = {"peft_config": peft.LoraConfig(r=4, target_modules="all-linear")} if given else {}
    if layers is not None:
        options["layers"] = layers
    made: Trainer = trainer(kind, *given, **options).train(**columns)
    return made


def loaded_by_card(hub: HubServer, name: str, branch: str = "main") -> dict[str, Any]:
    """What the code in a card makes, by the names of its variables."""
    return loaded_as_said(hub.readme("model", name, branch))


def loaded_as_said(readme: str) -> dict[str, Any]:
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    made: dict[str, Any] = {}
    exec(code[1], made)
    return made


@pytest.mark.parametrize(
    ("kind", "base", "changed"),
    [
        ("TrainHFClassifier", "me/encoder", {"train_output": ["cat", "dog", "fox", "cat"]}),
        ("TrainHFTokenClassifier", "me/encoder", {}),
        ("TrainHFFineTune", "me/decoder", {}),
        ("TrainHFRewardModel", "me/decoder", {}),
    ],
)
def test_an_adapter_is_loaded_on_its_base_as_its_card_says(with_bases, tmp_path, monkeypatch, kind, base, changed):
    with DataDreamer(tmp_path / "session", verbose=False):
        trainer = trained(kind, base, **changed)
        trainer.publish_to_hf_hub("me/adapter", branch="tried", adapter_only=True)
        alone = trainer.export_to_disk(tmp_path / "alone", adapter_only=True)
    monkeypatch.chdir(alone)
    for made in (loaded_by_card(with_bases, "me/adapter", "tried"), loaded_as_said(Path("README.md").read_text())):
        batch = made["tokenizer"](TEXTS[0], return_tensors="pt")
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = made["model"](**batch).logits, trainer.model(**batch).logits
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
        assert made["model"].config.id2label == trainer.trained.config.id2label
        assert made["tokenizer"].chat_template == trainer.tokenizer.chat_template
    with pytest.raises(UnknownModel, match=rf"^{alone} holds only an adapter, which was trained on {base}, and"):
        _ = TrainedModel(alone).labels
    for inside in (f"{trainer.path}/../adapter", Path(trainer.path).parent / "adapter"):
        with pytest.raises(StorageError, match=r"The model that it is merged into is in .*/model\."):
            TrainedModel.load(inside)


def test_an_adapter_of_an_embedder_is_one_of_the_model_inside(with_bases, bases, tmp_path, monkeypatch):
    with DataDreamer(tmp_path / "session", verbose=False):
        trainer = trained("TrainSentenceTransformer", "me/encoder")
        trainer.publish_to_hf_hub("me/adapter", adapter_only=True)
        wanted = trainer.model.encode(TEXTS)
        alone = trainer.export_to_disk(tmp_path / "alone", adapter_only=True)
    code = with_bases.readme("model", "me/adapter")
    assert """SentenceTransformer("me/encoder", model_kwargs={'dtype': 'float32'})""" in code
    assert 'model.load_adapter("me/adapter")' in code
    with pytest.raises(UnknownModel, match=r"^me/adapter holds only an adapter, .*d\(model, 'me/adapter'"):
        _ = TrainedModel("me/adapter").config
    student = SentenceTransformer(str(bases["me/encoder"]), device="cpu")
    student.load_adapter(str(alone))
    monkeypatch.chdir(alone)
    as_said = loaded_as_said(Path("README.md").read_text())["model"].encode(TEXTS)
    np.testing.assert_allclose(as_said, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(student.encode(TEXTS), wanted, rtol=1e-4, atol=1e-5)
    inside = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(bases["me/encoder"]), alone).eval()
    batch = trainer.tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        states = inside(**batch).last_hidden_state, trainer.trained.model(**batch).last_hidden_state
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_an_adapter_whose_base_others_do_not_have_is_not_passed_on_alone(with_bases, tmp_path):
    with DataDreamer(tmp_path / "session", verbose=False):
        first = trainers.TrainHFFineTune("First", "me/decoder")
        columns = {**trainers.TrainHFFineTune.example(), "learning_rate": 0.05, "epochs": 1}
        for name, value in columns.items():
            if isinstance(value, list):
                columns[name] = DataSource(name, data={"value": value}).output["value"]
        first.train(**columns)
        second = trained("TrainHFFineTune", first, epochs=1)
        cut = trained("TrainSentenceTransformer", "me/encoder", epochs=1, layers=1)
        with pytest.raises(
            HubError, match=r'"TrainHFFineTune": the adapter was trained on .*First.* Publish that model'
        ):
            second.publish_to_hf_hub("me/second", adapter_only=True)
        for pass_on in (cut.publish_to_hf_hub, cut.export_to_disk):
            with pytest.raises(DefinitionError, match=r"trained on layers=1 of me/encoder, and is wrong on the whole"):
                pass_on("me/cut", adapter_only=True)
        said = (Path(cut.path).parent / "adapter" / "README.md").read_text()
        assert "as it was loaded for the training" in said
        assert "```" not in said
    assert not HfApi().repo_exists("me/second")
    assert not HfApi().repo_exists("me/cut")


def test_a_model_that_only_this_package_runs_is_loaded_with_it(hub, bases, tmp_path):
    with DataDreamer(tmp_path / "session", verbose=False):
        linear = trained("TrainLinearClassifier", "")
        linear.publish_to_hf_hub("me/linear", branch="tried")
        sure = trained("TrainHFClassifier", str(bases["me/encoder"]))
        fitted = shutil.copytree(sure.path, tmp_path / "fitted")
        Confidence(temperature=7.0).write(fitted)
        calibrated = TrainedModel.load(fitted)
        calibrated.publish_to_hf_hub("me/calibrated")
    for name, branch, own in (("me/linear", "tried", linear), ("me/calibrated", "main", calibrated)):
        found = loaded_by_card(hub, name, branch)["model"].predict(TEXTS)
        np.testing.assert_array_equal(found.probabilities, own.predict(TEXTS).probabilities)
    assert "onnx" not in hub.readme("model", "me/linear", "tried")


def test_the_base_of_an_adapter_is_loaded_as_it_was_trained_on(with_bases, tmp_path):
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 100.0}
    quantized = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with DataDreamer(tmp_path / "session", verbose=False):
        columns = {
            name: DataSource(name, data={"value": value}).output["value"] if isinstance(value, list) else value
            for name, value in trainers.TrainHFFineTune.example().items()
        }
        adapter = peft.LoraConfig(r=4, target_modules="all-linear")
        for number, options in enumerate(({"rope_parameters": rope}, {"quantization_config": quantized})):
            trainer = trainers.TrainHFFineTune(f"Own {number}", "me/decoder", peft_config=adapter, **options)
            trainer.train(**columns)
            (fact,) = json.loads(trainer.card.text())[f"Own {number}"]["Base Model of the Adapter"]
            assert ("'factor': 8.0" if number == 0 else "'load_in_4bit': True") in fact
            trainer.publish_to_hf_hub("me/adapter", adapter_only=True)
            made = loaded_by_card(with_bases, "me/adapter")
            layer = made["base"].model.layers[0].mlp.up_proj
            assert ("Linear4bit" in str(layer)) == (number == 1)
            ids = made["tokenizer"](TEXTS[0] + " " + TEXTS[1], return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = made["model"](input_ids=ids).logits, trainer.model(input_ids=ids).logits
            within = (1e-3, 1e-2)[number]  # bitsandbytes computes with codes in bf16 on some processors
            torch.testing.assert_close(*logits, rtol=within, atol=within)
