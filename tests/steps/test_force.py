"""`force=True`: what depends on a step runs again if the new result differs, and both are found afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.steps import DataSource, Step, SuperStep, concat

USES: dict[str, Callable[[Any], Any]] = {
    "saved map": lambda made: made.map(lambda row: {"text": row["text"] + "!"}, lazy=False),
    "save": lambda made: made.save(),
    "lazy map, saved": lambda made: made.map(lambda row: {"text": row["text"]}).save(),
    "sort of a saved copy": lambda made: made.save().sort("text"),
    "concat": lambda made: concat(made, made, lazy=False),
    "step": lambda made: Copied("Copy", inputs={"texts": made.output["text"]}),
    "step that makes steps": lambda made: CopiedInside("Outer", inputs={"texts": made.output["text"]}),
    "argument": lambda made: Copied("Copy", inputs={"texts": DataSource("D", data={"t": [1]}).output["t"]},
                                    args={"other": made.output["text"]}),
}  # fmt: skip


class Copied(Step):
    """Copies its input, or its argument."""

    runs = 0

    def setup(self) -> None:
        self.register_input("texts")
        self.register_arg("other", required=False)
        self.register_output("text")

    def run(self) -> Any:
        type(self).runs += 1
        return list(self.args["other"] or self.inputs["texts"])


class CopiedInside(SuperStep):
    """Copies its input in an inner step."""

    def setup(self) -> None:
        self.register_input("texts")
        self.register_output("text")

    def run(self) -> Any:
        return Copied("Inner", inputs={"texts": self.inputs["texts"]}).output["text"]


class ReadFile(Step):
    """Reads a file whose content is not part of the fingerprint, as the answer of a server is not."""

    def setup(self) -> None:
        self.register_arg("path")
        self.register_output("text")

    def run(self) -> Any:
        return Path(self.args["path"]).read_text().split()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("use", USES)
def test_what_depends_on_a_forced_result_is_made_of_it(tmp_path: Path, use: str, background: bool) -> None:
    file = tmp_path / "file"

    def texts(content: str, force: bool = False) -> set[str]:
        file.write_text(content)
        with DataDreamer(tmp_path / "out", verbose=False):
            made = ReadFile("Made", args={"path": str(file)}, force=force, background=background)
            return {text.strip("!") for text in USES[use](made).output["text"]}

    assert texts("one") == {"one"}
    assert texts("two") == {"one"}
    assert texts("two", force=True) == {"two"}
    assert texts("three") == {"two"}
    assert texts("three", force=True) == {"three"}
    assert texts("four") == {"three"}


def test_an_equal_result_leaves_what_depends_on_it_and_a_changed_one_is_found_again(tmp_path: Path) -> None:
    file, runs = tmp_path / "file", []
    for content, force in (("a", False), ("a", True), ("b", True), ("b", True), ("b", False)):
        file.write_text(content)
        Copied.runs = 0
        with DataDreamer(tmp_path / "out", verbose=False):
            made = ReadFile("Made", args={"path": str(file)}, force=force)
            USES["step"](made)
        runs.append(Copied.runs)
    assert runs == [1, 0, 1, 0, 0]
