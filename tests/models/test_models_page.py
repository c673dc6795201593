from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_the_table_that_the_classes_give() -> None:
    script = runpy.run_path(str(ROOT / "scripts/models_table.py"))
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert page == script["page_with"](script["table"]()), "run `python scripts/models_table.py`"
