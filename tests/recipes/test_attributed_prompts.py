"""Attributed prompts: whose values a prompt has, which are left out, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, SessionError
from datadreamer_like.recipes import AttributedPrompts
from datadreamer_like.testing import FakeLLM

LISTS = {
    "games": "1. chess\n2. puzzles\n3. Dice\n",
    "science": "Here are some:\n- dice\n- stars\n* **atoms**",
    "music": "1. songs",
    "law": "1. courts",
}


def answer(prompt: str) -> str:
    if prompt.startswith("List"):
        return next(text for label, text in LISTS.items() if label in prompt)
    wishes = dict(re.findall(r"- (\w+): (.+)", prompt))
    return " ".join(["a text on", *wishes.values()])


def given(**more: Any) -> dict[str, Any]:
    attributes = {"subtopic": None, "tone": ["dry", "warm"]}
    return {
        "llm": FakeLLM(answer), "task": "a description", "labels": ["games", "science"], "attributes": attributes,
        "per_label": ["subtopic"], "rows_per_label": 12, **more,
    }  # fmt: skip


def test_each_prompt_has_values_of_its_own_class_and_none_that_two_classes_share(session):
    made = AttributedPrompts("Made", **given())
    assert made.attributes["subtopic"] == {"games": ["chess", "puzzles"], "science": ["stars", "atoms"]}
    assert made.attributes["tone"] == {"games": ["dry", "warm"], "science": ["dry", "warm"]}
    rows = list(made.rows.output)
    assert [row["label"] for row in rows] == ["games"] * 12 + ["science"] * 12
    for row in rows:
        chosen = row["attributes"]
        assert row["text"] == f"a text on {chosen['subtopic']} {chosen['tone']}"
        assert chosen["subtopic"] in made.attributes["subtopic"][row["label"]]
    assert {row["attributes"]["subtopic"] for row in rows} == {"chess", "puzzles", "stars", "atoms"}
    assert made.simple is None


def test_listed_values_are_without_markup_and_each_once(session):
    listed = "Sure, three styles:\n\n1. **Short**: few words\n2. __Long__\n3. long\n- *dry*\n\nAsk for more!"
    llm = FakeLLM(lambda prompt: listed if prompt.startswith("List") else "a text")
    made = AttributedPrompts("Made", **given(llm=llm, attributes={"style": None}, per_label=[]))
    assert made.attributes["style"]["games"] == ["Short: few words", "Long", "dry"]


def test_a_bound_of_the_answers_bounds_the_lists_of_values_too_so_that_a_budget_can_be_kept(session):
    llm = FakeLLM(answer)
    AttributedPrompts("Made", **given(llm=llm, max_new_tokens=50))
    bounds = {(request.prompt[:4] == "List", request.sampling.max_new_tokens) for request in llm.asked}
    assert bounds == {(True, 8 * 32), (False, 50)}
    AttributedPrompts("Unbounded", **given(llm=llm))
    assert llm.asked[-1].sampling.max_new_tokens is None


def test_simple_prompts_of_the_same_number_are_less_diverse(session):
    made = AttributedPrompts("Made", **given(control=True))
    attributed, simple = made.table.rows
    assert simple["rows"] == attributed["rows"] == 24
    assert simple["self_bleu"] == pytest.approx(1.0)  # the fake says the same to each simple prompt
    assert attributed["vocabulary"] == 3 + 2 + 2
    assert attributed["self_bleu"] < 1.0
    assert attributed["distinct_2"] > simple["distinct_2"]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"llm": "gpt"}, ArgumentTypeError, "llm must be an LLM"),
        ({"labels": []}, DefinitionError, "labels must be one or more"),
        ({"labels": "games"}, ArgumentTypeError, "labels must be a list"),
        ({"labels": ["games", " "]}, DefinitionError, "none blank"),
        ({"task": ""}, DefinitionError, "task must be one or more"),
        ({"attributes": {}}, DefinitionError, "attributes must be a dictionary of one or more"),
        ({"attributes": {"tone": []}, "per_label": []}, DefinitionError, 'attribute "tone" must be one or more'),
        ({"per_label": ["topic"]}, DefinitionError, 'per_label names "topic"'),
        ({"per_label": ["tone"]}, DefinitionError, "whose values are given"),
        ({"temprature": 1}, DefinitionError, '"Made" has no argument "temprature".*mean "temperature"'),
        ({"values": 0}, DefinitionError, "values is 0"),
        ({"llm": FakeLLM(lambda prompt: "I cannot.")}, DataError, 'listed no values of "subtopic"'),
    ],
)
def test_what_makes_no_sense_is_refused(session, more, error, message):
    with pytest.raises(error, match=message):
        AttributedPrompts("Made", **given(**more))


def test_there_must_be_a_session():
    with pytest.raises(SessionError, match="Put it inside"):
        AttributedPrompts("Made", **given())


def test_a_preview_asks_for_values_of_the_first_classes_and_the_full_run_for_the_others(tmp_path):
    llm = FakeLLM(answer)
    more = {"llm": llm, "labels": ["games", "science", "music", "law"], "rows_per_label": 1}
    for preview, count in ((2, 2), (None, 4)):
        with DataDreamer(tmp_path / "output", verbose=False, preview=preview):
            made = AttributedPrompts("Made", **given(**more))
            rows = list(made.rows.output)
        assert [row["label"] for row in rows] == more["labels"][:count]
        assert [*made.attributes["subtopic"]] == more["labels"][:count]
    assert len(llm.prompts) == len({*llm.prompts})
