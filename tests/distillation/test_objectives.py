"""Objectives and teachers, with small real models."""

import gc
import hashlib
import math
import sqlite3
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from datadreamer_like.distillation import (
    Combined,
    ConfidenceWeighted,
    HardTargets,
    Objective,
    Outputs,
    SequenceLevel,
    SoftTargets,
    StoredAnswers,
    Supervised,
    TeacherModel,
    align_labels,
    check_same_vocabulary,
    hard_target_loss,
    label_order,
    soft_target_loss,
    supervised_loss,
    teacher_logits_for_texts,
)
from datadreamer_like.distillation.tokens import max_tokens
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    LabelError,
    MethodMisfit,
    StorageError,
)
from datadreamer_like.graph.fingerprint import _Walk, fingerprint

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


@pytest.mark.parametrize("config", [None, SimpleNamespace(), SimpleNamespace(max_position_embeddings=16)])
def test_a_teacher_may_be_a_plain_module(config, classifier):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = classifier.model
            if config is not None:
                self.config = config

        def forward(self, **inputs):
            return self.inside(**inputs)

    found = teacher_logits_for_texts(TeacherModel(Plain(), classifier.tokenizer), TEXTS, max_length=16)
    torch.testing.assert_close(found, teacher_logits_for_texts(classifier, TEXTS))


def test_a_row_that_is_no_text_is_named(classifier):
    with pytest.raises(DataError, match="Text 1 is NoneType"):
        teacher_logits_for_texts(classifier, ["a", None])


def test_classes_are_put_in_the_students_order_by_name(classifier):
    plain = teacher_logits_for_texts(classifier, TEXTS)
    student = {"air": 0, "sea": 1, "land": 2}
    torch.testing.assert_close(align_labels(plain, {"sea": 0, "land": 1, "air": 2}, student), plain[:, [2, 0, 1]])


def test_other_classes_are_refused_by_name():
    with pytest.raises(LabelError, match="the teacher lacks fire; the student lacks air"):
        label_order({"sea": 0, "land": 1, "air": 2}, {"sea": 0, "land": 1, "fire": 2})


def test_another_vocabulary_is_refused_and_says_which_token(writer, tiny_causal_lm):
    same = AutoTokenizer.from_pretrained(tiny_causal_lm)
    check_same_vocabulary(writer, same)
    same.add_tokens(["<extra>"])
    with pytest.raises(MethodMisfit, match=r"1 tokens .*<extra>"):
        check_same_vocabulary(writer, same)


def test_a_teacher_of_the_wrong_kind_is_refused(writer, classifier):
    assert (
        repr(SoftTargets(writer)) == "SoftTargets(teacher=TeacherModel(LlamaForCausalLM), temperature=2.0, alpha=0.5)"
    )
    with pytest.raises(MethodMisfit, match="sequence classification"):
        teacher_logits_for_texts(writer, TEXTS)
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
    batch = {"labels": torch.tensor([0, -100, 2, 1])}
    student, teacher, labels = torch.randn(4, 3), torch.randn(4, 3), batch["labels"]
    given, said = Outputs(logits=student), Outputs(logits=teacher)
    soft = SoftTargets(classifier, temperature=3.0, alpha=0.7)
    wanted = soft_target_loss(student, teacher, labels, temperature=3.0, alpha=0.7)
    torch.testing.assert_close(soft.loss(given, said, batch), wanted)
    assert HardTargets(classifier).loss(given, said, batch) == hard_target_loss(student, teacher, labels)
    assert Supervised().loss(given, None, batch) == supervised_loss(student, labels)
    assert [o.teacher for o in (Supervised(), HardTargets(classifier), soft)] == [None, classifier, classifier]
    assert [o.needs_labels for o in (Supervised(), HardTargets(classifier), soft)] == [True, False, True]
    assert not SoftTargets(classifier, alpha=1.0).needs_labels
    assert all(isinstance(o, Objective) for o in (Supervised(), HardTargets(classifier), soft))
    with pytest.raises(DefinitionError, match="teacher's outputs have no logits"):
        soft.loss(given, None, batch)


