"""TrainSentenceTransformer: embedders from pairs, triplets and scores, and from embedders and cross-encoders."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.models import SentenceTransformersEmbedder, TrainedModel
from datadreamer_like.pruning import Magnitude
from datadreamer_like.stages import FreshWeights, Prune
from datadreamer_like.trainers import TrainSentenceTransformer, cut_layers
from datadreamer_like.trainers.training.embedding_teachers import principal_directions

from .conftest import WORDS, Rows

GOOD, BAD = WORDS[:3], WORDS[3:6]
TEXTS = [f"the {a} {b}" for a in (*GOOD, *BAD) for b in ("tea", "day", "film")]
# Good things belong together, and bad ones.
ROWS = {
    "anchor": TEXTS,
    "positive": [f"a {(GOOD if i < 9 else BAD)[i % 3]} {('film', 'tea', 'day')[i % 3]}" for i in range(18)],
    "negative": [f"a {(BAD if i < 9 else GOOD)[i % 3]} {('film', 'tea', 'day')[i % 3]}" for i in range(18)],
    "score": [round(i % 5 / 4, 2) for i in range(18)],
}
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 6, "learning_rate": 2e-3}
STEP: dict[str, Any] = {  # plain gradient descent on all rows at once
    "epochs": 1, "batch_size": 18, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.fixture(scope="session")
def calm_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder without dropout, as a sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("calm-encoder")
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModel.from_pretrained(tiny_encoder, **config)
    plain = tiny_models.save(model, AutoTokenizer.from_pretrained(tiny_encoder), folder / "plain")
    SentenceTransformer(str(plain), device="cpu").save_pretrained(str(folder / "it"), create_model_card=False)
    return folder / "it"


@pytest.fixture(scope="session")
def cross_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer of pairs of random weights."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    model = tiny_models.bert(tokenizer, BertForSequenceClassification, num_labels=1, initializer_range=0.4, seed=3)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("cross-encoder"))


def columns(*names: str, as_names: tuple[str, ...] = (), rows: dict[str, Any] = ROWS) -> dict[str, Any]:
    """The columns of a call, for both splits; needs an open session."""
    step = Rows("Rows", rows)
    pairs = zip(as_names or tuple(f"{name}s" for name in names), names, strict=True)
    return {f"{split}_{ours}": step.output[name] for ours, name in pairs for split in ("train", "validation")}


def embed(model: Any, texts: list[str], tokenizer: Any) -> torch.Tensor:
    """Mean over the tokens of a text, one text at a time, without sentence-transformers."""
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        found.append(model(input_ids=ids).last_hidden_state[0].mean(0))
    return torch.stack(found)


def after_a_step(encoder: Path, loss_of: Any) -> dict[str, torch.Tensor]:
    """The weights after one step of gradient descent on a loss of the embeddings."""
    model = AutoModel.from_pretrained(encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    loss = loss_of(lambda texts: embed(model, texts, tokenizer))
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= STEP["learning_rate"] * weight.grad
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def ranking(embedded: Any) -> torch.Tensor:
    anchors, positives = (F.normalize(embedded(ROWS[name]), dim=-1) for name in ("anchor", "positive"))
    return F.cross_entropy(20 * anchors @ positives.T, torch.arange(18))


def triplet(embedded: Any) -> torch.Tensor:
    anchors, positives, negatives = (embedded(ROWS[name]) for name in ("anchor", "positive", "negative"))
    return F.relu((anchors - positives).norm(dim=-1) - (anchors - negatives).norm(dim=-1) + 1.5).mean()


def cosent(embedded: Any) -> torch.Tensor:
    cosines = 20 * F.cosine_similarity(embedded(ROWS["anchor"]), embedded(ROWS["positive"]))
    scores = torch.tensor(ROWS["score"])
    terms = [cosines[i] - cosines[j] for i in range(18) for j in range(18) if scores[i] < scores[j]]
    return torch.log1p(torch.stack(terms).exp().sum())


KINDS: dict[str, Any] = {
    "pairs": (("anchor", "positive"), ("anchors", "positives"), {}, ranking),
    "triplets": (("anchor", "positive", "negative"), (), {"margin": 1.5}, triplet),
    "scores": (("anchor", "positive", "score"), ("anchors", "others", "labels"), {}, cosent),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_losss_formula(session, calm_encoder, kind):
    names, as_names, more, formula = KINDS[kind]
    trainer = TrainSentenceTransformer("It", str(calm_encoder), device="cpu")
    trainer.train(**columns(*names, as_names=as_names), **more, **STEP)
    expected = after_a_step(calm_encoder, formula)
    found = load_file(Path(trainer.path) / "model.safetensors")
    moved = 0.0
    before = load_file(calm_encoder / "model.safetensors")
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=2e-5, rtol=1e-3)
        moved = max(moved, float((weight - before[name]).abs().max()))
    assert moved > 1e-3


def test_a_pruned_embedder_keeps_its_pooling_and_the_modules_after_it(session, calm_encoder, tmp_path):
    plain = SentenceTransformer(str(calm_encoder), device="cpu")
    size = plain.get_embedding_dimension()
    after = [Pooling(size, "cls"), Dense(size, 8), Normalize()]
    SentenceTransformer(modules=[plain[0], *after], device="cpu").save(str(tmp_path / "start"))
    trainer = TrainSentenceTransformer("It", str(tmp_path / "start"), device="cpu")
    trainer.train_with_positive_pairs(**columns("anchor", "positive"), **OPTIONS | {"epochs": 1})
    slim = Prune("Slim", trainer, Magnitude(sparsity=0.5))
    pruned = copy.deepcopy(trainer.model)
    pruned[0].model = Magnitude(sparsity=0.5).apply(trainer.trained.model)
    expected = pruned.encode(["the good tea", "a bad film"])
    assert expected.shape == (2, 8)
    assert np.abs(expected - trainer.model.encode(["the good tea", "a bad film"])).max() > 1e-3
    found = SentenceTransformersEmbedder(slim).run(["the good tea", "a bad film"])
    np.testing.assert_allclose(np.array(found), expected, atol=1e-6)
    with pytest.raises(MethodMisfit, match=r"the weights of 2_Dense/model\.safetensors in .* are not drawn anew"):
        FreshWeights("Fresh", trainer)


def test_pairs_make_an_embedder_that_other_tools_open(session, tiny_encoder, tmp_path):
    trainer = TrainSentenceTransformer("Pairs", str(tiny_encoder), device="cpu")
    trainer.train_with_positive_pairs(**columns("anchor", "positive"), **OPTIONS | {"epochs": 6})
    assert isinstance(trainer.model, SentenceTransformer)
    history = trainer.manifest.result["history"]
    assert history[-1]["cosine_mrr@10"] > history[0]["cosine_mrr@10"]
    vector = trainer.model.encode(["the good tea"])[0]
    np.testing.assert_allclose(SentenceTransformersEmbedder(trainer).run(["the good tea"])[0], vector, atol=1e-6)
    exported = trainer.export(to=tmp_path / "exported")
    np.testing.assert_allclose(
        SentenceTransformer(str(exported), device="cpu").encode(["the good tea"])[0], vector, atol=1e-6
    )
    assert TrainedModel.load(exported).task == "feature-extraction"
    assert not (exported / "README.md").exists()
    assert trainer.card.facts["Method"].endswith("MultipleNegativesRankingLoss on positive pairs")
    assert any("Oord" in citation for citation in trainer.card.citations)
    assert {"loss", "cosine_accuracy@1", "cosine_mrr@10"} <= {*trainer.metrics}
    again = TrainSentenceTransformer("Again", trainer, device="cpu")
    again.train_with_positive_pairs(**columns("anchor", "positive"), **OPTIONS)
    assert again.card.base_model == str(tiny_encoder)


def test_any_prefix_of_a_matryoshka_embedding_is_trained(session, calm_encoder):
    def formula(embedded: Any) -> torch.Tensor:
        anchors, positives = (embedded(ROWS[name]) for name in ("anchor", "positive"))
        total = torch.zeros(())
        for size in (32, 8):
            first, second = (F.normalize(part[:, :size], dim=-1) for part in (anchors, positives))
            total = total + F.cross_entropy(20 * first @ second.T, torch.arange(18))
        return total

    trainer = TrainSentenceTransformer("It", str(calm_encoder), device="cpu")
    trainer.train_with_positive_pairs(**columns("anchor", "positive"), matryoshka_dims=[8, 32], **STEP)
    expected = after_a_step(calm_encoder, formula)
    for name, weight in load_file(Path(trainer.path) / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], atol=5e-5, rtol=1e-3)


MORE = [f"{a} {b} {c}" for a in WORDS[:6] for b in WORDS[6:9] for c in WORDS[9:]]


def teachers_vectors(teacher: Path) -> torch.Tensor:
    with torch.no_grad():
        return embed(AutoModel.from_pretrained(teacher).eval(), MORE, AutoTokenizer.from_pretrained(teacher))


@pytest.fixture(scope="session")
def wide_teacher(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 48 numbers a text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    model = tiny_models.bert(tokenizer, tiny_models.transformers.BertModel, hidden_size=48, initializer_range=0.3)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("wide-teacher"))


def test_a_teachers_embeddings_are_targets_and_wider_ones_their_principal_directions(
    session, calm_encoder, wide_teacher
):
    vectors = teachers_vectors(wide_teacher).double()
    directions = torch.linalg.svd(vectors, full_matrices=False).Vh[:32].T
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    targets = (vectors @ (directions * signs)).float()
    trainer = TrainSentenceTransformer("It", str(calm_encoder), device="cpu")
    options = STEP | {"batch_size": len(MORE)}
    trainer.train_with_teacher(**columns("text", rows={"text": MORE}), teacher=str(wide_teacher), **options)
    expected = after_a_step(calm_encoder, lambda embedded: F.mse_loss(embedded(MORE), targets))
    for name, weight in load_file(Path(trainer.path) / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3)


def test_a_teacher_embeds_each_text_once_for_all_students(session, calm_encoder, wide_teacher, monkeypatch):
    asked: list[str] = []
    encode = SentenceTransformer.encode
    monkeypatch.setattr(SentenceTransformer, "encode", lambda *a, **k: asked.extend(a[1]) or encode(*a, **k))
    for layers in (1, 2):
        student = TrainSentenceTransformer(f"{layers} layers", str(calm_encoder), device="cpu", layers=layers)
        teacher = SentenceTransformersEmbedder(str(wide_teacher))
        student.train_with_teacher(**columns("anchor", as_names=("texts",)), teacher=teacher, **STEP)
        assert sorted(asked) == sorted(TEXTS)
        assert "model" not in vars(teacher)  # its memory is free


def test_principal_directions_keep_products_best():
    vectors = np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32) * np.arange(10, 0, -1)
    directions = principal_directions(iter(vectors), 4)
    np.testing.assert_allclose(directions.T @ directions, np.eye(4), atol=1e-5)
    reduced = (vectors @ directions).astype(np.float64)
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    lost = np.linalg.norm(vectors @ vectors.T - reduced @ reduced.T)
    assert lost == pytest.approx(np.sqrt((singular[4:] ** 4).sum()), rel=1e-4)  # no matrix of rank 4 is closer


def test_a_projection_is_trained_with_the_student_and_left_out_of_it(session, calm_encoder, wide_teacher):
    trainer = TrainSentenceTransformer("It", str(calm_encoder), device="cpu")
    options = {**OPTIONS, "epochs": 12, "learning_rate": 1e-2, "batch_size": 18}
    teacher = SentenceTransformersEmbedder(str(wide_teacher))
    trainer.train_with_teacher(
        **columns("anchor", as_names=("texts",)), teacher=teacher, reduction="projection", **options
    )
    history = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert history[-1] < 0.8 * history[0]
    assert trainer.model.get_embedding_dimension() == 32


def test_a_students_layers_are_the_teachers_and_it_comes_closer_to_it(session, calm_encoder):
    teacher = SentenceTransformer(str(calm_encoder), device="cpu")
    cut = cut_layers(teacher, keep=1)
    assert len(teacher.transformers_model.encoder.layer) == 2
    before = F.mse_loss(*(torch.tensor(model.encode(TEXTS)) for model in (cut, teacher)))
    student = TrainSentenceTransformer("Student", str(calm_encoder), device="cpu", layers=1)
    student.train_with_teacher(
        **columns("anchor", as_names=("texts",)), teacher=teacher, **OPTIONS | {"epochs": 10, "learning_rate": 5e-3}
    )
    assert len(student.model.transformers_model.encoder.layer) == 1
    assert student.metrics["loss"] < 0.5 * before
    found = F.mse_loss(*(torch.tensor(model.encode(TEXTS)) for model in (student.model, teacher)))
    assert found.item() == pytest.approx(student.metrics["loss"], rel=1e-3)


def test_a_cross_encoders_margins_are_the_students(session, calm_encoder, cross_encoder):
    scorer = CrossEncoder(str(cross_encoder), device="cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(cross_encoder), scorer.model.eval()

    def score(queries: list[str], documents: list[str]) -> torch.Tensor:
        with torch.no_grad():
            found = [
                model(**tokenizer(*pair, return_tensors="pt")).logits[0, 0]
                for pair in zip(queries, documents, strict=True)
            ]
        return torch.stack(found)

    margins = score(TEXTS, ROWS["positive"]) - score(TEXTS, ROWS["negative"])
    assert margins.abs().max() > 0.1

    def formula(embedded: Any) -> torch.Tensor:
        queries, positives, negatives = (embedded(ROWS[name]) for name in ("anchor", "positive", "negative"))
        return F.mse_loss(0.1 * ((queries * positives).sum(-1) - (queries * negatives).sum(-1)), margins)

    names = ("queries", "positives", "negatives")
    for teacher in (scorer, str(cross_encoder)):
        trainer = TrainSentenceTransformer(f"From {type(teacher).__name__}", str(calm_encoder), device="cpu")
        trainer.train_with_margins(
            **columns("anchor", "positive", "negative", as_names=names), teacher=teacher, scale=0.1, **STEP
        )
        expected = after_a_step(calm_encoder, formula)
        for name, weight in load_file(Path(trainer.path) / "model.safetensors").items():
            torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
def test_an_adapter_is_trained_and_merged(session, calm_encoder, task):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["query", "value"], task_type=task)
    trainer = TrainSentenceTransformer("It", str(calm_encoder), device="cpu", peft_config=config)
    trainer.train_with_positive_pairs(
        **columns("anchor", "positive"), **OPTIONS | {"learning_rate": 1e-1}, neftune_noise_alpha=0.1
    )
    before, found = (load_file(folder / "model.safetensors") for folder in (calm_encoder, Path(trainer.path)))
    changed = {name for name, weight in found.items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("query.weight" in name or "value.weight" in name for name in changed)
    assert trainer.model.encode(["the tea"]).shape == (1, 32)
    assert (trainer.export_to_disk(Path(trainer.path).parent / "only", adapter_only=True)).is_dir()


@pytest.mark.parametrize(
    ("method", "names", "more", "error", "said"),
    [
        ("train", ("anchor",), {}, DefinitionError, r"train_with_triplets\(train_anchors, "),
        ("train_with_positive_pairs", ("anchor", "positive"), {"matryoshka_dims": [64]}, DefinitionError, "has 32"),
        ("train_with_positive_pairs", ("anchor", "positive"), {"matryoshka_dims": [0]}, DefinitionError, "at least 1"),
        ("train_with_positive_pairs", ("anchor", "positive"), {"loss": "mse"}, ArgumentTypeError, "must be a loss"),
        ("train_with_positive_pairs", ("anchor", "positive"), {"prompts": {}}, DefinitionError, "decides"),
        ("train_with_positive_pairs", ("anchor", "positive"), {"batchsize": 4}, DefinitionError, "batch_size"),
        ("train_with_triplets", ("anchor", "positive", "negative"), {"margin": 0}, DefinitionError, "over 0"),
        (
            "train_with_triplets", ("anchor", "positive", "negative"),
            {"margin": 1, "loss": losses.MultipleNegativesRankingLoss}, DefinitionError, "has no margin",
        ),
        ("train_with_teacher", ("text",), {"teacher": 3}, ArgumentTypeError, "must be an embedder"),
        ("train_with_teacher", ("text",), {"teacher": "x/y", "reduction": "pcs"}, DefinitionError, '"pca"'),
        ("train_with_margins", ("querie", "positive", "negative"), {"teacher": 3}, ArgumentTypeError, "CrossEncoder"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused(session, calm_encoder, method, names, more, error, said):
    rows = {name: ["a", "b"] for name in names}
    trainer = TrainSentenceTransformer("It", str(calm_encoder), device="cpu")
    with pytest.raises(error, match=said):
        getattr(trainer, method)(**columns(*names, rows=rows), **more)


def test_wrong_rows_and_teachers_are_refused(session, tmp_path, calm_encoder, tiny_encoder, wide_teacher, minilm_path):
    trainer = TrainSentenceTransformer("It", str(calm_encoder), device="cpu")
    labeled = partial(columns, "anchor", "positive", "score", as_names=("anchors", "others", "labels"))
    with pytest.raises(ArgumentTypeError, match="train_labels must contain numbers; row 0"):
        trainer.train_with_labeled_pairs(
            **labeled(rows={"anchor": ["a", "b"], "positive": ["a", "b"], "score": ["high", "low"]})
        )
    with pytest.raises(EmptyDataset):
        trainer.train_with_positive_pairs(**columns("anchor", "positive", rows={"anchor": [], "positive": []}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    two = tiny_models.save(tiny_models.bert(tokenizer, num_labels=2), tokenizer, tmp_path / "two")
    for teacher, said in ((tiny_encoder, "has no head"), (two, "gives 2 numbers")):
        with pytest.raises(MethodMisfit, match=said):
            trainer.train_with_margins(
                **columns("anchor", "positive", "negative", as_names=("queries", "positives", "negatives")),
                teacher=str(teacher),
            )
    wide = TrainSentenceTransformer("Wide", str(wide_teacher), device="cpu")
    with pytest.raises(DefinitionError, match="have 32 numbers and the student's 48"):
        wide.train_with_teacher(**columns("anchor", as_names=("texts",)), teacher=str(calm_encoder), reduction="pca")
    unit = TrainSentenceTransformer("Unit", str(minilm_path), device="cpu")
    with pytest.raises(DefinitionError, match="embeddings have length 1"):
        unit.train_with_margins(
            **columns("anchor", "positive", "negative", as_names=("queries", "positives", "negatives")),
            teacher=str(tiny_encoder),
        )


NOTHING: dict[str, Any] = {
    "triplets whose negatives are the positives": (
        ("anchor", "positive", "positive"), ("anchors", "positives", "negatives"),
        "train_positives and train_negatives are the same in every row",
    ),
    "pairs of one positive": (("anchor", "constant"), ("anchors", "positives"), "train_positives is the same in every"),
    "scores of pairs of a text and itself": (
        ("anchor", "anchor", "score"), ("anchors", "others", "labels"), "train_anchors and train_others are the same",
    ),
    "one score": (("anchor", "positive", "number"), ("anchors", "others", "labels"), "train_labels is the same"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOTHING)
def test_rows_that_teach_nothing_are_refused(session, tiny_encoder, kind):
    names, as_names, message = NOTHING[kind]
    rows = {**ROWS, "constant": ["a good day"] * 18, "number": [0.5] * 18}
    with pytest.raises(DataError, match=message):
        TrainSentenceTransformer("Small", str(tiny_encoder)).train(
            **columns(*names, as_names=as_names, rows=rows), **OPTIONS
        )


def test_triplets_that_teach_nothing_are_counted_and_pairs_of_a_text_and_itself_are_trained(
    session, tiny_encoder, caplog
):
    rows = {**ROWS, "negative": [*ROWS["positive"][:5], *ROWS["negative"][5:]]}
    trainer = TrainSentenceTransformer("Small", str(tiny_encoder))
    trainer.train(**columns("anchor", "positive", "negative", rows=rows), **{**OPTIONS, "epochs": 1})
    assert "train_positives and train_negatives are the same in 5 of 18 rows" in caplog.text
    assert "validation_positives and validation_negatives are the same in 5 of 18 rows" in caplog.text
    simcse = TrainSentenceTransformer("SimCSE", str(tiny_encoder))
    simcse.train(**columns("anchor", "anchor", as_names=("anchors", "positives")), **{**OPTIONS, "epochs": 1})
    assert simcse.curves[0]["loss"] > 0


def test_validation_scores_that_are_all_the_same_are_reported(session, tiny_encoder, caplog):
    given = columns("anchor", "positive", "score", as_names=("anchors", "others", "labels"))
    given["validation_labels"] = Rows("One", {"score": [0.5] * 18}).output["score"]
    trainer = TrainSentenceTransformer("Small", str(tiny_encoder)).train(**given, **{**OPTIONS, "epochs": 1})
    assert trainer.metrics.keys() == {"loss"}
    assert "validation_labels is the same in every row, so it cannot show which epoch is better" in caplog.text


def test_a_batch_of_one_pair_is_refused_where_pairs_are_compared(session, tiny_encoder):
    with pytest.raises(DefinitionError, match="batch_size is 1, but MultipleNegativesRankingLoss compares the pairs"):
        TrainSentenceTransformer("A", str(tiny_encoder)).train(**columns("anchor", "positive"), batch_size=1)
    scores = columns("anchor", "positive", "score", as_names=("anchors", "others", "labels"))
    with pytest.raises(DefinitionError, match="batch_size is 1, but CoSENTLoss compares"):
        TrainSentenceTransformer("B", str(tiny_encoder)).train(**scores, batch_size=1)
