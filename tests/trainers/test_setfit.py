"""TrainSetFitClassifier: the pairs of few texts, the loss of their cosines, and a classifier as any other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.nn import functional as F

from datadreamer_like.distillation import Outputs, SoftTargets
from datadreamer_like.errors import DefinitionError, LabelError
from datadreamer_like.models import TrainedModel
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainHFClassifier, TrainSetFitClassifier
from datadreamer_like.trainers.training.pairs import SameClass, make_pairs

from .conftest import opinions

TRAIN: dict[str, Any] = {"epochs": 3, "batch_size": 16, "body_learning_rate": 3e-3, "num_iterations": 6}


def few(data: Any) -> dict[str, Any]:
    return data(train=opinions(24), validation=opinions(32, seed=1))


def test_few_texts_make_a_classifier_as_any_other(session, tiny_encoder, data, tmp_path):
    frozen = TrainEmbeddingClassifier("Frozen", str(tiny_encoder), device="cpu").train(**few(data))
    trainer = TrainSetFitClassifier("Few", str(tiny_encoder), device="cpu").train(**few(data), **TRAIN)
    assert trainer.metrics["accuracy"] > frozen.metrics["accuracy"]
    texts = opinions(10, seed=2)["text"]
    found = trainer.predict(texts)
    loaded = TrainedModel.load(trainer.export(to=tmp_path / "exported")).predict(texts)
    np.testing.assert_allclose(loaded.probabilities, found.probabilities, atol=1e-6)
    history = [each["pair_loss"] for each in trainer.manifest.result["history"] if "pair_loss" in each]
    assert len(history) == 3
    assert trainer.metrics["pair_loss"] == pytest.approx(min(history), abs=1e-5)
    assert [point["eval_loss"] for point in trainer.curves if "eval_loss" in point] == pytest.approx(history, abs=1e-5)
    assert any("Few-Shot" in citation for citation in trainer.card.citations)
    student = TrainHFClassifier("Student", str(tiny_encoder), device="cpu")
    student.train(**few(data), objective=SoftTargets(trainer), epochs=1)
    assert student.trained.labels == found.classes


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_an_adapter_on_the_encoder_is_trained_and_merged(session, tiny_encoder, data, tmp_path, kind):
    adapter = (
        {"qlora": True} if kind == "qlora" else {"peft_config": LoraConfig(r=8, target_modules=["query", "value"])}
    )
    frozen = TrainEmbeddingClassifier("Frozen", str(tiny_encoder), device="cpu").train(**few(data))
    trainer = TrainSetFitClassifier("Few", str(tiny_encoder), device="cpu", **adapter)
    trainer.train(**few(data), **TRAIN)
    history = [each["pair_loss"] for each in trainer.manifest.result["history"] if "pair_loss" in each]
    assert history[-1] < history[0]
    texts, labels = (few(data)[f"validation_{part}"] for part in ("input", "output"))
    loaded = TrainedModel.load(trainer.export(to=tmp_path / "exported"))
    found = loaded.predict([*texts])
    np.testing.assert_allclose(found.probabilities, trainer.predict([*texts]).probabilities, atol=1e-6)
    right = float(np.mean([one == other for one, other in zip(found.labels, labels, strict=True)]))
    assert right == pytest.approx(trainer.metrics["accuracy"])
    before, after = (dict(each.model.encoder.named_parameters()) for each in (frozen.trained, loaded))
    assert before.keys() == after.keys(), "there is no adapter left"
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    if kind == "lora":
        assert changed == {name for name in before if name.endswith(("query.weight", "value.weight"))}
    for alone in (trainer.adapter, lambda: trainer.export_to_disk(tmp_path / "alone", adapter_only=True)):
        with pytest.raises(DefinitionError, match="no base model to load it on.*leave adapter_only out"):
            alone()
    assert "takes more than an argument" in next(Path(trainer.result_folder).rglob("adapter/README.md")).read_text()


def test_embeddings_of_other_adapters_with_the_same_weights_are_not_taken_for_ones_own(session, tiny_encoder, data):
    losses = []
    for alpha in (8, 64):
        adapter = LoraConfig(r=4, lora_alpha=alpha, target_modules=["query", "value"], init_lora_weights=False)
        trainer = TrainSetFitClassifier(f"At {alpha}", str(tiny_encoder), device="cpu", peft_config=adapter)
        trainer.train(**few(data), **{**TRAIN, "epochs": 1, "body_learning_rate": 1e-30})
        said = trainer.predict([*few(data)["validation_input"]])
        places = [said.classes.index(label) for label in few(data)["validation_output"]]
        loss = -float(np.log(said.probabilities[np.arange(len(places)), places]).mean())
        assert loss == pytest.approx(trainer.metrics["loss"], abs=1e-4)
        losses.append(loss)
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


def test_the_loss_is_the_squared_error_of_the_cosine():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    same = torch.tensor([1.0, 0, 1, 0, 0, 1, 1], dtype=torch.float64)
    leaf = F.cosine_similarity(first, second).requires_grad_()
    loss = SameClass().loss(Outputs(logits=leaf), None, {"labels": same})
    by_hand = sum(
        ((a @ b) / (a.norm() * b.norm()) - label) ** 2 for a, b, label in zip(first, second, same, strict=True)
    )
    assert float(loss.detach()) == pytest.approx(float(by_hand) / 7)
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(gradient, 2 * (leaf.detach() - same) / 7)


LABELS = np.array([0, 0, 0, 1, 1, 2])
ALL = {pair: LABELS[pair[0]] == LABELS[pair[1]] for pair in combinations(range(6), 2)}  # 4 of one class, 11 of two


@pytest.mark.parametrize(
    ("strategy", "each"), [("unique", (4, 11)), ("undersampling", (4, 4)), ("oversampling", (11, 11))]
)
def test_pairs_are_all_or_balanced(strategy, each):
    first, second, same = make_pairs(LABELS, strategy, None, np.random.default_rng(0), "It")
    assert (int(same.sum()), int((~same).sum())) == each
    for a, b, is_same in zip(first.tolist(), second.tolist(), same.tolist(), strict=True):
        assert ALL[a, b] == is_same
    found = list(zip(first.tolist(), second.tolist(), strict=True))
    counts = {pair: found.count(pair) for pair in ALL}
    if strategy == "oversampling":
        assert {counts[pair] for pair, is_same in ALL.items() if is_same} == {
            2,
            3,
        }  # 11 drawn of 4, as often as possible
    else:
        assert max(counts.values()) == 1


def test_some_partners_are_drawn_for_each_text():
    first, second, same = make_pairs(LABELS, "oversampling", 5, np.random.default_rng(0), "It")
    assert not (first == second).any()
    np.testing.assert_array_equal(same, LABELS[first] == LABELS[second])
    for row in range(6):
        assert int((~same[first == row]).sum()) == 5
        assert int(same[first == row].sum()) == (0 if row == 5 else 5)  # the only one of its class


def test_texts_of_several_classes_are_similar_if_they_share_one():
    labels = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=np.float32)
    first, second, same = make_pairs(labels, "unique", None, np.random.default_rng(0), "It")
    found = {tuple(sorted(pair)) for pair in zip(first[same].tolist(), second[same].tolist(), strict=True)}
    assert found == {(0, 1), (0, 3), (1, 2)}


def test_several_labels_a_text_work(session, tiny_encoder, data):
    rows, other = opinions(24), opinions(12, seed=1)
    for each in (rows, other):
        each["label"] = [
            [label, "text"] if len(text) > 20 else [label]
            for label, text in zip(each["label"], each["text"], strict=True)
        ]
    trainer = TrainSetFitClassifier("Several", str(tiny_encoder), multi_target_strategy="one-vs-rest", device="cpu")
    trainer.train(**data(rows, other), **TRAIN | {"epochs": 1})
    assert trainer.trained.is_multi_label


def test_of_soft_labels_the_head_learns_the_probabilities_and_the_encoder_the_likeliest_classes(
    session, tiny_encoder, data
):
    hard, other = opinions(24), opinions(32, seed=1)
    soft = [{label: 0.7, ("negative" if label == "positive" else "positive"): 0.3} for label in hard["label"]]
    options = {**TRAIN, "epochs": 1, "C": 100.0}
    trained = []
    for name, labels in (("Hard", hard["label"]), ("Soft", soft)):
        trainer = TrainSetFitClassifier(name, str(tiny_encoder), device="cpu")
        trained.append(trainer.train(**data({**hard, "label": labels}, other), **options))
    one, two = (each.model.encoder.state_dict() for each in trained)
    assert all(torch.equal(one[name], two[name]) for name in one)
    # A row of each class, weighted by its probability, has the same optimum: as sure as the labels, and no surer.
    sure = trained[1].predict(hard["text"]).probabilities.max(axis=1)
    assert sure.mean() < 0.72 < trained[0].predict(hard["text"]).probabilities.max(axis=1).mean()
    with pytest.raises(DefinitionError, match="classes describe labels that are probabilities"):
        TrainSetFitClassifier("No", str(tiny_encoder), device="cpu").train(
            **few(data), **options, classes=["negative", "positive"]
        )


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"sampling_strategy": "over"}, DefinitionError, 'no sampling_strategy "over".*oversampling'),
        ({"end_to_end": True}, DefinitionError, "end_to_end is not available"),
        ({"num_iterations": 0}, DefinitionError, "at least 1"),
        ({"C": 0}, DefinitionError, "over 0"),
        ({"learning_rates": 1}, DefinitionError, 'no option "learning_rates"'),
    ],
)
def test_a_wrong_call_is_refused(session, tiny_encoder, data, more, error, said):
    with pytest.raises(error, match=said):
        TrainSetFitClassifier("It", str(tiny_encoder), device="cpu").train(**few(data), **TRAIN | more)


def test_rows_without_pairs_are_refused(session, tiny_encoder, data, tmp_path: Path):
    rows = {"text": ["good", "bad"], "label": ["a", "b"]}
    pairs = {"text": ["good", "bad", "fine", "poor"], "label": ["a", "b", "a", "b"]}
    alike = {"text": ["good", "fine"], "label": ["a", "a"]}
    for train, validation, message in (
        (rows, pairs, "train_input: no two texts share a class.*of the same class"),
        (pairs, rows, "validation_input: no two texts share a class.*of the same class"),
        (pairs, alike, "validation_input: all texts share a class.*of another class"),
    ):
        with pytest.raises(LabelError, match=message):
            TrainSetFitClassifier("It", str(tiny_encoder), device="cpu").train(**data(train, validation), **TRAIN)
    with pytest.raises(DefinitionError, match=r"num_iterations=20"):
        make_pairs(np.arange(10_000) % 5, "unique", None, np.random.default_rng(0), "It")
    with pytest.raises(DefinitionError, match="classifier-chain"):
        TrainSetFitClassifier("It", str(tiny_encoder), multi_target_strategy="classifier-chain")
