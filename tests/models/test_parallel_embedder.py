from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import Lengths

from datadreamer_like import embedders
from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import ParallelEmbedder

MEET = threading.Barrier(2)


class Odd(Lengths):
    """Embeds by a function of the texts and of what it should give."""

    def __init__(self, embed: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.embed = embed

    def compute(self, texts: Sequence[str], **asks: Any) -> Any:
        return self.embed(texts, super().compute(texts, **asks))

    def identity(self) -> dict[str, Any]:
        return {}


class Meeting(Lengths):
    """Embeds when another one does at the same time."""

    def __init__(self, version: int = 1) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.kind = version

    def compute(self, texts: Sequence[str], **asks: Any) -> Any:
        self.seen += texts
        MEET.wait(10)
        return super().compute(texts, **asks)

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind}


def test_each_embeds_its_share_at_the_same_time_and_the_order_is_kept(tmp_path: Path) -> None:
    one, other = Meeting(), Meeting()
    model = ParallelEmbedder(one, other)
    model.cache_folder_path = one.cache_folder_path = tmp_path
    texts = [f"{'a' * number} b" for number in range(9)]
    expected = Lengths().run(texts)
    np.testing.assert_array_equal(model.run(texts), expected)
    assert (len(one.seen), len(other.seen)) == (5, 4)
    assert fingerprint(model) == fingerprint(one)
    np.testing.assert_array_equal(one.run(texts), expected)  # found
    assert len(one.seen) == 5
    assert (model.dims, model.model_max_length, model.count_tokens("abc")) == (2, 1_000, 3)


def test_it_takes_one_model_several_times() -> None:
    assert embedders.ParallelEmbedder is ParallelEmbedder
    with pytest.raises(DefinitionError, match="at least one"):
        ParallelEmbedder()
    with pytest.raises(DefinitionError, match="cannot be compared"):
        ParallelEmbedder(Meeting(1), Meeting(2))
    with pytest.raises(ArgumentTypeError, match="takes Embedders"):
        ParallelEmbedder("all-MiniLM-L6-v2")  # type: ignore[arg-type]


def failing(texts: Any, vectors: Any) -> Any:
    raise ValueError("broken")


@pytest.mark.parametrize(
    ("embed", "match"),
    [
        (lambda texts, vectors: vectors[:-1], r"compute of Odd \(lengths\) returned 2 values for 3 texts"),
        (lambda texts, vectors: np.hstack([vectors, vectors]), r"vectors of \[2, 4\] numbers; they must all be one"),
        (failing, "broken"),
    ],
    ids=["fewer", "longer", "failing"],
)
def test_a_member_that_is_broken_shifts_no_vectors_and_is_named(embed: Any, match: str) -> None:
    model = ParallelEmbedder(Odd(lambda texts, vectors: vectors), Odd(embed))
    with pytest.raises(ValueError, match=match) as raised:
        model.run([f"text {index}" for index in range(6)])
    assert "numbers" in match or "model 2 of 2 of ParallelEmbedder" in "".join(getattr(raised.value, "__notes__", []))


def test_a_text_that_one_of_them_refuses_fails_alone() -> None:
    def picky(texts: Any, vectors: Any) -> Any:
        if "bad" in texts:
            raise BadRequest("refused: bad")
        return vectors

    texts = [*map(str, range(20)), "bad", *map(str, range(20, 30))]
    results = list(ParallelEmbedder(Odd(picky), Odd(picky)).results(texts, batch_size=16))
    assert [text for text, result in zip(texts, results, strict=True) if result.error is not None] == ["bad"]
    assert str(results[20].error) == "refused: bad"


def test_memory_that_runs_out_in_one_of_them_halves_the_batch_of_all() -> None:
    def small(texts: Any, vectors: Any) -> Any:
        if len(texts) > 2:
            raise MemoryError("out of memory")
        return vectors

    texts = [f"{'a' * number} b" for number in range(30)]
    model = ParallelEmbedder(Odd(small), Odd(lambda texts, vectors: vectors))
    np.testing.assert_array_equal(model.run(texts, batch_size=30), Lengths().run(texts))


def test_a_vector_that_is_not_finite_fails_its_text_alone() -> None:
    model = Odd(lambda texts, vectors: np.where([["bad" in text] for text in texts], np.inf, vectors))
    results = list(model.results(["a", "bad", "b"]))
    assert [result.error is None for result in results] == [True, False, True]
    assert "not finite" in str(results[1].error)
    with pytest.raises(DefinitionError, match=r"shape \(1, 2\)"):
        Odd(lambda texts, vectors: vectors[:, None]).run(["a"])
