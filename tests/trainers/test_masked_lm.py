"""TrainHFMaskedLM: what is hidden, how it resumes, and a student that is distilled and fine-tuned."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import DistilBERT, HardTargets, SoftTargets, WordLevel, distilbert_student
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.evaluation.tasks.masked import MaskedLM
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier, TrainHFMaskedLM

from .conftest import Rows, opinions

TEXTS = [" ".join(words) for words in itertools.product(["the", "a", "some"], ["cat", "dog", "bird"], ["sat", "ran"])]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a BERT of two layers for masked language modelling."""
    tokenizer = tiny_models.word_pieces([*TEXTS, *opinions(32)["text"]], max_length=32)
    tokenizer.mask_token = "[MASK]"
    model = tiny_models.bert(tokenizer, BertForMaskedLM, num_hidden_layers=2, initializer_range=0.15)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("masked"))


@pytest.fixture
def columns(session: DataDreamer) -> dict[str, Any]:
    return {
        "train_input": Rows("Texts", {"text": TEXTS * 4}).output["text"],
        "validation_input": Rows("Others", {"text": TEXTS}).output["text"],
    }


def test_hidden_tokens_are_masked_replaced_or_left_in_their_shares_and_special_ones_never(encoder):
    tokenizer = TrainedModel(encoder).tokenizer
    task = MaskedLM(tokenizer, 32, True, 0.15)
    ids = tokenizer(["the cat sat the dog ran"] * 2000 + ["a"])["input_ids"]
    batch = task.collate([{"row": row, "input_ids": each} for row, each in enumerate(ids)])
    assert not (batch["labels"] != -100).any()
    found = task.drawn(batch, torch.Generator().manual_seed(0))
    before, after, labels = batch["input_ids"], found["input_ids"], found["labels"]
    hidden = labels != -100
    words = batch["mask"] & (before != tokenizer.cls_token_id) & (before != tokenizer.sep_token_id)
    assert not (hidden & ~words).any()
    assert torch.equal(labels[hidden], before[hidden])
    assert torch.equal(after[~hidden], before[~hidden])
    count = int(words.sum())
    assert int(hidden.sum()) / count == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / count))
    total, masked = int(hidden.sum()), int((after[hidden] == tokenizer.mask_token_id).sum())
    changed = int((after[hidden] != before[hidden]).sum()) - masked
    assert masked / total == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / total) + 1 / len(tokenizer))
    assert changed / total == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / total) + 1 / len(tokenizer))
    assert torch.equal(found["mask"], batch["mask"])


@pytest.mark.parametrize("size", [2, 7])
def test_the_validation_loss_is_a_mean_over_the_hidden_tokens_however_they_fall_into_batches(
    session, encoder, columns, size
):
    trainer = TrainHFMaskedLM("A", str(encoder)).train(
        **columns, mask_probability=0.3, epochs=1, learning_rate=0.0, per_device_eval_batch_size=size
    )
    assert trainer.metrics["loss"] == pytest.approx(trainer.metrics["cross_entropy"], rel=1e-4)


def test_an_encoder_learns_to_fill_in_words_and_loads_again(session, encoder, columns, tmp_path):
    trainer = TrainHFMaskedLM("A", str(encoder)).train(
        **columns, mask_probability=0.3, epochs=12, batch_size=8, learning_rate=3e-3
    )
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert losses[-1] < 0.7 * losses[0]
    assert trainer.metrics["perplexity"] == pytest.approx(math.exp(trainer.metrics["cross_entropy"]), rel=1e-3)
    assert trainer.trained.task == "fill-mask"
    assert any("devlin2019bert" in citation for citation in trainer.card.citations)
    exported = trainer.export_to_disk(tmp_path / "exported")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(exported), trainer.tokenizer
    inputs = tokenizer("the cat [MASK]", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, 3]
        assert torch.equal(logits, trainer.model(**inputs).logits[0, 3])
    assert tokenizer.convert_ids_to_tokens(int(logits.argmax())) in ("sat", "ran")


