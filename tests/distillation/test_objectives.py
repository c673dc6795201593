"""Objectives and teachers, with small real models."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from datadreamer_like.distillation import (
    HardTargets,
    Objective,
    SoftTargets,
    Supervised,
    TeacherModel,
    align_labels,
    check_same_vocabulary,
    hard_target_loss,
    soft_target_loss,
    supervised_loss,
    teacher_logits_for_texts,
    teacher_logits_for_tokens,
)
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, LabelError, MethodMisfit
from datadreamer_like.graph.fingerprint import fingerprint

TEXTS = ["The cat sat on the warm mat.", "Rain", "She read a long book at night in the quiet old town by the sea."]


@pytest.fixture(scope="module")
def tokenizer(tiny_causal_lm):
    return AutoTokenizer.from_pretrained(tiny_causal_lm)


@pytest.fixture
def classifier(tiny_causal_lm):
    # An encoder counts positions from the left.
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm, padding_side="right")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        id2label={0: "sea", 1: "land", 2: "air"},
        label2id={"sea": 0, "land": 1, "air": 2},
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return TeacherModel(model, tokenizer)


@pytest.fixture
def writer(tiny_causal_lm, tokenizer):
    return TeacherModel(AutoModelForCausalLM.from_pretrained(tiny_causal_lm), tokenizer)


def test_logits_come_in_the_order_of_the_texts_without_dropout_and_cut(classifier):
    classifier.model.train()
    classifier.model.bert.encoder.eval()
    seen = []
    found = teacher_logits_for_texts(classifier, TEXTS, batch_size=2, on_rows=seen.append)
    assert seen == [2, 1]
    assert classifier.model.training
    assert not classifier.model.bert.encoder.training
    classifier.model.eval()
    for text, row in zip(TEXTS, found, strict=True):
        inputs = classifier.tokenizer([text], return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            wanted = classifier.model(**inputs).logits[0]
        torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(teacher_logits_for_texts(classifier, TEXTS, max_length=2), found)


def test_logits_of_a_teacher_can_take_part_in_a_training(classifier):
    found = teacher_logits_for_texts(classifier, TEXTS)
    student = torch.randn(3, 3, requires_grad=True)
    (student * found).sum().backward()
    torch.testing.assert_close(student.grad, found)
    assert teacher_logits_for_texts(classifier, []).shape == (0, 3)


def test_a_row_that_is_no_text_is_named(classifier):
    with pytest.raises(DataError, match="Text 1 is NoneType"):
        teacher_logits_for_texts(classifier, ["a", None])


def test_classes_are_put_in_the_students_order_by_name(classifier):
    plain = teacher_logits_for_texts(classifier, TEXTS)
    objective = SoftTargets(classifier)
    student = {"air": 0, "sea": 1, "land": 2}
    torch.testing.assert_close(objective.teacher_logits(TEXTS, label2id=student), plain[:, [2, 0, 1]])
    torch.testing.assert_close(align_labels(plain, {"sea": 0, "land": 1, "air": 2}, student), plain[:, [2, 0, 1]])
    torch.testing.assert_close(objective.teacher_logits(TEXTS), plain)


def test_other_classes_are_refused_by_name_before_anything_is_computed(classifier):
    computed = []
    with pytest.raises(LabelError, match="does not know fire; the student does not know air"):
        SoftTargets(classifier).teacher_logits(
            TEXTS, label2id={"sea": 0, "land": 1, "fire": 2}, on_rows=computed.append
        )
    assert not computed


def test_an_lm_teacher_gives_logits_at_each_position(writer):
    batch = writer.tokenizer(TEXTS, return_tensors="pt", padding=True)
    batch["labels"] = batch["input_ids"]
    found = teacher_logits_for_tokens(writer, batch)
    with torch.no_grad():
        wanted = writer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(found, wanted)
    assert not found.requires_grad


def test_an_encoder_decoder_teacher_is_fed_the_labels(tiny_seq2seq):
    teacher = TeacherModel(
        AutoModelForSeq2SeqLM.from_pretrained(tiny_seq2seq), AutoTokenizer.from_pretrained(tiny_seq2seq)
    )
    batch = dict(teacher.tokenizer(TEXTS[:1], return_tensors="pt"))
    batch["labels"] = teacher.tokenizer(TEXTS[1:2], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = teacher.model(**batch).logits
    torch.testing.assert_close(teacher_logits_for_tokens(teacher, batch), wanted)


def test_padding_rows_of_a_head_are_cut_and_missing_tokens_refused(writer):
    tokens = len(writer.tokenizer)
    writer.model.resize_token_embeddings(tokens + 28)
    batch = writer.tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert teacher_logits_for_tokens(writer, batch).shape[-1] == tokens + 28
    assert teacher_logits_for_tokens(writer, batch, vocabulary_size=tokens).shape[-1] == tokens
    assert teacher_logits_for_tokens(writer, batch, vocabulary_size=tokens + 100).shape[-1] == tokens + 28
    with pytest.raises(MethodMisfit, match=f"{tokens - 1} tokens"):
        SoftTargets(writer).teacher_token_logits(batch, tokens - 1)


def test_another_vocabulary_is_refused_and_says_which_token(writer, tiny_causal_lm):
    same = AutoTokenizer.from_pretrained(tiny_causal_lm)
    check_same_vocabulary(writer, same)
    same.add_tokens(["<extra>"])
    with pytest.raises(MethodMisfit, match=r"1 tokens .*<extra>"):
        SoftTargets(writer).check_vocabulary(same)


def test_a_teacher_of_the_wrong_kind_is_refused(writer, classifier):
    assert (
        repr(SoftTargets(writer)) == "SoftTargets(teacher=TeacherModel(LlamaForCausalLM), temperature=2.0, alpha=0.5)"
    )
    with pytest.raises(MethodMisfit, match="sequence classification"):
        teacher_logits_for_texts(writer, TEXTS)
    batch = {"input_ids": torch.zeros(1, 4, dtype=torch.long)}
    with pytest.raises(MethodMisfit, match="language model"):
        teacher_logits_for_tokens(classifier, batch)
    for objective in (SoftTargets, HardTargets):
        with pytest.raises(ArgumentTypeError, match="no model and no tokenizer"):
            objective("gpt-4")


def test_a_teacher_is_not_loaded_before_it_is_asked():
    class Untrained:
        @property
        def model(self):
            raise AssertionError("loaded")

        tokenizer = model

    assert SoftTargets(Untrained()).temperature == 2.0


def test_objectives_are_their_losses(classifier):
    torch.manual_seed(0)
    batch = {"labels": torch.tensor([0, -100, 2, 1]), "teacher_logits": torch.randn(4, 3)}
    outputs = SimpleNamespace(logits=torch.randn(4, 3))
    student, labels, teacher = outputs.logits, batch["labels"], batch["teacher_logits"]
    soft = SoftTargets(classifier, temperature=3.0, alpha=0.7)
    assert soft.loss(outputs, batch) == soft_target_loss(student, teacher, labels, temperature=3.0, alpha=0.7)
    assert HardTargets(classifier).loss(outputs, batch) == hard_target_loss(student, teacher, labels)
    assert Supervised().loss({"logits": student}, batch) == supervised_loss(student, labels)
    assert [o.needs_teacher for o in (Supervised(), HardTargets(classifier), soft)] == [False, True, True]
    assert all(isinstance(o, Objective) for o in (Supervised(), HardTargets(classifier), soft))
    with pytest.raises(DefinitionError, match="teacher_logits"):
        soft.loss(outputs, {"labels": labels})


def test_options_out_of_range_are_refused(classifier):
    for options in ({"temperature": 0}, {"alpha": 1.5}, {"alpha": -0.5}):
        with pytest.raises(DefinitionError, match=next(iter(options))):
            SoftTargets(classifier, **options)


def test_the_fingerprint_follows_options_and_weights_and_not_use(classifier):
    again = TeacherModel(transformers.BertForSequenceClassification(classifier.model.config), classifier.tokenizer)
    again.model.load_state_dict(classifier.model.state_dict())
    seen = {
        fingerprint(objective)
        for objective in (
            Supervised(),
            HardTargets(classifier),
            SoftTargets(classifier),
            SoftTargets(again),
            SoftTargets(classifier, temperature=2.5),
            SoftTargets(classifier, alpha=0.25),
        )
    }
    assert len(seen) == 5
    before = fingerprint(SoftTargets(classifier))
    assert fingerprint(SoftTargets(again)) == before
    teacher_logits_for_texts(classifier, TEXTS, max_length=3)
    assert fingerprint(SoftTargets(classifier)) == before
    json.dumps(again.__fingerprint__())
    with torch.no_grad():
        again.model.classifier.bias[0] += 1e-3
    assert fingerprint(SoftTargets(again)) != fingerprint(SoftTargets(classifier))


def test_the_docs_say_what_alpha_weighs():
    assert "`alpha` weighs the soft term" in SoftTargets.__doc__.splitlines()[0]
