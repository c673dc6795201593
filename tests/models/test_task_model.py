from __future__ import annotations

import hashlib

import numpy as np
import pytest

from datadreamer_like.errors import ArgumentTypeError, BadRequest, DefinitionError, PromptTooLong
from datadreamer_like.graph.session import DataDreamer
from datadreamer_like.graph.usage import Usage, counting
from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.task_models.task_model import TaskModel


class Lengths(TaskModel[dict[str, int]]):
    """Counts characters; reads five words at most; memory for three texts."""

    model_name = "lengths"

    def __init__(self, memory: int = 100, **options) -> None:
        super().__init__(**options)
        self.memory = memory
        self.batches: list[list[str]] = []

    @property
    def model_max_length(self) -> int:
        return 5

    def count_tokens(self, value: str) -> int:
        return len(value.split())

    def compute(self, texts, **asks):
        self.batches.append(list(texts))
        if len(texts) > self.memory:
            raise MemoryError
        return [{"characters": len(text)} for text in texts]


class Hashed(Embedder):
    """Vectors that depend on text and instruction alone."""

    calls = 0

    @property
    def model_max_length(self) -> int:
        return 8

    @property
    def dims(self) -> int:
        return 4

    def count_tokens(self, value: str) -> int:
        return len(value.split())

    def compute(self, texts, *, instruction=None, **asks):
        self.calls += len(texts)
        digests = [hashlib.sha256(f"{instruction}{text}".encode()).digest() for text in texts]
        return [np.frombuffer(digest[:4], dtype=np.uint8).astype(np.float64) / 7 for digest in digests]


def test_values_come_in_order_from_batches_of_like_length():
    model = Lengths()
    texts = ["x" * (n * 7 % 40 + 1) for n in range(40)]
    assert model.run(texts, batch_size=8) == [{"characters": len(text)} for text in texts]
    lengths = [[len(text) for text in batch] for batch in model.batches]
    assert [max(batch) for batch in lengths] == sorted((max(batch) for batch in lengths), reverse=True)
    assert all(max(batch) - min(batch) < 12 for batch in lengths)


def test_a_text_is_computed_once_and_found_again(tmp_path):
    first = Lengths(cache_folder_path=tmp_path)
    assert len(first.run(["a", "bb", "a", "a"])) == 4
    assert sum(map(len, first.batches)) == 2
    second = Lengths(cache_folder_path=tmp_path)
    usage = Usage()
    with counting(usage):
        assert second.run(["bb", "a", "ccc"], return_generator=False) == [{"characters": n} for n in (2, 1, 3)]
    assert second.batches == [["ccc"]]
    assert (usage.cached, usage.requests, usage.prompt_tokens) == (2, 1, 1)
    second.run(["a"], force=True)
    assert second.batches[-1] == ["a"]


def test_bad_rows_keep_their_place():
    texts = ["fine", "one two three four five six", None, 7, ""]
    assert Lengths().run(texts) == [{"characters": 4}, None, None, None, {"characters": 0}]
    errors = [str(result.error) for result in Lengths().results(texts)]
    assert errors[0] == errors[4] == "None"
    assert "truncate=True" in errors[1]
    assert "NoneType" in errors[2]
    assert "int" in errors[3]
    assert Lengths().run(["one two three four five six"], truncate=True) == [{"characters": 27}]
    with pytest.raises(PromptTooLong):
        Lengths().run(["one two three four five six"], on_error="raise")
    with pytest.raises(BadRequest):
        Lengths().run([None], on_error="raise")


def test_out_of_memory_halves_the_batch():
    model = Lengths(memory=3)
    texts = ["x" * n for n in range(1, 11)]
    assert model.run(texts, batch_size=10) == [{"characters": len(text)} for text in texts]
    assert [len(batch) for batch in model.batches][:3] == [10, 5, 2]
    with pytest.raises(MemoryError):
        Lengths(memory=3).run(texts, batch_size=10, adaptive_batch_size=False)


@pytest.mark.parametrize("model", [Lengths(), Hashed("hashed")])
@pytest.mark.parametrize("made", [[], [[1.0]], [[1.0]] * 3])
def test_another_number_of_values_than_texts_is_refused(model, made, monkeypatch):
    monkeypatch.setattr(type(model), "compute", lambda *texts, **asks: made)
    with pytest.raises(DefinitionError, match=rf"of {type(model).__name__} .*returned {len(made)} values for 2 texts"):
        model.run(["a", "b"])


def test_unknown_and_impossible_options_are_refused():
    with pytest.raises(ArgumentTypeError, match='Did you mean "batch_size"'):
        Lengths().run(["a"], batchsize=3)
    with pytest.raises(DefinitionError, match="batch_size"):
        Lengths().run(["a"], batch_size=0)


def test_vectors_are_float32_and_cached_bit_for_bit(tmp_path):
    with DataDreamer(tmp_path / "session"):
        embedder = Hashed("hashed")
        made = embedder.run(["a", "b", "a"])
        again = Hashed("hashed")
        found = again.run(iter(["a", "b", "a"]), return_generator=True)
        assert all(np.array_equal(x, y) for x, y in zip(made, found, strict=True))
    assert (embedder.calls, again.calls) == (2, 0)
    assert made[0].dtype == np.float32
    assert made[0].shape == (4,)
    made[0][0] = 1.0  # an array of its own, not a view of the cache
    store = next((tmp_path / "session" / ".cache").glob("Hashed-hashed-*.sqlite"))
    assert store.stat().st_size < 40_000


def test_the_instruction_belongs_to_the_text_and_to_its_key():
    with DataDreamer(":memory:"):
        embedder = Hashed("hashed")
        plain, told = embedder.run(["a"]), embedder.run(["a"], instruction="query: ")
        assert not np.array_equal(plain[0], told[0])
        assert np.array_equal(told[0], Hashed("hashed").run(["a"], instruction="query: ")[0])
        assert embedder.run(["a b c d e f g"], instruction="one two ") == [None]
