"""The examples in the docstrings of steps run as they stand; here are the rows, models and files that they name."""

from __future__ import annotations

import doctest
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from subjects import ALL_STEPS, First, Lengths, Lower, Parrot, Sure

import datadreamer_like.steps as steps
from datadreamer_like import DataDreamer
from datadreamer_like.distillation import ScoreLabels
from datadreamer_like.steps import ABSTAIN, ApplyLabellingFunctions, DataSource, Step, labelling_function

COUNT = 24
"""The rows of each step: enough for an audit, and for five folds of each label."""


def source_of(kind: type[Step]) -> str:
    """The code of a class's own example."""
    return "".join(each.source for each in doctest.DocTestParser().get_examples(vars(kind).get("__doc__") or ""))


EXAMPLES = [kind for kind in ALL_STEPS if source_of(kind)]


@labelling_function
def names_a_game(row: dict[str, Any]) -> Any:
    return "games" if "chess" in row["text"] else ABSTAIN


@labelling_function
def names_a_font(row: dict[str, Any]) -> Any:
    return "fonts" if "glyph" in row["text"] else ABSTAIN


def columns(of: str, count: int = COUNT) -> dict[str, list[Any]]:
    """Every column that an example reads, by what it holds; texts differ from those of another step."""
    topics = ["games" if place % 2 else "fonts" for place in range(count)]
    texts = [f"{of} {place} of {'chess' if place % 2 else 'glyphs'} in here" for place in range(count)]
    return {
        **dict.fromkeys(("text", "generations", "title", "body", "a", "instruction"), texts),
        **dict.fromkeys(("topic", "labels"), topics),
        "b": [f"other {text}" for text in texts],
        "better": ["a", "b", *[None] * (count - 2)],
        "label": ["spam" if place % 3 else "ham" for place in range(count)],
        "stars": [place % 5 for place in range(count)],
    }


def write_files() -> None:
    """Writes the files that examples of sources name into the working directory."""
    table = pa.table({"text": ["one", "two"]})
    feather.write_feather(table, "reviews.feather")
    pq.write_table(table, "reviews-1.parquet")
    Path("handbook").mkdir()
    Path("handbook/start.md").write_text("# Start\n\nRead this first.", encoding="utf-8")
    with closing(sqlite3.connect("tickets.db")) as connection, connection:
        connection.execute("CREATE TABLE tickets (body TEXT, lang TEXT)")
        connection.execute("INSERT INTO tickets VALUES ('It is late.', 'en')")
    Path("paid.jsonl").write_text(steps.CallLogDataSource.example_text, encoding="utf-8")


def voters() -> dict[str, Any]:
    functions = {"functions": [names_a_game, names_a_font], "labels": ["games", "fonts"]}
    texts = DataSource("texts", {"text": columns("texts")["text"]})
    return {"texts": texts, "votes": ApplyLabellingFunctions("votes", {"inputs": texts.output["text"]}, functions)}


OF_ONE: dict[str, Callable[[], dict[str, Any]]] = {
    "ChooseRowsToLabel": lambda: {
        "pool": DataSource("pool", columns("pool", 120)),
        "student": ScoreLabels(Parrot(), ["games", "fonts"]),
    },
    "DataFromAttributedPrompt": lambda: {
        "real": DataSource("real", {"text": ["A chess game.", "An orbit."], "topic": ["games", "science"]})
    },
    "GoldAudit": voters,
    "Judges": lambda: {"small": Parrot(), "large": Parrot()},
    "LabelModel": lambda: {**voters(), "student": SimpleNamespace(train=lambda *columns: None)},
    "MajorityVote": voters,
    "PredictOrAbstain": lambda: {"sure": Sure()},
}
"""What names mean in one example alone."""


class Names(dict[str, Any]):
    """The names of an example: those given, and for any other a step with all columns."""

    def __missing__(self, name: str) -> Any:
        if hasattr(steps, name):
            return getattr(steps, name)
        if name in __builtins__:  # type: ignore[operator]
            raise KeyError(name)
        return self.setdefault(name, DataSource(name, columns(name)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_files()
    return tmp_path


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_example_of_its_docstring_runs(folder: Path, kind: type[Step]) -> None:
    source = source_of(kind)
    assert f"{kind.__name__}(" in source
    names = Names(
        llm=Parrot(),
        embedder=Lengths(),
        teacher=ScoreLabels(Parrot(), ["games", "fonts"]),
        retriever=First(["one", "two"]),
        classifier=Lower(),
        schema={"type": "object"},
        names_a_game=names_a_game,
        names_a_font=names_a_font,
    )
    if "with DataDreamer(" in source:
        exec(source, names)
        return
    with DataDreamer(folder / "output", verbose=False):
        names.update(OF_ONE.get(kind.__name__, dict)())
        exec(source, names)
        made: list[Any] = [value for value in names.values() if type(value) is kind]
        assert all(list(step.output) or list(step.rejected.output) for step in made)
