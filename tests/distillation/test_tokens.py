"""Batches of token ids: on a CPU in parts that stay in its cache, with the same results."""

from __future__ import annotations

import random

import pytest
import tiny_models
import torch
from transformers import AutoModelForTokenClassification

from datadreamer_like.distillation import TeacherModel, teacher_logits_for_texts
from datadreamer_like.distillation.tokens import TOKENS_IN_CACHE, padded_inputs, parts_in_cache
from datadreamer_like.models.trained.spans import predict_spans

WORDS = ["cat", "dog", "park", "fox", "runs", "small"]
CPU = torch.device("cpu")


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.choice([1, 3, 20, 60]))) for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lengths", [[700], [1, 1], [5, 600, 3, 500, 12], list(range(1, 90)), [64] * 33])
def test_parts_hold_each_row_once_without_padding_that_no_row_needs(lengths, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch = padded_inputs([[index + 1] * length for index, length in enumerate(lengths)], 0)
    seen = []
    for rows, part in parts_in_cache(batch, CPU):
        longest = max(lengths[row] for row in rows)
        assert part["input_ids"].shape == part["attention_mask"].shape == (len(rows), longest)
        assert part["input_ids"].numel() <= TOKENS_IN_CACHE * threads or len(rows) == 1
        for row, ids, mask in zip(rows, part["input_ids"], part["attention_mask"], strict=True):
            assert ids[ids != 0].tolist() == [row + 1] * lengths[row]
            assert mask.sum() == lengths[row]
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))


def test_other_devices_take_a_batch_as_it_is():
    batch = padded_inputs([[1] * 600, [2]], 0)
    ((rows, whole),) = parts_in_cache(batch, torch.device("cuda"))
    assert list(rows) == [0, 1]
    assert whole is batch


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
def test_a_classifier_gives_each_text_the_logits_that_it_has_alone(family):
    torch.manual_seed(0)
    model = tiny_models.FAMILIES[family]().eval()
    model.config.max_position_embeddings = 60
    tokenizer = tiny_models.word_pieces(WORDS)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True)
    found = teacher_logits_for_texts(TeacherModel(model, tokenizer), texts(50))
    assert max(sizes) <= TOKENS_IN_CACHE * torch.get_num_threads()
    alone = [teacher_logits_for_texts(TeacherModel(model, tokenizer), [text]) for text in texts(50)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_a_tagger_finds_in_each_text_the_spans_that_it_finds_alone():
    torch.manual_seed(0)
    tokenizer = tiny_models.word_pieces(WORDS)
    config = tiny_models.FAMILIES["bert"]().config
    config.id2label, config.label2id = {0: "O", 1: "B-x", 2: "I-x"}, {"O": 0, "B-x": 1, "I-x": 2}
    tagger = TeacherModel(AutoModelForTokenClassification.from_config(config).eval(), tokenizer)
    found = predict_spans(tagger, texts(50))
    assert any(found)
    for spans, text in zip(found, texts(50), strict=True):
        (alone,) = predict_spans(tagger, [text])
        assert [(span["start"], span["end"], span["label"]) for span in spans] == [
            (span["start"], span["end"], span["label"]) for span in alone
        ]
