from __future__ import annotations

import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError, PromptTooLong, UnknownModel
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import HFTransformers
from datadreamer_like.models.embedders.sentence_transformers_embedder import SentenceTransformersEmbedder

TEXTS = [
    "A cat sat on the mat.",
    "Parses command lines.",
    "",
    "The quick brown fox jumps over the lazy dog, again and again, until both of them are tired.",
    "Übergrößenträger 🙂",
    "A cat sat on the mat.",
]


@pytest.fixture(scope="module")
def embedder(minilm_path):
    return SentenceTransformersEmbedder(str(minilm_path), device="cpu")


def test_embeddings_are_those_of_sentence_transformers(embedder, minilm_path):
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(minilm_path), device="cpu").encode(TEXTS, show_progress_bar=False)
    found = embedder.run(TEXTS, batch_size=2)
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-6)
    assert embedder.dims == 384
    assert embedder.model_max_length == 256
    assert np.array_equal(found[0], found[-1])


def test_an_instruction_is_put_before_the_text(embedder):
    told = embedder.run(["cats"], instruction="All about ")
    np.testing.assert_allclose(told[0], embedder.run(["All about cats"])[0], atol=1e-6)


def test_long_texts_fail_as_rows_or_are_truncated(embedder):
    long = "word " * 300
    assert embedder.count_tokens(long) == 302
    short, failed = embedder.run(["short", long])
    assert short.shape == (384,)
    assert failed is None
    with pytest.raises(PromptTooLong, match="302 tokens.* is 256"):
        embedder.run([long], on_error="raise")
    np.testing.assert_allclose(embedder.run([long], truncate=True)[0], embedder.run(["word " * 254])[0], atol=1e-6)


def test_vectors_of_a_half_precision_model_are_float32(embedder, minilm_path):
    half = SentenceTransformersEmbedder(minilm_path, dtype=torch.bfloat16, device="cpu")
    [vector] = half.run(["A cat sat on the mat."])
    assert vector.dtype == np.float32
    assert half.model.dtype == torch.bfloat16
    assert float(vector @ embedder.run(["A cat sat on the mat."])[0]) == pytest.approx(1, abs=0.02)


def test_the_fingerprint_is_of_the_content_and_the_options(embedder, minilm_path, tmp_path):
    copied = shutil.copytree(minilm_path, tmp_path / "copied")
    assert fingerprint(SentenceTransformersEmbedder(copied)) == fingerprint(embedder)
    short = SentenceTransformersEmbedder(str(minilm_path), truncate_dim=64)
    assert fingerprint(short) != fingerprint(embedder)
    assert short.run(["x"])[0].shape == (64,)
    assert short.dims == 64
    with pytest.raises(UnknownModel):
        SentenceTransformersEmbedder(tmp_path / "nothing")


def test_it_is_pickled_without_the_loaded_model(embedder):
    embedder.run(["x"])
    data = pickle.dumps(embedder)
    assert len(data) < 20_000
    np.testing.assert_allclose(pickle.loads(data).run(["x"])[0], embedder.run(["x"])[0], atol=1e-6)


def test_a_plain_encoder_is_averaged(tiny_causal_lm, caplog):
    caplog.set_level(logging.ERROR)
    plain = SentenceTransformersEmbedder(str(tiny_causal_lm), device="cpu")
    assert plain.dims == 64
    assert plain.run(["The cat sat."])[0].shape == (64,)


def test_loading_and_embedding_write_nothing_to_the_terminal(minilm_path):
    script = f"""
from datadreamer_like.graph.session import DataDreamer
from datadreamer_like.models.embedders.sentence_transformers_embedder import SentenceTransformersEmbedder
with DataDreamer(":memory:", verbose=False):
    SentenceTransformersEmbedder({str(minilm_path)!r}, device="cpu").run(["Hi.", "You.", "word " * 300], truncate=True)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_normalized_embeddings_have_length_one(tiny_causal_lm):
    embedder = SentenceTransformersEmbedder(str(tiny_causal_lm), device="cpu")
    plain, unit = embedder.run(TEXTS[:2]), embedder.run(TEXTS[:2], normalize_embeddings=True)
    for vector, normalized in zip(plain, unit, strict=True):
        assert abs(np.linalg.norm(vector) - 1) > 1e-3
        np.testing.assert_allclose(normalized, vector / np.linalg.norm(vector), atol=1e-6)
        assert normalized.dtype == np.float32


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (97, 'device="cuda:97" was given, but this machine has'),
        ("cuda:97", 'device="cuda:97" was given, but this machine has'),
        ("gpu", "device cannot be 'gpu'"),
        (-1, "device cannot be -1"),
        (True, "device cannot be True"),
        (["cpu", "cpu"], "a model of sentence-transformers is on one device|spread over GPUs only"),
    ],
)
def test_devices_that_are_none_or_not_there_are_refused_alike_by_every_model(
    minilm_path, tiny_causal_lm, device, words
):
    for kind, path in ((SentenceTransformersEmbedder, minilm_path), (HFTransformers, tiny_causal_lm)):
        with pytest.raises(DefinitionError, match=words):
            kind(str(path), device=device).run(["a"])
