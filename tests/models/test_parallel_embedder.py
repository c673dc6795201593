from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import Lengths

from datadreamer_like import embedders
from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import ParallelEmbedder

MEET = threading.Barrier(2)


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