def test_the_validation_rows_are_hidden_in_the_same_places_in_each_epoch_and_training_rows_in_others(
    session, encoder, columns, monkeypatch
):
    seen: list[tuple[tuple[int, ...], bytes]] = []
    drawn = MaskedLM.drawn

    def kept(self: Any, batch: Any, random: Any) -> Any:
        found = drawn(self, batch, random)
        seen.append((tuple(batch["rows"].tolist()), np.packbits(found["labels"].numpy() != -100).tobytes()))
        return found

    monkeypatch.setattr(MaskedLM, "drawn", kept)
    TrainHFMaskedLM("A", str(encoder)).train(**columns, epochs=3, batch_size=72, mask_probability=0.5)
    training, validation = ([found for rows, found in seen if len(rows) == size] for size in (72, 18))
    assert len(training) == len(validation) == 3
    assert len(set(validation)) == 1
    assert len(set(training)) == 3


def test_distilling_a_masked_language_model_is_the_triple_loss_on_the_same_masked_texts(
    session, encoder, columns, tmp_path, monkeypatch
):
    teacher = TrainHFMaskedLM("Teacher", str(encoder)).train(**columns, epochs=4, batch_size=8, learning_rate=3e-3)
    start = distilbert_student(teacher, tmp_path / "start")
    batches = []
    drawn = MaskedLM.drawn
    monkeypatch.setattr(MaskedLM, "drawn", lambda *given: batches.append(drawn(*given)) or batches[-1])
    student = TrainHFMaskedLM("Student", str(start)).train(
        **columns, objective=DistilBERT(teacher), epochs=1, batch_size=72, learning_rate=0.0
    )
    (batch,) = [each for each in batches if len(each["rows"]) == 18]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask = batch["mask"]
    with torch.no_grad():
        ours = student.model(**inputs, output_hidden_states=True)
        theirs = teacher.model(**inputs, output_hidden_states=True)
    p, q = (each.logits[mask] / 2 for each in (ours, theirs))
    soft = 4 * F.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="batchmean")
    masked = F.cross_entropy(ours.logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    cosine = 1 - F.cosine_similarity(ours.hidden_states[-1][mask], theirs.hidden_states[-1][mask], dim=-1).mean()
    assert student.metrics["loss"] == pytest.approx(float(5 * soft + 2 * masked + cosine), rel=1e-4)
    # The student is fine-tuned like any other encoder.
    tuned = TrainHFClassifier("Tuned", student)
    rows = Rows("Rows", opinions(16)).output
    tuned.train(rows["text"], rows["label"], rows["text"], rows["label"], epochs=1)
    assert tuned.predict(["good tea"]).classes == ["negative", "positive"]


def test_misfits_are_refused_before_training(session, encoder, tiny_encoder, tiny_causal_lm, columns, data):
    with pytest.raises(DefinitionError, match="mask_probability is 0"):
        TrainHFMaskedLM("A", str(encoder)).train(**columns, mask_probability=0)
    with pytest.raises(MethodMisfit, match="cannot predict masked tokens"):
        TrainHFMaskedLM("B", str(tiny_causal_lm)).train(**columns)
    with pytest.raises(MethodMisfit, match="no mask token"):
        TrainHFMaskedLM("C", str(tiny_encoder)).train(**columns)
    with pytest.raises(MethodMisfit, match="is an objective for TrainHFMaskedLM, not for classification"):
        TrainHFClassifier("D", str(tiny_encoder)).train(
            **data(opinions(8), opinions(8)), objective=DistilBERT(TrainedModel(encoder))
        )
    classifier = TrainHFClassifier("E", str(encoder)).train(**data(opinions(8), opinions(8)), epochs=1)
    for objective in (WordLevel(classifier), SoftTargets(classifier), HardTargets(classifier)):
        with pytest.raises(MethodMisfit, match="is not a masked language model"):
            TrainHFMaskedLM("F", str(encoder)).train(**columns, objective=objective)
