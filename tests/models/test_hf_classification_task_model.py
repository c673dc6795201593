from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import tiny_models
import torch

from datadreamer_like import quantization, task_models
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit, PromptTooLong, UnknownModel
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.session import DataDreamer
from datadreamer_like.models import HFClassificationTaskModel, ParallelTaskModel, TrainedModel
from datadreamer_like.steps import DataSource, RunTaskModel

TEXTS = ["the cat sat", "a dog", "the the the cat ran", "", "the cat sat"]
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "neither"}, "label2id": {"cat": 0, "dog": 1, "neither": 2}}


def saved(folder: Path, **config: object) -> Path:
    tokenizer = tiny_models.word_pieces(["the cat sat", "a dog ran"], max_length=16)
    model = tiny_models.bert(tokenizer, **{"num_labels": 3, **LABELS, **config})
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5.0 if weight.dim() > 1 else 1.0)
    return tiny_models.save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("classifier"))


def by_hand(folder: Path, text: str) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].double()


def test_it_gives_the_probability_of_each_class(folder: Path) -> None:
    found = HFClassificationTaskModel(folder, device="cpu").run(TEXTS, batch_size=2)
    for text, each in zip(TEXTS, found, strict=True):
        assert list(each) == ["cat", "dog", "neither"]
        assert list(each.values()) == pytest.approx(by_hand(folder, text).softmax(-1).tolist(), abs=1e-5)


def test_of_a_multi_label_model_each_class_on_its_own(tmp_path: Path) -> None:
    folder = saved(tmp_path, problem_type="multi_label_classification")
    (found,) = HFClassificationTaskModel(folder, device="cpu").run(["the cat"])
    assert list(found.values()) == pytest.approx(by_hand(folder, "the cat").sigmoid().tolist(), abs=1e-5)


def test_results_are_kept_and_depend_on_the_model(folder: Path, tmp_path: Path) -> None:
    first = HFClassificationTaskModel(str(folder), device="cpu", cache_folder_path=tmp_path)
    expected = first.run(TEXTS)
    again = HFClassificationTaskModel(str(folder), cache_folder_path=tmp_path)
    assert again.run(TEXTS, cache_only=True) == expected
    other = saved(tmp_path / "other", seed=1)
    assert fingerprint(HFClassificationTaskModel(other)) != fingerprint(first)
    assert fingerprint(HFClassificationTaskModel(folder, dtype="bfloat16")) != fingerprint(first)
    assert pickle.loads(pickle.dumps(first)).run(TEXTS) == expected


def test_long_texts_fail_alone_or_are_cut(folder: Path) -> None:
    model = HFClassificationTaskModel(folder, device="cpu")
    assert model.model_max_length == 16
    long = "cat " * 40
    assert [type(each.error) for each in model.results(["a dog", long])] == [type(None), PromptTooLong]
    assert model.run([long], truncate=True)[0] is not None


def test_compressed_and_trained_models_are_read_as_predict_reads_them(folder: Path, tmp_path: Path) -> None:
    plain = TrainedModel.load(folder)
    small = quantization.AbsMax(bits=8).apply(plain.model)
    trained = TrainedModel.save(small, plain.tokenizer, tmp_path / "small")
    for given in (trained, tmp_path / "small"):
        model = HFClassificationTaskModel(given, device="cpu")
        found = model.run(TEXTS)
        expected = trained.predict(TEXTS).probabilities.tolist()
        assert [list(each.values()) for each in found] == [pytest.approx(row, abs=1e-6) for row in expected]
        assert model.model is model.trained.model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_an_adapter_changes_the_answers(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(folder)
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    adapted.save_pretrained(tmp_path)
    model = HFClassificationTaskModel(folder, device="cpu", adapter_name=tmp_path)
    with torch.no_grad():
        inputs = model.tokenizer("the cat sat", return_tensors="pt")
        expected = adapted.eval()(**inputs).logits[0].softmax(-1).tolist()
    (found,) = model.run(["the cat sat"])
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)
    assert found != HFClassificationTaskModel(folder, device="cpu").run(["the cat sat"])[0]
    assert str(tmp_path) in model.display_name


def test_what_is_no_classifier_is_refused(folder: Path, tiny_causal_lm: Path) -> None:
    with pytest.raises(MethodMisfit, match="is not a classifier"):
        HFClassificationTaskModel(tiny_causal_lm, device="cpu").run(["a"])
    with pytest.raises(UnknownModel):
        HFClassificationTaskModel("./nowhere")
    with pytest.raises(DefinitionError, match="without an adapter_name"):
        HFClassificationTaskModel(folder, adapter_kwargs={})
    with pytest.raises(DefinitionError, match="device cannot be"):
        HFClassificationTaskModel(folder, device="gpu!")


def test_two_of_them_are_one_model_and_a_step_takes_it(folder: Path, tmp_path: Path) -> None:
    one = HFClassificationTaskModel(folder, device="cpu")
    model = ParallelTaskModel(one, HFClassificationTaskModel(folder, device="cpu"))
    assert task_models.ParallelTaskModel is ParallelTaskModel
    assert fingerprint(model) == fingerprint(one)
    expected = one.run(TEXTS, batch_size=4)
    assert model.run(TEXTS, batch_size=4, force=True) == [pytest.approx(each, abs=1e-6) for each in expected]
    with DataDreamer(tmp_path / "out", verbose=False):
        rows = DataSource("Rows", data={"text": [*TEXTS, None]})
        made = RunTaskModel("Classes", inputs={"texts": rows.output["text"]}, args={"model": model})
    assert list(made.output["results"])[:5] == [pytest.approx(each, abs=1e-6) for each in expected]
    assert made.output["results"][5] is None
    with pytest.raises(DefinitionError, match="one model several times"):
        ParallelTaskModel(one, HFClassificationTaskModel(folder, dtype="float16"))
    with pytest.raises(ArgumentTypeError, match="takes TaskModels"):
        ParallelTaskModel(one, "m")  # type: ignore[arg-type]
