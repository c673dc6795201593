"""The rankings of several retrievers as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from datadreamer_like.errors import DefinitionError, ModelError, check_number, check_sequence
from datadreamer_like.graph.fingerprint import fingerprint

from ..task_models.task_model import TextRun
from .retriever import QUERIES_AT_ONCE, Found, Retriever, check_retrievers


class HybridRetriever(Retriever):
    """Joins the rankings of several retrievers of one corpus, such as words and meaning, by reciprocal rank fusion.

    A text scores the sum over the retrievers of weight / (`rank_constant` + its rank), where the best text has rank 1
    and a text that a retriever does not find adds nothing. So the retrievers' own scores need not be comparable.

    Args:
        *retrievers: Two or more retrievers of the same texts.
        weights: One for each; None for 1 each.
        rank_constant: How little the first ranks count more than later ones; 60 in the paper.
        depth: Texts to ask each retriever for; `k` if that is more.

    Raises:
        DefinitionError: There are fewer than two retrievers, they have different texts, or the weights do not fit them.
        ArgumentTypeError: One of them is not a retriever.

    References:
        Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
        Methods".

    Example:
        >>> both = HybridRetriever(BM25Retriever(texts), EmbeddingRetriever(texts, embedder))  # doctest: +SKIP
        >>> both.run(["ImportError of libfoo.so.2"], k=3)  # doctest: +SKIP
    """

    def __init__(
        self,
        *retrievers: Retriever,
        weights: Sequence[float] | None = None,
        rank_constant: float = 60,
        depth: int = 100,
    ) -> None:
        check_retrievers(retrievers, type(self).__name__)
        if len(retrievers) < 2:
            raise DefinitionError(f"HybridRetriever joins two or more retrievers, not {len(retrievers)}.")
        first = retrievers[0].texts
        for other in retrievers[1:]:
            if other.texts is not first and fingerprint(other.texts) != fingerprint(first):
                raise DefinitionError(
                    f"{other.display_name} searches other texts than {retrievers[0].display_name}, so their positions "
                    "do not name the same texts. Give all retrievers the same column or list."
                )
        if weights is not None:
            check_sequence(weights, "weights", "numbers")
            for weight in weights:
                check_number(weight, "A weight")
            if len(weights) != len(retrievers) or not any(weights):
                raise DefinitionError(
                    f"weights are {list(weights)}; there must be one for each of {len(retrievers)} retrievers, and one "
                    "over 0."
                )
        check_number(rank_constant, "rank_constant")
        check_number(depth, "depth", 1, whole=True)
        super().__init__(first)
        self.retrievers = retrievers
        self.weights = [1.0] * len(retrievers) if weights is None else [float(weight) for weight in weights]
        self.rank_constant = rank_constant
        self.depth = depth

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns a fusion of two retrievers of three texts, for tests and documentation."""
        from .embedding_retriever import EmbeddingRetriever

        texts = ["a", "a cat", "two big dogs"]
        return cls(
            EmbeddingRetriever(texts, model), EmbeddingRetriever(texts, model, query_instruction="a "), weights=[1, 2]
        )

    def identity(self) -> dict[str, Any]:
        """Returns the retrievers and how they are joined."""
        options = {"weights": self.weights, "rank_constant": float(self.rank_constant), "depth": self.depth}
        return {"retrievers": list(self.retrievers), **options}

    def search(self, queries: Iterable[str], k: int, run: TextRun) -> Iterator[Found | ModelError]:
        """Yields positions and fused scores of the `k` best texts for each query."""
        depth, remaining = min(max(k, self.depth), len(self.texts)), iter(queries)
        while portion := list(islice(remaining, QUERIES_AT_ONCE)):
            rankings = [retriever.found_for(portion, depth, run) for retriever in self.retrievers]
            for each in zip(*rankings, strict=True):
                failed = next((ranking for ranking in each if isinstance(ranking, ModelError)), None)
                found = [ranking[0] for ranking in each if not isinstance(ranking, ModelError)]
                yield failed if failed is not None else self._fused(found, k)

    def _fused(self, rankings: Sequence[Sequence[int]], k: int) -> Found:
        scores: dict[int, float] = {}
        for weight, ranking in zip(self.weights, rankings, strict=True):
            for rank, position in enumerate(ranking, start=1) if weight else ():
                scores[position] = scores.get(position, 0.0) + weight / (self.rank_constant + rank)
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        return [position for position, _ in best], [score for _, score in best]

    @property
    def citation(self) -> list[str] | None:
        """Citations of the fusion and the retrievers."""
        of_retrievers = [each for retriever in self.retrievers for each in retriever.citation or ()]
        return list(dict.fromkeys([_RRF_CITATION, *of_retrievers]))

    @property
    def display_name(self) -> str:
        """Class and retrievers, for display."""
        return f"{type(self).__name__} ({', '.join(retriever.display_name for retriever in self.retrievers)})"

    def unload_model(self) -> None:
        """Frees the memory of all retrievers."""
        for retriever in self.retrievers:
            retriever.unload_model()


_RRF_CITATION = """@inproceedings{cormack2009reciprocal,
  title={Reciprocal rank fusion outperforms {Condorcet} and individual rank learning methods},
  author={Cormack, Gordon V. and Clarke, Charles L. A. and B{\\"u}ttcher, Stefan},
  booktitle={Proceedings of the 32nd International ACM SIGIR Conference},
  pages={758--759},
  year={2009}
}"""
