"""A linear classifier on TF-IDF features of words and characters, which reads texts without a tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.hub import cached_file

from datadreamer_like.errors import EmptyDataset, NewerFormat, StorageError

FEATURES_NAME = "features.json"
_FORMAT = 1
_FETCHED = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass(frozen=True)
class TermCounts:
    """TF-IDF features of one kind of terms: n-grams of words, or of characters within words.

    Attributes:
        analyzer: "word" or "char_wb", as in scikit-learn's `TfidfVectorizer`.
        ngrams: Shortest and longest n-gram.
        terms: The terms, in the order of the features.
        idf: Inverse document frequency of each term.
    """

    analyzer: str
    ngrams: tuple[int, int]
    terms: list[str]
    idf: list[float]

    @classmethod
    def fit(cls, texts: Sequence[str], analyzer: str, ngrams: tuple[int, int], most: int | None) -> TermCounts:
        """Collects the terms of texts, at most the `most` frequent ones.

        Raises:
            EmptyDataset: The texts have no term.
        """
        vectorizer = _vectorizer(analyzer, ngrams, max_features=most)
        try:
            vectorizer.fit(texts)
        except ValueError as error:  # of sklearn, for an empty vocabulary
            raise EmptyDataset(
                f"The texts have no {'word' if analyzer == 'word' else 'character'} n-grams to count. Check the column."
            ) from error
        return cls(analyzer, ngrams, vectorizer.get_feature_names_out().tolist(), vectorizer.idf_.tolist())

    @cached_property
    def vectorizer(self) -> Any:
        """The scikit-learn vectorizer."""
        found = _vectorizer(self.analyzer, tuple(self.ngrams), vocabulary=self.terms)
        found.idf_ = np.asarray(self.idf, dtype=np.float32)
        return found


def _vectorizer(analyzer: str, ngrams: tuple[int, ...], **options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Words of one letter count too, as do numbers.
    pattern = {"token_pattern": r"(?u)\b\w+\b"} if analyzer == "word" else {}
    return TfidfVectorizer(
        analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True, dtype=np.float32, **pattern, **options
    )


@dataclass(frozen=True)
class TextFeatures:
    """The features of texts, one block after the other, each of length 1."""

    parts: tuple[TermCounts, ...]

    def __len__(self) -> int:
        return sum(len(part.terms) for part in self.parts)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Returns the features [texts, features], a scipy CSR matrix, fp32."""
        from scipy.sparse import hstack

        return hstack([part.vectorizer.transform(texts) for part in self.parts], format="csr", dtype=np.float32)

    def to_json(self) -> str:
        """Returns the features as text."""
        return json.dumps({"format": _FORMAT, "parts": [asdict(part) for part in self.parts]}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> TextFeatures:
        """Reads the features from what `to_json` wrote to the file `where`."""
        saved = json.loads(text)
        NewerFormat.check(where, saved["format"], _FORMAT)
        return cls(tuple(TermCounts(**{**part, "ngrams": tuple(part["ngrams"])}) for part in saved["parts"]))


class LinearConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The size of a `LinearForSequenceClassification`."""

    model_type = "datadreamer_linear"
    reads_texts: ClassVar[bool] = True
    """The model has no tokenizer."""

    def __init__(self, num_features: int = 0, **options: Any) -> None:
        self.num_features = num_features
        super().__init__(**options)


class LinearForSequenceClassification(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Classifies texts by a linear layer on their TF-IDF features.

    Terms and their weights are in `features.json` next to the weights; scikit-learn computes the features.
    """

    config_class = LinearConfig
    config: LinearConfig
    base_model_prefix = "linear"
    features: TextFeatures | None = None

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        classes = int(config.num_labels or 0)
        self.weight = nn.Parameter(torch.zeros(config.num_features, classes))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of the logits."""
        return [str(name) for _, name in sorted((self.config.id2label or {}).items())]

    @torch.no_grad()
    def class_logits(self, texts: Sequence[str]) -> Tensor:
        """Returns logits [texts, classes]."""
        if self.features is None:
            raise StorageError("The model has no features. Load it from its folder, which contains features.json.")
        if not texts:  # which scikit-learn refuses
            return torch.empty(0, self.weight.shape[1])
        found = self.features(list(texts))
        indices, starts = (torch.from_numpy(part.astype(np.int64)) for part in (found.indices, found.indptr[:-1]))
        logits: Tensor = self(indices, starts, torch.from_numpy(found.data)).logits
        return logits

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> SequenceClassifierOutput:
        """Returns logits [batch, classes].

        Args:
            indices: The features of all texts, one text after the other [entries].
            offsets: Where each text begins in `indices` [batch].
            values: The value of each feature [entries].
        """
        device, dtype = self.weight.device, self.weight.dtype
        values = values.to(device, dtype)
        bags = F.embedding_bag(
            indices.to(device), self.weight, offsets.to(device), mode="sum", per_sample_weights=values
        )
        return SequenceClassifierOutput(logits=bags + self.bias)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Writes weights, config and features to a folder."""
        super().save_pretrained(save_directory, *args, **options)
        if self.features is not None:
            (Path(save_directory) / FEATURES_NAME).write_text(self.features.to_json(), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """Loads a model from a folder or the Hub; see transformers' `from_pretrained`."""
        found = super().from_pretrained(folder, *args, **options)
        fetched = {name: options[name] for name in _FETCHED if options.get(name) is not None}
        file = cached_file(str(folder), FEATURES_NAME, **fetched)
        model = found[0] if isinstance(found, tuple) else found
        model.features = TextFeatures.from_json(Path(str(file)).read_text(encoding="utf-8"), str(file))
        return found


AutoConfig.register(LinearConfig.model_type, LinearConfig)
AutoModelForSequenceClassification.register(LinearConfig, LinearForSequenceClassification)
