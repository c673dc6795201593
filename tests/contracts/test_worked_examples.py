"""The worked examples for contributors are complete: what they define works as they say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Combined, Outputs, TeacherModel
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.steps import DataSource

PAGES = Path(__file__).parents[2] / "docs" / "contributing"


@contextmanager
def defined_by(page: str) -> Iterator[dict[str, Any]]:
    """Runs the first Python block of a page, and yields what it defines."""
    code = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    module = ModuleType("worked_example")  # a dataclass looks its module up
    sys.modules[module.__name__] = module
    try:
        exec(compile(code, page, "exec", dont_inherit=True), module.__dict__)
        yield module.__dict__
    finally:
        del sys.modules[module.__name__]


def test_the_step_adds_a_typed_and_traced_column(tmp_path: Path) -> None:
    with defined_by("add-a-step.md") as defined, DataDreamer(tmp_path, verbose=False):
        rows = DataSource("Rows", {"title": ["plain text editor", None, "game"]})
        named = defined["Initials"]("Short names", inputs={"texts": rows.output["title"]}, args={"sep": "."})
        assert list(named.output["initials"]) == ["p.t.e", None, "g"]
        assert "plain text editor" in str(named.trace(0))


def test_the_objective_is_the_squared_distance_and_can_be_combined() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 5, 3, generator=generator)
    mask = torch.tensor([True, True, False, True, True])
    with defined_by("add-an-objective.md") as defined:
        objective = defined["LogitDistance"](TeacherModel(nn.Linear(1, 1), None), weight=2.0)
        batch = {"labels": torch.full((5,), -100), "mask": mask}
        outputs = Outputs(logits=ours), Outputs(logits=theirs)
        expected = 2.0 * sum((ours[row, c] - theirs[row, c]) ** 2 for row in (0, 1, 3, 4) for c in range(3)) / 12
        torch.testing.assert_close(objective.loss(*outputs, batch), expected)
        assert not objective.needs_labels
        half = Combined([objective], weights=[0.5])
        torch.testing.assert_close(half.loss(*outputs, batch), 0.5 * expected)


def test_the_method_zeroes_half_of_each_row_and_rejects_a_misfit(small_classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    with defined_by("add-a-method.md") as defined:
        method = defined["RowMagnitude"].example()
        small = method.apply(AutoModelForSequenceClassification.from_pretrained(small_classifier))
        weight = small.bert.encoder.layer[0].output.dense.weight
        assert (weight == 0).sum(1).tolist() == [weight.shape[1] // 2] * weight.shape[0]
        with pytest.raises(MethodMisfit, match="it has no linear layers"):
            method.apply(nn.Sequential(nn.ReLU()))
