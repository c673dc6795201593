"""Writes `ids.json`, `golden.json` and the tables in docs/methods.md, steps.md and migrating.md from the classes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    os.environ["DATADREAMER_LIKE_FREEZE"] = "1"
    files = [
        str(Path(__file__).with_name(f"test_{name}.py"))
        for name in ("identity", "method_table", "step_table", "name_table")
    ]
    sys.exit(pytest.main(["-q", "-k", "ids_are or example_gives or the_table_of", *files]))
