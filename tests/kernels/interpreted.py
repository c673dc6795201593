"""Tests of a file in Triton's interpreter, which runs the GPU kernels on a machine without a GPU."""

from __future__ import annotations

import os

import pytest
from warm import printed_by

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def passes_interpreted(file: str, chosen: str = "") -> None:
    """Runs the tests of the file whose names match the expression `chosen` (all without one) in the interpreter."""
    pytest.importorskip("triton")
    # The interpreter computes in NumPy, which warns of lanes that the kernel masks.
    options = ["-q", "-p", "no:xdist", "-W", "ignore::RuntimeWarning", "-k", chosen]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that are loaded already
    said = printed_by(
        "import pytest, sys; code = pytest.main(sys.argv[1:]); assert not code, code", *options, file,
        environment={**os.environ, "TRITON_INTERPRET": "1"}, plain=True,
    )  # fmt: skip
    assert "passed" in said
