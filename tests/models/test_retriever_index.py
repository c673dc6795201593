"""The index of a retriever on disk: built once, complete or absent, undamaged, of its own corpus, memory-mapped."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, ModelError, NewerFormat, StorageError
from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.retrievers.embedding_retriever import EmbeddingRetriever
from datadreamer_like.storage.seals import read_sealed, sealed


class Given(Embedder):
    """Has a vector for each text, the row of a matrix; counts what it embeds."""

    def __init__(self, matrix: Any) -> None:
        super().__init__("given")
        self.matrix = matrix
        self.embedded = 0

    @property
    def model_max_length(self) -> int:
        return 10

    def count_tokens(self, value: str) -> int:
        return 1

    def compute(self, texts: Any, **asks: Any) -> Any:
        self.embedded += len(texts)
        return [self.matrix[int(text)] for text in texts]


def clustered(rows: int, dims: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, dims))
    return (centres[rng.integers(50, size=rows)] + 0.3 * rng.normal(size=(rows, dims))).astype(np.float32)


def retriever(folder: Path, rows: int = 60, **options: Any) -> EmbeddingRetriever:
    model = Given(clustered(rows))
    return EmbeddingRetriever([str(n) for n in range(rows)], model, cache_folder_path=folder, **options)


def build(model: EmbeddingRetriever) -> None:
    assert model.index is not None


def the_index(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir() and path.name.startswith("EmbeddingRetriever-"))
    return found


def nearest(matrix: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    unit = [
        m.astype(np.float64) / np.linalg.norm(m.astype(np.float64), axis=1, keepdims=True) for m in (queries, matrix)
    ]
    return np.argsort(-unit[0] @ unit[1].T, axis=1)[:, :k]


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"index_type": "Flat"}, 1.0),
        ({"index_type": "IVF16,Flat", "nprobe": 16}, 1.0),
        ({"index_type": "IVF16,Flat", "nprobe": 4}, 0.8),
        ({"index_type": "HNSW16", "efSearch": 64, "efConstruction": 80}, 0.95),
    ],
)
def test_each_kind_of_index_finds_what_brute_force_does_and_is_the_same_from_its_file(
    tmp_path: Path, options: dict[str, Any], least: float
) -> None:
    matrix, queries = clustered(3_000), clustered(40, seed=1)
    texts = [str(n) for n in range(3_000)]
    built = list(EmbeddingRetriever(texts, Given(matrix), index_batch_size=500, **options).search_vectors(queries, 10))
    kept = EmbeddingRetriever(texts, Given(matrix), index_batch_size=7, cache_folder_path=tmp_path, **options)
    assert list(kept.search_vectors(queries, 10)) == built
    again = EmbeddingRetriever(texts, Given(matrix), cache_folder_path=tmp_path, **options)
    assert list(again.search_vectors(queries, 10)) == built
    assert (kept.embedder.embedded, again.embedder.embedded) == (3_000, 0)
    expected = nearest(matrix, queries, 10)
    recall = np.mean([len({*found} & {*best}) / 10 for (found, _), best in zip(built, expected.tolist(), strict=True)])
    assert recall >= least
    for ids, scores in built:
        assert len({*ids}) == len(ids) == 10
        assert scores == sorted(scores, reverse=True)


class Direct(Given):
    """Gives the vectors without the pipeline, which takes seconds for so many."""

    def run(self, texts: Any, *args: Any, **options: Any) -> Any:
        return (self.matrix[int(text)] for text in texts)


def test_cells_are_trained_on_rows_from_all_over_the_corpus() -> None:
    # Sorted by topic, as corpora often are: cells of the first rows alone would put the others into one.
    import faiss

    matrix = np.concatenate([clustered(70_000, 8), clustered(20_000, 8, seed=5)[:, ::-1] * [9, -1, 9, -1, 1, 1, 1, 1]])
    model = EmbeddingRetriever([str(n) for n in range(90_000)], Direct(matrix), index_type="IVF32,Flat")
    lists = faiss.extract_index_ivf(model.index).invlists
    sizes = [lists.list_size(cell) for cell in range(32)]
    assert sum(sizes) == 90_000
    assert max(sizes) < 10_000


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_retriever_index import Given, clustered
from datadreamer_like.models import EmbeddingRetriever

class Model(Given):
    def compute(self, texts, **asks):
        if os.environ.get("DEADLY") == "embedding" and self.embedded >= 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(texts, **asks)

class Ours(EmbeddingRetriever):
    def write_index(self, index, folder):
        super().write_index(index, folder)
        if os.environ.get("DEADLY") == "writing":
            os.kill(os.getpid(), signal.SIGKILL)

def made(folder):
    model = Ours([str(n) for n in range(60)], Model(clustered(60)), cache_folder_path=folder)
    model.index
    return model

for moment in ("embedding", "writing"):
    folder = Path(sys.argv[1]) / moment
    child = os.fork()
    if not child:
        os.environ["DEADLY"] = moment
        made(folder)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list(folder.glob("*.draft")), "it was killed before it began"
    assert not [path for path in folder.iterdir() if path.is_dir() and path.suffix != ".draft"]
    assert next(made(folder).search_vectors(clustered(60)[7:8], 1))[0] == [7]
    assert not list(folder.glob("*.draft"))
    again = made(folder)
    assert again.embedder.embedded == 0, moment
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_build_leaves_nothing_that_is_taken_for_an_index(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", KILLED, str(tmp_path), *paths]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "manifest"])
def test_a_damaged_index_is_found_by_its_checksum_and_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = list(retriever(tmp_path).search_vectors(clustered(5, seed=3), 4))
    folder = the_index(tmp_path)
    file = folder / ("index.json" if damage == "manifest" else "vectors.faiss")
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        again = retriever(tmp_path)
        assert list(again.search_vectors(clustered(5, seed=3), 4)) == expected
    assert again.embedder.embedded == 60
    assert "the index is made again" in caplog.text


def test_a_file_where_a_folder_must_be_is_said_before_the_corpus_is_embedded(tmp_path: Path) -> None:
    build(retriever(tmp_path))
    folder = the_index(tmp_path)
    shutil.rmtree(folder)
    folder.write_text("a file")
    model = retriever(tmp_path)
    with pytest.raises(StorageError, match="is not a folder, which the index needs to be"):
        build(model)
    assert folder.read_text() == "a file"
    other = retriever(folder)
    with pytest.raises(StorageError, match=r"cannot be used \((File exists|Not a directory)\)"):
        build(other)
    assert model.embedder.embedded == other.embedder.embedded == 0


def test_the_index_of_another_corpus_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(retriever(tmp_path / "a", 60))
    build(retriever(tmp_path / "b", 50))
    a, b = the_index(tmp_path / "a"), the_index(tmp_path / "b")
    shutil.rmtree(a)
    shutil.copytree(b, a)
    model = retriever(tmp_path / "a", 60)
    assert model.index.ntotal == 60
    assert "another corpus" in caplog.text


def test_the_index_of_a_newer_version_is_kept_and_said(tmp_path: Path) -> None:
    build(retriever(tmp_path))
    path = the_index(tmp_path) / "index.json"
    path.write_text(sealed({**read_sealed(path), "format": 99}))
    with pytest.raises(NewerFormat, match="pip install --upgrade"):
        build(retriever(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads the mappings of Linux")
@pytest.mark.parametrize("kind", ["Flat", "IVF8,Flat", "HNSW8"])
def test_it_is_opened_memory_mapped(tmp_path: Path, kind: str) -> None:
    build(retriever(tmp_path, 3_000, index_type=kind, index_batch_size=500))
    model = retriever(tmp_path, 3_000, index_type=kind)
    assert model.index.ntotal == 3_000
    file = str(the_index(tmp_path) / "vectors.faiss")
    assert file in Path("/proc/self/maps").read_text()


def test_the_batch_size_and_the_search_decide_nothing_of_the_index(tmp_path: Path) -> None:
    for options in ({}, {"index_batch_size": 3}, {"nprobe": 2}, {"query_instruction": "query: "}):
        build(retriever(tmp_path, 100, index_type="IVF4,Flat", **options))
    assert the_index(tmp_path)  # the only one
    build(retriever(tmp_path, 100, index_type="HNSW8"))
    build(retriever(tmp_path, 100, index_type="HNSW8", efSearch=50))
    build(retriever(tmp_path, 100, index_type="HNSW8", efConstruction=9))
    assert len(list(tmp_path.glob("EmbeddingRetriever-*/index.json"))) == 3


def test_what_cannot_be_indexed_is_said_before_the_corpus_is_embedded() -> None:
    matrix = clustered(4_000)
    texts = [str(n) for n in range(4_000)]

    def refused(match: str, kind: type[Exception] = DefinitionError, **options: Any) -> None:
        model = Given(matrix)
        with pytest.raises(kind, match=match):
            EmbeddingRetriever(texts, model, **options).run(["1"])
        assert model.embedded <= 2_000

    refused('no index "Sphere"', index_type="Sphere")
    refused("has 8,000 cells, and the corpus 4,000 texts", index_type="IVF8000,Flat")
    refused('no parameter "efsearch"', index_type="HNSW8", efsearch=3)
    with pytest.raises(ArgumentTypeError, match="Text 2 of the corpus is int, 3"):
        EmbeddingRetriever(["1", None, 3], Given(matrix))  # type: ignore[list-item]


def test_missing_texts_are_never_found(tmp_path: Path) -> None:
    model = EmbeddingRetriever(["1", None, "3"], Given(clustered(9)))  # type: ignore[list-item]
    (found,) = model.run(["1"], k=3)
    assert (sorted(found["indices"]), found["texts"][0]) == ([0, 2], "1")


def test_vectors_of_another_length_or_that_are_not_finite_are_refused() -> None:
    matrix = clustered(9)
    ragged = [*matrix[:8], matrix[8][:5]]
    with pytest.raises(DataError, match=r"A text of the corpus has a vector of shape \(5,\)"):
        EmbeddingRetriever([str(n) for n in range(9)], Given(ragged)).run(["1"])
    with pytest.raises(DataError, match=r"A query has a vector of shape \(5,\)"):
        EmbeddingRetriever(["1", "2"], Given(ragged)).run(["8"])
    matrix[4, 0] = np.nan
    with pytest.raises(DataError, match=r"Text 4 of the corpus could not be embedded.* is not finite"):
        EmbeddingRetriever([str(n) for n in range(9)], Given(matrix)).run(["1"])
    found = EmbeddingRetriever(["1", "2"], Given(matrix)).run(["4", "1"], k=1)
    assert (found[0], found[1]["indices"]) == (None, [0])


def test_equal_texts_are_in_the_order_of_the_corpus_and_a_lower_k_has_the_first_ones() -> None:
    matrix = clustered(3)
    model = EmbeddingRetriever([str(n % 3) for n in range(30)], Given(matrix))
    for k in (1, 4, 10):
        assert [found["indices"] for found in model.run(["1", "2"], k=k)] == [
            list(range(first, 30, 3))[:k] for first in (1, 2)
        ]


def test_no_index_is_kept_that_lacks_texts_which_the_embedder_could_not_embed_at_the_moment(tmp_path: Path) -> None:
    matrix = clustered(9)

    class Full(Given):
        def compute(self, texts: Any, **asks: Any) -> Any:
            if "7" in texts:
                raise MemoryError("out of memory")
            return super().compute(texts, **asks)

    texts = [str(n) for n in range(9)]
    with pytest.raises(ModelError, match="Text 7 of the corpus could not be embedded.*Memory ran out"):
        EmbeddingRetriever(texts, Full(matrix), cache_folder_path=tmp_path).run(["7"])
    assert not list(tmp_path.glob("*/vectors.faiss"))
    assert EmbeddingRetriever(texts, Given(matrix), cache_folder_path=tmp_path).run(["7"], k=1)[0]["indices"] == [7]
