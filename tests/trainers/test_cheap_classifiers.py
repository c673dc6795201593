"""Classifiers on static embeddings, a frozen encoder and word counts: as any other trained model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer
from warm import CONTEXT, printed_by

from datadreamer_like import DataDreamer, pruning, quantization
from datadreamer_like.distillation import HardTargets, HiddenStates, SoftTargets
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    LabelError,
    MethodMisfit,
    StorageError,
)
from datadreamer_like.formats.classifiers.embedding import EmbeddingForSequenceClassification
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.stages import Compare, Prune, Quantize
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainLinearClassifier,
    TrainSentenceTransformer,
    TrainStaticClassifier,
)
from datadreamer_like.trainers.training import logistic

from .conftest import Rows, opinions

KINDS = [TrainStaticClassifier, TrainEmbeddingClassifier, TrainLinearClassifier]
TEXTS = [*opinions(24, seed=5)["text"], "", "  ", "unseen wörds only", "good " * 100]


def make(kind: Any, name: str, encoder: Any, **options: Any) -> Any:
    if kind is TrainLinearClassifier:
        return kind(name, **options)
    return kind(name, encoder, **({"dimensions": 16} if kind is TrainStaticClassifier else {}), **options)


def options_of(kind: Any) -> dict[str, Any]:
    return {"epochs": 8, "batch_size": 16, "learning_rate": 3e-2} if kind is TrainStaticClassifier else {}


@pytest.fixture(scope="module")
def trained(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The three classifiers, trained on labels."""
    with DataDreamer(tmp_path_factory.mktemp("trained"), verbose=False):
        rows, other = Rows("Train rows", opinions(96)).output, Rows("Validation rows", opinions(32, seed=1)).output
        columns = rows["text"], rows["label"], other["text"], other["label"]
        return {kind: make(kind, kind.__name__, tiny_encoder).train(*columns, **options_of(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_states_its_metrics(trained, kind):
    test = opinions(64, seed=2)
    predicted = trained[kind].predict(test["text"])
    accuracy = np.mean([label == wanted for label, wanted in zip(predicted.labels, test["label"], strict=True)])
    assert accuracy > 0.8
    assert predicted.classes == ["negative", "positive"]
    assert trained[kind].metrics["accuracy"] > 0.8


def test_saved_models_predict_the_same_in_a_fresh_process(trained, tmp_path):
    script = (
        "import json, sys\n"
        "from datadreamer_like import TrainedModel\n"
        "texts = json.loads(sys.argv[1])\n"
        "print(json.dumps([TrainedModel.load(f).predict(texts).probabilities.tolist() for f in sys.argv[2:]]))\n"
    )
    folders = [str(trained[kind].export(to=tmp_path / kind.__name__)) for kind in KINDS]
    found = json.loads(printed_by(script, json.dumps(TEXTS), *folders))
    for kind, probabilities in zip(KINDS, found, strict=True):
        assert probabilities == trained[kind].predict(TEXTS).probabilities.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_change_predictions(trained, kind):
    whole = trained[kind].predict(TEXTS, batch_size=64).probabilities
    single = trained[kind].predict(TEXTS, batch_size=1).probabilities
    np.testing.assert_allclose(whole, single, atol=1e-5)


def test_a_static_model_gives_tokens_the_logits_that_it_gives_texts(trained):
    model = trained[TrainStaticClassifier].trained
    texts = [text for text in TEXTS if text.strip()]
    batch = model.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    np.testing.assert_allclose(model.logits(texts), logits, atol=1e-5)


def test_a_static_model_has_the_words_of_its_rows_and_special_tokens_only(trained, tiny_encoder):
    tokens = set(trained[TrainStaticClassifier].tokenizer.get_vocab())
    known = set(AutoTokenizer.from_pretrained(tiny_encoder).get_vocab())
    seen = {word for text in opinions(96)["text"] for word in text.split()}
    assert tokens & {word for word in known if len(word) > 1 and word[0] != "["} == {
        word for word in seen if len(word) > 1
    }
    assert trained[TrainStaticClassifier].trained.bytes_on_disk < 10_000


def test_the_embeddings_are_those_of_the_frozen_encoder(trained, tiny_encoder):
    model = trained[TrainEmbeddingClassifier].model
    encoder, tokenizer = AutoModel.from_pretrained(tiny_encoder).eval(), AutoTokenizer.from_pretrained(tiny_encoder)
    batch = tokenizer(["good tea", "the day was awful"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state.double()
        found = model.embed(batch["input_ids"], batch["attention_mask"])
    mean = torch.stack([row[mask.bool()].mean(0) for row, mask in zip(hidden, batch["attention_mask"], strict=True)])
    torch.testing.assert_close(found.double(), mean / mean.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-5)


def test_a_frozen_encoder_reads_no_text_twice_in_a_session(tiny_encoder, session, monkeypatch):
    read: list[int] = []
    embed = EmbeddingForSequenceClassification.embed
    monkeypatch.setattr(
        EmbeddingForSequenceClassification, "embed", lambda self, input_ids, attention_mask: (
            read.append(len(input_ids)), embed(self, input_ids, attention_mask)
        )[1],
    )  # fmt: skip
    rows, other = opinions(40), opinions(16, seed=1)

    def texts_read(name: str, pooling: str = "mean", c: float | None = None) -> int:
        read.clear()
        train, validation = (Rows(f"{name} {size}", each).output for size, each in ((40, rows), (16, other)))
        trainer = TrainEmbeddingClassifier(name, str(tiny_encoder), pooling=pooling)
        trainer.train(train["text"], train["label"], validation["text"], validation["label"], C=c)
        return sum(read)

    first = texts_read("It")
    assert texts_read("Again", c=1.0) == first - len({*rows["text"], *other["text"]})
    assert texts_read("First", pooling="first") == first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [SoftTargets, HardTargets])
def test_it_learns_from_a_teacher_without_any_label(trained, kind, objective, tiny_encoder, session):
    rows, other = Rows("Train rows", {"text": opinions(96)["text"]}).output, opinions(32, seed=1)
    validation = Rows("Validation rows", {"text": other["text"]}).output
    options = {"alpha": 1.0} if objective is SoftTargets else {}
    taught = objective(trained[TrainLinearClassifier], **options)  # a teacher that reads texts
    student = make(kind, "Student", tiny_encoder)
    student.train(rows["text"], None, validation["text"], None, objective=taught, **options_of(kind))
    expected = trained[TrainLinearClassifier].predict(other["text"]).labels
    assert np.mean(np.asarray(student.predict(other["text"]).labels) == np.asarray(expected)) > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_it_teaches_a_transformer(trained, kind, tiny_encoder, session):
    rows = Rows("Rows", {"text": opinions(64)["text"]}).output
    objective = SoftTargets(trained[kind], alpha=1.0)
    student = TrainHFClassifier("Student", str(tiny_encoder))
    student.train(rows["text"], None, rows["text"], None, objective=objective, epochs=1, learning_rate=1e-3)
    assert student.predict(["good tea"]).classes == ["negative", "positive"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_have_several_labels(kind, tiny_encoder, session):
    first = opinions(96)
    labels = [
        ["warm"] * ("tea" in text) + ["good"] * (label == "positive")
        for text, label in zip(*first.values(), strict=True)
    ]
    rows = Rows("Rows", {"text": first["text"], "label": labels}).output
    trainer = make(kind, "Several", tiny_encoder)
    trainer.train(rows["text"], rows["label"], rows["text"], rows["label"], **options_of(kind))
    assert trainer.trained.is_multi_label
    assert trainer.metrics["accuracy"] > 0.6
    assert trainer.predict(["good tea"]).labels == [["good", "warm"]]


@pytest.mark.parametrize("kind", [TrainEmbeddingClassifier, TrainLinearClassifier])
def test_soft_labels_and_class_weights_are_learnt_as_scikit_learn_does(kind, tiny_encoder, session, data):
    train, validation = opinions(96), opinions(32, seed=1)
    chances = [0.85 if label == "positive" else 0.3 for label in train["label"]]
    soft = [{"negative": 1 - chance, "positive": chance} for chance in chances]
    columns = data({**train, "label": soft}, validation)
    weighted = {"class_weights": {"negative": 3.0}, "C": 5.0}
    trainer = make(kind, "Soft", tiny_encoder).train(**columns, **weighted)
    lists = data({**train, "label": [[row["positive"], row["negative"]] for row in soft]}, validation)
    listed = make(kind, "Lists", tiny_encoder).train(**lists, classes=["positive", "negative"], **weighted)
    plain = make(kind, "Plain", tiny_encoder).train(**columns, C=5.0)
    named = make(kind, "Named", tiny_encoder).train(**columns, classes=["tie", "positive", "negative"], C=5.0)
    assert named.trained.labels == ["tie", "positive", "negative"]

    model = trainer.model
    if kind is TrainLinearClassifier:
        vectors = model.features(train["text"]).toarray()
    else:
        batch = trainer.tokenizer(train["text"], padding=True, return_tensors="pt")
        with torch.no_grad():
            vectors = model.embed(batch["input_ids"], batch["attention_mask"]).numpy()
    twins, classes = np.repeat(vectors.astype(np.float64), 2, axis=0), np.tile([0, 1], 96)
    counts = np.array([[3 * (1 - chance), chance] for chance in chances]).ravel()
    # It has one vector of weights for two classes, the difference of ours, whose squares are half of its square.
    theirs = LogisticRegression(C=10.0, tol=1e-8, max_iter=10_000).fit(twins, classes, sample_weight=counts)
    expected = theirs.predict_proba(vectors)
    np.testing.assert_allclose(trainer.predict(train["text"]).probabilities, expected, atol=5e-3)
    found = listed.predict(train["text"])
    np.testing.assert_allclose(found.probabilities[:, [found.classes.index(n) for n in ("negative", "positive")]],
                               expected, atol=5e-3)  # fmt: skip
    assert np.abs(plain.predict(train["text"]).probabilities - expected).max() > 0.1
    assert len({each.fingerprint for each in (trainer, listed, plain)}) == 3


@pytest.mark.parametrize("kind", [TrainEmbeddingClassifier, TrainLinearClassifier])
def test_labels_and_weights_that_cannot_be_learnt_are_refused(kind, tiny_encoder, session, data, monkeypatch):
    monkeypatch.setattr(AutoModel, "from_pretrained", None)
    for labels, options, error, words in (
        ([[0.5, 0.5], [0.7, 0.7]], {"classes": ["a", "b"]}, DataError, "in row 1, whose sum is 1.4"),
        ([[0.5, 0.5]] * 2, {}, DefinitionError, "Pass classes="),
        (["a", "b"], {"multi_label": True}, DefinitionError, "multi_label describe"),
        (["apple", "pear"], {"class_weights": {"appel": 2.0}}, LabelError, 'Did you mean "apple"'),
        (["a", "b"], {"class_weights": {"a": -1.0}}, DefinitionError, "must be 0 or more"),
    ):
        rows = {"text": ["good", "bad"], "label": labels}
        with pytest.raises(error, match=words):
            make(kind, "Bad", tiny_encoder).train(**data(rows, rows), **options)


def test_they_are_compared_and_published_as_any_other(trained, session, hub_server, monkeypatch, tmp_path):
    held_out = Rows("Held out", opinions(40, seed=3)).output
    options = {"repeats": 1, "latency_texts": 2, "throughput_texts": 8, "resamples": 10}
    models = [trained[kind] for kind in KINDS]
    compared = Compare("Compared", models, held_out["text"], held_out["label"], **options)
    assert all(row["accuracy"] > 0.7 and row["bytes_on_disk"] > 0 for row in compared.rows)
    hub_server.connect(monkeypatch, tmp_path / "hf-home")
    trained[TrainLinearClassifier].publish_to_hf_hub("me/linear")
    files = hub_server.files("model", "me/linear")
    assert {"config.json", "model.safetensors", "features.json"} <= set(files)
    assert "from datadreamer_like.models import TrainedModel" in hub_server.readme("model", "me/linear")
    found = TrainedModel("me/linear").predict(TEXTS)
    np.testing.assert_array_equal(found.probabilities, trained[TrainLinearClassifier].predict(TEXTS).probabilities)


def test_a_static_model_is_trained_further_and_quantized(trained, session):
    rows = Rows("Rows", opinions(64, seed=7)).output
    columns = rows["text"], rows["label"], rows["text"], rows["label"]
    further = TrainHFClassifier("Further", trained[TrainStaticClassifier]).train(*columns, epochs=1, learning_rate=1e-3)
    assert type(further.model).__name__ == "StaticForSequenceClassification"
    small = Quantize("Small", further, quantization.DynamicInt8())
    np.testing.assert_allclose(small.predict(TEXTS).probabilities, further.predict(TEXTS).probabilities, atol=0.05)


# A killed run


def regress(kind: str, folder: Path, encoder: Path, dies_at: int, results: Any) -> None:
    """What each process runs; it kills itself before one of the fits."""
    fits: list[float] = []

    def counted(*arguments: Any) -> Any:
        if len(fits) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        fits.append(arguments[2])
        return fitted(*arguments)

    fitted, logistic.fitted = logistic.fitted, counted
    with DataDreamer(folder, verbose=False):
        rows, other = Rows("Rows", opinions(96)).output, Rows("Others", opinions(32, seed=1)).output
        trainer = make(next(each for each in KINDS if each.__name__ == kind), "It", str(encoder))
        trainer.train(rows["text"], rows["label"], other["text"], other["label"])
        results.put((fits, trainer.predict(other["text"]).probabilities.tolist(), trainer.metrics))


@pytest.mark.parametrize("kind", ["TrainEmbeddingClassifier", "TrainLinearClassifier"])
def test_a_killed_regression_goes_on_after_its_last_fit(kind, tiny_encoder, tmp_path):
    results = CONTEXT.SimpleQueue()

    def run(folder: str, dies_at: int = -1) -> Any:
        process = CONTEXT.Process(target=regress, args=(kind, tmp_path / folder, tiny_encoder, dies_at, results))
        process.start()
        process.join(timeout=120)
        assert process.exitcode == (0 if dies_at < 0 else -signal.SIGKILL)
        return None if dies_at >= 0 else results.get()

    _, *undisturbed = run("calm")
    run("killed", dies_at=2)
    assert not (tmp_path / "killed" / "it").exists()
    assert run("killed") == ([100.0, 1000.0], *undisturbed)
    assert run("killed") == ([], *undisturbed)


# What is saved is checked


def test_a_model_whose_files_lack_what_decides_it_is_refused(tiny_encoder, session, data):
    class Scaled(TrainStaticClassifier):
        def load_model(self, *arguments: Any) -> Any:
            model = super().load_model(*arguments)
            model.classifier.register_forward_hook(lambda module, inputs, output: 3 * output)
            return model

    with pytest.raises(StorageError, match="does not give the logits of the trained one"):
        Scaled("Scaled", str(tiny_encoder)).train(**data(), epochs=1)


# What is refused

BAD_TRAINERS = {
    "no dimensions": (TrainStaticClassifier, {"dimensions": 0}, DefinitionError, "dimensions is 0"),
    "half a dimension": (TrainStaticClassifier, {"dimensions": 2.5}, ArgumentTypeError, "whole number"),
    "everything dropped": (TrainStaticClassifier, {"dropout": 1.0}, DefinitionError, "must be below 1"),
    "unknown pooling": (TrainEmbeddingClassifier, {"pooling": "meen"}, DefinitionError, 'Did you mean "mean"'),
    "no features": (TrainLinearClassifier, {"word_ngrams": None, "char_ngrams": None}, DefinitionError, "no features"),
    "ngrams": (TrainLinearClassifier, {"word_ngrams": (2, 1)}, DefinitionError, "shorter than the shortest"),
    "one ngram": (TrainLinearClassifier, {"char_ngrams": 3}, ArgumentTypeError, r"such as \(1, 2\)"),
    "a wrong name": (TrainLinearClassifier, {"word_ngram": (1, 1)}, ArgumentTypeError, 'Did you mean "word_ngrams"'),
    "a name of its own": (TrainEmbeddingClassifier, {"poolng": "mean"}, DefinitionError, 'Did you mean "pooling"'),
    "a size": (TrainStaticClassifier, {"dimension": 8}, DefinitionError, 'Did you mean "dimensions"'),
    "no terms": (TrainLinearClassifier, {"max_features": 0}, DefinitionError, "max_features is 0"),
}


@pytest.mark.parametrize("case", BAD_TRAINERS)
def test_a_bad_option_is_refused_before_anything_runs(case, tiny_encoder, session):
    kind, options, error, message = BAD_TRAINERS[case]
    with pytest.raises(error, match=message):
        kind("Bad", *([] if kind is TrainLinearClassifier else [str(tiny_encoder)]), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_name_of_an_option_of_train_says_which_is_meant(kind, tiny_encoder, session, data):
    with pytest.raises(DefinitionError, match=r'train has no option "class_weight".*Did you mean "class_weights"'):
        make(kind, "Bad", tiny_encoder).train(**data(), class_weight="balanced")


@pytest.mark.parametrize("kind", [TrainStaticClassifier, TrainEmbeddingClassifier])
def test_an_adapter_is_refused(kind, tiny_encoder, session):
    from peft import LoraConfig

    with pytest.raises(DefinitionError, match="peft_config"):
        kind("Bad", str(tiny_encoder), peft_config=LoraConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_on_hidden_states_is_refused(kind, trained, tiny_encoder, session, data):
    with pytest.raises(MethodMisfit, match="hidden states"):
        make(kind, "Bad", tiny_encoder).train(**data(), objective=HiddenStates(trained[TrainEmbeddingClassifier]))


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, DefinitionError), ([], ArgumentTypeError), ("1", ArgumentTypeError), ([1, None], ArgumentTypeError)],
)
def test_a_strength_that_is_no_number_above_zero_is_refused(value, error, session, data):
    with pytest.raises(error, match="C"):
        TrainLinearClassifier("Bad").train(**data(), C=value)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_do_not_fit_are_refused(kind, tiny_encoder, session, data):
    columns = data() | {"train_output": Rows("Few", {"label": ["positive"]}).output["label"]}
    with pytest.raises(DefinitionError, match="same number of rows"):
        make(kind, "Bad", tiny_encoder).train(**columns)


def test_a_model_without_tokens_is_refused_where_tokens_are_needed(trained, session, data):
    linear = trained[TrainLinearClassifier]
    with pytest.raises(MethodMisfit, match="can be loaded only as a classifier"):
        TrainHFClassifier("Bad", linear).train(**data(), epochs=1)
    with pytest.raises(MethodMisfit):
        Quantize("Bad int8", linear, quantization.DynamicInt8())
    with pytest.raises(MethodMisfit):
        Prune("Bad words", linear, pruning.Vocabulary(), calibration=data()["train_input"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_without_a_transformer_is_refused_as_a_start(trained, kind, tiny_encoder, session, data):
    found = data(names=("text", "text"))
    texts = {f"{split}_texts": found[f"{split}_input"] for split in ("train", "validation")}
    message = f"is what a {kind.__name__}.* trained, which can be loaded only as a classifier"
    with pytest.raises(MethodMisfit, match=message):
        TrainEmbeddingClassifier("A", trained[kind]).train(**data())
    with pytest.raises(MethodMisfit, match=message):
        TrainSentenceTransformer("B", trained[kind]).train_with_teacher(**texts, teacher=str(tiny_encoder))


def test_a_compressed_encoder_is_refused(tiny_encoder, session, data):
    small = Quantize("Small", str(tiny_encoder), quantization.DynamicInt8())
    with pytest.raises(MethodMisfit, match="compressed"):
        TrainEmbeddingClassifier("Bad", small).train(**data())
