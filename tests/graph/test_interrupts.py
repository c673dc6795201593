"""Ctrl-C that lands in code of the script which catches everything."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.models import LLM, Answer
from datadreamer_like.steps import DataSource, Prompt, Step


def ignoring(row):
    """Gives up on a row for whatever reason, as many functions that parse do."""
    calls.append(row)
    try:
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
    except:  # noqa: E722
        return {"y": -1}
    return {"y": 1}


class Ignoring(LLM):
    model_name = "ignoring"

    def answer_batch(self, requests):
        return [Answer([str(ignoring(request.prompt)["y"])]) for request in requests]


class Echo(LLM):
    model_name = "echo"

    def answer_batch(self, requests):
        return [Answer([request.prompt]) for request in requests]


def prompt(rows, **args):
    return Prompt("Asked", inputs={"prompts": rows.output["x"]}, args=args)


class Counting(Step):
    def setup(self):
        self.register_output("y")

    def run(self):
        return [ignoring(number)["y"] for number in range(5)]


def generated():
    for number in range(5):
        yield ignoring(number)


calls: list[object] = []
NODES = {
    "map": lambda rows: rows.map(ignoring, lazy=False),
    "batched map": lambda rows: rows.map(
        lambda columns: {"y": [ignoring(x)["y"] for x in columns["x"]]}, batched=True, batch_size=2, lazy=False
    ),
    "filter": lambda rows: rows.filter(lambda row: ignoring(row)["y"] == 1, lazy=False),
    "generator": lambda rows: DataSource("Made", data=generated).save(),
    "step": lambda rows: Counting("Counted"),
    "LLM": lambda rows: Prompt(
        "Asked", inputs={"prompts": rows.output["x"]}, args={"llm": Ignoring(), "batch_size": 2}
    ),
    "post_process": lambda rows: Prompt(
        "Asked",
        inputs={"prompts": rows.output["x"]},
        args={"llm": Ignoring(), "post_process": lambda text: ignoring(text)["y"]},
    ),
}


@pytest.mark.parametrize("node", NODES)
def test_what_ignores_ctrl_c_gives_no_result(node: str, tmp_path: Path) -> None:
    calls.clear()
    session = DataDreamer(tmp_path)
    with pytest.raises(KeyboardInterrupt), session:
        NODES[node](DataSource("Rows", data={"x": ["a", "b", "c", "d", "e"]}))
    if node not in ("step", "post_process"):  # of which answers that have come are stored first
        assert len(calls) < 5  # the rows after it are left
    calls[:] = [None, None]
    with DataDreamer(tmp_path):
        made = NODES[node](DataSource("Rows", data={"x": ["a", "b", "c", "d", "e"]}))
        values = list(made.output[made.output.column_names[-1]])
    assert [str(value) for value in values] == (["a", "b", "c", "d", "e"] if node == "filter" else ["1"] * 5)


def test_a_script_that_catches_ctrl_c_goes_on(tmp_path: Path) -> None:
    calls.clear()
    with DataDreamer(tmp_path):
        rows = DataSource("Rows", data={"x": ["a", "b", "c"]})
        with pytest.raises(KeyboardInterrupt):
            rows.map(ignoring, lazy=False)
        assert list(rows.map(ignoring, lazy=False).output["y"]) == [1, 1, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_background_step_that_ignores_ctrl_c_gives_no_result(tmp_path: Path) -> None:
    started, goes_on = threading.Event(), threading.Event()

    def waiting(row):
        try:
            started.set()
            while not goes_on.wait(0.01):
                pass
        except:  # noqa: E722
            return {"y": -1}
        return {"y": 1}

    def script():
        with DataDreamer(tmp_path):
            DataSource("Rows", data={"x": [1]}).map(waiting, lazy=False, background=True, name="Waited")
            started.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script()
    assert not (tmp_path / "waited").exists()
