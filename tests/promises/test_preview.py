"""A preview runs a script on few rows, and the full run pays for the rest only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer

from datadreamer_like import DataDreamer, concat, zipped
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, SessionError
from datadreamer_like.models import OpenAI
from datadreamer_like.steps import (
    DataFromAttributedPrompt,
    DataFromPrompt,
    DataSource,
    ProcessWithPrompt,
    Prompt,
    Step,
)

ROWS = 60


@pytest.fixture(params=[False, True], ids=["in order", "lazily"])
def lazy(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def script(url: str, lazy: bool) -> dict[str, Any]:
    """A source, operations and two prompting steps, one on the other's answers."""
    llm = OpenAI("m", base_url=url, api_key="none")
    rows = DataSource("Rows", data={"text": [f"text {index}" for index in range(ROWS)]})
    upper = rows.map(lambda row: {"text": row["text"].upper()}, lazy=lazy, name="Upper")
    even = upper.filter(lambda row: int(row["text"].split()[1]) % 2 == 0, lazy=lazy, name="Even")
    asked = Prompt("Ask", inputs={"prompts": even.output["text"]}, args={"llm": llm})
    again = ProcessWithPrompt(
        "Again", inputs={"inputs": asked.output["generations"]}, args={"llm": llm, "instruction": "Repeat it."}
    )
    return {"asked": list(asked.output), "again": list(again.output), "trace": again.trace(1)}


def test_the_full_run_sends_only_what_the_preview_has_not(server: FlakyServer, tmp_path: Path, lazy: bool) -> None:
    folder = tmp_path / "session"
    with DataDreamer(folder, verbose=False, preview=10):
        first = script(server.url, lazy)
    assert [len(first[name]) for name in ("asked", "again")] == [5, 5]  # half of ten rows
    assert len(server.requests) == 10

    with DataDreamer(folder, verbose=False, preview=10):  # nothing is paid for twice
        assert script(server.url, lazy)["asked"] == first["asked"]
    assert len(server.requests) == 10

    with DataDreamer(folder, verbose=False):
        whole = script(server.url, lazy)
    assert len(whole["asked"]) == ROWS // 2
    assert len(server.requests) == 2 * (ROWS // 2)
    assert set(server.seen.values()) == {1}
    assert whole["asked"][:5] == first["asked"]
    assert whole["again"][:5] == first["again"]
    assert [each.index for each in first["trace"].walk()] == [each.index for each in whole["trace"].walk()]


def test_a_step_that_makes_rows_is_cut_with_the_answers_of_the_full_run(server: FlakyServer, tmp_path: Path) -> None:
    attributes = {"tone": ["kind", "angry", "dry"], "size": ["short", "long"]}

    def made(**session: Any) -> tuple[list[Any], list[Any], list[Any]]:
        with DataDreamer(tmp_path / "session", verbose=False, **session):
            llm = OpenAI("m", base_url=server.url, api_key="none")
            same = DataFromPrompt("Same", args={"llm": llm, "instruction": "Write.", "n": 30})
            args = {"llm": llm, "instruction": "Write {size}, {tone}.", "attributes": attributes, "n": 24}
            varied = DataFromAttributedPrompt("Varied", args=args)
            shown = DataSource("Shown", data={"text": ["a", "b", "c"], "tone": ["kind", "angry", "dry"]})
            inputs = {"examples": shown.output["text"], "example_attributes": shown.output["tone"]}
            args = {"llm": llm, "instruction": "Like:\n{examples}\n{tone}.", "attributes": {"tone": ["kind"]}, "n": 20}
            seeded = DataFromAttributedPrompt("Seeded", inputs=inputs, args=args)
            return list(same.output), list(varied.output), list(seeded.output)

    first = made(preview=7)
    assert [len(rows) for rows in first] == [7, 7, 7]
    assert len(server.requests) == 21
    whole = made()
    assert [len(rows) for rows in whole] == [30, 24, 20]
    assert len(server.requests) == 30 + 24 + 20
    assert [rows[:7] for rows in whole] == list(first)


def test_a_preview_leaves_the_results_of_the_full_run_in_place(server: FlakyServer, tmp_path: Path) -> None:
    folder = tmp_path / "session"
    with DataDreamer(folder, verbose=False):
        whole = script(server.url, False)
    names = {path.name: path.resolve() for path in folder.iterdir()}
    with DataDreamer(folder, verbose=False, preview=4):
        script(server.url, False)
    assert {path.name: path.resolve() for path in folder.iterdir() if path.name != ".preview"} == names
    assert {path.name for path in (folder / ".preview").iterdir()} == {"rows", "upper", "even", "ask", "again"}
    with DataDreamer(folder, verbose=False):
        assert script(server.url, False)["again"] == whole["again"]
    assert len(server.requests) == ROWS


class Words(Step):
    """A step of the script that makes several rows of one."""

    read = 0

    def setup(self) -> None:
        self.register_input("texts")
        self.register_output("words")

    def run(self) -> Any:
        return [word for text in self.inputs["texts"] for word in text.split()]


def test_columns_of_a_preview_still_fit_each_other(tmp_path: Path) -> None:
    with DataDreamer(tmp_path / "session", verbose=False, preview=3):
        sources = [DataSource(name, data={"text": [f"{name} {n}" for n in range(9)]}) for name in ("a", "b")]
        both = concat(*sources).save(name="both")
        assert list(both.output["text"]) == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]

        class Twice(Step):
            def setup(self) -> None:
                self.register_input("texts")
                self.register_output("twice")

            def process(self, batch: Any) -> Any:
                return {"twice": [text * 2 for text in batch["texts"]]}

        twice = Twice("Twice", inputs={"texts": both.output["text"]})
        assert len(list(zipped(both, twice).output)) == 6
        words = Words("Words", inputs={"texts": sources[0].output["text"]})
        assert list(words.output["words"]) == ["a", "0", "a"]


def test_a_generator_is_read_no_further_than_the_preview_needs(tmp_path: Path) -> None:
    read: list[int] = []

    def rows() -> Iterator[dict[str, int]]:
        for number in range(100_000):
            read.append(number)
            yield {"n": number}

    with DataDreamer(tmp_path / "session", verbose=False, preview=5):
        source = DataSource("Endless", data=rows)
        assert [row["n"] for row in source.output] == [0, 1, 2, 3, 4]
    assert max(read) < 5_000


@pytest.mark.parametrize(("given", "error"), [(0, DefinitionError), (-1, DefinitionError), ("5", ArgumentTypeError)])
def test_a_preview_of_no_rows_is_refused(tmp_path: Path, given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="preview"):
        DataDreamer(tmp_path / "session", preview=given)
    assert not (tmp_path / "session").exists()


def test_a_preview_is_not_published(tmp_path: Path) -> None:
    with DataDreamer(tmp_path / "session", verbose=False, preview=2):
        rows = DataSource("Rows", data={"text": ["a", "b", "c"]})
        with pytest.raises(SessionError, match="preview of 2 rows"):
            rows.publish_to_hf_hub("me/rows", token="none")
