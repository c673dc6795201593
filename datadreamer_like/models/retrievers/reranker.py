"""The base of rerankers, which score the texts that another retriever finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from datadreamer_like.errors import DefinitionError, ModelError, check_number

from ..task_models.task_model import TextRun
from .retriever import Found, Retriever, check_retrievers

# With a hundred texts each, so that few texts are in memory.
_QUERIES_AT_ONCE = 64


class Reranker(Retriever):
    """Base of retrievers that read each query together with the texts that another retriever finds, and sort these.

    A subclass writes `score_pairs` and `identity`, which includes that of this class.

    Args:
        retriever: Finds the texts to sort.
        depth: Texts to sort for each query; `k` if that is more.

    Raises:
        ArgumentTypeError: `retriever` is not one.
        DefinitionError: `depth` is less than 1.
    """

    def __init__(self, retriever: Retriever, depth: int = 100) -> None:
        check_retrievers([retriever], type(self).__name__)
        check_number(depth, "depth", 1, whole=True)
        super().__init__(retriever.texts, retriever.cache_folder_path)
        self.retriever = retriever
        self.depth = depth

    def score_pairs(self, pairs: Iterable[tuple[str, str]], run: TextRun) -> Iterator[float | ModelError]:
        """Yields how relevant the second text of each pair is to the first, a query; higher is better.

        One finite number for each pair, in their order, or its error; one that is not finite fails its query.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement score_pairs.")

    def identity(self) -> dict[str, Any]:
        """Returns the retriever and the number of texts that are sorted."""
        return {"retriever": self.retriever, "depth": self.depth}

    def search(self, queries: Iterable[str], k: int, run: TextRun) -> Iterator[Found | ModelError]:
        """Yields positions and scores of the `k` best texts for each query; its error if a text of it has no score."""
        depth, remaining = min(max(k, self.depth), len(self.texts)), iter(queries)
        while portion := list(islice(remaining, _QUERIES_AT_ONCE)):
            found = self.retriever.found_for(portion, depth, run)
            pairs = (
                (query, text)
                for query, each in zip(portion, found, strict=True)
                if not isinstance(each, ModelError)
                for text in self.texts_at(each[0])
            )
            scores = iter(self.score_pairs(pairs, run))
            for each in found:
                if isinstance(each, ModelError):
                    yield each
                    continue
                of_query = list(islice(scores, len(each[0])))
                if len(of_query) < len(each[0]):
                    raise self._miscounted("fewer")
                yield self._sorted(each[0], of_query, k)
            if next(scores, None) is not None:
                raise self._miscounted("more")

    @property
    def display_name(self) -> str:
        """Class, model and retriever, for display."""
        return f"{type(self).__name__} ({self.model_name}, {self.retriever.display_name})"

    @property
    def citation(self) -> list[str] | None:
        """Citations of the model and the retriever."""
        return [*(super().citation or ()), *(self.retriever.citation or ())] or None

    def unload_model(self) -> None:
        """Frees the memory of the retriever."""
        self.retriever.unload_model()

    def _miscounted(self, what: str) -> DefinitionError:
        return DefinitionError(
            f"score_pairs of {type(self).__name__} yields {what} scores than there are pairs; expected one for each."
        )

    def _sorted(self, positions: list[int], scores: list[float | ModelError], k: int) -> Found | ModelError:
        """Returns the best `k` positions; equal scores keep the retriever's order."""
        values: list[float] = []
        for score in scores:
            if isinstance(score, ModelError):
                return score
            try:
                value = float(score)
            except (TypeError, ValueError):
                raise DefinitionError(
                    f"score_pairs of {type(self).__name__} yields {score!r:.100}; expected a number for each pair."
                ) from None
            if not math.isfinite(value):
                return ModelError(f"{self.display_name} gives a text the score {value}, so it cannot be sorted.")
            values.append(value)
        best = sorted(range(len(values)), key=lambda place: -values[place])[:k]
        return [positions[place] for place in best], [values[place] for place in best]
