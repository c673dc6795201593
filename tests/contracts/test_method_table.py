"""docs/methods.md: its examples run, its table is what the classes say (`tests/contracts/freeze.py` writes it)."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

from subjects import classes_of

from datadreamer_like import DataDreamer
from datadreamer_like.compression import CompressionMethod
from datadreamer_like.formats.quantizer import layouts
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.steps import DataSource

from .test_methods import TEXTS, Given

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- the table of methods -->\n", "<!-- its end -->\n"
HEAD = "| method | gives | needs | loads in | paper |\n| --- | --- | --- | --- | --- |\n"
PLAIN = "transformers, and what loads models of its kind"
OURS = "transformers, after `import datadreamer_like.formats`"


def row(kind: Any, loads: str) -> str:
    """A method's line: the first sentence of its docstring, and facts of its class."""
    room = kind.__module__.split(".")[1]
    gives = " ".join(inspect.getdoc(kind).partition("\n\n")[0].split()).replace("|", "\\|")
    needs = [
        text
        for needed, text in (
            (kind.needs_calibration and not kind.changes_tokenizer, "texts"),
            (kind.changes_tokenizer, "texts and the tokenizer"),
            (kind.needs_gradients, "gradients"),
        )
        if needed
    ]
    papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in kind.papers)
    return f"| `{room}.{kind.__name__}` | {gives} | {', '.join(needs)} | {loads} | {papers} |\n"


def test_the_table_of_methods_is_what_the_classes_say(small_classifier: Path) -> None:
    given, rows = Given(small_classifier), []
    for kind in classes_of("pruning", "quantization", below=CompressionMethod):
        small, _ = given.applied(kind.example())  # type: ignore[attr-defined]
        rows.append(row(kind, OURS if layouts(small) else PLAIN))
    table = HEAD + "".join(rows)
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    if os.environ.get("DATADREAMER_LIKE_FREEZE"):
        PAGE.write_text(before + begin + table + end + after, encoding="utf-8")
    assert table in PAGE.read_text(encoding="utf-8"), "run `python tests/contracts/freeze.py`"


def test_the_examples_on_the_page_run(small_classifier: Path, tmp_path: Path) -> None:
    given = Given(small_classifier)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    with DataDreamer(tmp_path):
        rows = DataSource("Rows", {"text": TEXTS, "label": ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_0"]}).output
        scope: dict[str, Any] = {
            "model": given.model,
            "batches": [given.batch()],
            "student": TrainedModel(small_classifier),
            "texts": TEXTS,
            "columns": {
                f"{split}_{name}": rows[column]
                for split in ("train", "validation")
                for name, column in (("input", "text"), ("output", "label"))
            },
        }
        for block in blocks:
            exec(block, scope)
    first = scope["sparse"].bert.encoder.layer
    assert (first[0].output.dense.weight != 0).all()
    assert float((first[1].output.dense.weight == 0).double().mean()) == 0.5
    assert len(scope["found"].divergences) == 4 * 6
    weight = scope["slimmer"].model.bert.encoder.layer[2].output.dense.weight
    assert float((weight == 0).double().mean()) > 0.5
    assert scope["tiny"].model.bert.encoder.layer[2].output.dense.bits == 4
