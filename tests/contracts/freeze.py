"""Writes `ids.json`, `golden.json` and the tables in docs/methods.md and docs/steps.md from the classes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    os.environ["DATADREAMER_LIKE_FREEZE"] = "1"
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("identity", "method_table", "step_table")]
    sys.exit(pytest.main(["-q", "-k", "ids_are or example_gives or table_of_methods or table_of_steps", *files]))