@pytest.mark.parametrize("batch", [{}, {"mask": torch.ones(4, dtype=torch.bool)}])
@pytest.mark.parametrize("kind", [Supervised, SoftTargets, ConfidenceWeighted, SequenceLevel])
def test_labels_that_a_batch_lacks_are_asked_for(classifier, kind, batch):
    given, said = Outputs(logits=torch.randn(4, 3)), Outputs(logits=torch.randn(4, 3))
    objective = kind() if kind is Supervised else kind.example(classifier)
    with pytest.raises(DefinitionError, match=r"The loss reads labels, and the batch has ('mask'|nothing)\. Pass"):
        objective.loss(given, said, batch)


@pytest.mark.parametrize("multi", [False, True])
def test_a_row_without_a_label_counts_for_the_teacher_and_not_for_the_labels(classifier, multi):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, -100, 2, -100])
    if multi:
        labels = torch.tensor([[1.0, 0, 1], [-100.0] * 3, [0, 0, 1], [-100.0] * 3])
    batch = {"labels": labels, "mask": torch.ones(4, dtype=torch.bool)}
    given, said = Outputs(logits=student), Outputs(logits=teacher)
    known = [0, 2]
    if multi:
        p, q = (torch.sigmoid(x / 2) for x in (student, teacher))
        soft = 4 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
        hard = F.binary_cross_entropy_with_logits(student, (teacher > 0).float())
        known_loss = F.binary_cross_entropy_with_logits(student[known], labels[known])
    else:
        p, q = ((x / 2).softmax(-1) for x in (student, teacher))
        soft = 4 * (q * (q / p).log()).sum(-1).mean()
        hard = F.cross_entropy(student, teacher.argmax(-1))
        known_loss = F.cross_entropy(student[known], labels[known])
    mixed = SoftTargets(classifier, temperature=2.0, alpha=0.3)
    torch.testing.assert_close(mixed.loss(given, said, batch), 0.3 * soft + 0.7 * known_loss)
    torch.testing.assert_close(SoftTargets(classifier, alpha=1.0).loss(given, said, batch), soft)
    torch.testing.assert_close(HardTargets(classifier).loss(given, said, batch), hard)


def test_a_combination_is_the_weighted_sum_and_wants_what_its_parts_want(classifier, writer):
    torch.manual_seed(0)
    batch = {"labels": torch.tensor([0, 2])}
    student, said = Outputs(logits=torch.randn(2, 3)), Outputs(logits=torch.randn(2, 3))
    parts = [Supervised(), HardTargets(classifier)]
    both = Combined(parts, weights=[0.25, 2.0])
    losses = [part.loss(student, said, batch) for part in parts]
    torch.testing.assert_close(both.loss(student, said, batch), 0.25 * losses[0] + 2.0 * losses[1])
    assert both.teacher is classifier
    assert both.wants == {"logits"}
    assert both.needs_labels
    assert both.modules(classifier.model, None) is None
    with pytest.raises(DefinitionError, match="2 objectives and 1 weights"):
        Combined(parts, weights=[1.0])
    for weights in ("12", [1.0, "1"], [1.0, 0], [1.0, None], [1.0, math.inf], [1.0, True]):
        with pytest.raises(DefinitionError, match=r"weights(\[1\] (is (0|inf);|must be a number)| must be a list)"):
            Combined(parts, weights=weights)
    with pytest.raises(DefinitionError, match="different teachers"):
        Combined([HardTargets(writer), HardTargets(classifier)], weights=[1.0, 1.0])
    with pytest.raises(ArgumentTypeError, match="a list of objectives"):
        Combined(["soft"], weights=[1.0])


