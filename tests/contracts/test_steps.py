"""Every step: its help, what it registers, what it refuses, what it yields, and that it survives a pickle."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import classes_of

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, SessionError
from datadreamer_like.graph.session import current_session
from datadreamer_like.models import LLM, Answer, Embedder, Retriever, TaskModel
from datadreamer_like.steps import DataSource, HFHubDataSource, Step, SuperStep

ALL = [kind for kind in classes_of("steps", below=Step) if kind not in (Step, SuperStep)]
# A source says in its constructor what it reads; what stands in a table below is all that it needs.
SOURCES = [kind for kind in ALL if "inputs" not in inspect.signature(kind.__init__).parameters]
STEPS = [kind for kind in ALL if kind not in SOURCES]


class Parrot(LLM):
    """Says yes, gives seven points, and prefers the first."""

    model_name = "parrot"

    def answer_batch(self, requests: Sequence[Any]) -> list[Answer]:
        return [Answer(["Yes. 7. Response A"] * request.sampling.n) for request in requests]


class Lengths(Embedder):
    """Embeds a text as its number of characters and of words."""

    def __init__(self) -> None:
        super().__init__("lengths")

    def compute(self, texts: Sequence[str], **asks: Any) -> Any:
        return np.array([[len(text), len(text.split())] for text in texts], dtype=np.float32)

    def count_tokens(self, value: str) -> int:
        return len(value)

    @property
    def model_max_length(self) -> int:
        return 1_000

    @property
    def dims(self) -> int:
        return 2


class Lower(TaskModel[str]):
    """Gives each text in lower case."""

    model_name = "lower"

    def compute(self, texts: Sequence[str], **asks: Any) -> list[str]:
        return [text.lower() for text in texts]

    def count_tokens(self, value: str) -> int:
        return len(value)

    @property
    def model_max_length(self) -> int:
        return 1_000


class First(Retriever):
    """Finds the first texts, whatever is asked."""

    def search(self, queries: Sequence[str], k: int, *args: Any, **kwargs: Any) -> Any:
        return [(list(range(k)), [1.0] * k) for _ in queries]


# What an argument gets, by the type that its step asks for, and where the type does not say enough, by its name.
BY_TYPE: dict[Any, Any] = {str: "Is it {good}?", int: 1, dict: {"good": ["fine", "great"]}, LLM: Parrot()}
BY_TYPE |= {Embedder: Lengths(), TaskModel: Lower(), Retriever: First(["one", "two"])}


@pytest.fixture
def session() -> Iterator[DataDreamer]:
    with DataDreamer(":memory:") as session:
        yield session


def registered(kind: type[Step], what: str) -> dict[str, Any]:
    probe = kind.__new__(kind)
    probe.name = kind.__name__
    probe._registered()
    return getattr(probe, f"_{what}_specs")  # type: ignore[no-any-return]


def given_to(kind: type[Step]) -> dict[str, Any]:
    """Everything that a step requires, and nothing else."""
    data = {name: ["one text", "another text"] for name, spec in registered(kind, "input").items() if spec.required}
    rows = DataSource("Rows", data=data) if data else None
    args = {name: BY_TYPE[spec.type] for name, spec in registered(kind, "arg").items() if spec.required}
    if kind.__name__ == "CosineSimilarity":  # it takes vectors, or texts and what embeds them
        args["embedder"] = Lengths()
    return {"inputs": {name: rows.output[name] for name in data} if rows else {}, "args": args}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its vectors as lists, as they are stored."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}


def made(kind: type, folder: Path, **more: Any) -> Any:
    """Makes a source of two rows with the column `text`."""
    (folder / "a.csv").write_text("text\none\ntwo\n")
    (folder / "a.json").write_text('[{"text": "one"}, {"text": "two"}]')
    (folder / "a.txt").write_text("one\ntwo\n")
    if not (folder / "saved").exists():
        with_path = DataSource("Saved", data={"text": ["one", "two"]}).export_to_hf_dataset(folder / "saved")
        assert len(with_path) == 2
    needs: dict[str, dict[str, Any]] = {
        "DataSource": {"data": {"text": ["one", "two"]}},
        "CSVDataSource": {"data_files": str(folder / "a.csv")},
        "JSONDataSource": {"data_files": str(folder / "a.json")},
        "TextDataSource": {"data_files": str(folder / "a.txt")},
        "HFDatasetDataSource": {"dataset_path": str(folder / "saved")},
        "HFHubDataSource": {"path": "csv", "split": "train", "data_files": str(folder / "a.csv")},
    }
    return kind(kind.__name__, **needs[kind.__name__], **more)


@pytest.mark.parametrize("kind", ALL)
def test_help_says_what_a_step_is_and_what_it_takes_and_gives(kind: Any) -> None:
    text = kind.help
    first = text.splitlines()[0]
    assert first.startswith(f"{kind.__name__}: ")
    assert first.endswith((".", ":"))
    for title, specs in (("inputs:", "input"), ("args:", "arg"), ("outputs:", "output")):
        assert title in text
        for name, spec in registered(kind, specs).items():
            assert f"  {name}" in text
            assert spec.help, f"{kind.__name__} does not say what its {specs} {name} is"
    assert registered(kind, "output")


@pytest.mark.parametrize("kind", STEPS)
class TestStep:
    def test_it_runs_with_what_it_requires_and_yields_what_it_registers(
        self, session: DataDreamer, kind: type[Step]
    ) -> None:
        step = kind("It", **given_to(kind))
        rows = list(step.output)
        assert rows
        columns = registered(kind, "output")
        if "*" not in " ".join(columns):
            assert step.output.column_names == list(columns)
        assert all(list(row) == step.output.column_names for row in rows)
        assert step.errors == {}

    def test_an_output_can_be_renamed(self, session: DataDreamer, kind: type[Step]) -> None:
        plain = kind("It", **given_to(kind))
        name = plain.output.column_names[-1]
        renamed = kind("It as well", **given_to(kind), outputs={name: "new name"})
        assert "new name" in renamed.output.column_names
        assert name not in renamed.output.column_names

    def test_a_misspelt_argument_is_refused_with_the_right_name(self, session: DataDreamer, kind: type[Step]) -> None:
        for name in registered(kind, "arg"):
            given = given_to(kind)
            given["args"][f"{name[:-1]}{name[-1]}x"] = given["args"].get(name, 1)
            with pytest.raises(DefinitionError, match=rf'"It" has no argument "{name}x".*Did you mean "\w+"\?'):
                kind("It", **given)
        assert not list(Path(session.folder).glob("it*/node.json"))

    def test_a_missing_argument_and_a_missing_input_are_named(self, session: DataDreamer, kind: type[Step]) -> None:
        for what in ("inputs", "args"):
            for name in given_to(kind)[what]:
                if name == "embedder" and kind.__name__ == "CosineSimilarity":
                    continue
                given = given_to(kind)
                del given[what][name]
                with pytest.raises(DefinitionError, match=rf'"It".*"{name}"'):
                    kind("It", **given)

    def test_a_value_of_the_wrong_type_is_named(self, session: DataDreamer, kind: type[Step]) -> None:
        for name, spec in registered(kind, "arg").items():
            if spec.type is None:
                continue
            given = given_to(kind)
            given["args"][name] = object()
            with pytest.raises(ArgumentTypeError, match=rf'"It": argument "{name}"'):
                kind("It", **given)
        for name in registered(kind, "input"):
            given = given_to(kind)
            given["inputs"][name] = ["no", "column"]
            with pytest.raises(ArgumentTypeError, match=rf'"It": input "{name}"'):
                kind("It", **given)

    def test_outside_a_session_it_only_checks_itself(self, kind: type[Step]) -> None:
        with DataDreamer(":memory:"):
            given = given_to(kind)
        assert current_session() is None
        with pytest.raises(SessionError, match="outside a session"):
            _ = kind("It", **given).output

    def test_lazily_it_yields_the_same_rows_and_keeps_none(self, session: DataDreamer, kind: type[Step]) -> None:
        if "lazy" not in registered(kind, "arg"):
            return
        given = given_to(kind)
        step = kind("It", **given)
        lazy = kind("It lazily", **{**given, "args": {**given["args"], "lazy": True}})
        assert [plain(row) for row in lazy.output] == [plain(row) for row in step.output]
        assert lazy.folder is not None
        assert not lazy.folder.exists()


@pytest.mark.parametrize("kind", SOURCES)
class TestSource:
    def test_it_reads_its_rows(self, session: DataDreamer, tmp_path: Path, kind: type) -> None:
        step = made(kind, tmp_path)
        assert list(step.output["text"]) == ["one", "two"]

    def test_a_misspelt_option_is_refused_with_the_right_name(
        self, session: DataDreamer, tmp_path: Path, kind: type
    ) -> None:
        made(DataSource, tmp_path)
        if kind is HFHubDataSource:  # what it does not know belongs to the dataset's own builder
            return
        with pytest.raises((DefinitionError, TypeError), match="forse"):
            made(kind, tmp_path, forse=True)

    def test_it_runs_again_when_forced(self, session: DataDreamer, tmp_path: Path, kind: type) -> None:
        assert list(made(kind, tmp_path, force=True).output["text"]) == ["one", "two"]


@pytest.mark.parametrize("kind", ALL)
def test_its_result_survives_a_pickle(tmp_path: Path, kind: type) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with DataDreamer(tmp_path / "session"):
        step = made(kind, folder) if kind in SOURCES else kind("It", **given_to(kind))
        again = pickle.loads(pickle.dumps(step))
        assert repr(list(again.output)) == repr(list(step.output))
        assert again.fingerprint == step.fingerprint
