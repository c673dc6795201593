"""Retrieval by words, with BM25."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, BadRequest, EmptyDataset, ModelError, check_number, require_extra

from ..task_models.task_model import TextRun
from ..words import folded, words_of
from .indexed_retriever import IndexedRetriever
from .retriever import Corpus, Found


class BM25Retriever(IndexedRetriever):
    """Finds the texts that share the rarest words with the query, each the more often the better.

    A text d scores the sum over the query's words w of idf(w) · tf / (tf + k1 · (1 - b + b · |d| / mean length)), where
    tf is how often w is in d, and idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5)) for a word in n of N texts (the form of
    Lucene). Texts with none of the words are not found, and equal scores are in the order of the corpus. The index is
    kept as that of `EmbeddingRetriever`.

    Args:
        texts: The corpus: a column of a step, or a list of texts. A missing text counts as one without words.
        k1: How slowly a word's repetitions stop counting, at least 0.
        b: How much a text's length counts against it, from 0 to 1.
        tokenizer: Returns the words of a text, a list of texts; for stems, stop words, or Thai, Lao and Khmer. None:
            the runs of letters with their marks, digits and underscores, and each Chinese or Japanese character, in
            Unicode's NFKC form and without case ("STRASSE" finds "Straße").
        cache_folder_path: Folder of the index outside a session.

    Raises:
        EmptyDataset, MissingExtra: No text of the corpus has a word; bm25s is not installed.
        ArgumentTypeError, DefinitionError: `k1`, `b` or `tokenizer` is not one, or `tokenizer` returns other things.

    References:
        Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; Lù 2024,
        arXiv:2407.03618 (bm25s); Kamphuis et al. 2020, "Which BM25 Do You Mean?".

    Example:
        >>> BM25Retriever(["a cat sat", "two dogs ran"]).run(["the cat"], k=1)  # doctest: +SKIP
        [{'indices': [0], 'texts': ['a cat sat'], 'scores': [0.31]}]
    """

    def __init__(
        self,
        texts: Corpus,
        k1: float = 1.2,
        b: float = 0.75,
        tokenizer: Callable[[str], list[str]] | None = None,
        cache_folder_path: str | Path | None = None,
    ) -> None:
        super().__init__(texts, cache_folder_path)
        require_extra("retrieval", "bm25s", what="BM25Retriever")
        check_number(k1, "k1")
        check_number(b, "b", 0, 1)
        if tokenizer is not None and not callable(tokenizer):
            raise ArgumentTypeError(f"tokenizer must be a function from a text to its words, not {tokenizer!r:.100}.")
        self.k1 = k1
        self.b = b
        self.tokenizer = tokenizer

    @classmethod
    def example(cls, model: Any = None) -> Self:
        """Returns a retriever of three texts, for tests and documentation."""
        return cls(["a bird", "a cat and a bird", "two big dogs"])

    def index_identity(self) -> dict[str, Any]:
        """Returns the corpus and all options, which determine the index."""
        words = "folded, with marks, characters and İ as i" if self.tokenizer is None else self.tokenizer
        return {"texts": self.texts, "k1": float(self.k1), "b": float(self.b), "tokenizer": words}

    def words(self, text: str) -> list[str]:
        """Returns the words of a text or query."""
        if self.tokenizer is None:
            return words_of(folded(text))
        said: Any = self.tokenizer(text)
        words = list(said) if isinstance(said, Iterable) and not isinstance(said, str) else None
        if words is None or not all(isinstance(word, str) for word in words):
            raise ArgumentTypeError(
                f"tokenizer must return a list of words, which are texts; for {text!r:.100} it returned {said!r:.100}."
            )
        return words

    def search(self, queries: Iterable[Any], k: int, run: TextRun) -> Iterator[Found | ModelError]:
        """Yields positions and scores of up to `k` texts that have a word of each query."""
        index = self.index
        for query in queries:
            if not isinstance(query, str):
                yield BadRequest(f"The query is {type(query).__name__}, not a text. Convert or filter such rows first.")
                continue
            known = index.get_tokens_ids(self.words(query))
            yield _best(index.get_scores_from_ids(known), k) if known else ([], [])

    def build_index(self, folder: Path | None) -> Any:
        """Returns a `bm25s.BM25` of the corpus."""
        import bm25s

        vocabulary: dict[str, int] = {}
        number = vocabulary.setdefault
        ids = [
            array("i", [number(word, len(vocabulary)) for word in (self.words(text) if text else ())])
            for text in self.corpus()
        ]
        if not vocabulary:
            raise EmptyDataset(f"None of the {len(ids):,} texts of the corpus has a word. Check the column.")
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
        index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        return index

    def write_index(self, index: Any, folder: Path) -> None:
        """Writes the scores of words in texts, and the words."""
        index.save(folder, show_progress=False)

    def open_index(self, folder: Path) -> Any:
        """Opens an index, whose scores are memory-mapped."""
        import bm25s

        return bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def prepare_index(self, index: Any) -> Any:
        """Makes plain arrays of those that are mapped, whose slices cost less."""
        index.scores = {
            name: np.asarray(value) if isinstance(value, np.ndarray) else value for name, value in index.scores.items()
        }
        return index

    @property
    def citation(self) -> list[str] | None:
        """Citation of bm25s."""
        return [_BM25S_CITATION]


def _best(scores: np.ndarray[Any, np.dtype[np.float32]], k: int) -> Found:
    """Returns positions and scores of the `k` largest scores [texts] over 0; equal ones by position."""
    found = np.flatnonzero(scores)
    values = scores[found]
    if len(found) > k:
        enough = values >= np.partition(values, len(values) - k)[len(values) - k]
        found, values = found[enough], values[enough]
    order = np.argsort(-values, kind="stable")[:k]
    return found[order].tolist(), values[order].tolist()


_BM25S_CITATION = """@article{lu2024bm25s,
  title={{BM25S}: Orders of magnitude faster lexical search via eager sparse scoring},
  author={L{\\`u}, Xing Han},
  journal={arXiv preprint arXiv:2407.03618},
  year={2024}
}"""
