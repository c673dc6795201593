"""A preview runs a script on few rows, and the full run pays for the rest only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer

from datadreamer_like import DataDreamer, concat, zipped
from datadreamer_like.errors import ArgumentTypeError, DataDreamerError, DefinitionError, SessionError
from datadreamer_like.models import OpenAI
from datadreamer_like.steps import (
    CheckGrounding,
    DataFromAttributedPrompt,
    DataFromPrompt,
    DataSource,
    Deduplicate,
    Evolve,
    FewShotPrompt,
    FindLabelErrors,
    GoldAudit,
    Judges,
    LabelModel,
    MajorityVote,
    ProcessWithPrompt,
    Prompt,
    Step,
    SuperStep,
    step,
)
from datadreamer_like.testing import FakeLLM

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


def test_a_step_is_previewed_within_a_full_session_and_its_full_run_pays_for_the_rest_only(
    server: FlakyServer, tmp_path: Path, lazy: bool
) -> None:
    with DataDreamer(tmp_path / "session", verbose=False) as session:
        llm = OpenAI("m", base_url=server.url, api_key="none")
        rows = DataSource("Rows", data={"text": [f"text {index}" for index in range(ROWS)], "n": list(range(ROWS))})
        texts = rows.map(lambda row: {"text": row["text"].upper()}, lazy=lazy, name="Upper").output["text"]
        given: dict[str, Any] = {"inputs": {"prompts": texts}, "args": {"llm": llm}}
        first = Prompt.preview(7, "Ask", **given)
        assert list(first.output["prompts"]) == [f"TEXT {index}" for index in range(7)]
        assert len(server.requests) == 7
        assert first.trace(6).walk()
        assert Prompt.preview(7, "Ask", **given).name == "Ask #2"
        assert len(server.requests) == 7

        whole = Prompt("Ask", **given)
        assert (whole.name, len(whole.output)) == ("Ask", ROWS)
        assert list(whole.output)[:7] == list(first.output)
        assert set(server.seen.values()) == {1}
        assert (session.folder / "ask").exists()
        assert {path.name for path in (session.folder / ".preview").iterdir()} == {"ask", "ask-#2"}


def test_a_preview_of_a_step_keeps_what_its_full_run_shows_in_prompts(server: FlakyServer, tmp_path: Path) -> None:
    with DataDreamer(tmp_path / "session", verbose=False):
        llm = OpenAI("m", base_url=server.url, api_key="none")
        shown = DataSource("Shown", data={"question": ["1 + 1", "1 + 2", "1 + 3"], "answer": ["2", "3", "4"]}).output
        asked = DataSource("Asked", data={"question": [f"{index} + 5" for index in range(ROWS)]}).output["question"]
        inputs = {"inputs": asked, "input_examples": shown["question"], "output_examples": shown["answer"]}
        few = FewShotPrompt.preview(2, "Few", inputs=inputs, args={"llm": llm})
        assert len(few.output) == 2
        assert all("1 + 3" in prompt for prompt in few.output["prompts"])
        tones = DataSource("Tones", data={"tone": ["dry"] * ROWS}).output["tone"]
        seeds = {"examples": asked, "example_attributes": tones}
        args = {"llm": llm, "instruction": "{examples} {tone}", "attributes": {"tone": ["dry"]}, "n": 20}
        drawn = DataFromAttributedPrompt.preview(3, "Drawn", inputs=seeds, args=args)
        assert len(drawn.output) == 3
        sent = len(server.requests)
        assert sent == 5
        whole = FewShotPrompt("Few", inputs=inputs, args={"llm": llm})
        more = DataFromAttributedPrompt("Drawn", inputs=seeds, args=args)
        assert len(server.requests) == sent + ROWS - 2 + 20 - 3
        assert [*whole.output][:2] == [*few.output]
        assert [*more.output][:3] == [*drawn.output]


def test_a_preview_of_a_step_of_several_rounds_has_all_rows_that_its_inputs_make(tmp_path: Path) -> None:
    llm = FakeLLM(
        {
            "one word: yes or no": "no",
            "write each claim|claims": lambda found: "The sky is blue.\nGrass is red.\nSnow is hot.",
            "Rewrite an instruction": "Do it in a better way.",
            ".": "Something else entirely.",
        }
    )
    with DataDreamer(tmp_path / "session", verbose=False):
        texts = DataSource("Rows", data={"text": [f"text {n}" for n in range(6)]}).output["text"]
        inputs = {"answers": texts, "sources": texts}
        checked = CheckGrounding.preview(2, "Grounded", inputs=inputs, args={"llm": llm})
        assert [len(claims) for claims in checked.output["supported"]] == [3, 3]
        evolved = Evolve.preview(
            2, "Harder", inputs={"instructions": texts}, args={"llm": llm, "rounds": 2, "operations": ["deepen"]}
        )
        assert list(evolved.output["rounds"]) == [1, 1, 2, 2]
        asked = len(llm.asked)
        CheckGrounding("Grounded", inputs=inputs, args={"llm": llm})
        assert len(llm.asked) - asked == 4 + 4 * 3


@step
def shout(text: str, *, mark: str = "!") -> str:
    return text.upper() + mark


def test_every_form_of_step_is_cut_at_its_inputs(tmp_path: Path) -> None:
    read: list[str] = []

    class Lengths(Step):
        def setup(self) -> None:
            self.register_input("texts")
            self.register_output("lengths")

        def run(self) -> Any:
            read.extend(self.inputs["texts"])
            return [len(text) for text in self.inputs["texts"]]

    class Twice(SuperStep):
        def setup(self) -> None:
            self.register_input("texts")
            self.register_output("texts")

        def run(self) -> Any:
            inner = DataSource("Inner", {"texts": list(self.inputs["texts"])})
            return Lengths("Of both", inputs={"texts": inner.output["texts"]}).output["lengths"]

    with DataDreamer(tmp_path / "session", verbose=False) as session:
        texts = DataSource(
            "Rows", data={"text": [f"row {n}" for n in range(9)], "n": [str(n % 2) for n in range(9)]}
        ).output
        assert list(Lengths.preview(3, "Lengths", {"texts": texts["text"]}).output["lengths"]) == [5, 5, 5]
        assert list(Twice.preview(2, "Twice", {"texts": texts["text"]}).output["texts"]) == [5, 5]
        assert read == [f"row {n}" for n in (0, 1, 2, 0, 1)]
        kept = Deduplicate.preview(4, "Once", {"inputs": texts["n"]})
        assert list(kept.output) == [{"text": "row 0", "n": "0"}, {"text": "row 1", "n": "1"}]
        short = shout.preview(2, texts["text"], mark="?")
        assert list(short.output["shout"]) == ["ROW 0?", "ROW 1?"]
        assert len(shout(texts["text"]).output) == 9
        assert not (session.folder / ".inside").exists()  # those of the previews are in .preview
        assert list(Twice("Twice", {"texts": texts["text"]}).output["texts"]) == [5] * 9


@pytest.mark.parametrize(
    ("given", "error"), [(0, DefinitionError), ("5", ArgumentTypeError), (None, ArgumentTypeError)]
)
def test_a_preview_of_a_step_needs_a_number_of_rows(tmp_path: Path, given: Any, error: type[Exception]) -> None:
    with DataDreamer(tmp_path / "session", verbose=False), pytest.raises(error, match=r"DataSource.preview: n"):
        DataSource.preview(given, "Rows", data={"text": ["a"]})


def test_a_preview_of_a_step_is_not_published_and_a_wrong_input_is_the_steps_own_error(tmp_path: Path) -> None:
    with DataDreamer(tmp_path / "session", verbose=False):
        rows = DataSource.preview(2, "Rows", data={"text": ["a", "b", "c"]})
        with pytest.raises(SessionError, match="preview of 2 rows"):
            rows.publish_to_hf_hub("me/rows", token="none")
        with pytest.raises(ArgumentTypeError, match='input "texts"'):
            Words.preview(2, "Words", {"texts": ["a"]})


@pytest.mark.parametrize("gold", [[None, None, "x", "x"], ["y", "x", "x", "x"]])
def test_an_audit_does_not_end_a_preview(tmp_path: Path, gold: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    with DataDreamer(tmp_path / "session", verbose=False, preview=2):
        rows = DataSource("Rows", {"label": ["x"] * 4, "gold": gold}).output
        inputs = {"labels": rows["label"], "gold": rows["gold"]}
        audit = GoldAudit("Audit", inputs=inputs, args={"min_accuracy": 0.9})
        assert list(audit.output["labels"]) == ["x", "x"]
    assert "This is a preview" in caplog.text


NOTHING = {"a": [None, None, "x"], "b": [None, None, "x"]}
APART = {"a": ["x", "y", "z"], "b": ["u", "v", "z"]}
PAIRS: dict[str, list[Any]] = {"a": ["1", "2", "3"], "b": ["I", "II", "III"], "gold": [None, None, "a"]}


@pytest.mark.parametrize(
    ("kind", "data", "column", "made"),
    [
        (MajorityVote, NOTHING, "labels", [None, None]),
        (LabelModel, NOTHING, "soft_labels", [None, None]),
        (LabelModel, APART, "labels", [None, None]),
        (LabelModel, {"a": ["x", "x", "y"], "b": [None, "x", "y"]}, "labels", ["x", "x"]),
        (LabelModel, {"a": ["x", "y", "z"], "b": ["x", "x", "z"], "gold": [None, None, "z"]}, "labels", ["x", None]),
        (FindLabelErrors, {"inputs": ["a b", "c d", "e f"], "labels": ["x", "x", "y"]}, "reason", [None, None]),
        (Judges, PAIRS, "verdicts", ["tie", "tie"]),
    ],
)
def test_steps_that_learn_from_many_rows_do_not_end_a_preview(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, data: dict[str, Any], column: str, made: list[Any]
) -> None:
    args = {"llms": {"j": FakeLLM(lambda prompt: "Tie")}} if kind is Judges else {}
    with DataDreamer(tmp_path / "session", verbose=False):
        rows = DataSource("Rows", data=data)
        few = rows.take(2, lazy=False)
        with pytest.raises(DataDreamerError):
            kind("All", inputs={name: few.output[name] for name in data}, args=args)
        step = kind.preview(2, "Few", inputs={name: rows.output[name] for name in data}, args=args)
        assert list(step.output[column]) == made
        assert "This is a preview" in caplog.text
        if hasattr(step, "summary"):
            assert step.summary().rows


@pytest.mark.parametrize(
    ("sizes", "made"),
    [
        ({"train_size": 16, "test_size": 4}, {"train": 2, "test": 1}),
        ({"train_size": 16, "validation_size": 2, "test_size": 2}, {"train": 1, "validation": 1, "test": 1}),
        ({"train_size": 16}, {"train": 2, "test": 1}),
        ({"train_size": 1}, {"train": 1, "test": 2}),
        ({"train_size": 0.8, "test_size": 0.2}, {"train": 2, "test": 1}),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_a_preview_has_all_splits_of_the_full_run(
    tmp_path: Path, sizes: dict[str, Any], made: dict[str, int], lazy: bool
) -> None:
    for preview in (3, None):
        with DataDreamer(tmp_path / "session", verbose=False, preview=preview):
            rows = DataSource("Rows", {"n": list(range(20))}).map(lambda row: row, lazy=lazy)
            parts = {name: len(list(part.output)) for name, part in rows.splits(**sizes).items()}
            assert sum(parts.values()) == (preview or 20)
            assert parts == made or preview is None
            assert set(parts) == set(made)
