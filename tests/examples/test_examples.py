"""Every script in `examples/` runs to its end, in its short form if it has one, and finds its work when run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import EXAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = {
    "abstain": "of 16 answered",
    "born_again": "Born again, ensemble",
    "distil_classifier": "Soft targets",
    "dedup": "0 with group_by=seeds",
    "distil_embedder": "and distilled",
    "distil_llm": "of the teacher's answers, taught by",
    "distilbert": "Distilled, 3 layers",
    "dpo": "prefers what people wrote",
    "documents_to_qa": "of 3 answers are grounded",
    "export_everywhere": "is about",
    "from_call_logs": "Asked again: 200 prompts, 0 requests.",
    "judges": "The panel's verdicts on all 6 pairs",
    "label_noise": "biased               50 %",
    "lottery_ticket": "On rows that none has seen",
    "ppo": "nats from the model",
    "prompting": "1 conversations, ",
    "prompt2model": "frozen MiniLM, made and found",
    "prune": "Movement with",
    "qlora": "The third has",
    "quantize": "4 bits, trained",
    "retrieval": "draw charts in the terminal",
    "self_instruct": "Rows with an instance",
    "self_training": "frozen MiniLM: from",
    "synthie": "facts, then text",
    "weak_supervision": "the student of the votes is right in",
}
"""What the output of each has in it."""
WHOLE = {
    "budget_and_plan": "were planned",
    "providers": "LlamaCPPServer  Name an animal.",
    "ray_engine": "the same rows",
    "structured_output": "stars",
    "test_your_pipeline": "6 passed",
}
"""Those without a short form."""
MEASURE = {
    "born_again",
    "distil_classifier",
    "distil_embedder",
    "distilbert",
    "export_everywhere",
    "from_call_logs",
    "lottery_ticket",
    "prompt2model",
    "self_instruct",
    "self_training",
    "synthie",
}
"""Those that measure times, or whose recipe logs a table."""


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SHORT, *WHOLE, "quickstart"}


@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs_to_its_end_and_again_without_work(run, tmp_path: Path, name: str) -> None:
    arguments = [str(tmp_path / "out"), "--short"]
    first = run(EXAMPLES / f"{name}.py", *arguments)
    assert SHORT[name] in first.stdout
    again = run(EXAMPLES / f"{name}.py", *arguments, warm=True)
    assert SHORT[name] in again.stdout
    assert not again.worked or name in MEASURE, again.worked
    assert again.stdout == first.stdout or name in MEASURE


@pytest.mark.parametrize("name", WHOLE)
def test_an_example_without_a_short_form_runs_to_its_end(run, tmp_path: Path, name: str) -> None:
    folder = () if name == "providers" else (str(tmp_path / "out"),)  # takes names instead
    assert WHOLE[name] in run(EXAMPLES / f"{name}.py", *folder).stdout


def test_a_provider_whose_name_is_misspelt_ends_the_script_before_anything_is_asked() -> None:
    command = [sys.executable, str(EXAMPLES / "providers.py"), "MistralAI", "Mistral"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("There is no provider Mistral here. The names are: OpenAI, ")
    assert not ended.stdout
