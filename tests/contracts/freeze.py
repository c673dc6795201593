"""Writes `ids.json` and `golden.json` anew from what the package's classes are and give now."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    os.environ["DATADREAMER_LIKE_FREEZE"] = "1"
    sys.exit(pytest.main(["-q", "-k", "ids_are or example_gives", str(Path(__file__).with_name("test_identity.py"))]))
