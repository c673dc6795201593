"""Our own architectures: their formulas in float64, and folders that come back the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.feature_extraction.text import TfidfVectorizer

from datadreamer_like.errors import DefinitionError, EmptyDataset, NewerFormat
from datadreamer_like.formats import load
from datadreamer_like.formats.classifiers.embedding import EmbeddingConfig, EmbeddingForSequenceClassification, pool
from datadreamer_like.formats.classifiers.linear import (
    LinearConfig,
    LinearForSequenceClassification,
    TermCounts,
    TextFeatures,
)
from datadreamer_like.formats.classifiers.static import (
    StaticConfig,
    StaticForSequenceClassification,
    token_vectors,
)

TEXTS = ["the cat sat", "the dog ran and ran", "a cat, a dog", "Übergröße 42"]
NAMES = {"id2label": {0: "a", 1: "b", 2: "c"}}


def randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("hidden_units", [0, 5])
def test_a_static_classifier_is_a_head_on_the_mean_of_vectors_padded_or_flat(hidden_units: int) -> None:
    model = randomized(StaticForSequenceClassification(StaticConfig(11, 6, hidden_units, dropout=0.5, **NAMES)))
    rows = [[1, 2, 3], [4], [5, 5, 6, 10, 0]]
    expected = []
    for row in rows:
        mean = model.embedding.weight[row].double().mean(0)
        if hidden_units:
            inner = model.hidden.weight.double() @ mean + model.hidden.bias.double()
            mean = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        expected.append(model.classifier.weight.double() @ mean + model.classifier.bias.double())
    padded = torch.tensor([row + [7] * (5 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (5 - len(row)) for row in rows])
    flat, offsets = torch.tensor([token for row in rows for token in row]), torch.tensor([0, 3, 4])
    with torch.no_grad():
        found = model(input_ids=padded, attention_mask=mask).logits, model(input_ids=flat, offsets=offsets).logits
    for logits in found:
        torch.testing.assert_close(logits.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_token_vectors_are_principal_components_weighted_by_inverse_frequency() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(30, 8, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.arange(8.0, 0, -1).double()
    )
    counts = [i**2 for i in range(30)]
    found = token_vectors(vectors, 3, counts).double()
    values, directions = torch.linalg.eigh(torch.cov(vectors.T))
    top = directions[:, values.argsort(descending=True)[:3]]
    plain = (vectors - vectors.mean(0)) @ top
    plain *= torch.tensor([1e-3 / (1e-3 + count / sum(counts)) for count in counts])[:, None].double()
    plain /= plain.norm(dim=1).mean()
    torch.testing.assert_close(found.abs(), plain.abs(), atol=1e-5, rtol=1e-5)  # a component has no sign
    assert token_vectors(vectors, 12, counts)[:, 8:].abs().max() == 0


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_pooling_never_looks_at_padding(pooling: str) -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = {
        "mean": [hidden[0, :2].mean(0), hidden[1].mean(0)],
        "first": hidden[:, 0],
        "last": hidden[[0, 1], [1, 3]],
    }
    found = pool(hidden, mask, pooling)
    torch.testing.assert_close(found, torch.stack(list(expected[pooling])))
    hidden[0, 2:] = float("inf") if pooling != "mean" else 99.0
    torch.testing.assert_close(pool(hidden, mask, pooling), found)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(DefinitionError, match="no pooling"):
        pool(torch.zeros(1, 2, 3), torch.ones(1, 2), "max")


def test_features_are_those_of_scikit_learn_also_after_saving() -> None:
    parts = TermCounts.fit(TEXTS, "word", (1, 2), None), TermCounts.fit(TEXTS, "char_wb", (2, 3), 30)
    features = TextFeatures(parts)
    found = features([*TEXTS, "", "unseen wörds only"]).toarray()
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit(TEXTS)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), sublinear_tf=True, max_features=30).fit(TEXTS)
    expected = [each.transform([*TEXTS, "", "unseen wörds only"]).toarray() for each in (words, letters)]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-6)
    again = TextFeatures.from_json(features.to_json(), "features.json")
    np.testing.assert_array_equal(again([*TEXTS, ""]).toarray(), features([*TEXTS, ""]).toarray())


def test_texts_without_terms_are_refused() -> None:
    with pytest.raises(EmptyDataset, match="no word n-grams"):
        TermCounts.fit(["", "!?"], "word", (1, 1), None)


def linear() -> LinearForSequenceClassification:
    features = TextFeatures((TermCounts.fit(TEXTS, "word", (1, 2), None), TermCounts.fit(TEXTS, "char_wb", (2, 3), 30)))
    model = randomized(LinearForSequenceClassification(LinearConfig(len(features), **NAMES)))
    model.features = features
    return model


def test_a_linear_classifier_is_a_matrix_product_also_for_texts_without_features() -> None:
    model = linear()
    assert model.classes == ["a", "b", "c"]
    texts = ["", *TEXTS, "", "cat"]
    expected = model.features(texts).toarray().astype(np.float64) @ model.weight.detach().double().numpy()
    np.testing.assert_allclose(model.class_logits(texts), expected + model.bias.detach().double().numpy(), atol=1e-5)
    assert model.class_logits([]).shape == (0, 3)


def static() -> StaticForSequenceClassification:
    return randomized(StaticForSequenceClassification(StaticConfig(11, 6, 4, **NAMES)))


def embedding() -> EmbeddingForSequenceClassification:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertConfig(vocab_size=11, hidden_size=8, **sizes)
    return randomized(EmbeddingForSequenceClassification(EmbeddingConfig(bert, "first", normalize=False, **NAMES)))


@pytest.mark.parametrize("build", [static, embedding, linear])
def test_a_folder_comes_back_by_our_loader_and_by_transformers(build: Any, tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    ids = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    for found in (load(tmp_path), transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)):
        assert type(found) is type(model)
        found.eval()
        for name, weight in model.state_dict().items():
            assert torch.equal(found.state_dict()[name], weight), name
        with torch.no_grad():
            if build is linear:
                assert torch.equal(found.class_logits(TEXTS), model.class_logits(TEXTS))
            else:
                assert torch.equal(found(**ids).logits, model(**ids).logits)
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".bin", ".pkl", ".joblib")]


def test_features_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    linear().save_pretrained(tmp_path)
    file = tmp_path / "features.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(NewerFormat):
        load(tmp_path)


def test_an_encoder_with_a_linear_head_gives_its_encoders_hidden_states_and_attentions() -> None:
    model = embedding().eval()
    model.set_attn_implementation("eager")
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        asked = model(ids, mask, output_hidden_states=True, output_attentions=True)
        expected = model.encoder(ids, mask, output_hidden_states=True, output_attentions=True)
        plain = model(ids, mask)
    assert [len(asked.hidden_states), len(asked.attentions)] == [2, 1]
    for name in ("hidden_states", "attentions"):
        for ours, theirs in zip(asked[name], expected[name], strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(asked.logits, plain.logits)
    assert plain.hidden_states is None
    assert plain.attentions is None
