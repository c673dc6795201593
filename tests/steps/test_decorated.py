from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import pytest

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, StepOutputError
from datadreamer_like.graph import DataDreamer, OutputIterableDataset
from datadreamer_like.steps import DataSource
from datadreamer_like.steps.base.decorated import step


class Size(TypedDict):
    letters: int
    vowels: int


class Pair(NamedTuple):
    first: str
    last: str


@dataclasses.dataclass
class Ends:
    first: str
    last: str


@step
def shout(text: str, *, mark: str = "!", times: int | None = 1) -> str:
    """Raises its voice."""
    return text.upper() + mark * (times or 0)


@step
def size(text: str) -> Size:
    return {"letters": len(text), "vowels": sum(letter in "aeiou" for letter in text)}


@step
def pair(text: str) -> Pair:
    return Pair(text[0], text[-1])


@step
def ends(text: str) -> Ends:
    return Ends(text[0], text[-1])


@step(outputs=["letter", "place"])
def letters(text: str) -> Iterator[tuple[str, int]]:
    for place, letter in enumerate(text):
        if letter != "o":
            yield letter, place


@step(batched=True, batch_size=2)
def position_in_batch(text: list[str]) -> list[int]:
    return list(range(len(text)))


@step(batched=True, outputs=["a", "b"])
def both(x: list[str], y: list[int]) -> dict[str, list[Any]]:
    return {"a": x, "b": y}


@step
def count(*, to: int) -> Iterator[int]:
    yield from range(to)


@pytest.fixture
def words(session: DataDreamer) -> DataSource:
    return DataSource("Words", data={"word": ["cat", "dog", "owl"], "n": [1, 2, 3]})


def test_both_forms_of_the_call_make_the_same_step(words: DataSource) -> None:
    long = shout("Shout", inputs={"text": words.output["word"]}, args={"mark": "?"}, outputs={"shout": "loud"})
    assert list(long.output["loud"]) == ["CAT?", "DOG?", "OWL?"]
    short = shout(words.output["word"], mark="?", name="Shout it")
    assert list(short.output["shout"]) == ["CAT?", "DOG?", "OWL?"]
    assert short.name == "Shout it"
    assert shout(text=words.output["word"]).output["shout"][0] == "CAT!"
    assert position_in_batch(words.output["word"]).name == "position in batch"
    assert short.parents == [words]


def test_the_function_itself_stays_callable() -> None:
    assert shout.function("a", mark="?") == "A?"
    assert "Raises its voice." in shout.help
    assert "mark (optional, default: '!')" in shout.help


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (size, {"letters": 3, "vowels": 1}),
        (pair, {"first": "c", "last": "t"}),
        (ends, {"first": "c", "last": "t"}),
    ],
)
def test_the_return_annotation_names_the_columns(words: DataSource, function: Any, expected: dict) -> None:
    assert function(words.output["word"]).output[0] == expected


def test_a_generator_yields_any_number_of_rows(words: DataSource) -> None:
    made = letters(words.output["word"])
    assert [row["letter"] for row in made.output] == list("catdgwl")
    assert [row["place"] for row in made.output][:4] == [0, 1, 2, 0]


def test_batches(words: DataSource) -> None:
    assert list(position_in_batch(words.output["word"]).output["position_in_batch"]) == [0, 1, 0]
    assert list(both(words.output["word"], words.output["n"]).output) == [
        {"a": "cat", "b": 1}, {"a": "dog", "b": 2}, {"a": "owl", "b": 3},
    ]  # fmt: skip


def test_a_function_without_inputs_is_a_source(session: DataDreamer) -> None:
    assert list(count(to=3).output["count"]) == [0, 1, 2]


def test_an_optional_input_has_its_default(words: DataSource) -> None:
    @step
    def joined(a: str, b: int = 7) -> str:
        return f"{a}{b}"

    assert joined(words.output["word"]).output["joined"][0] == "cat7"
    assert joined(words.output["word"], words.output["n"]).output["joined"][0] == "cat1"


def test_lazy_steps_call_in_each_pass(words: DataSource) -> None:
    calls = []

    @step
    def noted(a: str) -> str:
        calls.append(a)
        return a

    made = noted(words.output["word"], lazy=True)
    assert isinstance(made.output, OutputIterableDataset)
    assert not calls
    assert list(made.output["noted"]) == list(made.output["noted"])
    assert len(calls) == 6


def test_wrong_calls_are_refused(words: DataSource) -> None:
    word = words.output["word"]
    with pytest.raises(ArgumentTypeError, match='argument "mark" is 3 .*expected str'):
        shout(word, mark=3)
    with pytest.raises(ArgumentTypeError, match='argument "times"'):
        shout(word, times="x")
    assert shout(word, times=None).output["shout"][0] == "CAT"
    with pytest.raises(DefinitionError, match='no parameter "mrak".*Did you mean "mark"'):
        shout(word, mrak="?")
    with pytest.raises(DefinitionError, match="was given 2 columns; it takes 1"):
        shout(word, word)
    with pytest.raises(DefinitionError, match="given twice"):
        shout(word, text=word)
    for both in ((word,), ()):
        with pytest.raises(DefinitionError, match='two names, "One" and "Two"'):
            shout("One", *both, name="Two")
    with pytest.raises(DefinitionError, match='lacks the input "text"'):
        shout(mark="?")
    with pytest.raises(DefinitionError, match='lacks the argument "to"'):
        count()


def test_wrong_definitions_are_refused() -> None:
    with pytest.raises(DefinitionError, match="a fixed number of parameters"):
        step(lambda *texts: texts)
    with pytest.raises(DefinitionError, match='"name" is an option of every step'):
        step(lambda name: name)

    def untold(text: str) -> dict:
        return {}

    with pytest.raises(DefinitionError, match="of unknown columns"):
        step(untold)
    with pytest.raises(DefinitionError, match="expected different names"):
        step(outputs=["a", "a"])(untold)
    with pytest.raises(ArgumentTypeError, match="decorates functions"):
        step(str)


def test_wrong_results_name_the_step(words: DataSource) -> None:
    @step(outputs=["a", "b"])
    def partly(text: str) -> dict[str, str]:
        return {"a": text}

    with pytest.raises(StepOutputError, match='"partly".*expected a, b'):
        partly(words.output["word"])

    @step
    def failing(text: str, *, kind: Literal["x", "y"] = "x") -> str:
        return text[9]

    with pytest.raises(IndexError) as caught:
        failing(words.output["word"])
    assert caught.value.__notes__ == ['In step "failing", called with row 0.']


def test_a_changed_function_or_value_that_it_uses_reruns_the_step(tmp_path: Path) -> None:
    def run(body: str, mark: str) -> list[str]:
        names: dict[str, Any] = {"__name__": "script", "mark": mark}
        exec(f"def spoken(text: str) -> str:\n    return {body}", names)
        with DataDreamer(tmp_path, verbose=False):
            words = DataSource("Words", data={"word": ["cat"]})
            made = step(names["spoken"])(words.output["word"])
            return [made.fingerprint, *made.output["spoken"]]

    first = run("text + mark", "!")
    assert first[1] == "cat!"
    assert run("text + mark", "!") == first
    assert run("text + mark", "?")[1] == "cat?"
    assert run("mark + text", "?")[1] == "?cat"
