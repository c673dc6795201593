"""Every step: its help, what it registers, what it refuses, what it yields, and that it survives a pickle."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import ALL_STEPS, example_of

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, SessionError
from datadreamer_like.graph.session import current_session
from datadreamer_like.steps import HFHubDataSource, Step
from datadreamer_like.steps.base.registration import registered

# A source says in its constructor what it reads; what stands in a table below is all that it needs.
SOURCES = [kind for kind in ALL_STEPS if "inputs" not in inspect.signature(kind.__init__).parameters]
STEPS = [kind for kind in ALL_STEPS if kind not in SOURCES]


@pytest.fixture
def session() -> Iterator[DataDreamer]:
    with DataDreamer(":memory:") as session:
        yield session


def specs(kind: type[Step], what: str) -> dict[str, Any]:
    return getattr(registered(kind), f"_{what}_specs")  # type: ignore[no-any-return]


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its vectors as lists, as they are stored."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}


@pytest.mark.parametrize("kind", ALL_STEPS)
def test_help_says_what_a_step_is_and_what_it_takes_and_gives(kind: Any) -> None:
    text = kind.help
    first = text.splitlines()[0]
    assert first.startswith(f"{kind.__name__}: ")
    assert first.endswith((".", ":"))
    for title, what in (("inputs:", "input"), ("args:", "arg"), ("outputs:", "output")):
        assert title in text
        for name, spec in specs(kind, what).items():
            assert f"  {name}" in text
            assert spec.help, f"{kind.__name__} does not say what its {what} {name} is"
    assert specs(kind, "output")


@pytest.mark.parametrize("kind", STEPS)
class TestStep:
    def test_it_runs_with_what_it_requires_and_yields_what_it_registers(
        self, session: DataDreamer, tmp_path: Path, kind: type[Step]
    ) -> None:
        step = kind("It", **example_of(kind, tmp_path))
        rows = list(step.output)
        assert rows
        columns = specs(kind, "output")
        if "*" not in " ".join(columns):
            assert step.output.column_names == list(columns)
        assert all(list(row) == step.output.column_names for row in rows)
        assert step.errors == {}

    def test_an_output_can_be_renamed(self, session: DataDreamer, tmp_path: Path, kind: type[Step]) -> None:
        plain = kind("It", **example_of(kind, tmp_path))
        name = plain.output.column_names[-1]
        renamed = kind("It as well", **example_of(kind, tmp_path), outputs={name: "new name"})
        assert "new name" in renamed.output.column_names
        assert name not in renamed.output.column_names

    def test_a_misspelt_argument_is_refused_with_the_right_name(
        self, session: DataDreamer, tmp_path: Path, kind: type[Step]
    ) -> None:
        for name in specs(kind, "arg"):
            given = example_of(kind, tmp_path)
            given["args"][f"{name[:-1]}{name[-1]}x"] = given["args"].get(name, 1)
            with pytest.raises(DefinitionError, match=rf'"It" has no argument "{name}x".*Did you mean "\w+"\?'):
                kind("It", **given)
        assert not list(Path(session.folder).glob("it*/node.json"))

    def test_a_missing_argument_and_a_missing_input_are_named(
        self, session: DataDreamer, tmp_path: Path, kind: type[Step]
    ) -> None:
        for what in ("inputs", "args"):
            known = specs(kind, what.removesuffix("s"))
            for name in example_of(kind, tmp_path)[what]:
                if name not in known or not known[name].required:
                    continue  # one of any number of inputs, or an option that the example needs
                given = example_of(kind, tmp_path)
                del given[what][name]
                with pytest.raises(DefinitionError, match=rf'"It".*"{name}"'):
                    kind("It", **given)

    def test_a_value_of_the_wrong_type_is_named(self, session: DataDreamer, tmp_path: Path, kind: type[Step]) -> None:
        for name, spec in specs(kind, "arg").items():
            if spec.type is None:
                continue
            given = example_of(kind, tmp_path)
            given["args"][name] = object()
            with pytest.raises(ArgumentTypeError, match=rf'"It": argument "{name}"'):
                kind("It", **given)
        for name in specs(kind, "input"):
            given = example_of(kind, tmp_path)
            given["inputs"][name] = ["no", "column"]
            with pytest.raises(ArgumentTypeError, match=rf'"It": input "{name}"'):
                kind("It", **given)

    def test_outside_a_session_it_only_checks_itself(self, tmp_path: Path, kind: type[Step]) -> None:
        with DataDreamer(":memory:"):
            given = example_of(kind, tmp_path)
        assert current_session() is None
        with pytest.raises(SessionError, match="outside a session"):
            _ = kind("It", **given).output

    def test_lazily_it_yields_the_same_rows_and_keeps_none(
        self, session: DataDreamer, tmp_path: Path, kind: type[Step]
    ) -> None:
        if "lazy" not in specs(kind, "arg"):
            return
        given = example_of(kind, tmp_path)
        step = kind("It", **given)
        lazy = kind("It lazily", **{**given, "args": {**given["args"], "lazy": True}})
        assert [plain(row) for row in lazy.output] == [plain(row) for row in step.output]
        assert lazy.folder is not None
        assert not lazy.folder.exists()


def texts_of(step: Step) -> list[str]:
    """The texts of a source's rows; those of a log are its prompts."""
    return list(step.output["text" if "text" in step.output.column_names else "prompt"])


@pytest.mark.parametrize("kind", SOURCES)
class TestSource:
    def test_it_reads_its_rows(self, session: DataDreamer, tmp_path: Path, kind: type) -> None:
        step = kind("It", **example_of(kind, tmp_path))
        assert texts_of(step) == ["one", "two"]

    def test_a_misspelt_option_is_refused_with_the_right_name(
        self, session: DataDreamer, tmp_path: Path, kind: type
    ) -> None:
        if kind is HFHubDataSource:  # what it does not know belongs to the dataset's own builder
            return
        with pytest.raises((DefinitionError, TypeError), match="forse"):
            kind("It", **example_of(kind, tmp_path), forse=True)

    def test_it_runs_again_when_forced(self, session: DataDreamer, tmp_path: Path, kind: type) -> None:
        assert texts_of(kind("It", **example_of(kind, tmp_path), force=True)) == ["one", "two"]


@pytest.mark.parametrize("kind", ALL_STEPS)
def test_its_result_survives_a_pickle(tmp_path: Path, kind: type) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with DataDreamer(tmp_path / "session"):
        step = kind("It", **example_of(kind, folder))
        again = pickle.loads(pickle.dumps(step))
        assert repr(list(again.output)) == repr(list(step.output))
        assert again.fingerprint == step.fingerprint
