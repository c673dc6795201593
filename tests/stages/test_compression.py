"""A stage's result is a model like any other: smaller, found again, loaded anywhere, its origin known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
from warm import printed_by

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    LabelError,
    MethodMisfit,
    NotTrained,
    SessionError,
    UnknownModel,
)
from datadreamer_like.formats import layouts
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Heads, Layers, Magnitude, Vocabulary, Wanda, Width
from datadreamer_like.quantization import DynamicInt8
from datadreamer_like.stages import Prune, Quantize
from datadreamer_like.steps.sources.data_source import DataSource
from datadreamer_like.trainers import TrainHFClassifier

from .conftest import rows

Column = Callable[[str], Any]


def _state(folder: str | Path) -> dict[str, torch.Tensor]:
    return dict(BertForSequenceClassification.from_pretrained(folder).state_dict())


@pytest.mark.parametrize("method", [Heads(sparsity=0.5), Wanda(pattern=(2, 4))])
def test_result_is_what_the_method_alone_gives(session: DataDreamer, good: Path, column: Column, method: Any):
    model = TrainedModel(good)
    texts, labels = rows(100, 7)
    batch = dict(model.tokenizer(texts, return_tensors="pt", padding=True))
    batch["labels"] = torch.tensor([model.label2id[label] for label in labels])
    batch.pop("token_type_ids", None)
    expected = method.apply(model.model, [batch])
    slim = Prune("Slim", good, method, column("text"), column("label"), batch_size=100)
    assert slim.model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(slim.model.state_dict()[name], tensor)


def test_the_model_that_was_given_stays_as_it_is(session: DataDreamer, good: Path):
    before, model = _state(good), TrainedModel(good)
    held = model.model
    Prune("Slim", model, Magnitude(sparsity=0.9))
    assert model.model is held
    for name, tensor in before.items():
        assert torch.equal(model.model.state_dict()[name], tensor)
        assert torch.equal(_state(good)[name], tensor)


def test_memory_of_a_model_that_was_not_in_use_is_freed(session: DataDreamer, good: Path):
    model = TrainedModel(good)
    Prune("Slim", model, Magnitude(sparsity=0.9))
    assert "model" not in vars(model)


def test_chain_gives_the_same_answers_in_a_fresh_process_by_both_roads(
    session: DataDreamer, good: Path, column: Column, tmp_path: Path
):
    slim = Prune("Fewer heads", good, Heads(sparsity=0.5), column("text"))
    sparse = Prune("Fewer weights", slim, Magnitude(sparsity=0.5))
    small = Quantize("8 bit", sparse, DynamicInt8())
    sizes = [model.bytes_on_disk for model in (TrainedModel(good), slim.trained, sparse.trained, small.trained)]
    assert sizes == sorted(sizes, reverse=True)
    assert small.trained.num_parameters == slim.trained.num_parameters < TrainedModel(good).num_parameters
    texts, _ = rows(8, 11)
    exported = small.export(to=tmp_path / "student")
    # transformers' road comes first: nothing but the one import of ours may be needed for it.
    code = (
        "import sys, json, torch, datadreamer_like.quantization\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "texts, exported, saved = json.loads(sys.argv[1]), *sys.argv[2:]\n"
        "model = AutoModelForSequenceClassification.from_pretrained(exported).eval()\n"
        "batch = AutoTokenizer.from_pretrained(exported)(texts, padding=True, return_tensors='pt')\n"
        "with torch.no_grad(): by_auto = model(**batch).logits.tolist()\n"
        "from datadreamer_like.models.trained.trained_model import TrainedModel\n"
        "print(json.dumps([by_auto, TrainedModel.load(saved).logits(texts).tolist()]))"
    )
    expected = torch.from_numpy(small.trained.logits(texts))
    for found in json.loads(printed_by(code, json.dumps(texts), str(exported), small.path, plain=True)):
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)


def test_trimmed_vocabulary_takes_its_tokenizer_along(session: DataDreamer, good: Path, column: Column):
    slim = Prune("Fewer words", good, Vocabulary(), column("text"))
    texts, _ = rows(100, 7)
    before = TrainedModel(good)
    assert len(slim.tokenizer) < len(before.tokenizer)
    assert slim.model.get_input_embeddings().weight.shape[0] == len(slim.tokenizer)
    torch.testing.assert_close(slim.trained.logits(texts), before.logits(texts), rtol=1e-5, atol=1e-5)


def test_layers_are_measured_on_the_calibration_texts(session: DataDreamer, good: Path, column: Column):
    slim = Prune("One layer", good, Layers(keep=1), column("text"), batch_size=7)
    assert slim.model.config.num_hidden_layers == 1
    assert slim.usage.rows == slim.usage.total_rows == 100


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Heads(sparsity=0.5), "its layers will have different widths"),
        (Width(heads=2, loadable="here"), "its config cannot state its sizes"),
        (Width(intermediate=37, loadable="here"), None),
        (Layers(keep=1), None),
    ],
)
def test_a_result_that_only_loads_here_is_announced(
    session: DataDreamer, good: Path, column: Column, caplog: pytest.LogCaptureFixture, method: Any, said: str | None
) -> None:
    with caplog.at_level("INFO", "datadreamer_like"):
        slim = Prune("Slim", good, method, column("text"))
    assert ("so it loads in transformers after" in caplog.text) == bool(said) == bool(layouts(slim.model))
    assert said is None or f"Slim: {said}, so it loads" in caplog.text


def test_card_says_what_was_done_and_from_what(session: DataDreamer, good: Path, column: Column):
    slim = Prune("Fewer heads", good, Heads(sparsity=0.5), column("text"))
    sparse = Prune("Fewer weights", slim, Magnitude(sparsity=0.5))
    before = TrainedModel(good)
    assert slim.card.base_model == str(good)
    assert slim.card.facts["Method"] == "Heads(sparsity=0.5, step=0.1, at_least=0)"
    counts = [sum(p.numel() for p in model.parameters()) for model in (before.model, slim.model)]
    assert slim.card.facts["Parameters"] == f"{counts[0]:,} → {counts[1]:,}"
    assert slim.card.facts["Bytes on disk"] == f"{before.bytes_on_disk:,} → {slim.trained.bytes_on_disk:,}"
    assert any("arXiv:1905.10650" in citation for citation in slim.card.citations)
    left = sum(int((p != 0).sum()) for p in sparse.model.parameters())
    assert sparse.card.facts["Non-zero parameters"] == f"{counts[1]:,} → {left:,}"
    assert [card.name for card in sparse.card.lineage()] == ["Held out", "Fewer heads", "Fewer weights"]
    saved = TrainedModel.load(sparse.path).card
    assert [card.name for card in saved.lineage()] == ["Held out", "Fewer heads", "Fewer weights"]
    assert saved.facts == sparse.card.facts


def test_rerun_finds_the_result_and_a_changed_option_says_so(
    tmp_path: Path, good: Path, caplog: pytest.LogCaptureFixture
):
    made = []
    for sparsity in (0.5, 0.5, 0.6, 0.5):
        with DataDreamer(tmp_path / "out"), caplog.at_level("INFO", "datadreamer_like"):
            model = TrainedModel(good)
            slim = Prune("Slim", model, Magnitude(sparsity=sparsity))
            made.append((slim.card.created, slim.card.seconds, slim.fingerprint))
            assert "model" not in vars(model)
    assert made[0] == made[1] == made[3] != made[2]
    assert 'rerunning "Slim": method sparsity changed' in caplog.text
    assert caplog.text.count("Slim: found finished") == 2


def test_calibration_texts_decide_the_result_and_unused_options_do_not(tmp_path: Path, good: Path):
    prints = []
    for count, batch_size in ((20, 8), (20, 16), (30, 16)):
        with DataDreamer(":memory:", verbose=False):
            data = DataSource("Rows", data={"text": rows(count, 7)[0]})
            with_data = Prune("A", good, Heads(sparsity=0.5, step=0.5), data.output["text"], batch_size=batch_size)
            without = Prune("B", good, Magnitude(sparsity=0.5), batch_size=batch_size)
            prints.append((with_data.fingerprint, without.fingerprint))
    assert len({with_data for with_data, _ in prints}) == 3
    assert len({without for _, without in prints}) == 1


def test_pruned_model_can_be_trained_on_and_keeps_its_zeros_and_shape(session: DataDreamer, good: Path, column: Column):
    slim = Prune("Fewer heads", good, Heads(sparsity=0.5), column("text"))
    sparse = Prune("Fewer weights", slim, Magnitude(sparsity=0.5))
    data = {
        "train_input": column("text"), "train_output": column("label"),
        "validation_input": column("text"), "validation_output": column("label"),
    }  # fmt: skip
    options = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}
    trainer = TrainHFClassifier("Trained on", model_name=sparse)
    trainer.train(**data, **options)
    again = Prune("Retrained", slim, Magnitude(sparsity=0.5), retrain={**data, **options})
    before = dict(sparse.model.named_parameters())
    for model in (trainer.model, again.model):
        moved = 0
        for name, parameter in model.named_parameters():
            assert parameter.shape == before[name].shape
            moved += int((parameter != before[name]).sum())
            if "LayerNorm" not in name and "bias" not in name and "embeddings" not in name:
                assert torch.equal(parameter == 0, before[name] == 0)
        assert moved > 1000
    assert again.metrics["accuracy"] == trainer.metrics["accuracy"]
    assert again.trained.labels == TrainedModel(good).labels


def test_teacher_of_the_retraining_is_in_the_lineage(session: DataDreamer, good: Path, poor: Path):
    texts, labels = rows(12, 7)
    held_out = DataSource("Few", data={"text": texts, "label": labels}).output
    data = {
        "train_input": held_out["text"], "train_output": held_out["label"],
        "validation_input": held_out["text"], "validation_output": held_out["label"],
    }  # fmt: skip
    teacher = Quantize("Teacher", good, DynamicInt8())
    for name, objective in (("By a stage", SoftTargets(teacher)), ("By a folder", SoftTargets(TrainedModel(poor)))):
        slim = Prune(name, good, Magnitude(sparsity=0.5), retrain={**data, "objective": objective, "epochs": 1})
        by_stage = objective.teacher is teacher
        lineage = [card.name for card in slim.card.lineage()]
        assert lineage == (["Few", "Teacher", name] if by_stage else ["Few", name])
        assert set(slim.card.models) == ({str(good)} if by_stage else {str(good), str(poor)})
    untrained = SoftTargets(TrainHFClassifier("Student", model_name=str(good)))
    with pytest.raises(NotTrained, match="Student"):
        Prune("Slim", good, Magnitude(sparsity=0.5), retrain={**data, "objective": untrained})


def test_retraining_is_checked_before_pruning(session: DataDreamer, good: Path, column: Column):
    data = {"train_input": column("text"), "train_output": column("label")}
    with pytest.raises(DefinitionError, match="retrain lacks validation_input, validation_output"):
        Prune("Slim", good, Magnitude(sparsity=0.5), retrain=data)
    data |= {"validation_input": column("text"), "validation_output": column("label")}
    with pytest.raises(DefinitionError, match='retrain has no option "epoch"'):
        Prune("Slim", good, Magnitude(sparsity=0.5), retrain={**data, "epoch": 1})


def test_stage_is_taken_wherever_a_model_is(session: DataDreamer, good: Path, tmp_path: Path):
    slim = Prune("Slim", good, Magnitude(sparsity=0.5))
    small = Quantize("8 bit", slim, DynamicInt8())
    assert (
        small.predict(["the cat was very old"]).labels == slim.predict(["the cat was very old"]).labels == ["animals"]
    )
    assert TrainedModel.load(small.folder or "").labels == small.trained.labels
    exported = slim.export(to=tmp_path / "slim")
    again = Prune("Again", exported, Magnitude(sparsity=0.5))
    assert again.card.models == [str(exported)]
    assert AutoModelForSequenceClassification.from_pretrained(exported).config.id2label == slim.model.config.id2label


def test_misfit_is_refused_before_work_and_leaves_nothing(session: DataDreamer, good: Path, column: Column):
    with pytest.raises(MethodMisfit, match='"Slim": Layers.* does not fit BertForSequenceClassification'):
        Prune("Slim", good, Layers(keep=9), column("text"))
    assert session.folder.exists()
    assert not (session.folder / "slim").exists()
    small = Quantize("8 bit", good, DynamicInt8())
    with pytest.raises(MethodMisfit, match='"Twice"'):
        Quantize("Twice", small, DynamicInt8())


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"method": DynamicInt8()}, ArgumentTypeError, "takes a method of datadreamer_like.pruning"),
        ({"method": Magnitude}, ArgumentTypeError, "Create an instance of it"),
        ({"method": Heads(sparsity=0.5)}, DefinitionError, "measures the model on data"),
        ({"method": Magnitude(sparsity=0.5), "model": 3}, ArgumentTypeError, '"Slim": model is of type int'),
        (
            {"method": Magnitude(sparsity=0.5), "calibration": ["a"]},
            ArgumentTypeError,
            '"Slim": calibration is of type',
        ),
        ({"method": Magnitude(sparsity=0.5), "batch_size": 0}, DefinitionError, "batch_size is 0"),
        ({"method": Magnitude(sparsity=0.5), "max_length": 0}, DefinitionError, "max_length is 0"),
        ({"method": Magnitude(sparsity=0.5), "max_length": "64"}, ArgumentTypeError, "max_length must be a whole"),
    ],
)
def test_wrong_arguments_are_refused(
    session: DataDreamer, good: Path, arguments: dict[str, Any], error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        Prune("Slim", **{"model": good, **arguments})


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ({"text": ["a", None], "label": ["food", "food"]}, DataError, "calibration.*None in row 1"),
        ({"text": [1], "label": ["food"]}, ArgumentTypeError, "calibration must contain texts"),
        ({"text": ["a", "b"], "label": ["food", "fod"]}, LabelError, '"fod" in row 1.*"food"'),
    ],
)
@pytest.mark.parametrize("with_labels", [False, True])
def test_bad_calibration_rows_are_named(
    session: DataDreamer, good: Path, data: dict[str, Any], error: type[Exception], says: str, with_labels: bool
):
    step = DataSource("Rows", data=data)
    labels = step.output["label"] if with_labels or error is LabelError else None
    with pytest.raises(error, match=says):
        Prune("Slim", good, Heads(sparsity=0.5), step.output["text"], labels)


def test_calibration_without_rows_is_refused(session: DataDreamer, good: Path):
    none = DataSource("Rows", data={"text": ["a"]}).filter(lambda row: False, lazy=False).output["text"]
    for method in (Heads(sparsity=0.5), Vocabulary()):
        with pytest.raises(EmptyDataset, match="no rows"):
            Prune("Slim", good, method, none)


def test_untrained_trainer_is_refused(session: DataDreamer, good: Path):
    with pytest.raises(NotTrained, match="Student"):
        Prune("Slim", TrainHFClassifier("Student", model_name=str(good)), Magnitude(sparsity=0.5))


def test_outside_a_session_it_says_where_it_belongs(good: Path):
    for stage, method in ((Prune, Magnitude(sparsity=0.5)), (Quantize, DynamicInt8())):
        with pytest.raises(SessionError, match=r"with DataDreamer\(folder\)"):
            stage("Slim", good, method)


def test_language_model_is_calibrated_on_its_own_input(session: DataDreamer, tiny_causal_lm: Path):
    data = DataSource("Rows", data={"text": ["The cat sat on the warm mat.", "A dog ran after the red ball."]})
    slim = Prune("Slim", tiny_causal_lm, Heads(sparsity=0.5), data.output["text"])
    assert sum(p.numel() for p in slim.model.parameters()) < sum(
        p.numel() for p in TrainedModel(tiny_causal_lm).model.parameters()
    )
    assert slim.trained.task == "text-generation"


def test_encoder_decoder_is_calibrated_on_its_own_input(session: DataDreamer, tiny_seq2seq: Path):
    texts = ["The cat sat on the warm mat.", "A dog ran."]
    model = TrainedModel(tiny_seq2seq)
    batch = dict(model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = Wanda(0.5).apply(model.model, [batch])
    slim = Prune("Slim", tiny_seq2seq, Wanda(0.5), DataSource("Rows", data={"text": texts}).output["text"])
    for name, tensor in expected.state_dict().items():
        assert torch.equal(slim.model.state_dict()[name], tensor)


def test_a_model_folder_that_does_not_exist_is_refused_at_once(session: DataDreamer, tmp_path: Path):
    for stage, method in ((Prune, Magnitude(sparsity=0.5)), (Quantize, DynamicInt8())):
        with pytest.raises(UnknownModel, match="There is no model folder"):
            stage("Slim", tmp_path / "none", method)
