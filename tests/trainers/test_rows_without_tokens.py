"""Rows of no token, and tokenizers that lack special tokens: trained, predicted, compressed, compared, embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datadreamer_like import pruning, quantization
from datadreamer_like.models import HFTransformers
from datadreamer_like.models.embedders.sentence_transformers_embedder import SentenceTransformersEmbedder
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.stages import Compare, Prune, Quantize
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune

from .conftest import WORDS, Rows

NOTHING = ["", " ", "\n\t ", "\x00", "​"]
TEXTS = ["good tea", "bad film", *NOTHING, "the day was fine", "poor", "awful"]
LABELS = ["a", "b"] * 5
TIMING = {"repeats": 1, "latency_texts": 2, "throughput_texts": 4, "resamples": 10}


def byte_level(special: list[str], **options: Any) -> PreTrainedTokenizerFast:
    return tiny_models.byte_pairs(WORDS * 5, 300, special, model_max_length=32, **options)


def words_only(special: list[str], **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer to which blanks and control characters are nothing at all."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token=special[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **options)


TOKENIZERS = {
    "end only": lambda: byte_level(["<e>"], eos_token="<e>", bos_token="<e>"),
    "no special tokens": lambda: byte_level(["<u>"]),
    "unknown only": lambda: words_only(["<u>"], unk_token="<u>"),
    "padding only": lambda: words_only(["<p>"], unk_token="<p>", pad_token="<p>"),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = TOKENIZERS[request.param]()
    model = tiny_models.llama(tokenizer, hidden_size=32, intermediate_size=48, num_key_value_heads=2)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("causal"))


@pytest.fixture(params=["words", "pieces"], scope="module")
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose tokenizer adds no special tokens, and one whose tokenizer does."""
    if request.param == "words":
        tokenizer = words_only(["[PAD]", "[UNK]"], pad_token="[PAD]", unk_token="[UNK]")
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        tokenizer = tiny_models.word_pieces({word: i for i, word in enumerate([*special, *WORDS])}, max_length=32)
    return tiny_models.save(
        tiny_models.bert(tokenizer, transformers.BertModel), tokenizer, tmp_path_factory.mktemp("enc")
    )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_classifier_is_trained_and_labels_every_text_alike_in_every_batch(session, causal, batch_size):
    rows = Rows("rows", {"text": TEXTS, "label": LABELS}).output
    trainer = TrainHFClassifier("c", causal)
    trainer.train(*[rows["text"], rows["label"]] * 2, epochs=1, batch_size=batch_size)
    found = trainer.predict(TEXTS)
    alone = np.concatenate([trainer.predict([text]).probabilities for text in TEXTS])
    assert set(found.labels) <= {"a", "b"}
    np.testing.assert_allclose(found.probabilities, alone, atol=1e-5)


def test_an_encoder_is_trained_compressed_and_compared(session, encoder):
    rows = Rows("rows", {"text": TEXTS, "label": LABELS, "nothing": NOTHING * 2}).output
    trainer = TrainHFClassifier("c", encoder)
    trainer.train(*[rows["text"], rows["label"]] * 2, epochs=1, batch_size=4)
    slim = Prune("slim", trainer, pruning.Wanda(0.5), calibration=rows["text"], batch_size=2)
    small = Quantize("small", trainer, quantization.NF4())
    compared = Compare("all", [trainer, slim, small], rows["nothing"], rows["label"], **TIMING)
    assert [row["model"] for row in compared.rows] == ["c", "slim", "small"]
    assert all(np.isfinite(row["accuracy"]) for row in compared.rows)


def test_a_language_model_is_fine_tuned_compared_and_answers(session, causal):
    rows = Rows("rows", {"prompt": TEXTS, "answer": ["good", "", *["tea "] * 8]}).output
    trainer = TrainHFFineTune("f", causal)
    trainer.train(*[rows["prompt"], rows["answer"]] * 2, epochs=1, batch_size=3)
    assert np.isfinite(trainer.metrics["cross_entropy"])
    compared = Compare("both", [causal, trainer], rows["prompt"], rows["answer"], **TIMING)
    assert np.isfinite(compared.rows[1]["bits_per_byte"])
    llm = HFTransformers(trainer, dtype="float32")
    alone = [llm.run([text], max_new_tokens=3, temperature=0.0)[0] for text in TEXTS]
    assert llm.run(TEXTS, max_new_tokens=3, temperature=0.0, batch_size=10) == alone


def test_preferences_among_empty_answers_are_learnt_where_an_end_token_tells_them_apart(session, causal, caplog):
    from datadreamer_like.trainers import TrainHFDPO

    columns = {"p": ["good", "", "tea", "bad"], "c": ["day", "film", "", "fine"], "r": ["", "tea", "day", "poor"]}
    rows = Rows("rows", columns).output
    trainer = TrainHFDPO("d", causal)
    trainer.train(*[rows["p"], rows["c"], rows["r"]] * 2, epochs=1, batch_size=2, loss_type="ipo")
    assert all(np.isfinite(value) for value in trainer.metrics.values())
    ends = transformers.AutoTokenizer.from_pretrained(causal).eos_token_id is not None
    assert ("2 of the train rows are left out" in caplog.text) == (not ends)


def test_texts_without_tokens_have_vectors(session, encoder):
    embedder = SentenceTransformersEmbedder(encoder)
    together = np.stack(embedder.run(TEXTS))
    alone = np.stack([embedder.run([text])[0] for text in TEXTS])
    assert np.isfinite(together).all()
    assert (np.linalg.norm(together, axis=1) > 0).all()
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_texts_are_cut_to_as_little_as_one_token(session, encoder):
    model = tiny_models.bert(transformers.AutoTokenizer.from_pretrained(encoder), num_labels=2)
    saved = TrainedModel.save(model, transformers.AutoTokenizer.from_pretrained(encoder), session.folder / "m")
    assert len(saved.predict(TEXTS, max_length=2)) == len(TEXTS)
    with torch.no_grad():
        assert np.isfinite(saved.predict(TEXTS, max_length=3).probabilities).all()
