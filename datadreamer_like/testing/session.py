"""A session for a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datadreamer_like.graph.session import DataDreamer


@contextmanager
def temporary_session(**options: Any) -> Iterator[DataDreamer]:
    """Opens a quiet session in a folder of its own, which is deleted at the end.

    Only warnings are logged. `options` are those of `DataDreamer`, such as `budget="1 USD"`.

    Example:
        >>> from datadreamer_like.steps import DataSource
        >>> with temporary_session():
        ...     list(DataSource("Rows", data={"text": ["a", "b"]}).output["text"])
        ['a', 'b']
    """
    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder, **{"verbose": False, **options}) as session:
        yield session
