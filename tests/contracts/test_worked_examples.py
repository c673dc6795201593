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
from datadreamer_like.distillation import Combined, Outputs, TeacherModel, WordLevel
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.steps import DataSource, Prompt
from datadreamer_like.testing import FakeLLM

PAGES = Path(__file__).parents[2] / "docs" / "contributing"


@contextmanager
def defined_by(page: str, block: int = 0) -> Iterator[dict[str, Any]]:
    """Runs a Python block of a page, the first one by default, and yields what it defines."""
    code = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), flags=re.DOTALL)[block]
    module = ModuleType(f"worked_example_{Path(page).stem}")  # a dataclass looks its module up
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
        objective = defined["LogitDistance"](TeacherModel(nn.Linear(1, 1), str), weight=2.0)
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


def test_an_llm_of_a_script_that_moves_here_answers(tmp_path: Path) -> None:
    with defined_by("../migrating.md") as defined, DataDreamer(tmp_path, verbose=False):
        rows = DataSource("Rows", {"text": ["hello", "ho"]})
        answers = Prompt("Ask", inputs={"prompts": rows.output["text"]}, args={"llm": defined["Shouting"]()})
        assert list(answers.output["generations"]) == ["HELLO", "HO"]
        assert defined["Shouting"]().run(["hello"], max_new_tokens=2) == ["HE"]


def test_trainers_of_a_script_that_moves_here_train_once(tmp_path: Path, small_classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    runs = tmp_path / "runs"

    def my_loop(texts: list[str], labels: list[str], epochs: int) -> tuple[Any, Any]:
        with runs.open("a") as log:
            log.write(f"{len(texts)} {len(labels)} {epochs}\n")
        load = AutoModelForSequenceClassification.from_pretrained(small_classifier)
        return load, AutoTokenizer.from_pretrained(small_classifier)

    with defined_by("../migrating.md", 1) as defined:
        for _ in range(2):
            with DataDreamer(tmp_path / "out", verbose=False):
                rows = DataSource("Rows", {"text": ["a cat", "a dog"] * 2, "label": ["cat", "dog"] * 2}).output
                defined["my_loop"] = my_loop
                mine = defined["TrainMine"]("Mine").train(rows["text"], rows["label"])
                head = defined["TrainHead"]("Head", small_classifier)
                head.train(*[rows["text"], rows["label"]] * 2, epochs=1, batch_size=2)
    assert runs.read_text() == "4 4 3\n"
    assert len(mine.predict(["a cat"])) == 1
    before, after = AutoModelForSequenceClassification.from_pretrained(small_classifier), head.model
    pairs = dict(before.base_model.named_parameters()), dict(after.base_model.named_parameters())
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])


def test_the_prompting_step_asks_again_and_the_provider_answers_it(tmp_path: Path) -> None:
    with defined_by("add-a-provider.md", 1) as provider, DataDreamer(tmp_path, verbose=False):
        rows = DataSource("Rows", {"title": ["game", None]})
        llm = provider["Echo"]("?")
        with defined_by("add-a-step.md", 1) as step:
            said = step["Translate"]("French", inputs={"texts": rows.output["title"]}, args={"llm": llm})
            same = FakeLLM(lambda prompt: "jeu" if "not translated" in str(prompt) else "game")
            again = step["Translate"]("Again", inputs={"texts": rows.output["title"]}, args={"llm": same})
        assert list(said.output["generations"]) == ["Translate into French: game?", None]
        assert list(again.output["generations"]) == ["jeu", None]


def test_the_trainer_trains_with_and_without_a_teacher(tmp_path: Path, tiny_causal_lm: Path) -> None:
    with defined_by("add-a-trainer.md") as defined, DataDreamer(tmp_path, verbose=False):
        rows = DataSource("Rows", {"question": ["The cat sat", "A dog ran"], "answer": ["on it.", "off."]}).output
        columns = [rows["question"], rows["answer"]] * 2
        teacher = defined["TrainToAnswer"]("Teacher", tiny_causal_lm).train(*columns, epochs=1, batch_size=2)
        student = defined["TrainToAnswer"]("Student", tiny_causal_lm)
        student.train(*columns, objective=WordLevel(teacher), epochs=1, batch_size=2)
        assert 0 < student.metrics["loss"] < teacher.metrics["loss"]