@pytest.mark.parametrize(
    ("config", "tokenizer_limit", "expected"),
    [
        (transformers.BertConfig(max_position_embeddings=64), 32, 32),
        (transformers.BertConfig(max_position_embeddings=64), 10**30, 64),
        (transformers.GPT2Config(n_positions=64), 10**30, 64),
        # Positions start after the padding token's id, 1.
        (transformers.RobertaConfig(max_position_embeddings=66), 10**30, 64),
        (transformers.MPNetConfig(max_position_embeddings=66), 10**30, 64),
        (transformers.T5Config(), 10**30, None),
    ],
)
def test_texts_fit_the_tokenizers_limit_and_the_models_positions(config, tokenizer_limit, expected):
    assert max_tokens(config, SimpleNamespace(model_max_length=tokenizer_limit)) == expected


def test_stored_answers_are_found_text_by_text_and_asked_once(tmp_path):
    asked = []

    def ask(texts):
        asked.append(list(texts))
        return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])

    first = StoredAnswers(tmp_path).rows(iter(["a", "bb", "a", "ccc"]), ask, portion=2)
    assert asked == [["a", "bb"], ["ccc"]]
    assert first[torch.tensor([3, 0, 2])].tolist() == [[3.0, 99.0], [1.0, 97.0], [1.0, 97.0]]
    again = StoredAnswers(tmp_path).rows(["dd", "ccc", "bb"], ask)
    assert asked[2:] == [["dd"]]
    assert again[torch.tensor([0, 1, 2])].tolist() == [[2.0, 100.0], [3.0, 99.0], [2.0, 98.0]]
    assert len(StoredAnswers(tmp_path)) == 4


@pytest.mark.parametrize("lost", [["a"], ["bb"], ["a", "bb", "ccc"]])
def test_stored_answers_that_were_lost_are_an_error_and_asked_again(lost, tmp_path):
    asked = []

    def ask(texts):
        asked.extend(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    texts = ["a", "bb", "ccc"]
    rows = StoredAnswers(tmp_path).rows(texts, ask)
    with closing(sqlite3.connect(tmp_path / "logits.sqlite")) as connection, connection:
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in lost]
        connection.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in keys])
    with pytest.raises(StorageError, match=f"lost the logits of {len(lost)} of 3 rows"):
        rows[torch.tensor([0, 1, 2])]
    asked.clear()
    assert StoredAnswers(tmp_path).rows(texts, ask)[torch.tensor([0, 1, 2])][:, 0].tolist() == [1.0, 2.0, 3.0]
    assert asked == lost


@pytest.mark.parametrize("damaged", ["folder", "folder/logits.sqlite"])
def test_stored_answers_that_cannot_be_opened_give_one_error(damaged, tmp_path, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    (tmp_path / damaged).parent.mkdir(exist_ok=True)
    (tmp_path / damaged).write_bytes(b"no database" * 1_000)
    with pytest.raises((StorageError, OSError)):
        StoredAnswers(tmp_path / "folder")
    gc.collect()
    assert unraisable == []


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
    classifier.tokenizer.add_tokens(["<extra>"])
    assert fingerprint(SoftTargets(classifier)) != before
    with torch.no_grad():
        again.model.classifier.bias[0] += 1e-3
    assert fingerprint(SoftTargets(again)) != fingerprint(SoftTargets(classifier))


def test_the_docs_say_what_alpha_weighs():
    assert "`alpha` weighs the soft term" in SoftTargets.__doc__.splitlines()[0]


def test_the_size_of_a_vocabulary_hardly_slows_its_fingerprint(classifier, monkeypatch):
    hashed, digest = 0, _Walk.digest

    def counting(*args):
        nonlocal hashed
        hashed += 1
        return digest(*args)

    monkeypatch.setattr(_Walk, "digest", counting)
    small = fingerprint(classifier)
    before, hashed = hashed, 0
    classifier.tokenizer.add_tokens([f"<extra {number}>" for number in range(1_000)])
    assert fingerprint(classifier) != small
    assert hashed == before
