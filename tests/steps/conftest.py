"""A session in a folder of its own for every test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datadreamer_like.graph import DataDreamer


@pytest.fixture
def session(tmp_path: Path) -> Iterator[DataDreamer]:
    """An open session."""
    with DataDreamer(tmp_path / "output", verbose=False) as opened:
        yield opened
